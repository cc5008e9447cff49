"""The result of a tuning: an option of the group loader with the figures it rests on, and the record in MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from feedrate.config import ROOT, shown_path
from feedrate.errors import UserError
from feedrate.system.atomic_write import check_place, replace_shared_file, writing
from feedrate.system.cores import usable_cores
from feedrate.system.text import number
from feedrate.tracking.journal import JOB_TAG, PARENT_JOURNAL, PARENT_TAG, Journal
from feedrate.tracking.tracker import open_tracker
from feedrate.tuning.trial_runner import Setting, TrialRunner
from feedrate.tuning.tune import Trial, Tuned

if TYPE_CHECKING:
    from feedrate.config import TrackingConfig

WRITTEN = "# Written by "  # marks a file of tune.py
COMPARED_S = 1.0  # time to load batches for the comparison without workers
MOST_COMPARED = 16  # batches


@dataclass(frozen=True)
class Same:
    """Whether the first batches are the same with the tuned setting and without workers.

    Attributes:
        batches: number of batches compared.
        order: order digest, equal in both.
        content: content digest; empty if it cannot be computed.
        same_content: whether the content is equal in both.
    """

    batches: int
    order: str
    content: str
    same_content: bool

    def __str__(self) -> str:
        text = f"the first {self.batches} batches: order digest {self.order[:16]}"
        if not self.content:
            return f"{text}, with and without workers"
        if self.same_content:
            return f"{text}, content digest {self.content[:16]}, with and without workers"
        return (
            f"{text} with and without workers, but their content differs: "
            "draw the dataset's random numbers from sample_rng()"
        )


def compare(runner: TrialRunner, best: Setting, rate: float) -> Same:
    """Loads the first batches with a setting and without workers.

    Args:
        rate: samples per second without workers, which bounds the number of batches.
    """
    batches = max(1, min(MOST_COMPARED, int(COMPARED_S * rate / runner.node["batch_size"])))
    order, content = runner.digests(best, batches)
    inline_order, inline_content = runner.digests(Setting(0), batches)
    assert order == inline_order, "the order of the samples depends on the loader's setting"
    return Same(batches, order, content, content == inline_content)


# ---------------------------------------------------------------------------------------------------------
# the option's file
# ---------------------------------------------------------------------------------------------------------


def option(node: Mapping[str, Any], found: Tuned, same: Same, command: str, data_and_model: str) -> str:
    """The text of the option's file, without its first line.

    Args:
        node: conf/loader, resolved; the setting overrides its keys.
        command: the command that found it.
    """
    lines = [
        f"{WRITTEN}{command}",
        f"# on {today()}, for {data_and_model} on {usable_cores()} cores.",
        f"# {found}; the step can take {found.step_samples_per_s:,.0f} samples/s.",
        *([f"# Note: {found.unsteady}."] if found.unsteady else []),
        f"# Compared: {same}.",
        "# tried:",
        *(f"#   {trial}" for trial in found.trials),
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
        replace_shared_file(path, f"# python src/train.py loader={path.stem}\n{text}")


def use(path: Path) -> str:
    """How a run uses the option."""
    if path.parent == ROOT / "conf/loader" and path.suffix == ".yaml":
        return f"use it with loader={path.stem}"
    return "to use it with loader=NAME, copy it to conf/loader/NAME.yaml"


def today() -> str:
    return f"{datetime.now(timezone.utc):%Y-%m-%d}"


# ---------------------------------------------------------------------------------------------------------
# MLflow
# ---------------------------------------------------------------------------------------------------------


def record(
    config: TrackingConfig, name: str, folder: Path, found: Tuned, same: Same, path: Path, tags: Mapping[str, str]
) -> str | None:
    """Records the tuning as a run with a child run for each trial; returns its link, None until the store answers.

    Called after the trials, since an uploader takes CPU time.

    Args:
        config: the group `tracking`, with a `uri`.
        folder: of the journals.
        path: of the option.
        tags: of the parent run; `feedrate.command` is its command.

    Raises:
        UserError: the store cannot be used.
    """
    config = replace(config, system_metrics=False, log_model=False)
    tracker = open_tracker(config, run_name=name, run_folder=folder)
    tracker.tags({**tags, "feedrate.best": str(found.best.setting)})
    tracker.params(_params(found.best))
    tracker.metrics(_metrics(found.best, found), 0)
    tracker.note(_note(found, same, tags["feedrate.command"]))
    tracker.artifact(path)
    for number_, trial in enumerate(found.trials):
        child = folder / str(number_)
        child.mkdir()
        journal = Journal(child)
        parent = {PARENT_TAG: f"{PARENT_JOURNAL}{folder}", JOB_TAG: str(number_)}
        journal.begin(str(trial.setting), {**parent, "feedrate.run_folder": shown_path(child)}, config)
        journal.write("params", values={key: str(value) for key, value in _params(trial).items()})
        if not trial.refused:
            journal.write("metrics", step=0, values=_metrics(trial, found))
        journal.write("end", status="FAILED" if trial.refused else "FINISHED", error=trial.refused)
        tracker.close_dead(child)
    tracker.end("FINISHED")
    return tracker.url


def _params(trial: Trial) -> dict[str, Any]:
    return {f"loader.{key}": value for key, value in trial.setting.overrides.items()}


def _metrics(trial: Trial, found: Tuned) -> dict[str, float]:
    predicted = {"tune/predicted_samples_per_s": trial.predicted} if trial.predicted else {}
    return {
        "loader/samples_per_s": trial.samples_per_s,
        "loader/wait_pct": trial.wait_pct,
        "compute/ceiling_samples_per_s": found.step_samples_per_s,
        **predicted,
    }


def _note(found: Tuned, same: Same, command: str) -> str:
    """The Markdown note of the parent run."""
    rows = [
        f"| {t.setting} | {t.rate} | {number(t.predicted) if t.predicted else '-'} "
        f"| {t.wait_pct:.1f} | {t.refused or t.measured} |"
        for t in sorted(found.trials, key=lambda trial: -trial.samples_per_s)
    ]
    head = ["| setting | samples/s | predicted | wait % | measured |", "|:--|--:|--:|--:|--:|"]
    step = f"The step can take {number(found.step_samples_per_s)} samples/s. Compared: {same}."
    steady = [f"Note: {found.unsteady}.", ""] if found.unsteady else []
    return "\n".join([f"**{found}**", "", *steady, step, "", *head, *rows, "", "```sh", command, "```", ""])
