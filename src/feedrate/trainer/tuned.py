"""What is left of a tuning: an option of the group loader with the figures that it rests on, and its record.

What is remembered for later is remembered.py's affair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from feedrate.dataset.cores import usable_cores
from feedrate.errors import UserError
from feedrate.tracking.note import number
from feedrate.tracking.tuning import Tried
from feedrate.trainer.bed import Bed
from feedrate.trainer.tune import Trial, Tuned

COMPARED_S = 1.0  # for which batches are loaded inline to compare them
MOST_COMPARED = 16  # batches


@dataclass(frozen=True)
class Same:
    """Whether tuning changed what is delivered.

    Attributes:
        batches: that were compared, with the setting that was found and with the one that was there.
        order: digest of their order, 64 hexadecimal digits.
        content: digest of what they hold; empty where that cannot be told.
        as_before: whether the latter is the same with both; the order is, or `compare` fails.
    """

    batches: int
    order: str
    content: str
    as_before: bool

    def __str__(self) -> str:
        said = f"the first {self.batches} batches: order digest {self.order[:16]}"
        if not self.content:
            return f"{said}, with this setting and with the former one"
        if self.as_before:
            return f"{said}, content digest {self.content[:16]}, with this setting and with the former one"
        return (
            f"{said} with this setting and with the former one, but their content differs: the dataset draws random "
            "numbers that are not sample_rng()'s"
        )


def compare(bed: Bed, best: Trial, slowest: float) -> Same:
    """Loads the first batches with the setting that was found and with the former one.

    Args:
        slowest: samples per second without workers, which bounds how many batches are compared.
    """
    batches = max(1, min(MOST_COMPARED, int(COMPARED_S * slowest / bed.node["batch_size"])))
    order, content = bed.digests(best.setting.overrides, batches)
    former = bed.digests({}, batches)
    assert order == former[0], "the order of the samples depends on the loader's setting"
    return Same(batches, order, content, content == former[1])


def line(trial: Trial) -> str:
    """A trial in words."""
    if trial.refused:
        return f"{trial.setting}: {trial.refused}"
    predicted = f" (predicted {trial.predicted:,.0f})" if trial.predicted else ""
    times = f", {trial.measured} times" if trial.measured > 1 else ""
    return f"{trial.setting}: {trial.samples_per_s:,.0f} samples/s{predicted}, waited {trial.wait_pct:.1f} %{times}"


def words(found: Tuned) -> str:
    """The setting, and what it reached."""
    best = found.best
    return f"{best.setting}: {best.samples_per_s:,.0f} samples/s, waited {best.wait_pct:.1f} %"


def option(node: Mapping[str, Any], found: Tuned, same: Same, command: str, data_and_model: str) -> str:
    """The file's text.

    Args:
        node: conf/loader, resolved; what was not tuned stays as it is.
        command: that made it.
    """
    lines = [
        "# python src/train.py loader=tuned",
        f"# Written by {command}",
        f"# on {today()}, for {data_and_model} on {usable_cores()} cores.",
        f"# {words(found)}; the step can take {found.step_samples_per_s:,.0f} samples/s.",
        f"# Tuning changes no batch: {same}.",
        "# tried:",
        *(f"#   {line(trial)}" for trial in found.trials),
    ]
    content = OmegaConf.to_yaml(OmegaConf.create({**node, **found.best.setting.overrides}))
    return "\n".join(lines) + "\n" + content


def write(path: Path, text: str) -> None:
    """Writes the option; an earlier one is replaced.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        said = f"tune.output={path}: cannot be written ({error.strerror or error}); name another file"
        raise UserError(said) from error


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
        f"| {t.setting} | {number(t.samples_per_s)} | {number(t.predicted) if t.predicted else '-'} "
        f"| {t.wait_pct:.1f} | {t.refused or t.measured} |"
        for t in _fastest_first(found.trials)
    ]
    head = ["| setting | samples/s | predicted | wait % | measured |", "|:--|--:|--:|--:|--:|"]
    step = f"The step can take {number(found.step_samples_per_s)} samples/s. Tuning changes no batch: {same}."
    return "\n".join([f"**{words(found)}**", "", step, "", *head, *rows, "", "```sh", command, "```", ""])


def _fastest_first(trials: Sequence[Trial]) -> list[Trial]:
    return sorted(trials, key=lambda trial: -trial.samples_per_s)
