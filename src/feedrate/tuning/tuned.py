"""The option loader=tuned: the file with the setting that src/tune.py has found, and what it was found for."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from feedrate.config import ROOT
from feedrate.errors import UserError
from feedrate.system.cores import usable_cores
from feedrate.system.files import atomic_write, check_place, writing
from feedrate.tuning.trial_runner import Setting, TrialRunner
from feedrate.tuning.tune import Tuned

WRITTEN = "# Written by "  # marks a file of tune.py
COMPARED_S = 1.0  # time to load batches for the comparison without workers
MOST_COMPARED = 16  # batches


def compare(runner: TrialRunner, best: Setting, rate: float) -> str:
    """Loads the first batches with a setting and without workers; returns a sentence with their number and digests.

    `rate`, the samples per second without workers, bounds the number of batches.
    """
    batches = max(1, min(MOST_COMPARED, int(COMPARED_S * rate / runner.node["batch_size"])))
    try:
        (order, content), inline = (runner.digests(setting, batches) for setting in (best, Setting(0)))
    except UserError as error:  # values without a definite content
        return f"nothing ({str(error).splitlines()[0]})"
    assert order == inline[0], "the order of the samples depends on the loader's setting"
    text = f"the first {batches} batches: order digest {order[:16]}"
    if content != inline[1]:
        remedy = "draw the dataset's random numbers from sample_rng()"
        return f"{text} with and without workers, but their content differs: {remedy}"
    return f"{text}, content digest {content[:16]}, with and without workers"


def option(node: Mapping[str, Any], found: Tuned, compared: str, command: str, data_and_model: str) -> str:
    """The text of the option's file, without its first line; the setting overrides keys of `node` (conf/loader)."""
    lines = [
        f"{WRITTEN}{command}",
        f"# on {datetime.now(timezone.utc):%Y-%m-%d}, for {data_and_model} on {usable_cores()} cores.",
        f"# {found}; the step can take {found.step_samples_per_s:,.0f} samples/s.",
        *([f"# Note: {found.unsteady}."] if found.unsteady else []),
        f"# Compared: {compared}.",
        "# tried:",
        *(f"#   {tried}" for tried in found.tried),
    ]
    content = OmegaConf.to_yaml(OmegaConf.create({**node, **found.best.setting.overrides}))
    return "\n".join(lines) + "\n" + content


def check(path: Path) -> None:
    """Checks that the option can be written.

    Raises:
        UserError: it cannot, or the file is not one of tune.py.
    """
    with writing(f"tune.output={path}", "name another file"):
        check_place(path)
        foreign = path.is_file() and WRITTEN not in path.read_text(encoding="utf-8", errors="replace")
    if foreign:
        raise UserError(f"tune.output={path}: that file was not written by tune.py; name another one")


def write(path: Path, text: str) -> None:
    """Writes the option below a line with the command that uses it.

    Raises:
        UserError: the file cannot be written.
    """
    with writing(f"tune.output={path}", "name another file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, f"# python src/train.py loader={path.stem}\n{text}")


def use(path: Path) -> str:
    """How a run uses the option."""
    if path.parent == ROOT / "conf/loader" and path.suffix == ".yaml":
        return f"use it with loader={path.stem}"
    return "to use it with loader=NAME, copy it to conf/loader/NAME.yaml"
