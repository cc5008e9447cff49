"""Layouts of files that torch.save or np.save wrote: learned from one file, they recognise others."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
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
_PLAIN = bytes(np.flatnonzero(_NAME_BYTES).tolist())
_NONE = slice(0, 0)


class Recogniser:
    """Recognises files of one layout by their frame: head and tail, the bytes before and after the payload.

    All bytes must be equal, except the archive's name (if all its copies in the file agree), the digits of the
    serialization id, and the CRC-32s of payload and id; `learn_pt` has checked that torch.load ignores these.

    Args:
        shape, dtype: of the tensor, which is contiguous and little-endian.
        frame: (f,) uint8, of the file it was learned from; places below count in it.
        first: bytes of the head.
        mask: (f,) uint8, 0 where a byte may differ between files with the same meaning.
        names: (k, n) places of the k copies of the archive's name.
        crc: place of the payload's CRC-32 (4 bytes, little-endian), or None if it has none.
        digits: places of the serialization id.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        frame: np.ndarray,
        first: int,
        mask: np.ndarray,
        names: np.ndarray,
        crc: int | None = None,
        digits: slice = _NONE,
    ) -> None:
        self.shape, self.dtype, self.frame, self.first, self.mask = shape, dtype, frame, first, mask
        self.names, self.crc, self.digits = names, crc, digits
        self.nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize  # of the payload
        self.size = len(frame) + self.nbytes  # of a file
        # compared in words of eight bytes; at least one byte is spare, for content beyond the end of the frame
        self.width = (len(frame) // 8 + 1) * 8
        padded = np.zeros((2, self.width), np.uint8)
        padded[:, : len(frame)] = frame & mask, mask
        self._frame, self._mask = padded.view(np.uint64)
        self._every_name = names.reshape(-1)
        # the same for a single file, for which NumPy's calls would take too long
        self._number = int.from_bytes(frame & mask, "little")
        self._matters = int.from_bytes(mask, "little")
        copies = [slice(int(places[0]), int(places[-1]) + 1) for places in names]
        self._copies = itemgetter(*copies) if copies else None

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """For each frame, (n, width) uint8 with any bytes beyond its end, whether it has the layout: (n,) bool."""
        same = (frames.view(np.uint64) & self._mask) == self._frame
        digits = frames[:, self.digits] - 48 < 10  # unsigned: bytes below '0' become large
        names = frames.take(self._every_name, axis=1).reshape(len(frames), *self.names.shape)
        equal, plain = names == names[:, :1], _NAME_BYTES[names[:, :1]]
        checks = same, digits, *(found.reshape(len(frames), -1) for found in (equal, plain))
        if all(check.all() for check in checks):  # nearly always, and in half the time
            return np.ones(len(frames), dtype=bool)
        good: np.ndarray = np.logical_and.reduce([check.all(axis=1) for check in checks])
        return good

    def alone(self, frame: bytes) -> bool:
        """Whether a single frame has the layout."""
        if len(frame) != len(self.frame) or int.from_bytes(frame, "little") & self._matters != self._number:
            return False
        digits = frame[self.digits]
        if digits and not digits.isdigit():
            return False
        if self._copies is None:
            return True
        names: tuple[bytes, ...] = self._copies(frame)
        return not names[0].translate(None, _PLAIN) and names.count(names[0]) == len(names)

    def parts(self, raw: np.ndarray) -> tuple[bytes, np.ndarray]:
        """Frame and payload of a whole file of this size, (size,) uint8."""
        last = self.first + self.nbytes
        return raw[: self.first].tobytes() + raw[last:].tobytes(), raw[self.first : last]

    def matches_crc(self, frame: bytes | memoryview, payload: memoryview) -> bool:
        """Whether the payload is the one whose CRC-32 is in the frame; 0 there means that none was computed."""
        crc = 0 if self.crc is None else int.from_bytes(frame[self.crc : self.crc + 4], "little")
        return not crc or crc == zlib.crc32(payload)

    def tensor(self, payload: np.ndarray) -> Tensor:
        """The tensor with this payload, on its memory."""
        flat = torch.from_numpy(payload if self.first % 16 == 0 else payload.copy())  # aligned
        return flat.view(self.dtype).view(self.shape)


def learn_pt(raw: bytes) -> Recogniser | None:
    """Learns from a file that torch.save wrote; None where its payload is not the tensor's memory.

    These are files from before PyTorch 1.6, compressed ones, views, other byte orders, and all but one plain tensor.
    Source of the format: PyTorch, `caffe2/serialize/inline_container.h`, and PKWARE's APPNOTE.TXT.
    """
    value = _load(raw)
    try:
        known = None if value is None else _parsed(raw, value)
    except (zipfile.BadZipFile, struct.error, ValueError, LookupError, NotImplementedError, OSError):
        return None
    return known if known is not None and _confirmed(raw, known) else None


def _parsed(raw: bytes, value: Tensor) -> Recogniser | None:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        records, entry = archive.infolist(), archive.start_dir
    prefix = records[0].filename.partition("/")[0] + "/"
    length = len(prefix.encode()) - 1  # of the archive's name
    free = np.zeros(len(raw), dtype=bool)  # where a byte may differ
    names: list[int] = []
    spans: dict[str, tuple[int, int, int]] = {}  # begin, end and entry in the central directory
    for record in records:
        at, name, part = record.header_offset, record.filename.encode(), record.filename.removeprefix(prefix)
        begin = at + LOCAL + sum(struct.unpack("<HH", raw[at + 26 : at + LOCAL]))
        end = begin + record.file_size
        named = raw.startswith(name, at + LOCAL) and raw.startswith(name, entry + CENTRAL)
        if record.compress_type != zipfile.ZIP_STORED or not named or part == record.filename:
            return None
        spans[part] = begin, end, entry
        names += [at + LOCAL, entry + CENTRAL]
        if part in ("data/0", _SERIAL):
            free[at + 14 : at + 18] = free[entry + 16 : entry + 20] = True
            free[end + 4 : end + 8] |= raw.startswith(b"PK\x07\x08", end)
        entry += CENTRAL + len(name) + len(record.extra) + len(record.comment)
    first, last, entry = spans["data/0"]
    serial, serial_end, _ = spans.get(_SERIAL, (last, last, 0))
    count = sum(part.startswith("data/") for part in spans)
    # another order of records than torch.save's is not recognised
    if count != 1 or len(spans) != len(records) or serial < last or _memory(value) != raw[first:last]:
        return None
    places = np.array(names)[:, None] + np.arange(length)
    free[serial:serial_end] = free[places] = True
    frame, mask = np.delete([np.frombuffer(raw, np.uint8), np.where(free, 0, 255)], slice(first, last), axis=1)
    size = last - first
    places[places >= last] -= size
    digits = slice(serial - size, serial_end - size)
    shape = tuple(value.shape)
    return Recogniser(
        shape, value.dtype, frame.astype(np.uint8), first, mask.astype(np.uint8), places, entry + 16 - size, digits
    )


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


def _confirmed(raw: bytes, known: Recogniser) -> bool:
    """Whether torch.load reads an altered copy of the file as the layout predicts."""
    frame = known.frame.copy()
    frame[known.mask == 0] ^= 0x15  # the CRC-32s; names and digits follow
    frame[known.digits] = ord("7")
    frame[known.names] = np.resize(np.frombuffer(b"other", dtype=np.uint8), known.names.shape[1])
    payload = (known.parts(np.frombuffer(raw, np.uint8))[1] ^ 0x01).tobytes()
    value = _load(frame[: known.first].tobytes() + payload + frame[known.first :].tobytes())
    if value is None or tuple(value.shape) != known.shape or value.dtype != known.dtype:
        return False
    return _memory(value) == payload and known.alone(frame.tobytes())


def learn_npy(raw: bytes) -> Recogniser | None:
    """Learns from a file that np.save wrote; None for Fortran order, other byte orders, and dtypes unknown to torch."""
    file = io.BytesIO(raw)
    try:
        array = np.load(file, allow_pickle=False) if raw.startswith(b"\x93NUMPY") else np.empty(0)
        value = torch.from_numpy(array)
    except Exception:  # NumPy raises many types for damaged files
        return None
    first = file.tell() - array.nbytes
    payload = array.tobytes() if array.dtype.isnative else b""
    if not payload or raw[first:] != payload:
        return None
    head = np.frombuffer(raw[:first], dtype=np.uint8)
    no_names = np.empty((0, 0), dtype=np.intp)
    return Recogniser(tuple(value.shape), value.dtype, head, first, np.full(first, 255, np.uint8), no_names)
