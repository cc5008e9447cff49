"""Loads one file that torch.save wrote, without running code from it, and explains a file that cannot be loaded."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from feedrate.dataset.labels import same
from feedrate.errors import SampleError

MAX_EXPANDED_BYTES = 1 << 30  # a tensor may be larger than its file (torch.Tensor.expand), up to this
# how torch.save begins a file, and how it did before PyTorch 1.6
_ZIP, _OLD = b"PK\x03\x04", b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
# torch's messages on files that call something; the name comes from the file, so only a plain one is shown
_CODE = re.compile(
    r"GLOBAL (\w+(?:\.\w+)*) (?:was not an allowed|whose module)|Trying to call reduce|Can only (?:create|build)"
)
TAKE_OUT = "or take the ID out of the partition"
_SAVE = "save the tensor X alone with torch.save(X, path)"

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
        fault, resave = fault_of(path, error)
        remedy = _SAVE if resave else f"restore it, {TAKE_OUT}"
        raise SampleError(f"sample {ID!r} ({path}): {fault}; {remedy}", ID=ID, path=path) from None
    fault = _unfit(value, path)
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


def _unfit(value: Any, path: str) -> str:
    """Why the content of a file is no sample, and the remedy; empty where it is one."""
    if not isinstance(value, Tensor):
        return f"holds a value of type {type(value).__name__}; {_SAVE}"
    if value.is_nested:
        return "is a nested tensor; save a tensor of one shape"
    if value.layout != torch.strided:
        return "is sparse; save X.to_dense()"
    if value.is_quantized:
        return "is quantized; save X.dequantize()"
    if value.device.type != "cpu":
        return f"holds a tensor without data, of the device {value.device.type!r}; save one with data"
    if value.nbytes > MAX_EXPANDED_BYTES and value.nbytes > 2 * Path(path).stat().st_size:
        return f"expands to {value.nbytes / 1e9:,.1f} GB, far more than its file; save X.contiguous(), {TAKE_OUT}"
    return ""


def os_fault(error: Exception) -> str:
    """A short reason where a file cannot be opened or read, else an empty text."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return "no such file"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({error.strerror or error})"
    return "does not fit into memory" if isinstance(error, MemoryError) else ""


def fault_of(path: str, error: Exception) -> tuple[str, bool]:
    """Why torch.load failed, and whether the file must be saved in another form; if not, it must be restored."""
    text = str(error)
    if fault := os_fault(error):
        return fault, False
    if "can't allocate memory" in text:
        return "does not fit into memory", False
    try:
        size = Path(path).stat().st_size
        with Path(path).open("rb") as file:
            head = file.read(len(_OLD))
        is_zip = zipfile.is_zipfile(path)
        is_saved = is_zip and any(name.endswith("/data.pkl") for name in zipfile.ZipFile(path).namelist())
    except Exception:  # zipfile raises many types for damaged files
        return "is damaged", False
    if size == 0:
        return "is an empty file", False
    if (head.startswith(_ZIP) and not is_zip) or _ZIP.startswith(head) or (_OLD.startswith(head) and head != _OLD):
        return f"is truncated ({size:,} byte{'s' if size > 1 else ''})", False
    if needed := _CODE.search(text):
        fault = "is truncated, or needs code to load" if head == _OLD else "needs code to load"
        return f"{fault}{f' ({needed[1]})' if needed[1] else ''}, which is refused", True
    if head == _OLD:
        return f"is truncated or damaged ({size:,} bytes)", False
    if is_saved:
        return "is damaged, or was saved with another pickle_protocol than 2", False
    if head.startswith(b"\x80"):
        return "is a pickle, which may hold code and is not loaded", True
    return "is not a file that torch.save wrote", True
