"""Interprets labels as classes, numbers or vectors, and converts them to tensors."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
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
            return f"{self.num_outputs} classes"
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
    texts = set().union(*labels.values())
    lone = _lone(texts)
    every = _all_numbers(texts) if lone is None else _all_numbers(list(map(str, lone.values())))
    if every is not None and (task == "regression" or (task == "auto" and (every != np.floor(every)).any())):
        note = "labels: some numbers are written in several ways, such as {}, and count as one quantity; "
        note += "dataset.task=classification takes each text as a class"
        numbers = {text: float(text) for text in texts} if lone is None else lone
        notes = _same_number(numbers, note) if len(np.unique(every)) < len(texts) else []
        quantities = {name: [float(numbers[text]) for text in those] for name, those in labels.items()}
        return _noted(read_labels(quantities, partition, task), notes)
    typed: dict[str, Any] = lone or {text: _typed(text) for text in texts}
    if texts - _NO_NUMBER <= _TRUTH.keys():
        typed |= {text: _TRUTH[text] for text in texts & _TRUTH.keys()}
    numbers = {text: value for text, value in typed.items() if _number(value) or lone}
    words = {text for text, value in typed.items() if type(value) is str}
    none = words if words <= _NO_NUMBER and len(words) < len(texts) else words & {""}
    if none:
        pairs = (pair for name, ids in partition.items() for pair in zip(ids, labels[name], strict=True))
        IDs = [ID for ID, text in pairs if text in none]
        raise UserError(offence("labels: IDs without a label", IDs, "write their labels, or take out their rows"))
    values = {name: [typed[text] for text in those] for name, those in labels.items()}
    if len(numbers) == len(texts):
        whole = all(type(value) in (int, bool) for value in numbers.values())
        if len(set(numbers.values())) == len(texts) and (whole or all(map(_fits, numbers.values()))):
            form = "{}" if lone is None else "[{}]"
            exact = whole and all(form.format(v).lower() == text and abs(v) < 2**63 for text, v in numbers.items())
            return read_labels(values, partition, task, {} if exact else {v: text for text, v in numbers.items()})
        note = "labels: some texts are the same number, such as {}; each is a class of its own"
        notes = _same_number(numbers, note) if len(set(numbers.values())) < len(texts) else []
        return _noted(read_labels(labels, partition, task), notes)
    fraction = any(value % 1 > 0 for value in numbers.values())
    if len(words) + len(numbers) < len(texts) or task == "regression" or (task == "auto" and fraction):
        return read_labels(values, partition, task)  # vectors, or an error with the reason
    return _noted(read_labels(labels, partition, task), _odd_kinds(values, partition) if numbers else [])


def _lone(texts: Collection[str]) -> dict[str, Any] | None:
    """The number or truth value of each text where all are lists of one; else None."""
    if not all(text.lstrip().startswith("[") for text in texts):
        return None
    lists = [_typed(text) for text in texts]
    found = single({"": lists})[""]
    return None if found is lists else dict(zip(texts, found, strict=True))


def _all_numbers(texts: Collection[str]) -> np.ndarray | None:
    """(N,) float64 where all texts are numbers, else None; faster than `_typed`."""
    if _NOT_IN_NUMBERS.search("".join(texts)):
        return None
    try:
        return np.fromiter(map(float, texts), dtype=np.float64, count=len(texts))
    except ValueError:
        return None


def _typed(text: str) -> Any:
    """A text as number or list of numbers; other texts unchanged."""
    try:
        if not _NOT_IN_NUMBERS.search(text):
            return int(text) if text.strip().lstrip("+-").isdigit() else float(text)
        value = json.loads(text) if text.lstrip().startswith("[") else None
    except (ValueError, RecursionError):  # also more digits than Python converts
        return text
    return value if isinstance(value, list) and all(type(x) in (int, float, bool) for x in value) else text


def _same_number(numbers: Mapping[str, float], note: str) -> list[str]:
    """The note, with two texts that are the same number."""
    first: dict[float, str] = {}
    pair = next((first[v], text) for text, v in sorted(numbers.items()) if first.setdefault(v, text) != text)
    return [note.format(" and ".join(map(_shown, pair)))]


def _noted(found: tuple[Targets, dict[str, Tensor]], notes: list[str]) -> tuple[Targets, dict[str, Tensor]]:
    return replace(found[0], notes=(*notes, *found[0].notes)), found[1]


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
    labels = single(labels)
    kinds = {type(value) for values in labels.values() for value in values}
    if wrong := kinds - {int, float, str, bool, list}:
        rule = "give it a number, a text, true, false or a list of numbers, or take the ID out of the partition"
        raise _error(labels, partition, lambda value: type(value) in wrong, rule)
    if str in kinds and not all(encodable("".join(set(map(_text, of)))) for of in labels.values()):
        rule = "it is no valid Unicode; rename the class"
        raise _error(labels, partition, lambda value: not encodable(_text(value)), rule)
    if list in kinds:
        return _vectors(labels, partition, task)
    numeric = kinds <= {int, float}
    if numeric and (float in kinds or task == "regression"):
        numbers = {name: _numbers(values, partition[name]) for name, values in labels.items()}
        if task == "regression" or (task == "auto" and any((v != np.floor(v)).any() for v in numbers.values())):
            return Targets("regression", None, 1), {
                name: torch.from_numpy(values.astype(np.float32)) for name, values in numbers.items()
            }
    elif task == "regression":
        raise _error(labels, partition, lambda v: not _number(v), "dataset.task=regression needs numbers")
    elif float in kinds:
        floats = [value for values in labels.values() for value in values if type(value) is float]
        if not all(map(_fits, floats)):
            raise _error(labels, partition, lambda v: type(v) is float and not _fits(v), f"labels must be {_FINITE}")
        if task == "auto" and any(value % 1 for value in floats):
            counts = Counter(_number(value) for values in labels.values() for value in values)
            if counts[True] < counts[False]:
                rule = "others are no numbers; give no number, or set dataset.task=classification"
                raise _error(labels, partition, lambda v: type(v) is float and v % 1 != 0, rule)
            rule = "others are numbers with a fraction; give numbers only, or set dataset.task=classification"
            raise _error(labels, partition, lambda v: not _number(v), rule)
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
    labels: Mapping[str, Sequence[Any]], partition: Mapping[str, Sequence[str]], task: str
) -> tuple[Targets, dict[str, Tensor]]:
    if task == "classification":
        rule = "dataset.task=classification needs one class for each ID"
        raise _error(labels, partition, lambda v: isinstance(v, list), rule)
    listed, first = _first(labels, partition, lambda v: isinstance(v, list))
    length = len(first)
    kinds = (bool,) if first and type(first[0]) is bool else (int, float)  # true and false are 1 and 0, if not mixed

    def fits(value: Any) -> bool:
        return isinstance(value, list) and len(value) == length and all(type(x) in kinds and _fits(x) for x in value)

    if length == 0:
        raise _error(labels, partition, lambda v: v == [], "a vector needs at least one number")
    if not all(fits(value) for values in labels.values() for value in values):
        rule = f"as that of ID {listed!r} is a list of {length}, each label must be a list of {length} numbers, "
        raise _error(labels, partition, lambda v: not fits(v), rule + _FINITE)
    return Targets("regression", None, length), {
        name: torch.from_numpy(np.asarray(values, dtype=np.float32)) for name, values in labels.items()
    }


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
    if len(ordered) == 1:
        notes.append(f"labels: every sample has the class {_shown(names[0])}, so there is nothing to learn")
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


def _numbers(values: Sequence[Any], list_IDs: Sequence[str]) -> np.ndarray:
    """(N,) float64, each within what float32 can hold."""
    try:
        numbers = np.fromiter(values, dtype=np.float64, count=len(values))
        wrong = np.flatnonzero(~(np.abs(numbers) <= _LARGEST))
    except OverflowError:  # a whole number beyond float64
        wrong = np.array([index for index, value in enumerate(values) if not _fits(value)])
    if len(wrong):
        index = int(wrong[0])
        shown = f"{_shown(values[index])} ({len(wrong):,} such labels in all)"
        raise UserError(f"labels: ID {list_IDs[index]!r} has the label {shown}; labels must be {_FINITE}")
    return numbers


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


def _text(value: Any) -> str:
    return value if type(value) is str else ""


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


def _error(
    labels: Mapping[str, Sequence[Any]], partition: Mapping[str, Sequence[str]], odd: Callable[[Any], bool], rule: str
) -> UserError:
    ID, value = _first(labels, partition, odd)
    return UserError(f"labels: ID {ID!r} has the label {_shown(value)}; {rule}")
