"""What is left of a tuning: an option of the group loader with the figures that it rests on, and its record.

What is remembered for later is remembered.py's affair.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from feedrate.config import ROOT
from feedrate.errors import SampleError, UserError
from feedrate.system.atomic_write import check_place, replace_shared_file, told
from feedrate.system.cores import usable_cores
from feedrate.system.text import number
from feedrate.tuning.record import Tried
from feedrate.tuning.trial_runner import Setting, TrialRunner
from feedrate.tuning.tune import Trial, Tuned

WRITTEN = "# Written by "  # begins the second line of an option's file
_FOR = re.compile(r"^# on [\d-]+, for (?P<words>.+) on \d+ cores(?: \[(?P<about>\w+)\])?\.$", re.MULTILINE)  # the third
COMPARED_S = 1.0  # for which batches are loaded inline to compare them
MOST_COMPARED = 16  # batches


@dataclass(frozen=True)
class Same:
    """Whether tuning changed what is delivered.

    Attributes:
        batches: that were compared, with the setting that was found and with another one.
        order: digest of their order, 64 hexadecimal digits.
        content: digest of what they hold; empty where that cannot be told.
        as_before: whether the latter is the same with both; the order is, or `compare` fails.
        other: what that one was, in words.
    """

    batches: int
    order: str
    content: str
    as_before: bool
    other: str = "with the former one"

    @property
    def kept(self) -> str:
        """What tuning does not change, after `Tuning changes`."""
        return "no batch" if self.as_before or not self.content else "no order"

    def __str__(self) -> str:
        first = f"first {self.batches} batches" if self.batches > 1 else "first batch"
        said = f"the {first}: order digest {self.order[:16]}"
        if not self.content:
            return f"{said}, with this setting and {self.other}"
        if self.as_before:
            return f"{said}, content digest {self.content[:16]}, with this setting and {self.other}"
        return (
            f"{said} with this setting and {self.other}, but their content differs: the dataset draws random "
            "numbers that are not sample_rng()'s"
        )


def compare(bed: TrialRunner, best: Trial, slowest: float) -> Same:
    """Loads the first batches with the setting that was found and with the former one; where that cannot be used here,
    without workers.

    Args:
        slowest: samples per second without workers, which bounds how many batches are compared.
    """
    batches = max(1, min(MOST_COMPARED, int(COMPARED_S * slowest / bed.node["batch_size"])))
    order, content = bed.digests(best.setting.overrides, batches)
    other = "with the former one"
    try:
        former = bed.digests({}, batches)
    except SampleError:
        raise
    except UserError:
        former, other = bed.digests(Setting(0).overrides, batches), "without workers"
    assert order == former[0], "the order of the samples depends on the loader's setting"
    return Same(batches, order, content, content == former[1], other)


def line(trial: Trial) -> str:
    """A trial in words."""
    if trial.refused:
        return f"{trial.setting}: {trial.refused}"
    predicted = f" (predicted {trial.predicted:,.0f})" if trial.predicted else ""
    times = f", {trial.measured} times" if trial.measured > 1 else ""
    return f"{trial.setting}: {trial.rate} samples/s{predicted}, waited {trial.wait_pct:.1f} %{times}"


def words(found: Tuned) -> str:
    """The setting, and what it reached."""
    best = found.best
    return f"{best.setting}: {best.rate} samples/s, waited {best.wait_pct:.1f} %"


def option(node: Mapping[str, Any], found: Tuned, same: Same, command: str, data_and_model: str, about: str) -> str:
    """The file's text, without the command that uses it.

    Args:
        node: conf/loader, resolved; what was not tuned stays as it is.
        command: that made it.
        about: hash of data set and model.
    """
    lines = [
        f"{WRITTEN}{command}",
        f"# on {today()}, for {data_and_model} on {usable_cores()} cores [{about}].",
        f"# {words(found)}; the step can take {found.step_samples_per_s:,.0f} samples/s.",
        *([f"# Note: {found.unsteady}."] if found.unsteady else []),
        f"# Tuning changes {same.kept}: {same}.",
        "# tried:",
        *(f"#   {line(trial)}" for trial in found.trials),
    ]
    content = OmegaConf.to_yaml(OmegaConf.create({**node, **found.best.setting.overrides}))
    return "\n".join(lines) + "\n" + content


def check(path: Path) -> None:
    """That the option can be written there, as far as that is known before.

    Raises:
        UserError: it cannot.
    """
    with _told(path):
        check_place(path)
        foreign = path.is_file() and WRITTEN not in path.read_text(encoding="utf-8", errors="replace")
    if foreign:
        raise UserError(
            f"tune.output={path}: that file was not written by tune.py, and would be lost; name another one"
        )


def replaces(path: Path, data_and_model: str, about: str) -> str:
    """What to say where the option that is to be written replaces that of another data set or model.

    Args:
        about: hash of the present data set and model; files of earlier versions have none.
    """
    try:
        found = _FOR.search(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    if found is None or (found["about"] == about if found["about"] else found["words"] == data_and_model):
        return ""
    return (
        f"note: {path} was tuned for another dataset or model, {found['words']}, and is replaced; "
        "tune.output=conf/loader/NAME.yaml keeps it"
    )


def write(path: Path, text: str) -> None:
    """Writes the option, with the command that uses it; an earlier one is replaced.

    Raises:
        UserError: the file cannot be written.
    """
    with _told(path):
        replace_shared_file(path, f"# python src/train.py loader={path.stem}\n{text}")


def use(path: Path) -> str:
    """How a run uses the option, in words."""
    if path.parent == ROOT / "conf/loader" and path.suffix == ".yaml":
        return f"use it with loader={path.stem}"
    return "to use it with loader=NAME, copy it to conf/loader/NAME.yaml"


def _told(path: Path) -> AbstractContextManager[None]:
    return told(f"tune.output={path}", "name another file")


def today() -> str:
    """The date, as a record keeps it."""
    return f"{datetime.now(timezone.utc):%Y-%m-%d}"


# ---------------------------------------------------------------------------------------------------------
# for MLflow
# ---------------------------------------------------------------------------------------------------------


def tried(trial: Trial, found: Tuned) -> Tried:
    """A trial's run, or the parent's figures."""
    metrics = {
        "loader/samples_per_s": trial.samples_per_s,
        "loader/wait_pct": trial.wait_pct,
        "compute/ceiling_samples_per_s": found.step_samples_per_s,
    }
    if trial.predicted:
        metrics["tune/predicted_samples_per_s"] = trial.predicted
    settings = {f"loader.{key}": value for key, value in trial.setting.overrides.items()}
    return Tried(
        words=str(trial.setting), settings=settings, metrics={} if trial.refused else metrics, refused=trial.refused
    )


def note(found: Tuned, same: Same, command: str) -> str:
    """The Markdown that the parent's page begins with."""
    rows = [
        f"| {t.setting} | {t.rate} | {number(t.predicted) if t.predicted else '-'} "
        f"| {t.wait_pct:.1f} | {t.refused or t.measured} |"
        for t in _fastest_first(found.trials)
    ]
    head = ["| setting | samples/s | predicted | wait % | measured |", "|:--|--:|--:|--:|--:|"]
    step = f"The step can take {number(found.step_samples_per_s)} samples/s. Tuning changes {same.kept}: {same}."
    steady = [f"Note: {found.unsteady}.", ""] if found.unsteady else []
    return "\n".join([f"**{words(found)}**", "", *steady, step, "", *head, *rows, "", "```sh", command, "```", ""])


def _fastest_first(trials: Sequence[Trial]) -> list[Trial]:
    return sorted(trials, key=lambda trial: -trial.samples_per_s)
