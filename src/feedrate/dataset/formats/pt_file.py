"""Loads one file that torch.save wrote, without running code from it, and explains a file that cannot be loaded."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from feedrate.dataset.labels import same
from feedrate.errors import SampleError

_CODE = re.compile(r"GLOBAL (\w+(?:\.\w+)*) (?:was not an allowed|whose module)")
_SAVE = "save the tensor X alone with torch.save(X, path)"
REMEDY = f"restore it, {_SAVE}, or take the ID out of the partition"

# torch warns about files that are refused a moment later, with better advice
for _text in ("Detected pickle protocol", "'torch.load' received a zip file that looks like a TorchScript"):
    warnings.filterwarnings("ignore", _text, UserWarning)


def load_tensor(path: str, ID: str, label_of: Callable[[str], Any] | None = None) -> Tensor:
    """The tensor in a file that torch.save wrote; of a pair `(X, y)` or `{"X": X, "y": y}` it is X.

    Args:
        label_of: returns the label of an ID, which y in the file must equal; None ignores y.

    Raises:
        SampleError: the file is missing, damaged, needs code to load, holds no single dense tensor, or another y.
    """
    try:
        value, y = _pair(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        # from None: torch's messages advise weights_only=False, which would run a file's code
        raise SampleError(f"sample {ID!r} ({path}): {fault_of(path, error)}; {REMEDY}", ID=ID, path=path) from None
    fault = _unfit(value)
    if not fault and y is not None and label_of is not None and not same(y, label := label_of(ID)):
        rule = "y in a file is not used, so it must equal the label or be left out"
        fault = f"holds y = {_brief(y)}, and its label is {_brief(label)}; {rule}: {_SAVE}"
    if fault:
        raise SampleError(f"sample {ID!r} ({path}): {fault}", ID=ID, path=path)
    return value.detach()  # type: ignore[no-any-return]


def _pair(value: Any) -> tuple[Any, Any]:
    """X and y of a file that holds a whole sample; any other content is X, without y."""
    if isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[0], Tensor):
        return value[0], value[1]
    return (value["X"], value["y"]) if isinstance(value, dict) and value.keys() == {"X", "y"} else (value, None)


def _brief(value: Any) -> str:
    if isinstance(value, Tensor) and (value.dim() > 1 or value.numel() > 4 or value.layout != torch.strided):
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}" if not value.is_nested else "a nested tensor"
    text = repr(value.tolist() if isinstance(value, Tensor) and value.device.type == "cpu" else value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def wasted_bytes(X: Tensor) -> int:
    """Bytes of X's storage beyond X itself: a view of a larger tensor is saved with all of it."""
    return max(0, X.untyped_storage().nbytes() - X.nbytes)


def _unfit(value: Any) -> str:
    """Why the content of a file is no sample, and the remedy; empty where it is one."""
    if not isinstance(value, Tensor):
        return f"holds a value of type {type(value).__name__}; {_SAVE}"
    dense = value.layout == torch.strided and not value.is_nested and not value.is_quantized
    return "" if dense and value.is_cpu else "holds a sparse, nested, quantized or meta tensor; save a dense one"


def os_fault(error: Exception) -> str:
    """A short reason where a file cannot be opened or read, else an empty text."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return "no such file"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({error.strerror or error})"
    return "does not fit into memory" if isinstance(error, MemoryError) else ""


def fault_of(path: str, error: Exception) -> str:
    """Why torch.load failed."""
    if fault := os_fault(error):
        return fault
    if not Path(path).stat().st_size:
        return "is an empty file"
    # torch's messages on files that call something; the name comes from the file, so only a plain one is shown
    if needed := _CODE.search(str(error)):
        return f"needs code to load ({needed[1]}), which is refused"
    return "is truncated, damaged, or not a file that torch.save wrote"
