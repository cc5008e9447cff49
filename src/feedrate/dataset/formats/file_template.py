"""Templates of files whose samples differ in shape: which bytes of a file follow from the shape.

One file serves as template for any shape with the same number of dimensions.
"""

from __future__ import annotations

import io
import pickletools
import re
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from operator import itemgetter

from feedrate.dataset.formats.file_layout import LOCAL, Layout, Recogniser, central_entry

_WIDTHS = {"BININT1": 1, "BININT2": 2, "BININT": 4}
_FORMS = {1: "B", 2: "H", 4: "I", 8: "Q"}
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE"}
_DECIMAL = rb"(?:0|[1-9]\d*)"
# fields at the end of a ZIP that hold an offset: (signature of the structure, place from there, bytes).
# Source: APPNOTE.TXT 6.3.10, 4.3.14 to 4.3.16
_ENDINGS = ((b"PK\x06\x06", 48, 8), (b"PK\x06\x07", 8, 8), (b"PK\x05\x06", 16, 4))
_ALIGNED = 64  # bytes: torch.save aligns each record of an archive


class Template(ABC):
    """Derives the shape of the payload from a file's frame (head and tail end to end).

    Attributes:
        layout: of the file that it was made from.
        confirmed: whether a result was once compared with that of torch.load or np.load.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout, self.confirmed = layout, False
        self.first, self.frame_bytes = len(layout.head), len(layout.head) + len(layout.tail)
        self._itemsize = layout.dtype.itemsize

    def fits(self, size: int) -> bool:
        """Whether a file of that many bytes may match."""
        return size > self.frame_bytes

    @abstractmethod
    def shape(self, frame: bytes, nbytes: int) -> tuple[int, ...] | None:
        """Shape of a payload of `nbytes` bytes between head and tail; None where the frame does not match."""

    def _holds(self, shape: Sequence[int], nbytes: int) -> bool:
        return nbytes > 0 and prod(shape) * self._itemsize == nbytes


class _Pt(Template):
    """A file that torch.save wrote."""

    def __init__(self, raw: bytes, layout: Layout) -> None:
        super().__init__(layout)
        first, last = len(layout.head), len(layout.head) + layout.nbytes
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            records = archive.infolist()
            central = archive.start_dir
        (pickled,) = (record for record in records if record.filename.endswith("/data.pkl"))
        (payload,) = (record for record in records if record.filename.endswith("/data/0"))
        begin = _content(raw, pickled)
        end = begin + pickled.file_size
        if end > first:
            raise ValueError("another order of records than torch.save's")
        ints = [(begin + at, width) for at, width in _ints(raw[begin:end])]
        (crcs, _), (_, sizes) = _fields_of(raw, central, pickled, end), _fields_of(raw, central, payload, last)
        offsets = [(central_entry(raw, central, record) + 42, 4) for record in records if record.header_offset >= last]
        offsets += [(raw.rindex(sign, last) + at, width) for sign, at, width in _ENDINGS if sign in raw[last:]]

        # all numbers that follow from the shape
        places = [*ints, *((at, 4) for at in crcs), *((at, 4) for at in sizes), *offsets]
        framed = [(at - layout.nbytes if at >= last else at, width) for at, width in places]
        self._numbers, order = _struct(framed, self.frame_bytes)
        self._rank = (len(ints) - 1) // 2
        self._sorted = itemgetter(*order)
        self._pickle, self._counts = slice(begin, end), (len(crcs), len(sizes))
        self._nbytes, self._ended = layout.nbytes, [_number(raw[at : at + width]) for at, width in offsets]
        mask = layout.mask.copy()
        for at, width in framed:
            mask[at : at + width] = 0
        self._recogniser = Recogniser(replace(layout, mask=mask))

    def fits(self, size: int) -> bool:
        nbytes = size - self.frame_bytes
        return nbytes > 0 and (nbytes - self._nbytes) % _ALIGNED == 0

    def shape(self, frame: bytes, nbytes: int) -> tuple[int, ...] | None:
        if not self._recogniser.alone(frame):
            return None
        numbers: tuple[int, ...] = self._sorted(self._numbers.unpack(frame))
        rank, (crcs, sizes), more = self._rank, self._counts, nbytes - self._nbytes
        shape = numbers[1 : 1 + rank]
        if numbers[0] * self._itemsize != nbytes or not self._holds(shape, nbytes):
            return None
        follows = [*_contiguous(shape), *[zlib.crc32(frame[self._pickle])] * crcs, *[nbytes] * sizes]
        follows += [end + more for end in self._ended]
        return shape if numbers[1 + rank :] == tuple(follows) else None


class _Npy(Template):
    """A file that np.save wrote."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        found = re.fullmatch(rb"(.*'shape': \().*(\), *\}) *\n", layout.head.tobytes(), re.DOTALL)
        if found is None:
            raise ValueError("not np.save's header")
        self._pattern = re.compile(
            re.escape(found[1]) + rb"(%b,|%b(?:, %b)+)" % ((_DECIMAL,) * 3) + re.escape(found[2]) + rb" *\n", re.DOTALL
        )

    def shape(self, frame: bytes, nbytes: int) -> tuple[int, ...] | None:
        found = self._pattern.fullmatch(frame)
        if found is None:
            return None
        shape = tuple(int(digits) for digits in found[1].split(b",") if digits)
        return shape if self._holds(shape, nbytes) else None


def pt_template(raw: bytes, layout: Layout) -> Template | None:
    """A template from a file of torch.save's with this layout; None where its structure is unknown."""
    try:
        return _proven(_Pt(raw, layout))
    except (zipfile.BadZipFile, struct.error, ValueError, IndexError):
        return None


def npy_template(raw: bytes, layout: Layout) -> Template | None:
    """A template from a file of np.save's with this layout; None where its structure is unknown."""
    try:
        return _proven(_Npy(layout))
    except ValueError:
        return None


def _proven(template: Template) -> Template | None:
    """The template if it recognises the file that it was made from."""
    layout = template.layout
    return template if template.shape(layout.frame.tobytes(), layout.nbytes) == layout.shape else None


def _content(raw: bytes, record: zipfile.ZipInfo) -> int:
    at = record.header_offset
    name, extra = struct.unpack("<HH", raw[at + 26 : at + LOCAL])
    return int(at + LOCAL + name + extra)


def _fields_of(raw: bytes, central: int, record: zipfile.ZipInfo, end: int) -> tuple[list[int], list[int]]:
    """Places of a record's CRC-32s and sizes: in the central directory, and in its header or after its `end`."""
    entry, header = central_entry(raw, central, record), record.header_offset
    crcs, sizes = [entry + 16], [entry + 20, entry + 24]
    if raw[end : end + 4] == b"PK\x07\x08":
        crcs, sizes = [*crcs, end + 4], [*sizes, end + 8, end + 12]
    else:
        crcs, sizes = [*crcs, header + 14], [*sizes, header + 18, header + 22]
    if any(_number(raw[at : at + 4]) != record.file_size for at in sizes):
        raise ValueError("sizes of 64 bits")
    return crcs, sizes


def _ints(pickled: bytes) -> list[tuple[int, int]]:
    """Places and sizes of a tensor's number of elements, shape and strides in torch.save's pickle."""
    ops = [(op.name, position or 0) for op, _, position in pickletools.genops(pickled)]
    names = [name for name, _ in ops]
    persistent = names.index("BINPERSID")
    at = next(at for at in range(persistent, 0, -1) if names[at] in _TUPLES) - 1
    found, tuples = [at], 0
    at = persistent + 2  # the offset in the storage, which is 0
    while tuples < 2:
        if names[at] in _WIDTHS:
            found.append(at)
        tuples += names[at] in _TUPLES
        at += 1
    return [(ops[at][1] + 1, _WIDTHS[names[at]]) for at in found]


def _struct(places: Sequence[tuple[int, int]], size: int) -> tuple[struct.Struct, list[int]]:
    """A Struct that reads the numbers at these (place, bytes) from `size` bytes, and the position of each result."""
    form, end = "<", 0
    by_place = sorted(range(len(places)), key=lambda number: places[number])
    for number in by_place:
        at, width = places[number]
        if at < end:
            raise ValueError("numbers overlap")
        form, end = f"{form}{at - end}x{_FORMS[width]}", at + width
    return struct.Struct(f"{form}{size - end}x"), [by_place.index(number) for number in range(len(places))]


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a contiguous tensor, in elements."""
    strides, step = [], 1
    for dim in reversed(shape):
        strides.append(step)
        step *= dim
    return tuple(reversed(strides))
