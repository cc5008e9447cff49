"""A first look at the samples of a dataset: what X and y are, before a loader exists.

Labels that stand in files are read in labels.py; here are those that a class computes.
"""

from __future__ import annotations

import logging
import time
import traceback
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, Subset

from feedrate.config import DatasetConfig
from feedrate.dataset.labels import Targets, read_labels, single
from feedrate.dataset.rng import name_sample, sample_seeds
from feedrate.dataset.subset import list_IDs
from feedrate.dataset.time_limit import TimedOut, within
from feedrate.errors import SampleError, UserError, raised_at

log = logging.getLogger("feedrate")
LABEL_SAMPLES = 1_000  # samples looked at to learn what the labels of a class without a catalog are
PATIENCE_S = 3.0  # seconds of that after which the user is told


def targets_of(
    train: Dataset[Any], keys: DatasetConfig, stated: int | None, path: str, seed: int, timeout: float = 0
) -> Targets:
    """What the labels of a class without a catalog are, from a sample of them where neither class nor key says."""
    if stated is not None and (type(stated) is not int or stated < 1):
        raise UserError(f"dataset: {path}.num_outputs is {stated!r}; a whole number of at least 1 is needed")
    size, known = size_of(train), keys.num_outputs or stated
    count = min(size, LABEL_SAMPLES if known is None else 16)  # 16: enough to tell classes from numbers
    picked = [index * size // count for index in range(count)]
    begin, said, values = time.perf_counter(), False, []
    for index in picked:
        values.append(_plain(probe(train, index, path, seed, timeout)[1]))
        if not said and time.perf_counter() - begin > PATIENCE_S:
            said = True
            log.info("note: looking at %d samples to learn how many classes there are; dataset.num_outputs=... "
                     "or an attribute num_outputs states it", count)  # fmt: skip
    values = list(single({"train": values})["train"])
    IDs_ = [_name(train, index) for index in picked]
    try:
        targets, _ = read_labels({"train": values}, {"train": IDs_}, keys.task)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if targets.task == "classification":
        for ID, value in zip(IDs_, values, strict=True):
            if type(value) is float:
                raise UserError(
                    f"{path}: sample {ID!r} has y={value!r}, a float without a fraction; "
                    "return int(y) for a class, or set dataset.task=regression for a number"
                )
            if type(value) not in (int, bool) or value < 0:
                remedy = "return a class index (0, 1, ...), a float, or a vector of floats"
                raise UserError(f"{path}: sample {ID!r} has y={value!r}; {remedy}")
        found = int(max(values)) + 1
        if known is None and count < size:
            log.info("note: %d classes, as the labels of %d samples show; dataset.num_outputs states it", found, count)
        seen = {int(value) for value in values}
        if known is None and len(seen) < found:
            first = ", ".join(map(str, islice((c for c in range(found) if c not in seen), 5)))
            more = ", ..." if found - len(seen) > 5 else ""
            log.warning("note: labels: %d of %d classes (%s%s) are not among the labels of the %d samples looked at; "
                        "y counts classes from 0, and a class without a training sample cannot be learned",
                        found - len(seen), found, first, more, count)  # fmt: skip
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
    """One sample before the loader exists, with its own random numbers: the run's are as they were afterwards.

    Args:
        timeout: seconds that it may take, 0 for ever.

    Raises:
        SampleError: with the text that the loader would give.
        TimedOut: it takes longer.
        UserError: it is no pair.
    """
    ID = _name(dataset, index)
    try:
        sample = within(timeout, partial(probe_again, dataset, index, seed, 0, ID), f"sample {ID!r}")
    except TimedOut:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, SampleError) and error.ID is not None:
            raise
        raise sample_error(dataset, ID, error) from error
    if not isinstance(sample, (tuple, list)) or len(sample) != 2:
        what = type(sample).__name__
        what += f" of length {len(sample)}" if isinstance(sample, (tuple, list)) else ""
        raise UserError(f"dataset: {path} returns a {what}; __getitem__ must return the pair (X, y)")
    return sample[0], sample[1]


def probe_again(dataset: Dataset[Any], index: int, seed: int, epoch: int, ID: str) -> Any:
    """The sample that the loader gives in that epoch; the run's random numbers are as they were afterwards."""
    with sample_seeds():
        name_sample(seed, epoch, ID)
        return dataset[index]


def _name(dataset: Dataset[Any], index: int) -> str:
    ids = list_IDs(dataset)
    return str(index) if ids is None else str(ids[index])


def sample_error(dataset: Any, ID: str, error: BaseException) -> SampleError:
    """What `__getitem__` raised, with the sample's name and, where the dataset has a method `path(ID)`, its file."""
    path = None
    try:
        found = getattr(dataset, "path", None)
        path = str(found(ID)) if callable(found) else None
    except Exception:  # a method of that name that means something else must not hide the error to be told
        pass
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    where = f"sample {ID!r}" + (f" ({path})" if path else "")
    if isinstance(error, UserError):
        text = f"{where}: {error}"
    else:
        text = f"{where}: {type(dataset).__name__}.__getitem__ failed with {one_line(error)}"
    return SampleError(text, ID=ID, path=path, cause="".join(traceback.format_exception(error)))


def one_line(error: BaseException) -> str:
    """Its type and first line and, where the user's code raised it, the line of that."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # an exception that cannot be printed
        lines = []
    return f"{type(error).__name__}{f': {lines[0]}' if lines else ''}{raised_at(error)}"


def check_outputs(key: str, stated: int, found: Targets) -> None:
    if found.task == "regression" and stated != found.num_outputs:
        raise UserError(f"{key}={stated}: the labels are {found.describe()}; it must be {found.num_outputs}")
    if stated < found.num_outputs:
        raise UserError(f"{key}={stated}: the labels need at least {found.num_outputs}")


def size_of(dataset: Dataset[Any]) -> int:
    return len(dataset)  # type: ignore[arg-type]
