"""What a run records: parameters and provenance at its start; results, pictures and the summary note at its end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from feedrate.dataset.subset import size_of
from feedrate.reporting.run_summary import headline, run_note
from feedrate.reporting.trace import rows_of, trace
from feedrate.runs.provenance import Origin
from feedrate.system.device import single
from feedrate.system.text import flatten
from feedrate.timing.verdict import FIGURES, Verdict, undecided
from feedrate.tracking import Tracker, masked
from feedrate.tracking.sweep import picture
from feedrate.tracking.tracker import COMMIT_TAG
from feedrate.trainer.device import name_of
from feedrate.trainer.loop import Trainer


def record_start(tracker: Tracker, origin: Origin, trainer: Trainer) -> None:
    """Parameters, tags, data set and configuration; before training, so that a killed run has them too."""
    config, code, data = origin.config, origin.code, trainer.data
    groups = {group: option for group, option in origin.choices.items() if group in config}
    settings = {key: value for key, value in flatten(config).items() if not key.startswith(("tracking.", "sweep."))}
    parameters = num_parameters(trainer.state.model)
    about = {"model.parameters": parameters, "device": device_of(trainer), "precision": trainer.precision.name}
    tracker.params({**groups, **settings, **about})
    tracker.tags({"feedrate.command": origin.command, **({COMMIT_TAG: code.commit} if code.commit else {})})
    for name, dataset in data.partition.items():
        tracker.dataset(data.name, data.digest, name, len(dataset), data.source)  # type: ignore[arg-type]
    tracker.text(OmegaConf.to_yaml(OmegaConf.create(masked(config))), "config.yaml")
    if code.diff:
        tracker.text(code.diff, "uncommitted.diff")
    if data.targets.classes is not None:
        tracker.text(json.dumps(dict(enumerate(data.targets.classes)), indent=2), "classes.json")


def record_resumed(tracker: Tracker, origin: Origin, trainer: Trainer) -> None:
    """Metrics of finished epochs that a kill kept from the tracker, and the new command."""
    known = tracker.last_step("train/loss")
    for epoch, metrics in enumerate(trainer.result.history):
        if epoch > known:
            best = trainer.result.best_figures() if epoch == trainer.result.best_epoch else {}
            tracker.metrics({**metrics, **best}, epoch)
    tracker.tags({"feedrate.command": origin.command})


def results(trainer: Trainer, verdict: Verdict | None) -> dict[str, Any]:
    """What summary.json says of a finished run."""
    result, loader = trainer.result, trainer.loaders["train"]
    digests = {}
    if loader.seed is not None:
        digests = {"order_digest": loader.order_digest(), "content_digest": loader.content_digest()}
    return {
        "status": "FINISHED",
        "epochs": len(result.history),
        "stopped": result.stopped,
        "seconds": round(trainer.seconds, 3),
        "first_batch_after_start_s": trainer.clock.first_batch_after_start_s,
        "phases_s": trainer.clock.totals_s(),
        "device": device_of(trainer),
        "metrics": result.metrics,
        "history": result.history,
        "best_epoch": result.best_epoch + 1,
        "best": result.best,
        **loading(trainer, verdict),
        "data_digest": trainer.data.digest,
        **{name: digest for name, digest in digests.items() if digest},
        **({"pruned": "true"} if result.pruned else {}),
        "per_class": result.per_class,
    }


def loading(trainer: Trainer, verdict: Verdict | None) -> dict[str, Any]:
    """How the data were loaded, also in a run that did not end well."""
    return {
        "engine": str(trainer.loaders["train"].engine),
        "verdict": asdict(verdict) if verdict else None,
        "memory_growth": trainer.throughput.memory.notes(),
        "slow_samples": trainer.throughput.slow_samples(),
    }


def num_parameters(model: nn.Module) -> int:
    """Number of values in a model's parameters, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


def device_of(trainer: Trainer) -> str:
    """The device with its product name, such as `cuda:0 (NVIDIA H100 PCIe)`."""
    return f"{trainer.device} ({name_of(trainer.device)})"


def example(trainer: Trainer) -> torch.Tensor:
    """(2, ...) prepared samples of the validation partition (the same one twice if it has one), on the device."""
    dataset = trainer.data.partition["validation"]
    X = torch.stack([torch.as_tensor(dataset[i % size_of(dataset)][0]) for i in range(2)])
    return trainer.forward.inputs(single(X, trainer.device).to(trainer.device))


def record_results(tracker: Tracker, origin: Origin, folder: Path, trainer: Trainer, verdict: Verdict | None) -> None:
    """Tags, verdict, summary note, timeline and pictures of a run that ended well."""
    result = trainer.result
    if result.pruned:
        tracker.tags({"feedrate.pruned": "true"})
    if verdict is not None:
        trainer.record_verdict(verdict)
        tracker.metrics({f"verdict/{k}": v for k, v in verdict.figures.items()}, len(result.history) - 1)
    excerpt = trainer.throughput.excerpt()
    names = ["throughput", *(["timeline"] if excerpt is not None else [])]
    note = run_note(
        figures(trainer, verdict),
        command=origin.command,
        epochs=len(result.history),
        best_epoch=result.best_epoch + 1,
        seconds=trainer.seconds,
        verdict=verdict_words(trainer, verdict),
        pictures=" ".join(picture(f"plots/{name}.png") for name in names),
        slow=trainer.throughput.slow_samples(),
    )
    tracker.note(note)
    if excerpt is not None:
        (folder / "timeline.json").write_text(json.dumps(trace(excerpt)), encoding="utf-8")
        tracker.artifact(folder / "timeline.json")
    if tracker.active:
        _record_pictures(tracker, trainer)


def _record_pictures(tracker: Tracker, trainer: Trainer) -> None:
    from feedrate.reporting.picture import optional
    from feedrate.reporting.plots import confusion_matrix, loss_curves, throughput, timeline

    result = trainer.result
    curves: dict[str, dict[int, float]] = {}
    for epoch, metrics in enumerate(result.history, start=1):
        for name, value in metrics.items():
            curves.setdefault(name, {})[epoch] = value
    drawn: dict[str, Callable[[], Any]] = {
        "loss": partial(loss_curves, curves),
        "throughput": partial(throughput, curves),
    }
    if (excerpt := trainer.throughput.excerpt()) is not None:
        drawn["timeline"] = partial(timeline, rows_of(excerpt))
    if result.confusion is not None:
        names = [str(row["class"]) for row in result.per_class or []]
        title = f"validation after epoch {result.best_epoch + 1}, the best"
        drawn["confusion"] = partial(confusion_matrix, result.confusion, names, title)
    for name, draw in drawn.items():
        with optional(f"plots/{name}.png"):
            tracker.figure(draw(), f"plots/{name}.png")


def verdict_words(trainer: Trainer, verdict: Verdict | None) -> str:
    """The verdict, or why there is none, and a line for each memory that grew."""
    if verdict is not None:
        words = str(verdict)
    elif (times := trainer.throughput.times) is not None:
        words = undecided(times)
    else:
        reached = trainer.result.stopped or f"trainer.max_epochs={trainer.config.max_epochs} is reached"
        words = f"nothing was left to train: {reached}"
    return "\n".join([words, *(f"note: {note}" for note in trainer.throughput.memory.notes())])


def closing_line(trainer: Trainer, verdict: Verdict | None) -> str:
    """The result in one line for the terminal."""
    result = trainer.result
    epochs, best = len(result.history), result.best_epoch + 1
    words = headline(figures(trainer, verdict), epochs=epochs, best_epoch=best, seconds=trainer.seconds)
    return words.replace("**", "")


def figures(trainer: Trainer, verdict: Verdict | None) -> dict[str, float]:
    """Metrics of the best epoch, with the rates of the whole run instead of one epoch's."""
    rates = {FIGURES[name]: value for name, value in verdict.figures.items()} if verdict is not None else {}
    return {**trainer.result.best, **rates}
