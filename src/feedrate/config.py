"""Typed schema of the configuration: what each key may hold, checked before any work starts.

Defaults and explanations are in conf/GROUP/OPTION.yaml; types, ranges and rules between keys are here, all in one file.
Imports neither torch nor mlflow, so that a mistake is reported at once.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from feedrate.errors import UserError
from feedrate.validation import as_yaml, validate

Schema = TypeVar("Schema")
ROOT = Path(__file__).resolve().parents[2]

_KNOWN = ConfigDict(extra="forbid", defer_build=True)  # built when first used

# Strict: no text or truth value is a number, 1.5 is no count; a whole number is a float. inf and nan are refused.
Count = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Positive = Annotated[int, Field(ge=1, lt=2**63, strict=True)]
AtLeast2 = Annotated[int, Field(ge=2, lt=2**63, strict=True)]
Share = Annotated[float, Field(ge=0, lt=1, strict=True)]
NonNegative = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]
Above0 = Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
# with upper bounds, as far larger numbers would crash the process or fork without end
Workers = Annotated[int, Field(ge=0, le=1024, strict=True)]
AtMost1024 = Annotated[int, Field(ge=1, le=1024, strict=True)]
WholeOrShare = Annotated[float, Field(ge=0, le=1, strict=True)]
Between0And1 = Annotated[float, Field(gt=0, lt=1, strict=True)]
Betas = Annotated[list[Share], Field(min_length=2, max_length=2)]
ImageSize = Annotated[int, Field(ge=32, le=256, strict=True)]
Size = Annotated[int, Field(ge=1, le=10**15, strict=True)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|(cuda|mps|xpu|privateuseone)(:\d+)?)$")]
PerChannel = list[Number] | Number | None
NotEmpty = Annotated[str, Field(min_length=1)]
AutoWorkers = Workers | Literal["auto"]


def resolve_path(path: str | Path) -> Path:
    """`path` as an absolute path; a relative one counts from the repository root, whatever the working folder."""
    return (ROOT / Path(path).expanduser()).resolve()


def nearby(path: Path) -> str:
    """A hint for a path that does not exist: the same relative path in the current folder, if that exists."""
    here = Path.cwd() / path.relative_to(ROOT) if path.is_relative_to(ROOT) else None
    return f"; relative paths count from the repository: did you mean {here}?" if here and here.exists() else ""


def shown_path(path: Path) -> str:
    """The path relative to the repository, or an absolute one elsewhere."""
    path = path.absolute()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class DatasetConfig:
    """Keys of every dataset, shipped or the user's own; the others go to its constructor."""

    name: str | None = None
    root: str | None = None
    task: Literal["auto", "classification", "regression"] = "auto"
    num_outputs: Positive | None = None
    mean: PerChannel = None
    std: PerChannel = None
    limit: Positive | None = None


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class LoaderConfig:
    """Keys of both loaders, arguments of torch.utils.data.DataLoader."""

    batch_size: Positive
    shuffle: Flag
    num_workers: AutoWorkers
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


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class SchedulerConfig:
    """Keys of every scheduler; the others go to its constructor."""

    interval: Literal["step", "epoch"] = "epoch"


def _schema(base: type = object, **keys: Any) -> type:
    """A schema with the keys of `base` and these: a type, or a type and a default."""
    types = {key: value[0] if isinstance(value, tuple) else value for key, value in keys.items()}
    defaults = {key: value[1] for key, value in keys.items() if isinstance(value, tuple)}
    plain = type("Schema", (base,), {"__annotations__": types, "__module__": __name__, **defaults})
    return dataclass(config=_KNOWN, frozen=True, kw_only=True)(plain)


_FUSED = (Flag | Literal["auto"] | None, "auto")  # None, torch's own default, means the same; older ones have none
_VERIFY = (Literal["none", "crc"], "none")
_CACHE = (Literal["none", "shards"], "none")

SHIPPED: Mapping[str, type] = {
    "feedrate.dataset.Digits": _schema(DatasetConfig, root=str),
    "feedrate.dataset.TensorFiles": _schema(DatasetConfig, root=str, verify=_VERIFY, cache=_CACHE),
    "feedrate.dataset.ArrayFiles": _schema(DatasetConfig, root=str, cache=_CACHE),
    "feedrate.dataset.InMemory": _schema(DatasetConfig, root=str),
    "feedrate.dataset.Packed": _schema(
        DatasetConfig,
        root=str,
        access=(Literal["mmap", "pread"], "mmap"),
        verify=_VERIFY,
        stale=(Literal["some", "all", "ignore"], "some"),
        transform=(dict[str, Any] | None, None),
    ),
    "feedrate.dataset.Generated": _schema(DatasetConfig, size=Size, validation_size=Size, image_size=ImageSize),
    "feedrate.loader.Loader": FeedrateLoaderConfig,
    "torch.utils.data.DataLoader": LoaderConfig,
    "feedrate.model.MLP": _schema(hidden=list[Positive], dropout=Share),
    "feedrate.model.CNN": _schema(channels=Annotated[list[AtLeast2], Field(min_length=1)], dropout=Share),
    "feedrate.model.ResNet18": _schema(width=Positive),
    "feedrate.model.Simulated": _schema(step_ms=NonNegative),
    "torch.optim.AdamW": _schema(lr=Above0, weight_decay=NonNegative, betas=Betas, fused=_FUSED),
    "torch.optim.SGD": _schema(lr=Above0, momentum=Share, nesterov=Flag, weight_decay=NonNegative, fused=_FUSED),
    "feedrate.trainer.schedule.cosine": _schema(SchedulerConfig, warmup=Share, final=WholeOrShare),
    "torch.optim.lr_scheduler.OneCycleLR": _schema(SchedulerConfig, max_lr=Above0, pct_start=Share),
    "torch.optim.lr_scheduler.ReduceLROnPlateau": _schema(SchedulerConfig, factor=Between0And1, patience=Count),
}
"""Targets that conf/ ships, with the schema of their keys. Other targets are checked against their signature."""


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class TrainerConfig:
    max_epochs: Positive
    max_steps: Positive | None
    device: Device
    precision: Literal["auto", "bf16", "fp16", 32]
    compile: Flag
    channels_last: Flag = False  # older configurations lack these three
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
    fail_fast: Flag = False
    again: Flag = False


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class TrainConfig:
    """One run, checked. Groups with a `_target_` stay mappings, for feedrate.cli.targets."""

    seed: Count
    dataset: dict[str, Any]
    loader: dict[str, Any]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any] | None
    trainer: TrainerConfig
    tracking: TrackingConfig
    sweep: SweepConfig = field(default_factory=SweepConfig)  # older configurations have none


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class PrepareConfig:
    source: str
    root: str
    validation_fraction: Between0And1 = 0.2
    test_fraction: Share = 0.0
    seed: Count = 0
    num_workers: AutoWorkers = "auto"


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class PackingConfig:
    num_workers: AutoWorkers = "auto"
    shard_mb: Positive = 256


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class PackConfig:
    dataset: dict[str, Any]
    root: str | None = None
    seed: Count = 0
    pack: PackingConfig = field(default_factory=PackingConfig)


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
    dataset: dict[str, Any]
    loader: dict[str, Any]
    seed: Count = 0
    bench: BenchingConfig = field(default_factory=BenchingConfig)


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class TuningConfig:
    budget_s: Above0 = 60.0
    trial_s: Above0 = 1.5
    output: NotEmpty = "conf/loader/tuned.yaml"
    batch_size: Flag = False


@dataclass(config=_KNOWN, frozen=True, kw_only=True)
class TuneConfig:
    dataset: dict[str, Any]
    loader: dict[str, Any]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    trainer: TrainerConfig
    seed: Count = 0
    tune: TuningConfig = field(default_factory=TuningConfig)


def check(config: Mapping[str, Any]) -> TrainConfig:
    """The resolved configuration of a training as typed values; see `check_as`."""
    return check_as(TrainConfig, config)


def check_as(schema: type[Schema], config: Mapping[str, Any]) -> Schema:
    """The resolved configuration as a `schema`, with those of its groups that have a `_target_` checked as well.

    Of several mistakes, one in a key that was typed is reported, since others may refer to it.
    """
    others = common_keys(TrainConfig) - common_keys(schema)
    config = {key: value for key, value in config.items() if key not in others}  # conf/local may set them for training
    mistakes = []
    # the dataset last: its keys may refer to others, as dataset.limit to loader.batch_size
    for group in ("", "loader", "model", "optimizer", "scheduler", "dataset"):
        try:
            if not group:
                checked: Schema = validate(schema, config, "")
            elif isinstance(config.get(group), Mapping):
                check_node(config[group], group)
        except UserError as error:
            mistakes.append(error)
    if mistakes:
        typed = {argument.lstrip("+").partition("=")[0] for argument in sys.argv[1:]}
        raise next((error for error in mistakes if str(error).partition("=")[0] in typed), mistakes[0])
    return checked


def check_node(node: Mapping[str, Any], group: str) -> None:
    """Checks one group with a `_target_`, as `check_as` does."""
    target = node.get("_target_")
    if not isinstance(target, str) or not target:
        raise UserError(f"{group}._target_={as_yaml(target)}: must be an import path, such as my_package.MyClass")
    if schema := SHIPPED.get(target):
        validate(schema, {key: value for key, value in node.items() if key != "_target_"}, group)


def common_keys(schema: type) -> frozenset[str]:
    """Names of a schema's keys."""
    return frozenset(f.name for f in fields(schema))


def timeout_of(loader: Mapping[str, Any]) -> float:
    """Seconds that loading a batch may take, from a loader's node; 0: no limit."""
    return float(loader.get("timeout") or 0)
