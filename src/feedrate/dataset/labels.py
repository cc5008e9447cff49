"""Interprets labels as classes, numbers or vectors, and converts them to tensors."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feedrate.errors import UserError, offence

MANY = 20  # classes from which on about one class per sample is worth a note
_LARGEST = float(np.finfo(np.float32).max)
_FINITE = f"finite and at most {_LARGEST:.1e} in size"
_NOT_IN_NUMBERS = re.compile(r"[^0-9eE.+\- \t]")
_TRUTH = {"true": True, "false": False}
# texts that spreadsheets and statistics programs write for a missing number
_NO_NUMBER = frozenset({"", "#N/A", "#NA", "N/A", "n/a", "NA", "NULL", "null", "None", "NaN", "nan", "-NaN", "-nan"})


@dataclass(frozen=True)
class Targets:
    """What a model has to predict.

    Attributes:
        task: 'classification' or 'regression'.
        classes: the label (a JSON scalar) of each class index, or None for regression.
        num_outputs: number of classes, length of the vector, or 1 for a number.
        notes: remarks for the user that are no errors.
    """

    task: str
    classes: tuple[Any, ...] | None
    num_outputs: int
    notes: tuple[str, ...] = ()

    def describe(self) -> str:
        """A few words, such as '10 classes'."""
        if self.task == "classification":
            return "1 class" if self.num_outputs == 1 else f"{self.num_outputs} classes"
        return "a number to predict" if self.num_outputs == 1 else f"{self.num_outputs} numbers to predict"


def read_texts(
    labels: Mapping[str, Sequence[str]], partition: Mapping[str, Sequence[str]], task: str = "auto"
) -> tuple[Targets, dict[str, Tensor]]:
    """Same as `read_labels`, for the texts of a table.

    Texts that all are numbers, or lists of one number, are numbers; any other '[...]' is a vector; true and false are
    truth values where no other text occurs; all others are texts. Each text is a class of its own; classes are in the
    order of their numbers, or of the texts where two texts are one number, as '01' and '1'.

    Raises:
        UserError: as `read_labels`; also where a label is missing: '', and among numbers 'NA' and the like.
    """
    texts = list(set().union(*labels.values()))
    lists = [_typed(text) for text in texts]
    found = single({"": lists})[""]
    lone = found is not lists  # all are lists of one value
    typed: dict[str, Any] = dict(zip(texts, found, strict=True))
    if typed.keys() - _NO_NUMBER <= _TRUTH.keys():
        typed |= {text: value for text, value in _TRUTH.items() if text in typed}
    numbers = {text: value for text, value in typed.items() if _number(value) or lone}
    words = {text for text, value in typed.items() if type(value) is str}
    none = words if words <= _NO_NUMBER and len(words) < len(texts) else words & {""}
    if none:
        pairs = (pair for name, ids in partition.items() for pair in zip(ids, labels[name], strict=True))
        IDs = [ID for ID, text in pairs if text in none]
        raise UserError(offence("labels: IDs without a label", IDs, "write their labels, or take out their rows"))
    values = {name: [typed[text] for text in those] for name, those in labels.items()}
    fraction = any(value % 1 > 0 for value in numbers.values())
    if len(words) + len(numbers) < len(texts) or task == "regression" or (task == "auto" and fraction):
        return read_labels(values, partition, task)
    if len(set(numbers.values())) == len(texts) and all(type(v) is not float or _fits(v) for v in numbers.values()):
        form, whole = "[{}]" if lone else "{}", all(type(v) is not float and abs(v) < 2**63 for v in numbers.values())
        exact = whole and all(form.format(value).lower() == text for text, value in numbers.items())
        return read_labels(values, partition, task, {} if exact else {value: text for text, value in numbers.items()})
    targets, tensors = read_labels(labels, partition, task)
    return replace(targets, notes=(*_odd_kinds(values, partition), *targets.notes)), tensors


def _typed(text: str) -> Any:
    """A text as number or list of numbers; other texts unchanged."""
    try:
        if not _NOT_IN_NUMBERS.search(text):
            return int(text) if text.strip().lstrip("+-").isdigit() else float(text)
        value = json.loads(text) if text.lstrip().startswith("[") else None
    except (ValueError, RecursionError):  # also more digits than Python converts
        return text
    return value if isinstance(value, list) and all(type(x) in (int, float, bool) for x in value) else text


def read_labels(
    labels: Mapping[str, Sequence[Any]],
    partition: Mapping[str, Sequence[str]],
    task: str = "auto",
    names: Mapping[Any, str] | None = None,
) -> tuple[Targets, dict[str, Tensor]]:
    """Converts the labels of all partitions to one kind of tensor.

    Args:
        labels: JSON values by partition, aligned with `partition`.
        partition: the IDs, for messages.
        task: 'auto' takes vectors and floats with a fraction for regression, everything else for classes.
        names: names of classes that are not their value.

    Returns:
        The targets, and by partition (N,) int64 class indices, (N,) float32 numbers or (N, K) float32 vectors.

    Raises:
        UserError: naming the first ID whose label does not fit the others.
    """

    def error(odd: Callable[[Any], bool], rule: str) -> UserError:
        ID, value = _first(labels, partition, odd)
        return UserError(f"labels: ID {ID!r} has the label {_shown(value)}; {rule}")

    labels = single(labels)
    kinds = {type(value) for values in labels.values() for value in values}
    if wrong := kinds - {int, float, str, bool, list}:
        rule = "give it a number, a text, true, false or a list of numbers, or take the ID out of the partition"
        raise error(lambda value: type(value) in wrong, rule)
    texts = {value for values in labels.values() for value in values if type(value) is str}
    if not encodable("".join(texts)):
        rule = "it is no valid Unicode; rename the class"
        raise error(lambda value: type(value) is str and not encodable(value), rule)
    if list in kinds:
        return _vectors(labels, partition, task, error)
    floats = [value for values in labels.values() for value in values if type(value) is float]
    quantity = task == "regression" or (task == "auto" and any(value % 1 > 0 for value in floats))
    checked = (int, float) if quantity else (float,)
    if any(type(value) in checked and not _fits(value) for values in labels.values() for value in values):
        raise error(lambda value: type(value) in checked and not _fits(value), f"labels must be {_FINITE}")
    if quantity and kinds <= {int, float}:
        return Targets("regression", None, 1), {name: _float32(values) for name, values in labels.items()}
    if quantity:
        counts = Counter(_number(value) for values in labels.values() for value in values)
        more_numbers = counts[True] >= counts[False] or task == "regression"
        rule = "numbers with a fraction are mixed with others; give numbers only, or set dataset.task=classification"
        rule = "dataset.task=regression needs numbers" if task == "regression" else rule
        raise error(lambda value: not _number(value) if more_numbers else type(value) is float and value % 1 > 0, rule)
    return _classes(labels, partition, kinds, task, names or {})


def single(labels: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
    """The same labels; where all are lists of one number, or all of one truth value, these values."""
    if all(isinstance(value, (list, tuple)) and len(value) == 1 for values in labels.values() for value in values):
        found = {name: [value[0] for value in values] for name, values in labels.items()}
        kinds = {type(value) for values in found.values() for value in values}
        if kinds == {bool} or (kinds <= {int, float} and all(_fits(v) for values in found.values() for v in values)):
            return found
    return labels


def _vectors(
    labels: Mapping[str, Sequence[Any]],
    partition: Mapping[str, Sequence[str]],
    task: str,
    error: Callable[[Callable[[Any], bool], str], UserError],
) -> tuple[Targets, dict[str, Tensor]]:
    if task == "classification":
        raise error(lambda v: isinstance(v, list), "dataset.task=classification needs one class for each ID")
    listed, first = _first(labels, partition, lambda v: isinstance(v, list))
    length = len(first)
    kinds = (bool,) if first and type(first[0]) is bool else (int, float)  # true and false are 1 and 0, if not mixed

    def fits(value: Any) -> bool:
        return isinstance(value, list) and len(value) == length and all(type(x) in kinds and _fits(x) for x in value)

    if length == 0:
        raise error(lambda v: v == [], "a vector needs at least one number")
    if not all(fits(value) for values in labels.values() for value in values):
        rule = f"as that of ID {listed!r} is a list of {length}, each label must be a list of {length} numbers, "
        raise error(lambda v: not fits(v), rule + _FINITE)
    return Targets("regression", None, length), {name: _float32(values) for name, values in labels.items()}


def _float32(values: Sequence[Any]) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float64).astype(np.float32))


def _classes(
    labels: Mapping[str, Sequence[Any]],
    partition: Mapping[str, Sequence[str]],
    kinds: set[type],
    task: str,
    renamed: Mapping[Any, str],
) -> tuple[Targets, dict[str, Tensor]]:
    numeric = kinds <= {int, float}
    notes = [] if numeric or len(kinds) == 1 else _odd_kinds(labels, partition)
    notes += _nearly_alike(labels) if str in kinds else []
    if not numeric and len(kinds) > 1:  # true is not 1 and "1" is not 1; each kind in its own order
        labels = {name: [(_kind(value), value) for value in values] for name, values in labels.items()}
    found = {name: set(values) for name, values in labels.items()}
    ordered = sorted(set().union(*found.values()))
    position = {value: index for index, value in enumerate(ordered)}
    plain = (value[1] if isinstance(value, tuple) else value for value in ordered)
    names = tuple(renamed.get(value, _whole(value)) for value in plain)
    if unseen := [_shown(name) for name, value in zip(names, ordered, strict=True) if value not in found["train"]]:
        listed = ", ".join(unseen[:5]) + (", ..." if len(unseen) > 5 else "")
        count = "1 class" if len(unseen) == 1 else f"{len(unseen):,} classes"
        notes.append(f"labels: {count} without a training sample ({listed}); the model cannot learn them")
    total = sum(map(len, labels.values()))
    if len(ordered) >= MANY and 2 * len(ordered) > total:
        quantity = "; dataset.task=regression takes them as quantities" if numeric and task == "auto" else ""
        notes.append(f"labels: {len(ordered):,} classes for {total:,} samples{quantity}")
    return Targets("classification", names, len(ordered), tuple(notes)), {
        name: torch.from_numpy(np.fromiter(map(position.__getitem__, values), dtype=np.int64, count=len(values)))
        for name, values in labels.items()
    }


def _odd_kinds(labels: Mapping[str, Sequence[Any]], partition: Mapping[str, Sequence[str]]) -> list[str]:
    """A note on the rarest kind where texts, numbers, true and false are mixed."""
    counts = Counter(_kind(value) for values in labels.values() for value in values)
    if len(counts) == 1:
        return []
    rarest, count = counts.most_common()[-1]
    ID, value = _first(labels, partition, lambda v: _kind(v) == rarest)
    words = {"number": "numbers", "str": "texts", "bool": "true or false"}
    note = f"labels: {count:,} of {counts.total():,} are {words[rarest]}, the others are not: the first is that of ID "
    return [f"{note}{ID!r}, {_shown(value)}; each is a class of its own"]


def _nearly_alike(labels: Mapping[str, Sequence[Any]]) -> list[str]:
    """A note on labels that differ from another one only by case, outer white space or Unicode form."""
    spellings: dict[str, list[str]] = {}
    for text in sorted({value for values in labels.values() for value in values if type(value) is str}):
        spellings.setdefault(unicodedata.normalize("NFC", text).strip().casefold(), []).append(text)
    several = [group for group in spellings.values() if len(group) > 1]
    if not several:
        return []
    counts = Counter(chain.from_iterable(labels.values()))
    rare = sum(sum(sorted(map(counts.__getitem__, group))[:-1]) for group in several)
    return [
        f"labels: {rare:,} labels differ from others only by case, outer white space or Unicode form, such as "
        f"{' and '.join(map(_shown, several[0][:2]))}; each spelling is a class of its own"
    ]


def _fits(value: float) -> bool:
    return -_LARGEST <= value <= _LARGEST


def same(y: Any, label: Any) -> bool:
    """Whether y, stored in a file beside X, equals the sample's label."""
    if isinstance(y, Tensor):
        plain = not y.is_nested and y.layout == torch.strided and y.device.type == "cpu"
        few = plain and y.numel() <= (len(label) if isinstance(label, list) else 1)
        y = y.flatten().tolist() if few else None
    if isinstance(label, str) and not isinstance(y, str):
        label = _typed(label)
    y, label = (v[0] if isinstance(v, (list, tuple)) and len(v) == 1 else v for v in (y, label))
    if isinstance(y, (list, tuple)) and isinstance(label, list):
        return len(y) == len(label) and all(map(same, y, label))
    if type(y) is float and isinstance(label, (int, float)) and _fits(y) and _fits(label):
        return bool(np.float32(y) == np.float32(label))  # the precision of labels
    return type(y) in (int, float, bool, str) and bool(y == label)


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _kind(value: Any) -> str:
    return "number" if _number(value) else type(value).__name__


def _whole(value: Any) -> Any:
    """1 for 1.0, so that a class has one name."""
    return int(value) if type(value) is float and value.is_integer() else value


def encodable(text: str) -> bool:
    """Whether a text is valid Unicode; JSON can hold half a surrogate pair, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False).encode(errors="backslashreplace").decode()
    return text if len(text) <= 60 else f"{text[:60]}..."


def _first(
    labels: Mapping[str, Sequence[Any]], partition: Mapping[str, Sequence[str]], odd: Callable[[Any], bool]
) -> tuple[str, Any]:
    """ID and value of the first label for which `odd` is true."""
    pairs = (pair for name, values in labels.items() for pair in zip(partition[name], values, strict=True))
    return next(pair for pair in pairs if odd(pair[1]))
