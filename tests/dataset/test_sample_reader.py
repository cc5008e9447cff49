"""`SampleReader` gives what torch.load gives, byte for byte, or an error that names the file; it is only faster."""

from __future__ import annotations

import gc
import io
import pickle
import re
import struct
import threading
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from feedrate.dataset import ArrayFiles, TensorFiles
from feedrate.dataset.formats import sample_reader
from feedrate.dataset.formats.file_layout import learn_npy, learn_pt
from feedrate.dataset.formats.npy_file import load_array
from feedrate.dataset.formats.pt_file import load_tensor
from feedrate.dataset.formats.sample_reader import SampleReader, fresh
from feedrate.errors import SampleError

ALL_DTYPES = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
QUANTIZED = {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4}  # refused, with a remedy
UNSAVED = {dtype for dtype in ALL_DTYPES if re.fullmatch(r"torch\.u?int[1-7]", str(dtype))}  # torch.save refuses them
DTYPES = sorted(ALL_DTYPES - QUANTIZED - UNSAVED, key=str)
OLD = {  # what PyTorch before 1.6 had, and so what its form of file can hold
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16),
    *(torch.float32, torch.float64, torch.complex64, torch.complex128),
}
NPY_DTYPES = [*("?", "u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8"), *("<c8", ">i4", ">f8")]
FORMS = ("plain", "transposed", "part", "expanded", "offset", "before 1.6", "saved under another name", "no crc")
UNCHECKED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def reader(**options: Any) -> SampleReader:
    return SampleReader(load_tensor, learn_pt, **options)


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).view(shape) if count else torch.empty(shape, dtype=dtype)


def save(X: Tensor, path: Path, form: str = "plain") -> None:
    """Writes a tensor of X's shape in one of the ways in which such files come about."""
    if form == "transposed" and X.dim() > 1:
        X = X.transpose(0, 1).contiguous().transpose(0, 1)
    elif form == "part":
        X = torch.cat([X.reshape(-1), X.reshape(-1)])[: X.numel()].view(X.shape)
    elif form == "offset":
        X = torch.cat([X.reshape(-1), X.reshape(-1)])[X.numel() :].view(X.shape)
    elif form == "expanded" and X.dim() and X.numel():
        X = X[:1].expand(X.shape)
    if form == "saved under another name":
        path.with_name("unfinished").unlink(missing_ok=True)
        torch.save(X, path.with_name("unfinished"))
        path.with_name("unfinished").rename(path)
        return
    old = form == "before 1.6" and X.dtype in OLD
    torch.serialization.set_crc32_options(form != "no crc")
    try:
        torch.save(X, path, _use_new_zipfile_serialization=not old)
    finally:
        torch.serialization.set_crc32_options(True)


def content(X: Tensor) -> tuple[Any, ...]:
    """All that can be seen of a tensor, comparable."""
    raw = X.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if X.numel() else b""
    return X.dtype, tuple(X.shape), raw


def by_torch(path: Path) -> Any:
    """What torch.load gives, as `content`, or None where it gives no tensor."""
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
        return content(value) if type(value) is Tensor and value.layout == torch.strided else None
    except Exception:
        return None


# ---------------------------------------------------------------------------------------------------------
# the same as torch.load
# ---------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=UNCHECKED)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 5), max_size=4).map(tuple),
    forms=st.lists(st.sampled_from(FORMS), min_size=1, max_size=6),
    lengths=st.lists(st.integers(1, 70), min_size=6, max_size=6),
    verify=st.booleans(),
)
def test_a_batch_of_any_tensors_however_saved_is_what_torch_loads(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...], forms: list[str], lengths: list[int], verify: bool
) -> None:
    paths = [tmp_path / f"{i}{'x' * length}.pt" for i, length in zip(range(len(forms)), lengths, strict=False)]
    for seed, (path, form) in enumerate(zip(paths, forms, strict=True)):
        save(random_tensor(shape, dtype, seed), path, form)
    names = [str(path) for path in paths]
    expected = [content(torch.load(path, weights_only=True)) for path in paths]
    for read in (reader(verify=verify), reader(verify=verify, at_once=False)):
        for _ in range(2):  # files that are new to it, and files whose layout it knows
            batch = read.read_batch(names, names, fresh)
            assert [content(X) for X in batch] == expected
            assert [content(read.read(name, name)) for name in names] == expected


def test_samples_of_several_shapes_and_dtypes_come_as_a_list(tmp_path: Path) -> None:
    X = [torch.zeros(2, 3), torch.ones(2, 3), torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.int32), torch.ones(4, 5)]
    names = [str(tmp_path / f"{i}.pt") for i in range(len(X))]
    for name, x in zip(names, X, strict=True):
        torch.save(x, name)
    read = reader()
    for _ in range(3):
        batch = read.read_batch(names, names, fresh)
        assert isinstance(batch, list)
        assert [content(x) for x in batch] == [content(x) for x in X]
        assert torch.equal(read.read_batch(names[:2], names[:2], fresh), torch.stack(X[:2]))  # type: ignore[arg-type]


class Counting:
    """A reader, and the files that it gave to torch.load or np.load."""

    def __init__(self, load: Any = load_tensor, learn: Any = learn_pt, **options: Any) -> None:
        self.loaded: list[str] = []

        def load_and_tell(path: str, ID: str) -> Tensor:
            self.loaded.append(path)
            X: Tensor = load(path, ID)
            return X

        self.reader = SampleReader(load_and_tell, learn, **options)


@pytest.mark.parametrize("shape", [lambda n: (n,), lambda n: (3, n, 240 - n), lambda n: (n, 1)])
def test_of_files_of_many_shapes_only_the_first_of_each_shape_is_given_to_torch_load(
    tmp_path: Path, shape: Any
) -> None:
    names = [str(tmp_path / f"{number:03}.pt") for number in range(400)]
    X = [random_tensor(shape(20 + number % 200), torch.float32, number) for number in range(400)]
    for name, x in zip(names, X, strict=True):
        torch.save(x, name)
    read = Counting()
    assert [content(read.reader.read(name, name)) for name in names] == list(map(content, X))
    assert read.loaded == names[:200]
    batch = read.reader.read_batch(names, names, fresh)
    assert [content(x) for x in batch] == list(map(content, X))
    assert read.loaded == names[:200]


def test_beyond_so_many_layouts_files_are_given_to_torch_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_reader, "LAYOUTS", 20)
    names = [str(tmp_path / f"{number:03}.pt") for number in range(40)]
    for number, name in enumerate(names):
        torch.save(torch.arange(1 + number), name)
    read = Counting()
    for _ in range(2):
        assert [len(read.reader.read(name, name)) for name in names] == list(range(1, 41))
    assert read.loaded == names + names[20:]


def test_most_files_are_never_given_to_torch_load(tmp_path: Path) -> None:
    names = [str(tmp_path / f"{'d' * (i % 7)}{i}.pt") for i in range(100)]
    for i, name in enumerate(names):
        torch.save(torch.full((5,), i), name)
    read = Counting()
    batch = read.reader.read_batch(names, names, fresh)
    assert [int(x[0]) for x in batch] == list(range(100))
    assert len(read.loaded) == 8  # lengths of the name


def test_a_reader_in_another_process_or_several_threads_reads_the_same(tmp_path: Path) -> None:
    names = [str(tmp_path / f"{i:02}.pt") for i in range(64)]
    for i, name in enumerate(names):
        torch.save(torch.full((100,), i), name)
    read = pickle.loads(pickle.dumps(reader()))
    wrong: list[object] = []

    def work(part: list[str]) -> None:
        for _ in range(20):
            batch = read.read_batch(part, part, fresh)
            if [int(x[0]) for x in batch] != [int(Path(p).stem) for p in part]:
                wrong.append(batch)

    threads = [threading.Thread(target=work, args=(names[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_file_of_the_other_byte_order_is_left_to_torch(tmp_path: Path) -> None:
    X = torch.arange(6, dtype=torch.int32)
    torch.save(X, tmp_path / "little.pt")
    with (
        zipfile.ZipFile(tmp_path / "little.pt") as old,
        zipfile.ZipFile(tmp_path / "bigger.pt", "w", zipfile.ZIP_STORED) as new,
    ):
        for record in old.infolist():
            data = old.read(record)
            if record.filename.endswith("byteorder"):
                data = b"big"
            if record.filename.endswith("data/0"):
                data = struct.pack(">6i", *range(6))
            new.writestr(record.filename, data)
    names = [str(tmp_path / "little.pt"), str(tmp_path / "bigger.pt")]
    for _ in range(2):
        assert torch.equal(reader().read_batch(names, names, fresh), torch.stack([X, X]))  # type: ignore[arg-type]


def test_files_of_earlier_versions_are_recognised_as_well(tmp_path: Path) -> None:
    """PyTorch 1.6 to 2.0 wrote no byte order, later ones no alignment; the archive's name need not be the file's."""
    X = [random_tensor((3, 7), torch.float32, seed) for seed in range(4)]
    later = (".data/serialization_id", ".format_version", ".storage_alignment")
    for without in (later, (*later, "byteorder")):
        names = [str(tmp_path / f"{len(without)}-{number}.pt") for number in range(4)]
        for name, x in zip(names, X, strict=True):
            torch.save(x, tmp_path / "now.pt")
            with zipfile.ZipFile(tmp_path / "now.pt") as new, zipfile.ZipFile(name, "w", zipfile.ZIP_STORED) as old:
                for record in new.infolist():
                    part = record.filename.removeprefix("now/")
                    if part not in without:
                        old.writestr(zipfile.ZipInfo(f"archive/{part}"), new.read(record))
        LEFT.clear()
        read = SampleReader(load_and_tell, learn_pt)
        for _ in range(2):
            batch = read.read_batch(names, names, fresh)
            assert [content(x) for x in batch] == [content(x) for x in X]
        assert names[:1] == LEFT  # the layout is learned from it


# ---------------------------------------------------------------------------------------------------------
# damaged files
# ---------------------------------------------------------------------------------------------------------


LEFT: list[str] = []  # files that the reader gave to torch.load, whose answer may be anything: what it finds in memory


def load_and_tell(path: str, ID: str) -> Tensor:
    LEFT.append(path)
    return load_tensor(path, ID)


@pytest.fixture(scope="module", params=[True, False], ids=["at once", "one after another"])
def pristine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SampleReader, Path, bytes]:
    """A reader that has learned a layout, the folder, and a file of that layout."""
    folder = tmp_path_factory.mktemp("damaged")
    for name in ("aaa", "bbb"):
        torch.save(random_tensor((4, 5), torch.float32, 7), folder / f"{name}.pt")
    read = SampleReader(load_and_tell, learn_pt, at_once=request.param)
    read.read_batch([str(folder / "aaa.pt")] * 2, ["aaa"] * 2, fresh)
    return read, folder, (folder / "bbb.pt").read_bytes()


def agrees_with_torch(read: SampleReader, path: Path, raw: bytes, first: bool = False) -> None:
    path.write_bytes(raw)
    expected = by_torch(path)
    LEFT.clear()
    said = None
    try:
        if first:
            alone = read.read(str(path), path.stem)
            assert LEFT or content(alone) == expected
            LEFT.clear()
        batch = read.read_batch([str(path.with_name("aaa.pt")), str(path)], ["aaa", path.stem], fresh)
    except SampleError as error:
        said = str(error)
    if said is not None:
        assert str(path) in said
        assert expected is None
    else:
        assert LEFT or content(batch[1]) == expected
        assert content(batch[0]) == by_torch(path.with_name("aaa.pt"))


def test_a_file_cut_short_anywhere_gives_an_error_that_names_it(pristine: tuple[SampleReader, Path, bytes]) -> None:
    read, folder, raw = pristine
    for length in range(0, len(raw), 7):
        agrees_with_torch(read, folder / "ccc.pt", raw[:length])
    agrees_with_torch(read, folder / "ccc.pt", raw + b"x")
    agrees_with_torch(read, folder / "ccc.pt", raw + raw)


def test_every_byte_changed_gives_an_error_or_what_torch_gives(pristine: tuple[SampleReader, Path, bytes]) -> None:
    read, folder, raw = pristine
    random = np.random.default_rng(0)
    for place in range(0, len(raw), 1 if read._scatter.at_once else 7):
        changed = bytearray(raw)
        changed[place] ^= 1 << int(random.integers(8))
        agrees_with_torch(read, folder / "ccc.pt", bytes(changed))


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=UNCHECKED)
@given(data=st.data())
def test_several_bytes_changed_give_an_error_or_what_torch_gives(
    pristine: tuple[SampleReader, Path, bytes], data: st.DataObject
) -> None:
    read, folder, raw = pristine
    changed = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 6))):
        changed[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    agrees_with_torch(read, folder / "ccc.pt", bytes(changed))


FORMS_DAMAGED = [
    (shape, dtype, form)
    for shape, dtype in (((3, 8, 8), torch.uint8), ((7, 5), torch.float32), ((), torch.int64), ((33,), torch.bfloat16))
    for form in FORMS
]


def damaged(raw: bytes, random: np.random.Generator) -> bytes:
    """A file cut short, with bits flipped, with a piece overwritten, lost, repeated or put in."""
    kind, value = random.integers(6), bytearray(raw)
    start, stop = sorted(random.integers(0, len(raw) + 1, 2).tolist())
    stop = min(stop, start + 64)
    if kind == 0:
        return raw[: random.integers(len(raw))]
    if kind == 1:
        for place in random.integers(0, len(raw), random.integers(1, 4)):
            value[place] ^= 1 << random.integers(8)
    if kind == 2:
        value[start:stop] = random.bytes(stop - start)
    if kind == 3:
        value[start:stop] = bytes(stop - start)
    if kind == 4:
        del value[start:stop]
    if kind == 5:
        value[start:start] = raw[start:stop]
    return bytes(value)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "dtype", "form"), FORMS_DAMAGED, ids=str)
def test_thousands_of_damaged_files_of_any_form_give_an_error_or_what_torch_gives(
    tmp_path: Path, shape: tuple[int, ...], dtype: torch.dtype, form: str
) -> None:
    for number, name in enumerate(("aaa", "bbb")):
        save(random_tensor(shape, dtype, number), tmp_path / f"{name}.pt", form)
    whole = [str(tmp_path / "aaa.pt")] * 2
    known = SampleReader(load_and_tell, learn_pt)
    known.read_batch(whole, ["aaa"] * 2, fresh)
    careful = reader(verify=True)
    careful.read_batch(whole, ["aaa"] * 2, fresh)
    raw, original = (tmp_path / "bbb.pt").read_bytes(), by_torch(tmp_path / "bbb.pt")
    random = np.random.default_rng(len(raw))
    for _ in range(100):
        value = damaged(raw, random)
        agrees_with_torch(known, tmp_path / "ccc.pt", value)
        # and where it is the first file that a reader sees, which it would learn from
        agrees_with_torch(SampleReader(load_and_tell, learn_pt), tmp_path / "ccc.pt", value, first=True)
        if form in ("before 1.6", "no crc"):
            continue  # they carry no CRC-32
        try:
            found = content(careful.read(str(tmp_path / "ccc.pt"), "ccc"))
        except SampleError as error:
            assert error.path == str(tmp_path / "ccc.pt")  # noqa: PT017
        else:
            assert found == original


def test_a_damaged_file_is_read_within_its_bytes_alone(tmp_path: Path) -> None:
    """What a file says of its tensor's size is not believed: nothing that lies behind its bytes in memory comes out."""
    torch.save(torch.zeros(4, 4), tmp_path / "a.pt")
    raw = (tmp_path / "a.pt").read_bytes()
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        pickled = archive.read("a/data.pkl")
    longer = pickled.replace(b"K\x04K\x04", b"K\xffK\xff", 1)
    assert longer != pickled
    (tmp_path / "b.pt").write_bytes(raw.replace(pickled, longer))
    for read in (reader(), reader(verify=True)):
        for _ in range(2):
            read.read(str(tmp_path / "a.pt"), "a")
            with pytest.raises(SampleError, match=r"b\.pt"):
                read.read(str(tmp_path / "b.pt"), "b")


def test_verify_crc_names_a_file_whose_payload_was_changed_and_no_other(tmp_path: Path) -> None:
    names = [str(tmp_path / f"{i}.pt") for i in range(4)]
    for name in names:
        torch.save(torch.zeros(50), name)
    read = reader(verify=True)
    assert torch.equal(read.read_batch(names, names, fresh), torch.zeros(4, 50))  # type: ignore[arg-type]
    raw = bytearray(Path(names[2]).read_bytes())
    with zipfile.ZipFile(names[2]) as archive:
        start = next(r.header_offset for r in archive.infolist() if r.filename.endswith("data/0"))
    raw[start + 200] ^= 4
    Path(names[2]).write_bytes(raw)
    assert not torch.equal(reader().read(names[2], "2"), torch.zeros(50))  # what torch.load does, too
    with pytest.raises(SampleError, match=r"sample .*2\.pt.*CRC-32.*restore it"):
        read.read_batch(names, names, fresh)
    with pytest.raises(SampleError, match="CRC-32"):
        reader(verify=True).read(names[2], "2")  # also where it is the first one that is seen


def test_a_file_that_is_missing_or_no_file_gives_the_usual_error(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "a.pt")
    (tmp_path / "c.pt").mkdir()
    read = reader()
    for name, reason in (("b", "no such file"), ("c", "cannot be read")):
        paths = [str(tmp_path / "a.pt"), str(tmp_path / f"{name}.pt")]
        with pytest.raises(SampleError, match=reason) as caught:
            read.read_batch(paths, ["a", name], fresh)
        assert name == caught.value.ID


@pytest.mark.parametrize("at_once", [True, False])
def test_no_file_stays_open(tmp_path: Path, at_once: bool) -> None:
    torch.save(torch.zeros(3), tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(b"")
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    read = reader(at_once=at_once)
    for _ in range(20):
        with pytest.raises(SampleError):
            read.read_batch([str(tmp_path / "a.pt"), str(tmp_path / "b.pt")], ["a", "b"], fresh)
    assert str(tmp_path) not in "".join(open_files())
    del read
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before  # fewer where an earlier test's pipes are closed now


def open_files() -> list[str]:
    """Of this process, those included that a ring of io_uring has open."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found += [str(descriptor.readlink()), (Path("/proc/self/fdinfo") / descriptor.name).read_text()]
    return found


def test_files_of_a_folder_are_read_as_by_their_names_whatever_their_IDs(tmp_path: Path) -> None:
    """IDs of one length and of several, in ASCII or not, of many files or one; also the ID that would be a path."""
    for IDs in (
        [f"{i:03}" for i in range(150)],
        [f"{i}" for i in range(150)],
        ["\u00e4\u00f6", "\u00e9a", "a/b"],
        ["/a", "./a"],
    ):
        for number, ID in enumerate(IDs):
            path = Path(f"{tmp_path}/{ID}.pt")
            path.parent.mkdir(exist_ok=True)
            torch.save(torch.full((5,), number), path)
        data = TensorFiles(IDs, dict.fromkeys(IDs, 0), tmp_path)
        for _ in range(2):
            for indices in (np.arange(len(IDs)), np.arange(len(IDs))[::-1].copy(), np.array([len(IDs) - 1])):
                X, _y = data.load_batch(indices, fresh) or (None, None)
                expected = [torch.load(data.path(IDs[i]), weights_only=True) for i in indices]
                assert isinstance(X, Tensor)
                assert torch.equal(X, torch.stack(expected))


def test_an_ID_that_no_path_can_be_is_not_cut_at_its_zero_byte(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / "a.pt")
    torch.save(torch.zeros(3), tmp_path / "a")
    data = TensorFiles(["a", "b"], {"a": 0, "b": 0}, tmp_path)
    assert data.load_batch(np.array([0]), fresh) is not None
    names = [str(tmp_path / "a.pt"), f"{tmp_path}/a\0xt"]
    for read in (reader(), reader(at_once=False)):
        for _ in range(2):
            read.read(names[0], "a")
            with pytest.raises((SampleError, ValueError)):
                read.read_batch(names, ["a", "a\0xt"], fresh)


# ---------------------------------------------------------------------------------------------------------
# NumPy's files
# ---------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=UNCHECKED)
@given(
    dtype=st.sampled_from(NPY_DTYPES),
    shape=st.lists(st.integers(0, 5), max_size=4).map(tuple),
    fortran=st.lists(st.booleans(), min_size=1, max_size=4),
)
def test_npy_files_give_what_numpy_loads(
    tmp_path: Path, dtype: str, shape: tuple[int, ...], fortran: list[bool]
) -> None:
    random = np.random.default_rng(0)
    arrays, names = [], []
    for number, order in enumerate(fortran):
        array = np.asarray(random.random(shape) * 100).astype(dtype)
        names.append(str(tmp_path / f"{number}.npy"))
        np.save(names[-1], np.array(array, order="F" if order else "C"))
        arrays.append(torch.from_numpy(array.astype(array.dtype.newbyteorder("="))))
    read = SampleReader(load_array, learn_npy)
    for _ in range(2):
        batch = read.read_batch(names, names, fresh)
        assert [content(X) for X in batch] == [content(X) for X in arrays]


def test_damaged_npy_files_give_an_error_that_names_them_or_what_numpy_gives(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(20, dtype=np.float32))
    raw = (tmp_path / "a.npy").read_bytes()
    read = SampleReader(load_array, learn_npy)
    read.read(str(tmp_path / "a.npy"), "a")
    random = np.random.default_rng(0)
    damaged = [raw[:length] for length in range(0, len(raw), 5)]
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 1 << int(random.integers(8))
        damaged.append(bytes(changed))
    for value in damaged:
        (tmp_path / "b.npy").write_bytes(value)
        try:
            expected = content(torch.from_numpy(np.load(io.BytesIO(value), allow_pickle=False)))
        except Exception:
            expected = None
        found = said = None
        try:
            found = content(read.read(str(tmp_path / "b.npy"), "b"))
        except SampleError as error:
            said = str(error)
        assert found == expected
        assert said is None or "b.npy" in said


def test_array_files_is_tensor_files_for_npy(tmp_path: Path) -> None:
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", np.full((2, 2), number, dtype=np.uint8))
    data = ArrayFiles(["2", "0"], {"0": 5, "2": 7}, tmp_path)
    X, y = data[0]
    assert torch.equal(X, torch.full((2, 2), 2, dtype=torch.uint8))
    assert int(y) == 7
    batch = data.load_batch(np.array([1, 0]), fresh)
    assert batch is not None
    assert batch[0].tolist() == [[[0, 0], [0, 0]], [[2, 2], [2, 2]]]
    assert batch[1].tolist() == [5, 7]
    with pytest.raises(SampleError, match=r"'3'.*3\.npy.*no such file"):
        ArrayFiles(["3"], {"3": 0}, tmp_path)[0]
