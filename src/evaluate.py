"""Evaluates a trained model on its test partition (or another one) and adds the result to its run.

    python src/evaluate.py run_id=0123456789abcdef0123456789abcdef
    python src/evaluate.py run=outputs/runs/2026-01-31_12-00-00_000000_4242 partition=validation
    python src/evaluate.py checkpoint=outputs/runs/2026-01-31_12-00-00_000000_4242/checkpoints/last.pt

conf/evaluate.yaml explains each key, docs/evaluate.md what is written.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from feedrate.cli.launch import launch, plain
from feedrate.system.signals import raise_on_interrupt

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger("feedrate")


def main(cfg: DictConfig) -> dict[str, float]:
    """Returns the metrics."""

    # -----------------------------------------------------------------------------------------------------
    # Settings
    # -----------------------------------------------------------------------------------------------------
    from feedrate.errors import UserError
    from feedrate.runs.restore_config import EvaluateConfig
    from feedrate.validation import validate

    config: EvaluateConfig = validate(EvaluateConfig, plain(cfg), "")
    source = config.source()

    # -----------------------------------------------------------------------------------------------------
    # The run: its configuration and weights; torch is imported only now, since it takes seconds
    # -----------------------------------------------------------------------------------------------------
    from feedrate.loader import close_loaders
    from feedrate.runs import restore
    from feedrate.runs.evaluation_files import write_evaluation
    from feedrate.task.task import Task
    from feedrate.trainer.device import choose_device, choose_precision, set_arithmetic
    from feedrate.trainer.evaluate import evaluate
    from feedrate.trainer.forward import Forward
    from feedrate.trainer.seeds import seed_everything

    raise_on_interrupt()

    saved = restore.find_saved(source, config.tracking.uri).with_changes(config.changes())
    checkpoint, state = restore.load_weights(saved, config.weights)
    settings = restore.settings_of(saved)
    seed_everything(settings.seed, settings.num_threads)
    set_arithmetic(settings.matmul_precision, settings.deterministic)
    device = choose_device(settings.device)

    # -----------------------------------------------------------------------------------------------------
    # Data, loader, model
    # -----------------------------------------------------------------------------------------------------
    elsewhere = config.dataset.root is not None
    data = restore.open_data(saved, state, config.allow, config.other_data, elsewhere=elsewhere)
    partition = restore.choose_partition(data, config.partition)
    loader = restore.open_loader(saved, data, partition, device)
    try:
        module = restore.load_model(saved, state, data, device)
        precision = choose_precision(settings.precision, device)
        forward = Forward(module, data, device, precision, channels_last=settings.channels_last)
        log.info("%s, epoch %d, on %s of %s", checkpoint, state["epoch"] + 1, partition, data.name)

        # -------------------------------------------------------------------------------------------------
        # Evaluate
        # -------------------------------------------------------------------------------------------------
        task = Task(data.targets, settings.label_smoothing, settings.top5)
        found = evaluate(forward, loader, task, config.worst)
    finally:
        close_loaders({partition: loader})

    # -----------------------------------------------------------------------------------------------------
    # Record
    # -----------------------------------------------------------------------------------------------------
    metrics = {f"{partition}/{name}": value for name, value in found.metrics.items()}
    about = {"run_id": saved.run_id, "checkpoint": checkpoint.name, "epoch": state["epoch"] + 1}
    try:
        files = write_evaluation(saved.folder / "evaluate", partition, found, {**about, "data_digest": data.digest})
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{saved.folder}/evaluate: cannot be written ({reason}); make room, or mend it") from error
    log.info("%d samples:  %s", found.samples, "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    for sample in found.worst[:5]:
        said = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in sample.row.items())
        log.info("  loss %-9.4g %s  %s", sample.loss, sample.ID, said)
    log.info("written to  %s", saved.folder / "evaluate")
    if saved.recorded is not None:
        # the run's validation metrics are those of its training; only the test partition is news
        saved.recorded.add(metrics if partition == "test" else {}, state["epoch"], files, "evaluate")
        log.info("this run    %s", saved.recorded.url)
    return metrics


if __name__ == "__main__":
    if {"-m", "--multirun"} & set(sys.argv):
        sys.exit("error: -m: a sweep is for train.py; give evaluate.py one run")
    launch(main, "evaluate")
