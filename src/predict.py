"""Writes what a trained model predicts for each sample, by ID, as CSV or Parquet.

    python src/predict.py run_id=0123456789abcdef0123456789abcdef dataset.root=data/new output=predictions.csv
    python src/predict.py run=outputs/runs/2026-01-31_12-00-00_000000_4242 output=predictions.parquet

conf/predict.yaml explains each key.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from feedrate.cli.launch import launch, plain
from feedrate.system.signals import raise_when_stopped

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger("feedrate")


def main(cfg: DictConfig) -> int:
    """Returns the number of predictions."""
    from feedrate.config import resolve_path
    from feedrate.errors import UserError
    from feedrate.runs.restore_config import PredictConfig
    from feedrate.system.files import writing
    from feedrate.validation import validate

    config: PredictConfig = validate(PredictConfig, plain(cfg), "")
    config.source()
    output, other_samples = resolve_path(config.output), config.dataset.root is not None
    if output.suffix not in (".csv", ".parquet"):
        raise UserError(f"output={config.output}: must end in .csv or .parquet")
    if other_samples and config.partition is not None:
        raise UserError("partition: not used with dataset.root, of which every sample is predicted; give one of both")

    # torch is imported only now, since it takes seconds
    from feedrate.runs.evaluation_files import write_table
    from feedrate.runs.restore import opened
    from feedrate.trainer.evaluate import predictions

    raise_when_stopped()
    with opened(config, other_samples=other_samples) as run, writing(f"output={config.output}", "name another file"):
        count = write_table(output, predictions(run.forward, run.loader, run.data.targets))
    log.info("%d predictions written to %s", count, output)
    return count


if __name__ == "__main__":
    launch(main, "predict", instead_of_sweep="give predict.py one run")
