"""Writes what a trained model predicts for each sample, by ID, as CSV or Parquet.

    python src/predict.py run_id=0123456789abcdef0123456789abcdef dataset.root=data/new output=predictions.csv
    python src/predict.py run=outputs/runs/2026-01-31_12-00-00_000000_4242 output=predictions.parquet

conf/predict.yaml explains each key.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from feedrate.cli.launch import launch, plain
from feedrate.system.signals import raise_on_interrupt

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger("feedrate")


def main(cfg: DictConfig) -> int:
    """Returns the number of predictions."""

    # -----------------------------------------------------------------------------------------------------
    # Settings
    # -----------------------------------------------------------------------------------------------------
    from feedrate.config import resolve_path
    from feedrate.errors import UserError
    from feedrate.runs.restore_config import PredictConfig
    from feedrate.validation import validate

    config: PredictConfig = validate(PredictConfig, plain(cfg), "")
    source, output = config.source(), resolve_path(config.output)
    if output.suffix not in (".csv", ".parquet"):
        raise UserError(f"output={config.output}: must end in .csv or .parquet")
    if output.is_dir():
        raise UserError(f"output={config.output}: is a folder; name a file, such as {config.output}/predictions.csv")
    if config.dataset.root is not None and config.partition is not None:
        raise UserError(
            "partition is for the run's own data; of dataset.root every sample is predicted: give one of both"
        )

    # -----------------------------------------------------------------------------------------------------
    # The run: its configuration and weights; torch is imported only now, since it takes seconds
    # -----------------------------------------------------------------------------------------------------
    from feedrate.loader import close_loaders
    from feedrate.runs import restore
    from feedrate.runs.evaluation_files import write_table
    from feedrate.trainer.device import choose_device, choose_precision, set_arithmetic
    from feedrate.trainer.evaluate import answers, rows_of
    from feedrate.trainer.forward import Forward
    from feedrate.trainer.seeds import seed_everything

    raise_on_interrupt()

    changes = {group: keys for group, keys in config.changes().items() if group != "dataset"}
    saved = restore.find_saved(source, config.tracking.uri).with_changes(changes)
    checkpoint, state = restore.load_weights(saved, config.weights)
    settings = restore.settings_of(saved)
    seed_everything(settings.seed, settings.num_threads)
    set_arithmetic(settings.matmul_precision, settings.deterministic)
    device = choose_device(settings.device)

    # -----------------------------------------------------------------------------------------------------
    # Data, loader, model
    # -----------------------------------------------------------------------------------------------------
    if config.dataset.root is None:
        data = restore.open_data(saved, state, config.allow, config.other_data)
        partition = restore.choose_partition(data, config.partition)
    else:
        data, partition = restore.open_folder(saved, state, config.dataset.root, config.allow), "train"
    loader = restore.open_loader(saved, data, partition, device)
    try:
        module = restore.load_model(saved, state, data, device)
        precision = choose_precision(settings.precision, device)
        forward = Forward(module, data, device, precision, channels_last=settings.channels_last)
        log.info("%s, epoch %d, on %d samples of %s", checkpoint, state["epoch"] + 1, len(loader.dataset), data.source)

        # -------------------------------------------------------------------------------------------------
        # Predict: written as they come
        # -------------------------------------------------------------------------------------------------
        def rows() -> Iterator[dict[str, Any]]:
            for found in answers(forward, loader):
                for ID, row in zip(found.IDs, rows_of(found.outputs, data.targets), strict=True):
                    yield {"id": ID, **row}

        try:
            count = write_table(output, rows())
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"output={config.output}: cannot be written ({reason}); name another file") from error
    finally:
        close_loaders({partition: loader})
    log.info("%d predictions written to %s", count, output)
    return count


if __name__ == "__main__":
    if {"-m", "--multirun"} & set(sys.argv):
        sys.exit("error: -m: a sweep is for train.py; give predict.py one run")
    launch(main, "predict")
