"""What a run leaves behind: parameters and provenance at its start, summary, pictures and note at its end.

How it is stored is the tracker's affair; the same figures stand in summary.json in the run folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from feedrate.dataset import Data
from feedrate.reporting.run_summary import run_note
from feedrate.reporting.trace import rows_of, trace
from feedrate.runs.provenance import Code, code_version, flat, job_id, result_id, size_of_diff
from feedrate.system.atomic_write import atomic_write
from feedrate.timing.verdict import FIGURES, Verdict, undecided
from feedrate.tracking import Tracker, masked
from feedrate.tracking.point import points
from feedrate.tracking.sweep import picture
from feedrate.trainer.device import name_of
from feedrate.trainer.loop import Trainer
from feedrate.trainer.state import Result


@dataclass(frozen=True)
class Run:
    """One run, as far as recording is concerned.

    Attributes:
        config: the resolved configuration.
        choices: option of each group, such as {'dataset': 'digits'}.
        folder: the run folder.
        command: makes this run again; without secrets.
        started: wall-clock time of its first start, ISO 8601.
    """

    config: Mapping[str, Any]
    choices: Mapping[str, str]
    folder: Path
    command: str
    started: str
    code: Code = field(default_factory=code_version)


def write_initial_summary(run: Run, run_id: str | None) -> None:
    """summary.json from the first moment on, so that a run which is killed is known, found, and gone on with."""
    write_summary(run.folder, _birth(run, run_id))


def _birth(run: Run, run_id: str | None = None) -> dict[str, Any]:
    return {
        "status": "RUNNING",
        "command": run.command,
        "started": run.started,
        "result_id": result_id(run.config),
        "job_id": job_id(run.config),
        "run_id": run_id,
        "commit": run.code.commit,
        "uncommitted": size_of_diff(run.code.diff),
    }


def record_resumed(tracker: Tracker, run: Run, trainer: Trainer) -> None:
    """A run that goes on: metrics of finished epochs that a kill kept from the tracker, and the new command."""
    write_summary(run.folder, _birth(run, tracker.run_id))
    known = tracker.last_step("train/loss")
    for epoch, metrics in enumerate(trainer.result.history):
        if epoch > known:
            best = trainer.result.best_figures() if epoch == trainer.result.best_epoch else {}
            tracker.metrics(points({**metrics, **best}, epoch))
    tracker.tags({"feedrate.command": run.command, "feedrate.resumed": "true"})


def record_start(
    tracker: Tracker, run: Run, data: Data, model_parameters: int, device: torch.device, precision: str
) -> None:
    """Parameters, tags, data set and configuration; before training, so that a killed run has them too."""
    write_summary(run.folder, _birth(run, tracker.run_id))
    code = run.code
    groups = {group: option for group, option in run.choices.items() if group in run.config}
    settings = {key: value for key, value in flat(run.config).items() if not key.startswith(("tracking.", "sweep."))}
    tracker.params({**groups, **settings, "model.parameters": model_parameters})
    tracker.tags(
        {
            "feedrate.command": run.command,
            "feedrate.result_id": result_id(run.config),
            "feedrate.job_id": job_id(run.config),
            "feedrate.data_digest": data.digest,
            "feedrate.device": str(device),
            "feedrate.device_name": name_of(device),
            "feedrate.precision": precision,
            "git.commit": code.commit or "unknown",
            "git.dirty": "unknown" if code.diff is None else str(bool(code.diff)).lower(),
        }
    )
    for name, dataset in data.partition.items():
        tracker.dataset(data.name, data.digest, name, len(dataset), data.source)  # type: ignore[arg-type]
    tracker.text(OmegaConf.to_yaml(OmegaConf.create(masked(run.config))), "config.yaml")
    if code.diff:
        tracker.text(code.diff, "uncommitted.diff")
    if data.targets.classes is not None:
        tracker.text(json.dumps(dict(enumerate(data.targets.classes)), indent=2), "classes.json")


def record_end(
    tracker: Tracker, run: Run, trainer: Trainer, result: Result, verdict: Verdict | None, digests: Mapping[str, str]
) -> dict[str, Any]:
    """Pictures, weights, note and summary of a run that ended well; returns the summary."""
    seconds = trainer.seconds
    slow = trainer.account.slow_samples()
    summary = {
        **_birth(run, tracker.run_id),
        "status": "FINISHED",
        "epochs": len(result.history),
        "stopped": result.stopped,
        "seconds": round(seconds, 3),
        "first_batch_after_start_s": trainer.clock.first_batch_after_start_s,
        "phases_s": trainer.clock.totals_s(),
        "device": f"{trainer.device} ({name_of(trainer.device)})",
        "metrics": result.metrics,
        "history": result.history,
        "best_epoch": result.best_epoch + 1,
        "best": result.best,
        "verdict": asdict(verdict) if verdict else None,
        "slow_samples": slow,
        "data_digest": trainer.data.digest,
        **digests,
        "per_class": result.per_class,
    }
    tracker.tags({f"feedrate.{name}": value for name, value in digests.items()})
    if verdict is not None:
        record_verdict(tracker, verdict)
        tracker.metrics(points({f"verdict/{k}": v for k, v in verdict.figures.items()}, len(result.history) - 1))
    whole = {FIGURES[name]: value for name, value in verdict.figures.items()} if verdict else {}
    window = trainer.account.window()
    names = ["throughput", *(["timeline"] if window is not None else [])]
    note = run_note(
        {**result.best, **whole},  # what the verdict rests on, instead of one epoch's rates
        command=run.command,
        epochs=len(result.history),
        best_epoch=result.best_epoch + 1,
        seconds=seconds,
        verdict=verdict_words(trainer, verdict),
        pictures=" ".join(picture(f"plots/{name}.png") for name in names),
        slow=slow,
    )
    tracker.note(note)
    if window is not None:
        (run.folder / "timeline.json").write_text(json.dumps(trace(window)), encoding="utf-8")
    if not tracker.active:
        write_summary(run.folder, summary)
        return summary
    from feedrate.reporting.picture import optional
    from feedrate.reporting.plots import confusion_matrix, loss_curves, throughput, timeline, waits

    curves: dict[str, dict[int, float]] = {}
    for epoch, metrics in enumerate(result.history, start=1):
        for name, value in metrics.items():
            curves.setdefault(name, {})[epoch] = value
    drawn = {"loss": partial(loss_curves, curves), "throughput": partial(throughput, curves)}
    if window is not None and (times := trainer.account.times) is not None:
        drawn["timeline"] = partial(timeline, rows_of(window))
        drawn["waits"] = partial(waits, times.wait / 1e6, times.load / 1e6)
        tracker.artifact(run.folder / "timeline.json")
    if result.confusion is not None:
        names = [str(row["class"]) for row in result.per_class or []]
        title = f"validation after epoch {result.best_epoch + 1}, the best"
        drawn["confusion"] = partial(confusion_matrix, result.confusion, names, title)
    for name, draw in drawn.items():
        with optional(f"plots/{name}.png"):
            tracker.figure(draw(), f"plots/{name}.png")
    write_summary(run.folder, summary)  # only now: a run that is killed before has not finished, and is gone on with
    tracker.artifact(run.folder / "summary.json")
    for name in ("best.pt", "best.json"):
        tracker.artifact(run.folder / "checkpoints" / name, "checkpoints")
    return summary


def verdict_words(trainer: Trainer, verdict: Verdict | None) -> str:
    """The verdict, or why there is none."""
    if verdict is not None:
        return str(verdict)
    if (times := trainer.account.times) is not None:
        return undecided(times)
    reached = trainer.result.stopped or f"trainer.max_epochs={trainer.config.max_epochs} is reached"
    return f"nothing was left to train: {reached}"


def record_verdict(tracker: Tracker, verdict: Verdict) -> None:
    """As tags, which MLflow's table of runs can show and search."""
    remedy = verdict.remedies[0].override if verdict.remedies else "none"
    tracker.tags({"feedrate.verdict": verdict.kind, "feedrate.verdict_text": str(verdict), "feedrate.remedy": remedy})


def closing_line(result: Result, seconds: float, verdict: Verdict | None) -> str:
    """The result in one line for the terminal."""
    name = next((n for n in ("validation/accuracy", "validation/mae") if n in result.best), "validation/loss")
    which = f"the best epoch ({result.best_epoch + 1}, that of the lowest validation loss)"
    text = f"{name} {result.best[name]:.4f} in {which}  {seconds:.1f} s"
    return text if verdict is None else f"{text}  {verdict.figures['samples_per_s']:,.0f} samples/s"


def record_failure(
    run: Run,
    run_id: str | None,
    status: str,
    error: str,
    trainer: Trainer | None = None,
    verdict: Verdict | None = None,
) -> None:
    """summary.json of a run that did not end well, so that the folder tells what happened.

    Args:
        trainer: where it came so far.
    """
    judged = {"verdict": asdict(verdict)} if verdict is not None else {}
    trained = {"engine": engine_of(trainer), "slow_samples": trainer.account.slow_samples()} if trainer else {}
    write_summary(run.folder, {**_birth(run, run_id), "status": status, "error": error, **judged, **trained})


def engine_of(trainer: Trainer) -> str:
    """Of the training partition's loader."""
    return str(trainer.loaders["train"].engine)


def record_run_id(run: Run, run_id: str | None) -> None:
    """Adds MLflow's identifier to summary.json, which may come to be known only when the record was delivered."""
    path = run.folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    if run_id is not None and summary.get("run_id") != run_id:
        write_summary(run.folder, {**summary, "run_id": run_id})


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    not_finite: list[str] = []
    content = _json(masked(summary), "", not_finite)
    if not_finite:  # JSON has no word for them
        content["not_finite"] = sorted({*content.get("not_finite", ()), *not_finite})
    atomic_write(folder / "summary.json", json.dumps(content, indent=2, default=str, allow_nan=False))


def _json(value: Any, path: str, not_finite: list[str]) -> Any:
    """`value` with null for each number that is not finite, whose path, such as 'best.validation/loss', is added."""
    if isinstance(value, Mapping):
        return {key: _json(inner, f"{path}.{key}".lstrip("."), not_finite) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(inner, f"{path}.{number}", not_finite) for number, inner in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        not_finite.append(path)
        return None
    return value
