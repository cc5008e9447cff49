"""Loads samples before there is a loader, to determine what X and y are."""

from __future__ import annotations

import logging
import traceback
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from feedrate.config import DatasetConfig
from feedrate.dataset.labels import Targets, read_labels, single
from feedrate.dataset.rng import name_sample, sample_seeds
from feedrate.dataset.subset import ID_of, path_of, size_of, unwrapped
from feedrate.dataset.time_limit import TimedOut, within
from feedrate.errors import SampleError, UserError, raised_at

log = logging.getLogger("feedrate")
LABEL_SAMPLES = 1_000  # samples loaded to learn the labels of a class without a catalog


def targets_of(
    train: Dataset[Any], keys: DatasetConfig, stated: int | None, path: str, seed: int, timeout: float = 0
) -> Targets:
    """The targets of a class without a catalog; where no number of outputs is stated, from its first labels."""
    if stated is not None and (type(stated) is not int or stated < 1):
        raise UserError(f"dataset: {path}.num_outputs is {stated!r}; a whole number of at least 1 is needed")
    size, known = size_of(train), keys.num_outputs or stated
    count = min(size, LABEL_SAMPLES if known is None else 16)  # 16: enough to distinguish classes from numbers
    indices = [index * size // count for index in range(count)]
    values = [_plain(probe(train, index, path, seed, timeout)[1]) for index in indices]
    values = list(single({"train": values})["train"])
    IDs = [ID_of(train, index) for index in indices]
    try:
        targets, _ = read_labels({"train": values}, {"train": IDs}, keys.task)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if targets.task == "classification":
        for ID, value in zip(IDs, values, strict=True):
            if type(value) not in (int, bool) or value < 0:
                remedy = "return a class index (0, 1, ...), a float, or a vector of floats"
                if type(value) is float:
                    remedy = "a float without a fraction; return int(y), or set dataset.task=regression"
                raise UserError(f"{path}: sample {ID!r} has y={value!r}; {remedy}")
        found = int(max(values)) + 1
        if known is None and count < size:
            log.info("note: %d classes in the labels of %d samples; dataset.num_outputs states it", found, count)
        unseen = found - len(set(values))
        if known is None and unseen:
            text = "note: labels: %d of %d classes are not among the labels of %d samples; y counts classes from 0"
            log.warning(text, unseen, found, count)
        targets = Targets("classification", tuple(range(found)), found)
    if stated is not None:
        check_outputs(f"{path}.num_outputs", stated, targets)
        targets = replace(targets, num_outputs=stated)
    if targets.classes is not None:
        outputs = keys.num_outputs or targets.num_outputs
        targets = replace(targets, classes=tuple(range(max(outputs, targets.num_outputs))))
    return targets


def _plain(y: Any) -> Any:
    if isinstance(y, (Tensor, np.ndarray, np.generic)):
        return y.tolist()
    return list(y) if isinstance(y, tuple) else y


def probe(dataset: Dataset[Any], index: int, path: str, seed: int, timeout: float = 0) -> tuple[Any, Any]:
    """The sample at an index as in epoch 0; the global random generators are left unchanged.

    Raises:
        SampleError: the sample cannot be loaded; same text as from the loader.
        TimedOut: it takes longer than `timeout` seconds (0: no limit).
        UserError: it is not a pair (X, y).
    """
    ID = ID_of(dataset, index)
    try:
        sample = within(timeout, partial(probe_again, dataset, index, seed, 0, ID), f"sample {ID!r}")
    except (Exception, SystemExit) as error:
        if isinstance(error, TimedOut) or (isinstance(error, SampleError) and error.ID is not None):
            raise
        raise sample_error(dataset, ID, error) from error
    if not isinstance(sample, (tuple, list)) or len(sample) != 2:
        kind = type(sample).__name__ + (f" of length {len(sample)}" if isinstance(sample, (tuple, list)) else "")
        raise UserError(f"dataset: {path} returns a {kind}; __getitem__ must return the pair (X, y)")
    return sample[0], sample[1]


def probe_again(dataset: Dataset[Any], index: int, seed: int, epoch: int, ID: str) -> Any:
    """The sample that the loader gives in that epoch; the global random generators are left unchanged."""
    with sample_seeds():
        name_sample(seed, epoch, ID)
        return dataset[index]


def sample_error(dataset: Any, ID: str, error: BaseException) -> SampleError:
    """The error raised by `__getitem__`, with the sample's ID and, where known, its file."""
    path = path_of(dataset, ID)
    where = f"sample {ID!r}" + (f" ({path})" if path else "")
    if isinstance(error, UserError):
        text = f"{where}: {error}"
    else:
        text = f"{where}: {type(unwrapped(dataset)[0]).__name__}.__getitem__ failed with {one_line(error)}"
    return SampleError(text, ID=ID, path=path, cause="".join(traceback.format_exception(error)))


def one_line(error: BaseException) -> str:
    """Type, first line and, where the user's code raised it, the place of an error."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # an exception that cannot be printed
        lines = []
    return f"{type(error).__name__}{f': {lines[0]}' if lines else ''}{raised_at(error)}"


def check_outputs(key: str, stated: int, found: Targets) -> None:
    """Checks a stated number of outputs against the labels."""
    if found.task == "regression" and stated != found.num_outputs:
        raise UserError(f"{key}={stated}: the labels are {found.describe()}; it must be {found.num_outputs}")
    if stated < found.num_outputs:
        raise UserError(f"{key}={stated}: the labels need at least {found.num_outputs}")
