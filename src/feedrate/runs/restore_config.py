"""Schema of conf/evaluate.yaml and conf/predict.yaml. Imports neither torch nor mlflow, so mistakes show at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, field
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from feedrate.config import Count, Device, Flag, Positive, TrackingConfig, Workers
from feedrate.errors import UserError

_KNOWN = ConfigDict(extra="forbid")


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class OtherDataset:
    """Keys that replace those of the run's dataset."""

    root: str | None


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class OtherLoader:
    """Keys that replace those of the run's loader."""

    batch_size: Positive | None
    num_workers: Workers | Literal["auto"] | None


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class OtherTrainer:
    """Keys that replace those of the run's trainer."""

    device: Device | None
    precision: Literal["auto", "bf16", "fp16", 32] | None


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class SavedRunConfig:
    """Keys that evaluate and predict share."""

    run_id: str | None
    run: str | None
    checkpoint: str | None
    weights: Literal["best", "last"]
    partition: Literal["train", "validation", "test"] | None
    allow: list[str] = field(default_factory=list)
    other_data: Flag
    dataset: OtherDataset
    loader: OtherLoader
    trainer: OtherTrainer
    tracking: TrackingConfig

    def source(self) -> str:
        """The run's id, folder or checkpoint."""
        keys = {"run_id": self.run_id, "run": self.run, "checkpoint": self.checkpoint}
        given = {key: value for key, value in keys.items() if value is not None}
        if len(given) != 1 or not all(given.values()):
            said = " and ".join(f"{key}={value}" for key, value in given.items()) or "none of them is set"
            raise UserError(f"run_id=ID, run=FOLDER or checkpoint=FILE names the run, one of them: {said}")
        return next(iter(given.values()))

    def changes(self) -> Mapping[str, Mapping[str, Any]]:
        """Keys that replace those of the run's configuration, by group."""
        values = asdict(self)
        return {
            group: {key: value for key, value in values[group].items() if value is not None}
            for group in ("dataset", "loader", "trainer")
        }


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class EvaluateConfig(SavedRunConfig):
    worst: Count


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class PredictConfig(SavedRunConfig):
    output: str
