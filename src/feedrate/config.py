"""Typed schema of the configuration: what each key may hold, checked before any work starts.

Defaults and explanations stand in conf/GROUP/OPTION.yaml; here stand types, ranges and rules between keys.
Neither torch nor mlflow is imported here, so a mistake is answered at once.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from feedrate.errors import UserError
from feedrate.validation import validate

ROOT = Path(__file__).resolve().parents[2]

_KNOWN = ConfigDict(extra="forbid")

# Strict: the text "8" or a truth value is no number, 1.5 no count; a whole number is a float. inf and nan are none.
Count = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Positive = Annotated[int, Field(ge=1, lt=2**63, strict=True)]
Share = Annotated[float, Field(ge=0, lt=1, strict=True)]
NonNegative = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]
Above0 = Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
# bounds beyond any use, since the system answers far larger numbers by crashing or by forking without end
Workers = Annotated[int, Field(ge=0, le=1024, strict=True)]
AtMost1024 = Annotated[int, Field(ge=1, le=1024, strict=True)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|(cuda|mps|xpu|privateuseone)(:\d+)?)$")]
PerChannel = list[Number] | Number | None
NotEmpty = Annotated[str, Field(min_length=1)]


def resolve_path(path: str | Path) -> Path:
    """`path` as an absolute path; a relative one counts from the repository root, whatever the working folder."""
    return (ROOT / Path(path).expanduser()).resolve()


def nearby(path: Path) -> str:
    """A hint for a resolved path that does not exist: the same relative path in the current folder, if that exists."""
    here = Path.cwd() / path.relative_to(ROOT) if path.is_relative_to(ROOT) else None
    return f"; relative paths count from the repository: did you mean {here}?" if here and here.exists() else ""


def shown_path(path: Path) -> str:
    """The path within the repository, as a record keeps it; an absolute one where it lies elsewhere."""
    path = path.absolute()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


# ---------------------------------------------------------------------------------------------------------
# dataset
# ---------------------------------------------------------------------------------------------------------


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class DatasetConfig:
    """Keys that every dataset may have, shipped or the user's own; the rest goes to its constructor."""

    name: str | None = None
    root: str | None = None
    task: Literal["auto", "classification", "regression"] = "auto"
    num_outputs: Positive | None = None
    mean: PerChannel = None
    std: PerChannel = None
    limit: Positive | None = None


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class FolderConfig(DatasetConfig):
    """A dataset folder as the README describes it."""

    root: str


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class TensorFilesConfig(FolderConfig):
    verify: Literal["none", "crc"] = "none"
    cache: Literal["none", "shards"] = "none"


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class ArrayFilesConfig(FolderConfig):
    cache: Literal["none", "shards"] = "none"


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class PackedConfig(FolderConfig):
    access: Literal["mmap", "pread"] = "mmap"
    verify: Literal["none", "crc"] = "none"
    stale: Literal["some", "all", "ignore"] = "some"
    transform: dict[str, Any] | None = None


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class GeneratedConfig(DatasetConfig):
    size: Annotated[int, Field(ge=1, le=10**15, strict=True)]
    validation_size: Annotated[int, Field(ge=1, le=10**15, strict=True)]
    image_size: Annotated[int, Field(ge=32, le=256, strict=True)]


# ---------------------------------------------------------------------------------------------------------
# loader
# ---------------------------------------------------------------------------------------------------------


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class LoaderConfig:
    """torch.utils.data.DataLoader's arguments, for both loaders."""

    batch_size: Positive
    shuffle: Flag
    num_workers: Workers | Literal["auto"]
    drop_last: Flag
    pin_memory: Flag | Literal["auto"]
    prefetch_factor: AtMost1024 | None
    persistent_workers: Flag
    timeout: NonNegative
    multiprocessing_context: Literal["auto", "fork", "spawn", "forkserver"]


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class FeedrateLoaderConfig(LoaderConfig):
    content_digest: Flag
    engine: Literal["auto", "inline", "thread", "process"] = "auto"  # older configurations have none


# ---------------------------------------------------------------------------------------------------------
# model, optimizer, scheduler
# ---------------------------------------------------------------------------------------------------------


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class MLPConfig:
    hidden: list[Positive]
    dropout: Share


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class CNNConfig:
    channels: Annotated[list[Annotated[int, Field(ge=2, lt=2**63, strict=True)]], Field(min_length=1)]
    dropout: Share


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class ResNet18Config:
    width: Positive


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class SimulatedConfig:
    step_ms: NonNegative


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class AdamWConfig:
    lr: Above0
    weight_decay: NonNegative
    betas: Annotated[list[Share], Field(min_length=2, max_length=2)]
    fused: Flag | Literal["auto"] | None = "auto"  # None, torch's own default, means the same; older ones have none


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class SGDConfig:
    lr: Above0
    momentum: Share
    nesterov: Flag
    weight_decay: NonNegative
    fused: Flag | Literal["auto"] | None = "auto"  # None, torch's own default, means the same; older ones have none


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class SchedulerConfig:
    """Keys that every scheduler may have; the rest goes to its constructor."""

    interval: Literal["step", "epoch"] = "epoch"


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class CosineConfig(SchedulerConfig):
    warmup: Share
    final: Annotated[float, Field(ge=0, le=1, strict=True)]


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class OneCycleConfig(SchedulerConfig):
    max_lr: Above0
    pct_start: Share


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class PlateauConfig(SchedulerConfig):
    factor: Annotated[float, Field(gt=0, lt=1, strict=True)]
    patience: Count


# ---------------------------------------------------------------------------------------------------------
# trainer, tracking
# ---------------------------------------------------------------------------------------------------------


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class TrainerConfig:
    max_epochs: Positive
    max_steps: Positive | None
    device: Device
    precision: Literal["auto", "bf16", "fp16", 32]
    compile: Flag
    channels_last: Flag = False  # older configurations have none of these three
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    deterministic: Flag = False
    accumulate: Positive
    clip_norm: Above0 | None
    label_smoothing: Share
    top5: Flag
    early_stopping: Positive | None
    resume: NotEmpty | None
    resume_changed: Flag
    resume_optimizer: Flag
    checkpoint_every_s: NonNegative | None
    keep_checkpoints: Count
    log_every: Positive
    warmup_steps: Count
    num_threads: AtMost1024 | None
    profile: Flag


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class TrackingConfig:
    uri: str | None
    experiment: NotEmpty
    artifacts: str | None
    log_model: Flag
    system_metrics: Flag
    run_name: str | None


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class SweepConfig:
    """What holds for a sweep as a whole; without meaning for a single run."""

    fail_fast: Flag = False
    again: Flag = False


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class TrainConfig:
    """One run, checked. Nodes that build an object keep their mapping, with `_target_`, for feedrate.cli.targets."""

    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)]
    dataset: dict[str, Any]
    loader: dict[str, Any]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any] | None
    trainer: TrainerConfig
    tracking: TrackingConfig
    sweep: SweepConfig = SweepConfig()  # a configuration that was written before there were sweeps has none


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class PrepareConfig:
    """The keys of conf/prepare.yaml."""

    source: str
    root: str
    validation_fraction: Annotated[float, Field(gt=0, lt=1, strict=True)] = 0.2
    test_fraction: Share = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    num_workers: Workers | Literal["auto"] = "auto"


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class PackingConfig:
    num_workers: Workers | Literal["auto"] = "auto"
    shard_mb: Positive = 256


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class PackConfig:
    """The keys of conf/pack.yaml."""

    dataset: dict[str, Any]
    root: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    pack: PackingConfig = PackingConfig()


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class BenchingConfig:
    compare: list[str] = field(default_factory=list)
    step_ms: list[Above0] = field(default_factory=list)
    seconds: Above0 = 1.0
    repeats: Positive = 5
    baseline: NotEmpty | None = None
    noise_pct: NonNegative = 5.0


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class BenchConfig:
    """The keys of conf/bench.yaml."""

    dataset: dict[str, Any]
    loader: dict[str, Any]
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    bench: BenchingConfig = BenchingConfig()


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class TuningConfig:
    budget_s: Above0 = 60.0
    trial_s: Above0 = 1.5
    output: NotEmpty = "conf/loader/tuned.yaml"
    again: Flag = False
    batch_size: Flag = False


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class TuneConfig:
    """The keys of conf/tune.yaml."""

    dataset: dict[str, Any]
    loader: dict[str, Any]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    trainer: TrainerConfig
    tracking: TrackingConfig
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    tune: TuningConfig = TuningConfig()


SHIPPED: Mapping[str, type] = {
    "feedrate.dataset.Digits": FolderConfig,
    "feedrate.dataset.TensorFiles": TensorFilesConfig,
    "feedrate.dataset.ArrayFiles": ArrayFilesConfig,
    "feedrate.dataset.InMemory": FolderConfig,
    "feedrate.dataset.Packed": PackedConfig,
    "feedrate.dataset.Generated": GeneratedConfig,
    "feedrate.loader.Loader": FeedrateLoaderConfig,
    "torch.utils.data.DataLoader": LoaderConfig,
    "feedrate.model.MLP": MLPConfig,
    "feedrate.model.CNN": CNNConfig,
    "feedrate.model.ResNet18": ResNet18Config,
    "feedrate.model.Simulated": SimulatedConfig,
    "torch.optim.AdamW": AdamWConfig,
    "torch.optim.SGD": SGDConfig,
    "feedrate.trainer.schedule.cosine": CosineConfig,
    "torch.optim.lr_scheduler.OneCycleLR": OneCycleConfig,
    "torch.optim.lr_scheduler.ReduceLROnPlateau": PlateauConfig,
}
"""Targets that conf/ ships, with the schema of their keys. Other targets are checked against their constructor."""


def check(config: Mapping[str, Any]) -> TrainConfig:
    """The resolved configuration as typed values.

    Args:
        config: plain containers, every interpolation resolved.

    Raises:
        UserError: naming the key, its value, the rule, and the nearest valid key.
    """
    # the dataset last: its keys may refer to others, as dataset.limit to loader.batch_size
    checked: TrainConfig = _checked(TrainConfig, config, ("loader", "model", "optimizer", "scheduler", "dataset"))
    return checked


def check_bench(config: Mapping[str, Any]) -> BenchConfig:
    """As `check`, for a loader without a training."""
    checked: BenchConfig = _checked(BenchConfig, config, ("loader", "dataset"))
    return checked


def check_tune(config: Mapping[str, Any]) -> TuneConfig:
    """As `check`, for a loader that is to be tuned; it must be Feedrate's."""
    checked: TuneConfig = _checked(TuneConfig, config, ("loader", "model", "optimizer", "dataset"))
    if checked.loader["_target_"] != "feedrate.loader.Loader":
        raise UserError(
            "loader: tune.py tunes Feedrate's loader, whose batches no setting changes; leave loader=... out"
        )
    return checked


def _checked(schema: type, config: Mapping[str, Any], groups: Sequence[str]) -> Any:
    """The configuration and those of its groups that have a `_target_`; of several mistakes a key that was typed is
    named, since others may refer to it.
    """
    checks = [partial(validate, schema, config, "")]
    checks += [partial(_check_node, config[g], g) for g in groups if isinstance(config.get(g), Mapping)]
    mistakes, results = [], []
    for one in checks:
        try:
            results.append(one())
        except UserError as error:
            mistakes.append(error)
    if mistakes:
        typed = {argument.lstrip("+").partition("=")[0] for argument in sys.argv[1:]}
        raise next((error for error in mistakes if str(error).partition("=")[0] in typed), mistakes[0])
    return results[0]


def check_dataset(node: Mapping[str, Any]) -> None:
    """As `check`, for a dataset alone."""
    _check_node(node, "dataset")


def _check_node(node: Mapping[str, Any], group: str) -> None:
    target = node.get("_target_")
    if target is None:
        raise UserError(f"{group}=null: must be given, with the import path of a class as {group}._target_")
    if not isinstance(target, str) or not target:
        raise UserError(
            f"{group}._target_ is {target!r}: the import path of a class is needed, such as my_package.MyClass"
        )
    if schema := SHIPPED.get(target):
        validate(schema, {key: value for key, value in node.items() if key != "_target_"}, group)


def common_keys(schema: type) -> frozenset[str]:
    """Names of a schema's keys, to tell them from the keys of a user's own constructor."""
    return frozenset(f.name for f in fields(schema))


def timeout_of(loader: Mapping[str, Any]) -> float:
    """Seconds that loading may take by a loader's node, 0 for ever."""
    return float(loader.get("timeout") or 0)


def dataset_keys(node: Mapping[str, Any]) -> DatasetConfig:
    """The keys of a dataset node that mean the same for every dataset, checked."""
    names = common_keys(DatasetConfig)
    result: DatasetConfig = validate(DatasetConfig, {k: v for k, v in node.items() if k in names}, "dataset")
    return result
