"""Whether the samples of a batch are alike, as collating needs it, and if not, which one is the odd one out.

How that is told to the user is fetch.py's affair.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from torch import Tensor

from feedrate.loader.digest import leaves

_ARRAYS = (Tensor, np.ndarray)
_FLAT = (*_ARRAYS, int, float, bool, str)


def shape_mismatch(samples: list[Any]) -> tuple[int, int, str] | None:
    """Index of the first sample unlike the majority, index of one of the majority, and the difference in words."""
    if _flat_and_alike(samples):
        return None
    forms = [_form(sample) for sample in samples]
    if all(form == forms[0] for form in forms):
        return None
    usual = Counter(forms).most_common(1)[0][0]  # of equals the first, so the answer depends on the batch alone
    odd = next(i for i, form in enumerate(forms) if form != usual)
    difference = "is built differently from"
    for mine, theirs in zip(forms[odd], usual, strict=False):
        if mine[0] != theirs[0] or (mine[1] is None) != (theirs[1] is None):
            break
        if mine != theirs:
            name = f"{mine[0]} " if mine[0] else ""
            if mine[1] != theirs[1]:
                difference = f"{name}has shape {tuple(mine[1])}, not {tuple(theirs[1])} as in"
            else:
                difference = f"{name}has dtype {mine[2]}, not {theirs[2]} as in"
            break
    return odd, forms.index(usual), difference


def _flat_and_alike(samples: list[Any]) -> bool:
    """Whether all are tuples of the same tensors, arrays, numbers and texts: what most are, seen at a glance."""
    first = samples[0]
    if type(first) is not tuple or any(type(value) not in _FLAT for value in first):
        return False
    kinds = [(type(v), v.shape, v.dtype) if type(v) in _ARRAYS else (type(v), None, None) for v in first]
    for sample in samples:
        if type(sample) is not tuple or len(sample) != len(kinds):
            return False
        for value, (kind, shape, dtype) in zip(sample, kinds, strict=True):
            if type(value) is not kind or (shape is not None and (value.shape != shape or value.dtype != dtype)):
                return False
    return True


def _form(sample: Any) -> tuple[tuple[Any, ...], ...]:
    """Name, shape and dtype of each tensor or array of a sample, and the names of its other parts."""
    if isinstance(sample, (tuple, list)) and len(sample) == 2:
        named = [*leaves(sample[0], "X"), *leaves(sample[1], "y")]
    else:
        named = [(name.lstrip("."), value) for name, value in leaves(sample)]
    return tuple(
        (name, value.shape, value.dtype) if isinstance(value, (Tensor, np.ndarray)) else (name, None, None)
        for name, value in named
    )
