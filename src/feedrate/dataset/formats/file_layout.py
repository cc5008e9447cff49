"""Layouts of files that torch.save or np.save wrote: where the payload lies, and which other bytes matter.

A layout is learned from one file, and then recognises others.
"""

from __future__ import annotations

import ast
import io
import re
import struct
import zipfile
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

# Larger files are loaded by torch.load, whose overhead hardly counts there; learning copies a file several times.
MAX_BYTES = 256 << 20
LOCAL, CENTRAL = 30, 46  # bytes of a ZIP's fixed structures: APPNOTE.TXT 6.3.10, 4.3.7, 4.3.12
_SERIAL = ".data/serialization_id"  # a hash of the content that torch.load ignores
_NAME_BYTES = np.ones(256, dtype=bool)  # bytes allowed in an archive's name
_NAME_BYTES[:32] = _NAME_BYTES[[ord(c) for c in "/\\:\x7f"]] = False
_NO_NAMES = np.empty((1, 0), dtype=np.uint8)
_PLAIN = bytes(np.flatnonzero(_NAME_BYTES).tolist())


@dataclass(frozen=True, eq=False)
class Layout:
    """The structure of a file: a head, the payload, and a tail.

    Places below count in the frame, which is head and tail end to end.

    Attributes:
        shape, dtype: of the tensor, which is contiguous and little-endian.
        head, tail: uint8, the bytes before and after the payload of the file it was learned from.
        mask: uint8 over the frame, 0 where a byte may differ between files with the same meaning.
        names: (k, n) places of the k copies of the archive's name, which must be equal.
        crc: place of the payload's CRC-32 (4 bytes, little-endian), or None if it has none.
        digits: places of any decimal digits: the serialization id, a hash.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    head: np.ndarray
    tail: np.ndarray
    mask: np.ndarray = field(repr=False)
    names: np.ndarray = field(repr=False)
    crc: int | None = None
    digits: slice = field(default_factory=lambda: slice(0, 0))

    @property
    def nbytes(self) -> int:
        """Bytes of the payload."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def frame(self) -> np.ndarray:
        return np.concatenate([self.head, self.tail])

    def same_form(self, other: Layout) -> bool:
        """Whether both hold tensors of one shape and dtype."""
        return self.shape == other.shape and self.dtype == other.dtype


class Recogniser:
    """Recognises files of one layout by their frames.

    All bytes must be equal, except the archive's name (if all its copies in the file agree), the digits of the
    serialization id, and the CRC-32s of payload and id; `learn_pt` has checked that torch.load ignores these.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout, self.nbytes = layout, layout.nbytes
        size = len(layout.frame)
        self.size = size + self.nbytes  # of a file
        # compared in words of eight bytes; at least one byte is spare, for content beyond the end of the frame
        self.width = (size // 8 + 1) * 8
        frame, mask = np.zeros(self.width, np.uint8), np.zeros(self.width, np.uint8)
        frame[:size], mask[:size] = layout.frame & layout.mask, layout.mask
        self._frame, self._mask = frame.view(np.uint64), mask.view(np.uint64)
        self._names, self._digits = layout.names, layout.digits
        self._places = np.empty((len(layout.names), 0), dtype=np.intp)  # of the names' bytes, in many rows end to end
        # the same for a single file, for which NumPy's calls would take too long
        self._number = int.from_bytes(layout.frame & layout.mask, "little")
        self._matters = int.from_bytes(layout.mask, "little")
        length = layout.names.shape[1]
        copies = [slice(begin, begin + length) for begin in layout.names[:, 0].tolist()] if length else []
        self._copies, self._count = itemgetter(*copies) if copies else None, len(copies)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """For each frame, (n, width) uint8 with any bytes beyond its end, whether it has the layout: (n,) bool."""
        count, length = len(frames), self._names.shape[1]
        same = (frames.view(np.uint64) & self._mask) == self._frame
        digits = frames[:, self._digits] - 48 < 10  # unsigned: bytes below '0' become large
        names = frames.take(self._places_of(count)) if length else _NO_NAMES  # (k, n * length)
        equal, plain = names == names[:1], _NAME_BYTES[names[:1]]
        if same.all() and digits.all() and equal.all() and plain.all():  # nearly always, and in half the time
            return np.ones(count, dtype=bool)
        good: np.ndarray = same.all(axis=1) & digits.all(axis=1)
        if length:
            for each in (equal, plain):
                good &= each.reshape(-1, count, length).all(axis=(0, 2))
        return good

    def _places_of(self, count: int) -> np.ndarray:
        """Places of the names' bytes in `count` rows, (k, n * length)."""
        places, wanted = self._places, count * self._names.shape[1]
        if places.shape[1] < wanted:
            rows = np.arange(count) * self.width
            places = (self._names[:, None, :] + rows[:, None]).reshape(len(self._names), -1)
            self._places = places
        return places[:, :wanted]

    def alone(self, frame: bytes) -> bool:
        """Whether a single frame has the layout."""
        if len(frame) != self.size - self.nbytes or int.from_bytes(frame, "little") & self._matters != self._number:
            return False
        digits = frame[self._digits]
        if digits and not digits.isdigit():
            return False
        if self._copies is None:
            return True
        names: tuple[bytes, ...] = self._copies(frame)
        return not names[0].translate(None, _PLAIN) and names.count(names[0]) == self._count

    def parts(self, raw: bytearray) -> tuple[bytes, memoryview]:
        """Frame and payload of a whole file of this size."""
        return parts_of(raw, len(self.layout.head), self.size - self.nbytes)

    def tensor(self, content: memoryview) -> Tensor:
        """The tensor with this payload."""
        flat = torch.frombuffer(content, dtype=torch.uint8)
        return flat.clone().view(self.layout.dtype).view(self.layout.shape)  # a copy is aligned


def parts_of(raw: bytearray, first: int, frame_bytes: int) -> tuple[bytes, memoryview]:
    """Frame and payload of a file whose head has `first` bytes."""
    last = len(raw) - (frame_bytes - first)
    return bytes(raw[:first] + raw[last:]), memoryview(raw)[first:last]


def learn_pt(raw: bytes) -> Layout | None:
    """The layout of a file that torch.save wrote; None where its payload is not the tensor's memory.

    These are files from before PyTorch 1.6, compressed ones, views, other byte orders, and all but one plain tensor.
    Source of the format: PyTorch, `caffe2/serialize/inline_container.h`, and PKWARE's APPNOTE.TXT.
    """
    if len(raw) > MAX_BYTES:
        return None
    try:
        found = _parse_pt(raw)
    except (zipfile.BadZipFile, struct.error, ValueError, IndexError, NotImplementedError, OSError):
        return None
    return found if found is not None and _confirmed(raw, found) else None


def _parse_pt(raw: bytes) -> Layout | None:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        records = archive.infolist()
        central = archive.start_dir
    prefix = records[0].filename.partition("/")[0] + "/" if records else ""
    name = prefix[:-1].encode()
    parts = {record.filename.removeprefix(prefix): record for record in records}
    payloads = [part for part in parts if part.startswith("data/")]
    if payloads != ["data/0"] or len(parts) != len(records) or not name:
        return None
    value = _load(raw)
    if value is None:
        return None
    free = bytearray(len(raw))  # 1 where a byte may differ
    names: list[int] = []
    first, serial = None, slice(0, 0)
    for part, record in parts.items():
        plain = (
            record.compress_type == zipfile.ZIP_STORED
            and record.flag_bits & ~0x0808 == 0  # neither encrypted nor patched: descriptor and UTF-8 at most
            and record.compress_size == record.file_size
            and record.filename.startswith(prefix)
        )
        if not plain:
            return None
        at = record.header_offset
        signature, length, extra = struct.unpack("<4s22xHH", raw[at : at + LOCAL])
        begin = at + LOCAL + length + extra
        end = begin + record.file_size
        if signature != b"PK\x03\x04" or raw[at + LOCAL : at + LOCAL + len(name)] != name:
            return None
        names.append(at + LOCAL)
        entry = central_entry(raw, central, record)
        names.append(entry + CENTRAL)
        if part in ("data/0", _SERIAL):
            if raw[end : end + 4] == b"PK\x07\x08":
                free[end + 4 : end + 8] = b"\1" * 4
            free[at + 14 : at + 18] = free[entry + 16 : entry + 20] = b"\1" * 4
        if part == _SERIAL:
            serial = slice(begin, end)
            free[serial] = b"\1" * record.file_size
        if part == "data/0":
            first, last, crc = begin, end, entry + 16
    if first is None or _memory(value) != raw[first:last]:
        return None
    for place in names:
        free[place : place + len(name)] = b"\1" * len(name)
    bytes_ = np.frombuffer(raw, dtype=np.uint8)
    mask = np.where(np.frombuffer(bytes(free), dtype=np.uint8), 0, 255).astype(np.uint8)
    places = np.array(names)[:, None] + np.arange(len(name))
    size = last - first
    if serial.stop and serial.start < last:
        return None  # another order of records than torch.save's
    return Layout(
        tuple(value.shape), value.dtype, bytes_[:first].copy(), bytes_[last:].copy(),
        np.concatenate([mask[:first], mask[last:]]),
        np.where(places >= last, places - size, places), crc - size,
        slice(serial.start - size, serial.stop - size) if serial.stop else serial,
    )  # fmt: skip


def central_entry(raw: bytes, start: int, record: zipfile.ZipInfo) -> int:
    """Place of a record's entry in the central directory."""
    at = start
    while raw[at : at + 4] == b"PK\x01\x02":
        length, extra, comment, offset = struct.unpack("<HHH8xI", raw[at + 28 : at + CENTRAL])
        if offset == record.header_offset and raw[at + CENTRAL : at + CENTRAL + length] == record.filename.encode():
            return at
        at += CENTRAL + length + extra + comment
    raise ValueError("no such entry")


def _load(raw: bytes) -> Tensor | None:
    """The tensor that torch.load reads, if it is plain, contiguous, and uses all of its storage."""
    try:
        value = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception:
        return None
    plain = (
        type(value) is Tensor
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_nested or value.is_quantized or value.is_conj() or value.is_neg())
        and value.numel() > 0
        and value.is_contiguous()
        and value.untyped_storage().nbytes() == value.numel() * value.element_size()
    )
    return value.detach() if plain else None


def _memory(value: Tensor) -> bytes:
    return torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage()).numpy().tobytes()


def _confirmed(raw: bytes, layout: Layout) -> bool:
    """Whether torch.load reads an altered copy of the file as the layout predicts."""
    first, last = len(layout.head), len(raw) - len(layout.tail)
    frame = layout.frame
    frame[layout.mask == 0] ^= 0x15  # the CRC-32s; names and digits follow
    frame[layout.digits] = ord("7")
    frame[layout.names] = np.resize(np.frombuffer(b"other", dtype=np.uint8), layout.names.shape[1])
    payload = (np.frombuffer(raw, dtype=np.uint8)[first:last] ^ 0x01).tobytes()
    altered = frame[:first].tobytes() + payload + frame[first:].tobytes()
    value = _load(altered)
    if value is None or tuple(value.shape) != layout.shape or value.dtype != layout.dtype:
        return False
    return _memory(value) == payload and Recogniser(layout).alone(frame.tobytes())


_NPY = re.compile(rb"\x93NUMPY([\x01-\x03])\x00")


def learn_npy(raw: bytes) -> Layout | None:
    """The layout of a file that np.save wrote; None for Fortran order, other byte orders, and dtypes unknown to torch.

    Source of the format: NumPy Enhancement Proposal 1.
    """
    if len(raw) > MAX_BYTES or not (match := _NPY.match(raw)):
        return None
    wide = match[1] != b"\x01"
    begin = 12 if wide else 10
    first = begin + int.from_bytes(raw[8:begin], "little")
    try:
        fields = ast.literal_eval(raw[begin:first].decode("utf-8" if match[1] == b"\x03" else "latin-1"))
        array = np.load(io.BytesIO(raw), allow_pickle=False)
        value = torch.from_numpy(array)
    except (ValueError, SyntaxError, TypeError, OSError, EOFError, MemoryError):
        return None
    dense = array.flags.c_contiguous and array.dtype.isnative and array.size > 0 and not fields["fortran_order"]
    if not dense or raw[first:] != array.tobytes():
        return None
    head = np.frombuffer(raw[:first], dtype=np.uint8).copy()
    return Layout(
        tuple(value.shape), value.dtype, head, head[:0], np.full(first, 255, np.uint8), np.empty((0, 0), np.int64)
    )
