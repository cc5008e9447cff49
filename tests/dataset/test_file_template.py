"""Files whose samples differ in shape are read as fast as those of one shape, and never differently from torch.load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dataset.test_sample_reader import DTYPES, by_torch, content, damaged, random_tensor, save
from feedrate.dataset.formats.file_layout import learn_npy, learn_pt
from feedrate.dataset.formats.file_template import npy_template, pt_template
from feedrate.dataset.formats.npy_file import load_array
from feedrate.dataset.formats.pt_file import load_tensor
from feedrate.dataset.formats.sample_reader import SampleReader
from feedrate.errors import SampleError


class Counting:
    """A reader, and the paths that it gave to torch.load or np.load, or learned a layout from."""

    def __init__(self, load: Any = load_tensor, learn: Any = learn_pt, vary: Any = pt_template, **options: Any) -> None:
        self.loaded: list[str] = []
        self.learned = 0

        def load_and_tell(path: str, ID: str) -> Tensor:
            self.loaded.append(path)
            X: Tensor = load(path, ID)
            return X

        def learn_and_tell(raw: bytes) -> Any:
            self.learned += 1
            return learn(raw)

        self.reader = SampleReader(load_and_tell, learn_and_tell, vary, **options)

    def read(self, path: Path) -> Tensor:
        return self.reader.read(str(path), path.stem)


def npy(**options: Any) -> Counting:
    return Counting(load_array, learn_npy, npy_template, **options)


@pytest.mark.parametrize(
    ("shape", "dtype", "looked_at"),
    [
        (lambda n: (n,), torch.float32, 0.1),  # 16 remainders of 64 bytes, and numbers of one and of two bytes
        (lambda n: (n, 32), torch.float32, 0.02),
        (lambda n: (3, n, 8), torch.uint8, 0.05),
        (lambda n: (1, n, 1, 64), torch.int16, 0.02),
    ],
    ids=["sound", "sequence", "image", "four dimensions"],
)
def test_of_a_thousand_lengths_a_few_are_learned_and_all_are_right(
    tmp_path: Path, shape: Any, dtype: torch.dtype, looked_at: float
) -> None:
    files = [tmp_path / f"{number:04}.pt" for number in range(1000)]
    for number, path in enumerate(files):
        torch.save(random_tensor(shape(100 + number), dtype, number), path)
    read = Counting()
    for number, path in enumerate(files):
        assert content(read.read(path)) == content(random_tensor(shape(100 + number), dtype, number))
    assert read.learned <= looked_at * len(files)
    assert len(read.loaded) <= looked_at * len(files)


def test_the_same_of_arrays(tmp_path: Path) -> None:
    files = [tmp_path / f"{number:04}.npy" for number in range(300)]
    for number, path in enumerate(files):
        np.save(path, random_tensor((5 + number, 3), torch.float32, number).numpy())
    read = npy()
    for number, path in enumerate(files):
        assert content(read.read(path)) == content(random_tensor((5 + number, 3), torch.float32, number))
    assert read.learned == 2
    assert len(read.loaded) == 1  # with which the template was compared


@settings(max_examples=75, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from(DTYPES),
    rank=st.integers(0, 5),
    forms=st.lists(st.sampled_from(["plain", "plain", "no crc", "transposed", "part", "expanded", "before 1.6"]),
                   min_size=6, max_size=6),
    data=st.data(),
)  # fmt: skip
def test_tensors_of_any_shapes_however_saved_are_what_torch_loads(
    tmp_path: Path, dtype: torch.dtype, rank: int, forms: list[str], data: st.DataObject
) -> None:
    dims = st.one_of(st.integers(0, 9), st.sampled_from([64, 255, 256, 300]))
    read = {verify: Counting(verify=verify) for verify in (False, True)}
    for number, form in enumerate(forms):
        shape = [data.draw(dims) for _ in range(rank)]
        while np.prod(shape) > 300_000:
            shape[int(np.argmax(shape))] //= 100
        path = tmp_path / f"{number}.pt"
        save(random_tensor(tuple(shape), dtype, number), path, form)
        for reader in read.values():
            assert content(reader.read(path)) == by_torch(path)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Counting, Path, bytes]:
    """A reader with templates that are confirmed, a folder, and a file of a shape that it has not seen."""
    folder = tmp_path_factory.mktemp("varied")
    read = Counting()
    for number in (300, 301, 302, 303):
        path = folder / f"{number}.pt"
        torch.save(random_tensor((number, 16), torch.float32, number), path)
        read.read(path)
    torch.save(random_tensor((350, 16), torch.float32, 7), folder / "350.pt")
    read.loaded.clear()
    before = read.learned
    assert content(read.read(folder / "350.pt")) == by_torch(folder / "350.pt")
    assert not read.loaded
    assert read.learned == before
    return read, folder, (folder / "350.pt").read_bytes()


def agrees_with_torch(read: Counting, path: Path, raw: bytes) -> bool:
    """Whether it came by the template, as it must not in another way than torch.load has it."""
    path.write_bytes(raw)
    expected = by_torch(path)
    read.loaded.clear()
    try:
        found = content(read.read(path))
    except SampleError as error:
        assert str(path) in str(error)  # noqa: PT017
        assert expected is None
        return False
    assert read.loaded or found == expected
    return not read.loaded


def test_every_byte_changed_outside_of_the_payload_gives_an_error_or_what_torch_gives(
    pristine: tuple[Counting, Path, bytes],
) -> None:
    read, folder, raw = pristine
    random = np.random.default_rng(0)
    payload = range(900, len(raw) - 1300)
    by_template = 0
    for place in [*range(payload.start), *payload[::701], *range(payload.stop, len(raw))]:
        changed = bytearray(raw)
        changed[place] ^= 1 << int(random.integers(8))
        by_template += agrees_with_torch(read, folder / "999.pt", bytes(changed))
    assert by_template > 50  # those in the payload and in what may differ


def test_damaged_files_of_a_new_shape_give_an_error_or_what_torch_gives(pristine: tuple[Counting, Path, bytes]) -> None:
    read, folder, raw = pristine
    random = np.random.default_rng(1)
    by_template = [agrees_with_torch(read, folder / "999.pt", damaged(raw, random)) for _ in range(300)]
    assert 0 < sum(by_template) < 300  # damage in the payload alone is not told apart, all other is


def test_what_a_file_says_of_its_shape_is_not_believed_where_the_rest_differs(
    pristine: tuple[Counting, Path, bytes],
) -> None:
    """Shape, strides and number of elements are consistent, but not with the CRC-32 of what says so."""
    read, folder, raw = pristine
    longer, other = bytearray(raw), (351).to_bytes(2, "little")
    at = raw.index(b"M" + (350).to_bytes(2, "little"))
    longer[at + 1 : at + 3] = other
    assert not agrees_with_torch(read, folder / "999.pt", bytes(longer))


def test_a_payload_that_does_not_match_its_CRC_is_found_in_files_of_any_shape(tmp_path: Path) -> None:
    read = Counting(verify=True)
    for number in (300, 301, 302, 303, 350):
        path = tmp_path / f"{number}.pt"
        torch.save(random_tensor((number, 16), torch.float32, number), path)
        if number < 350:
            read.read(path)
    changed = bytearray(path.read_bytes())
    changed[5000] ^= 1
    path.write_bytes(bytes(changed))
    with pytest.raises(SampleError, match=r"350\.pt.*CRC-32"):
        read.read(path)


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (5, 012), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (5, 13), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-5, -12), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (5, 12, ), }",
        "{'descr': '<f4', 'fortran_order': True, 'shape': (5, 12), }",
        "{'descr': '>f4', 'fortran_order': False, 'shape': (5, 12), }",
        "{'descr': '<i4', 'fortran_order': False, 'shape': (5, 12), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (60,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (60), }",
    ],
)
def test_the_head_of_an_array_means_what_numpy_reads(tmp_path: Path, text: str) -> None:
    read = npy()
    for number in range(2, 5):
        np.save(tmp_path / f"{number}.npy", np.zeros((number, 12), np.float32))
        read.read(tmp_path / f"{number}.npy")
    X = np.arange(60, dtype=np.float32).reshape(5, 12)
    path = tmp_path / "5.npy"
    np.save(path, X)
    raw = path.read_bytes()
    head = raw[:10] + text.encode().ljust(117) + b"\n"
    path.write_bytes(head + raw[128:])
    try:
        expected = np.load(path)
    except ValueError:
        with pytest.raises(SampleError, match=r"5\.npy"):
            read.read(path)
    else:
        found = read.read(path)
        assert tuple(found.shape) == expected.shape
        assert np.array_equal(found.numpy(), expected)
