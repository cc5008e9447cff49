"""Evaluates a trained model on its test partition (or another one) and adds the result to its run.

    python src/evaluate.py run_id=0123456789abcdef0123456789abcdef
    python src/evaluate.py run=outputs/runs/2026-01-31_12-00-00_000000_4242 partition=validation
    python src/evaluate.py checkpoint=outputs/runs/2026-01-31_12-00-00_000000_4242/checkpoints/last.pt

conf/evaluate.yaml explains each key, docs/evaluate.md what is written.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from feedrate.cli.launch import launch, plain
from feedrate.system.signals import raise_when_stopped

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger("feedrate")


def main(cfg: DictConfig) -> dict[str, float]:
    """Returns the metrics."""
    from feedrate.runs.restore_config import EvaluateConfig
    from feedrate.system.files import writing
    from feedrate.validation import validate

    config: EvaluateConfig = validate(EvaluateConfig, plain(cfg), "")
    config.source()

    # torch is imported only now, since it takes seconds
    from feedrate.runs.evaluation_files import write_evaluation
    from feedrate.runs.restore import opened
    from feedrate.task.task import Task
    from feedrate.trainer.evaluate import evaluate

    raise_when_stopped()
    with opened(config) as run:
        task = Task(run.data.targets, run.saved.trainer.label_smoothing, run.saved.trainer.top5)
        found = evaluate(run.forward, run.loader, task, config.worst)

    metrics = {f"{run.partition}/{name}": value for name, value in found.meter.metrics().items()}
    folder = run.saved.folder / "evaluate"
    with writing(str(folder), "make room, or fix its permissions"):
        files = write_evaluation(folder, run.partition, found, {**run.about, "data_digest": run.data.digest})
    log.info(
        "%d samples:  %s", found.meter.samples, "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
    )
    log.info("written to  %s", folder)
    if run.saved.recorded is not None:
        # the run has recorded its own validation metrics already
        run.saved.recorded.add(metrics if run.partition == "test" else {}, run.epoch, files, "evaluate")
        log.info("this run    %s", run.saved.recorded.url)
    return metrics


if __name__ == "__main__":
    launch(main, "evaluate", instead_of_sweep="give evaluate.py one run")
