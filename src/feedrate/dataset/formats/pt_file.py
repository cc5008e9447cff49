"""Reads one file that torch.save wrote, and says what is wrong with one that cannot be read.

Never runs code from a file. Which files there are is the dataset's affair.
"""

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
# what torch says of a file that wants to call something; the name comes from the file, so only a plain one is shown
_CODE = re.compile(
    r"GLOBAL (\w+(?:\.\w+)*) (?:was not an allowed|whose module)|Trying to call reduce|Can only (?:create|build)"
)
_OUT = "or take the ID out of the partition"
_SAVE = "save the tensor X alone with torch.save(X, path)"

# Said of files that are refused a moment later, with better advice
for _text in ("Detected pickle protocol", "'torch.load' received a zip file that looks like a TorchScript"):
    warnings.filterwarnings("ignore", _text, UserWarning)


def load_tensor(path: str, ID: str, label_of: Callable[[str], Any] | None = None) -> Tensor:
    """The tensor in a file that torch.save wrote; of a pair `(X, y)` or `{"X": X, "y": y}` it is X.

    Never runs code from the file, and never retries in a way that would.

    Args:
        label_of: the label of an ID, which a y in the file must equal; None: a y is not looked at.

    Raises:
        SampleError: the file is missing, empty, damaged, needs code to load, holds no single dense tensor, or beside
            it a y that is not the sample's label.
    """
    try:
        value, y = _pair(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        # from None: the texts of torch advise to load with weights_only=False, which would run a file's code
        raise SampleError(f"sample {ID!r} ({path}): {_reason(path, error)}", ID=ID, path=path) from None
    fault = _unfit(value, path)
    if not fault and y is not None and label_of is not None and not same(y, label := label_of(ID)):
        rule = "y in a file is not used, so it must equal the label or be left out"
        fault = f"holds y = {_brief(y)}, and its label is {_brief(label)}; {rule}: {_SAVE}"
    if fault:
        raise SampleError(f"sample {ID!r} ({path}): {fault}", ID=ID, path=path)
    return value.detach()  # type: ignore[no-any-return]


def _pair(value: Any) -> tuple[Any, Any]:
    """X and y where a file holds the whole sample; all else as X, and no y."""
    if isinstance(value, (tuple, list)) and len(value) == 2 and isinstance(value[0], Tensor):
        return value[0], value[1]
    return (value["X"], value["y"]) if isinstance(value, dict) and value.keys() == {"X", "y"} else (value, None)


def _brief(value: Any) -> str:
    if isinstance(value, Tensor) and (value.dim() > 1 or value.numel() > 4 or value.layout != torch.strided):
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}" if not value.is_nested else "a nested tensor"
    text = repr(value.tolist() if isinstance(value, Tensor) and value.device.type == "cpu" else value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def wasted_bytes(X: Tensor) -> int:
    """Bytes that X's file holds and X does not use, as when X was a view of a larger tensor when it was saved."""
    return max(0, X.untyped_storage().nbytes() - X.numel() * X.element_size())


def _unfit(value: Any, path: str) -> str:
    """Why the content of a file is no sample, and the remedy; an empty text where it is one."""
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
    logical = value.numel() * value.element_size()
    if logical > MAX_EXPANDED_BYTES and logical > 2 * Path(path).stat().st_size:
        return f"expands to {logical / 1e9:,.1f} GB, far more than its file; save X.contiguous(), {_OUT}"
    return ""


def _reason(path: str, error: Exception) -> str:
    """What is wrong with the file, and the remedy; torch's own texts name neither."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return f"no such file; restore it, {_OUT}"
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or error}); mend that, {_OUT}"
    text = str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return f"does not fit into memory; save a smaller tensor, {_OUT}"
    try:
        size = Path(path).stat().st_size
        with Path(path).open("rb") as file:
            head = file.read(len(_OLD))
            file.seek(max(0, size - 200))
            tail = file.read()
        ends = zipfile.is_zipfile(path)
        pickled = _pickled(path) if ends else head
    except Exception:  # zipfile raises a dozen types for bytes that are not as they should be
        return f"is damaged; restore it, {_OUT}"
    if size == 0:
        return f"is an empty file; restore it, {_OUT}"
    if (head.startswith(_ZIP) and not ends) or _ZIP.startswith(head) or (_OLD.startswith(head) and head != _OLD):
        return f"is truncated ({_bytes(size)}); restore it, {_OUT}"
    if "TorchScript" in text:
        return f"holds a TorchScript program; {_SAVE}"
    needed = _CODE.search(text)
    cut = needed and needed[1] and tail[:-1].endswith(needed[1].rpartition(".")[2].encode())  # within a name
    if needed and not cut:
        name = f" ({needed[1]})" if needed[1] else ""
        return f"needs code to load{name}, which is refused; {_SAVE}"
    if head == _OLD:
        return f"is truncated or damaged ({_bytes(size)}); restore it, {_OUT}"
    if ends and pickled is not None:
        if pickled[:1] == b"\x80" and pickled[1:] in (b"\x03", b"\x04", b"\x05"):
            return f"was saved with pickle_protocol={pickled[1]}; save it with protocol 2, torch.save's default"
        return f"is damaged; restore it, {_OUT}"
    if head.startswith(b"\x80"):
        return f"is a pickle, which may hold code and is not loaded; {_SAVE}"
    return f"is not a file that torch.save wrote; {_SAVE}"


def _pickled(path: str) -> bytes | None:
    """The first two bytes of the pickle within a file that torch.save wrote, or None if it did not write it."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith("/data.pkl"):
                return archive.read(name)[:2]
    return None


def _bytes(size: int) -> str:
    return "1 byte" if size == 1 else f"{size:,} bytes"
