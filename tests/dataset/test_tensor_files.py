"""`TensorFiles` reads what torch.save wrote; of any other file it says which sample, what is wrong, and the remedy."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader

from feedrate.config import ROOT
from feedrate.dataset import Catalog, IDs, Labels, TensorFiles, build_data
from feedrate.dataset.formats.pt_file import wasted_bytes
from feedrate.errors import SampleError, UserError

# outside of pytest, which keeps filters of its own, pt_file.py silences it: test_the_message_is_all_that_is_said
pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32),
    *(torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
]


def load(folder: Path, ID: str = "x") -> Any:
    return TensorFiles([ID], {ID: 0}, folder)[0][0]


def saved(X: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(X, buffer, **options)
    return buffer.getvalue()


def saved_before_1_6(X: Any) -> bytes:
    return saved(X, _use_new_zipfile_serialization=False)


# ---------------------------------------------------------------------------------------------------------
# what it reads
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [lambda X, y: (X, y), lambda X, y: [X, y], lambda X, y: {"X": X, "y": y}])
def test_of_a_file_that_holds_the_whole_sample_x_is_taken_singly_and_in_batches(
    tmp_path: Path, form: Callable[[Tensor, Any], Any]
) -> None:
    list_IDs, X = [f"s{i}" for i in range(8)], torch.arange(48, dtype=torch.float32).view(8, 6)
    for i, ID in enumerate(list_IDs):  # among files of the tensor alone
        torch.save(X[i].clone() if i % 3 == 0 else form(X[i].clone(), torch.tensor(10 + i)), tmp_path / f"{ID}.pt")
    data = TensorFiles(list_IDs, {ID: 10 + i for i, ID in enumerate(list_IDs)}, tmp_path)
    for _ in range(2):
        for i in range(8):
            assert torch.equal(data[i][0], X[i])
            assert int(data[i][1]) == 10 + i
        batch = data.load_batch(np.arange(8)[::-1].copy(), lambda shape, dtype: torch.empty(shape, dtype=dtype))
        assert batch is not None
        assert torch.equal(batch[0], X.flip(0))
        assert batch[1].tolist() == [17, 16, 15, 14, 13, 12, 11, 10]


@pytest.mark.parametrize(
    ("y", "label", "shown"),
    [
        (torch.zeros(64, 64, dtype=torch.uint8), 0, "a tensor of shape (64, 64), torch.uint8"),  # a mask
        (torch.tensor(3), 2, "3"),
        (torch.tensor([1, 0]), 1, "[1, 0]"),
        (torch.tensor(0), "cat", "0"),
        ("dog", "cat", "'dog'"),
        ([0.5, 1.5], [0.5, 2.0], "[0.5, 1.5]"),
        ({"boxes": torch.zeros(4)}, 0, "{'boxes'"),
        (torch.zeros(2).to_sparse(), [0.0, 0.0], "a tensor of shape (2,)"),
    ],
    ids=lambda value: str(type(value)),
)
def test_a_y_in_a_file_that_is_not_the_label_is_an_error_that_names_both(
    tmp_path: Path, y: Any, label: Any, shown: str
) -> None:
    for number in range(4):
        torch.save(torch.ones(3) if number < 2 else (torch.ones(3), y), tmp_path / f"s{number}.pt")
    list_IDs = [f"s{number}" for number in range(4)]
    data = TensorFiles(list_IDs, dict.fromkeys(list_IDs, label), tmp_path)
    assert data[0][0].tolist() == [1, 1, 1]
    for read in (
        lambda: data[2],
        lambda: data.load_batch(np.arange(4), lambda shape, dtype: torch.empty(shape, dtype=dtype)),
        lambda: pickle.loads(pickle.dumps(data))[2],
    ):
        with pytest.raises(SampleError) as caught:
            read()
        message = str(caught.value)
        assert message.startswith(f"sample 's2' ({tmp_path}/s2.pt): holds y = {shown}")
        assert f"and its label is {label!r}; y in a file is not used" in message
        assert "torch.save(X, path)" in message
        assert len(message) < 500


@pytest.mark.parametrize(
    ("y", "labels"),
    [
        (torch.tensor(3), [3, 1]),
        (torch.tensor([3]), [3, 1]),
        (3.0, [[3], [1]]),
        (torch.tensor(0.1), [0.1, 0.2]),
        ([0.1, 0.2], [[0.1, 0.2], [1, 2]]),
        ("cat", ["cat", "dog"]),
        (True, [True, False]),
        (None, ["cat", "dog"]),
    ],
    ids=str,
)
def test_a_y_in_a_file_may_repeat_the_label_as_it_was_given(tmp_path: Path, y: Any, labels: list[Any]) -> None:
    for name in "ab":
        torch.save((torch.ones(3), y) if name == "a" else torch.ones(3), tmp_path / f"{name}.pt")
    given = dict(zip("ab", labels, strict=True))
    catalog = Catalog.of(tmp_path, {"train": ["a"], "validation": ["b"]}, given)
    for those in (given, catalog.labels["train"]):
        data = TensorFiles(catalog.partition["train"], those, tmp_path)
        assert data[0][0].tolist() == [1, 1, 1]


def test_a_folder_of_images_with_masks_is_refused_before_training(tmp_path: Path) -> None:
    for name in "abc":
        torch.save({"X": torch.zeros(8, 8), "y": torch.zeros(8, 8)}, tmp_path / f"{name}.pt")
    (tmp_path / "samples.csv").write_text("id,label,partition\na,x,train\nb,y,train\nc,x,validation\n")
    for target in ("TensorFiles", "InMemory"):
        with pytest.raises(SampleError, match=r"sample 'a' .*y = a tensor of shape \(8, 8\).* its label is 'x'"):
            build_data({"_target_": f"feedrate.dataset.{target}", "root": str(tmp_path)}, 0)


def test_lists_of_one_number_are_that_number(tmp_path: Path) -> None:
    torch.save(torch.ones(3), tmp_path / "a.pt")
    assert TensorFiles(["a"], {"a": [2]}, tmp_path).labels.tolist() == [2]  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3, 4)], ids=str)
def test_every_dtype_and_shape_comes_back(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    X = torch.arange(24)[: int(np.prod(shape))].reshape(shape).to(dtype)
    torch.save(X, tmp_path / "x.pt")
    found = load(tmp_path)
    assert found.dtype == dtype
    assert found.shape == shape
    assert bytes(found.clone().untyped_storage()) == bytes(X.clone().untyped_storage())


@pytest.mark.parametrize(
    "change",
    [
        lambda X: X.t(),
        lambda X: X[1:, ::2],
        lambda X: X[2],
        lambda X: X.expand(5, 4, 6),
        lambda X: X.clone().requires_grad_(),
        nn.Parameter,
        lambda X: (X * 1j).conj(),
        lambda X: X.to(memory_format=torch.contiguous_format),
    ],
    ids=["transposed", "strided", "row", "expanded", "gradient", "parameter", "conjugate", "contiguous"],
)
def test_views_and_parameters_are_read_as_plain_values(tmp_path: Path, change: Callable[[Tensor], Tensor]) -> None:
    X = change(torch.arange(24.0).reshape(4, 6))
    torch.save(X, tmp_path / "x.pt")
    found = load(tmp_path)
    assert type(found) is Tensor
    assert not found.requires_grad
    assert torch.equal(found, X.detach())


def test_files_of_pytorch_before_1_6_are_read(tmp_path: Path) -> None:
    X = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    (tmp_path / "x.pt").write_bytes(saved_before_1_6(X))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(load(tmp_path), X)


def test_an_ID_may_name_a_file_in_a_subfolder(tmp_path: Path) -> None:
    (tmp_path / "scans/2026").mkdir(parents=True)
    torch.save(torch.ones(2), tmp_path / "scans/2026/ä 1.pt")
    assert load(tmp_path, "scans/2026/ä 1").tolist() == [1, 1]


# ---------------------------------------------------------------------------------------------------------
# the tutorial's form: a list of IDs and a dictionary of labels
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for number, ID in enumerate(["id-1", "id-2", "id-3"]):
        torch.save(torch.full((2,), float(number)), tmp_path / f"{ID}.pt")
    return tmp_path


def test_a_list_and_a_dictionary_make_a_dataset(three: Path) -> None:
    data = TensorFiles(["id-3", "id-1"], {"id-1": 0, "id-2": 1, "id-3": 2}, root=three)
    assert len(data) == 2
    X, y = data[0]
    assert (X.tolist(), int(y)) == ([2, 2], 2)
    assert data[-1][0].tolist() == [0, 0]
    assert data.path("id-3") == f"{three}/id-3.pt"
    assert [int(y) for _, y in data] == [2, 0]
    with pytest.raises(IndexError):
        data[2]
    ((batch, labels),) = DataLoader(data, batch_size=2)
    assert batch.tolist() == [[2, 2], [0, 0]]
    assert labels.tolist() == [2, 0]
    assert labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("labels", "dtype", "batch"),
    [
        ([1, 2, 3], torch.int64, [1, 2, 3]),
        ([True, False, True], torch.int64, [1, 0, 1]),
        ([0.5, 1, 2], torch.float32, [0.5, 1, 2]),
        ([np.int64(1), np.int8(2), np.uint8(3)], torch.int64, [1, 2, 3]),
        ([np.float64(0.5), np.float32(1), 2], torch.float32, [0.5, 1, 2]),
        ([[1, 2], [3, 4], [5, 6]], torch.float32, [[1, 2], [3, 4], [5, 6]]),
        ([(1, 2), (3, 4), (5, 6)], torch.float32, [[1, 2], [3, 4], [5, 6]]),
        ([torch.tensor(1), torch.tensor(2), torch.tensor(3)], torch.int64, [1, 2, 3]),
        ([2**63, 1, 2], None, [2**63, 1, 2]),
        (["cat", "dog", "cat"], None, ["cat", "dog", "cat"]),
        ([["a"], ["b"], ["c"]], None, [["a"], ["b"], ["c"]]),
        ([[1], [1, 2], []], None, [[1], [1, 2], []]),
    ],
    ids=repr,
)
def test_labels_are_batched_as_tensors_or_returned_as_they_are(
    three: Path, labels: list[Any], dtype: torch.dtype | None, batch: list[Any]
) -> None:
    names = ["id-1", "id-2", "id-3"]
    data = TensorFiles(names, dict(zip(names, labels, strict=True)), root=three)
    if dtype is None:
        assert [y for _, y in data] == batch
    else:
        ((_, y),) = DataLoader(data, batch_size=3)
        assert (y.dtype, y.tolist()) == (dtype, batch)


def test_labels_of_another_catalog_are_matched_by_ID(three: Path) -> None:
    labels = Labels(IDs(["id-1", "id-2", "id-3"]), torch.tensor([7, 8, 9]))
    assert [int(y) for _, y in TensorFiles(["id-3", "id-2"], labels, three)] == [9, 8]
    with pytest.raises(UserError, match="'id-9'"):
        TensorFiles(["id-3", "id-9"], labels, three)


def test_IDs_without_a_label_are_named_at_once(three: Path) -> None:
    with pytest.raises(UserError, match=r"without a label: 'x0', 'x1', 'x2', 'x3', 'x4', \.\.\. \(9 in all\)"):
        TensorFiles([f"x{i}" for i in range(9)], {"id-1": 0}, three)
    with pytest.raises(UserError, match="ID 1 is a int"):
        TensorFiles([1], {1: 0}, three)  # type: ignore[list-item,dict-item]


def test_the_transform_gets_X(three: Path) -> None:
    data = TensorFiles(["id-3"], {"id-3": 0}, three, transform=lambda X: X * 10)
    assert data[0][0].tolist() == [20, 20]


def test_a_relative_root_counts_from_the_repository() -> None:
    assert TensorFiles([], {}, "data/mine").path("a") == f"{ROOT}/data/mine/a.pt"
    assert len(TensorFiles([], {})) == 0


def test_the_bytes_that_a_view_drags_along_are_counted(tmp_path: Path) -> None:
    torch.save(torch.zeros(100, 10)[3], tmp_path / "x.pt")
    assert wasted_bytes(load(tmp_path)) == 99 * 10 * 4
    torch.save(torch.zeros(100, 10)[3].clone(), tmp_path / "x.pt")
    assert wasted_bytes(load(tmp_path)) == 0
    torch.save(torch.zeros(1).expand(100), tmp_path / "x.pt")
    assert wasted_bytes(load(tmp_path)) == 0


# ---------------------------------------------------------------------------------------------------------
# what it refuses
# ---------------------------------------------------------------------------------------------------------


class Code:
    """Leaves a file when it is unpickled by anything that runs code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def _zip(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _numpy(save: Callable[..., None]) -> bytes:
    buffer = io.BytesIO()
    save(buffer, np.zeros(3))
    return buffer.getvalue()


def _lost_page() -> bytes:
    """A file whose pickle is partly zeros, as a page that a crash lost would leave it."""
    whole = bytearray(saved(torch.zeros(50)))
    begin = whole.index(b"ctorch._utils")
    whole[begin : begin + 40] = bytes(40)
    return bytes(whole)


X = torch.arange(12.0).reshape(3, 4)
NO_FILE = "is truncated, damaged, or not a file that torch.save wrote; restore it, save the tensor X alone"
WRONG: dict[str, tuple[Any, list[str]]] = {
    "missing": (None, ["no such file", "restore it", "take the ID out of the partition"]),
    "zero bytes": (b"", ["is an empty file", "restore it"]),
    "half": (saved(X)[:700], [NO_FILE]),
    "one byte": (saved(X)[:1], [NO_FILE]),
    "half of an old one": (saved_before_1_6(X)[:-5], [NO_FILE]),
    "lost page": (_lost_page(), [NO_FILE]),
    "text": (b"hello, world\n", [NO_FILE]),
    "noise": (bytes(range(256)) * 9, [NO_FILE]),
    "NumPy": (_numpy(np.save), [NO_FILE]),
    "NumPy archive": (_numpy(np.savez), [NO_FILE]),
    "pickle": (pickle.dumps([1, 2]), [NO_FILE]),
    "protocol 4": (saved(X, pickle_protocol=4), [NO_FILE]),
    "module": (saved(nn.Linear(2, 2)), ["needs code to load (torch.nn.modules.linear.Linear)", "save the tensor X"]),
    "NumPy array": (saved(np.zeros(3)), ["needs code to load (numpy", "save the tensor X"]),
    "tuple": ((X, 1, 2), ["a value of type tuple", "save the tensor X alone"]),
    "dict": ({"X": X}, ["a value of type dict", "save the tensor X alone"]),
    "nothing": (saved(None), ["a value of type NoneType", "save the tensor X alone"]),
    "sparse": (X.to_sparse(), ["holds a sparse, nested, quantized or meta tensor; save a dense one"]),
    "meta": (X.to("meta"), ["holds a sparse, nested, quantized or meta tensor"]),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_named_with_sample_fault_and_remedy(tmp_path: Path, kind: str) -> None:
    content, parts = WRONG[kind]
    path = tmp_path / "a/x.pt"
    path.parent.mkdir()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else saved(content))
    check(tmp_path, path, parts)


def check(root: Path, path: Path, parts: list[str]) -> None:
    with pytest.raises(SampleError) as caught:
        load(root, "a/x")
    message = str(caught.value)
    assert message.startswith(f"sample 'a/x' ({path}): ")
    for part in parts:
        assert part in message
    assert "weights_only" not in message
    assert "\n" not in message
    assert len(message) < 250 + len(str(path))
    assert (caught.value.ID, caught.value.path) == ("a/x", str(path))
    # the texts of torch, which advise to run the file's code, are not shown with HYDRA_FULL_ERROR=1 either
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.ID, copy.path) == (message, "a/x", str(path))


@pytest.mark.parametrize(
    ("form", "part"),
    [
        (saved, "needs code to load (posix.mkdir)"),
        (saved_before_1_6, "needs code to load (posix.mkdir)"),
        (lambda X: pickle.dumps(X, protocol=2), "needs code to load (posix.mkdir)"),
        (pickle.dumps, NO_FILE),
        (lambda X: saved([torch.zeros(2), X]), "needs code to load"),
    ],
    ids=["file", "old file", "pickle 2", "pickle", "beside a tensor"],
)
def test_code_in_a_file_does_not_run(tmp_path: Path, form: Callable[[Any], bytes], part: str) -> None:
    mark = tmp_path / "ran"
    path = tmp_path / "a/x.pt"
    path.parent.mkdir()
    path.write_bytes(form(Code(mark)))
    check(tmp_path, path, [part, "save the tensor X alone with torch.save(X, path)"])
    assert not mark.exists()
    pickle.loads(pickle.dumps(Code(mark)))  # it would have
    assert mark.exists()


SAY = """
import sys
from feedrate.dataset import TensorFiles
for ID in sys.argv[2:]:
    try:
        TensorFiles([ID], {ID: 0}, sys.argv[1])[0]
    except ValueError as error:
        print(error)
"""


def test_the_message_is_all_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps([1, 2]))
    (tmp_path / "protocol.pt").write_bytes(saved(X, pickle_protocol=4))
    program = zipfile.ZipFile(tmp_path / "program.pt", "w")
    with program, zipfile.ZipFile(io.BytesIO(saved(X))) as whole:
        for name in whole.namelist():
            program.writestr(name, whole.read(name))
        program.writestr("archive/constants.pkl", b"")  # by which torch tells a TorchScript program
    said = subprocess.run(
        [sys.executable, "-c", SAY, str(tmp_path), "pickle", "protocol", "program"],
        env={**os.environ, "PYTHONPATH": f"{ROOT}/src"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert len(said) == 3
    assert all(f"{name}.pt" in line for name, line in zip(("pickle", "protocol", "program"), said, strict=True))


def test_what_the_system_cannot_read_is_said_in_its_words(tmp_path: Path) -> None:
    path = tmp_path / "a/x.pt"
    path.mkdir(parents=True)
    check(tmp_path, path, ["cannot be read (Is a directory)"])
    path.rmdir()
    path.symlink_to("x.pt")
    check(tmp_path, path, ["cannot be read (Too many levels of symbolic links)"])
    path.unlink()
    path.symlink_to("nowhere")
    check(tmp_path, path, ["no such file"])
    path.unlink()
    path.parent.rmdir()
    path.parent.touch()
    check(tmp_path, path, ["no such file"])


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and cannot be read: /proc")
def test_an_input_output_error_is_said_as_such(tmp_path: Path) -> None:
    path = tmp_path / "a/x.pt"
    path.parent.mkdir()
    path.symlink_to("/proc/self/mem")  # opens, and gives EIO at address 0
    check(tmp_path, path, ["cannot be read (Input/output error)", "take the ID out"])


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


WHOLE = {"today": saved(torch.rand(7, 5)), "old": saved_before_1_6(torch.rand(7, 5))}


@pytest.mark.parametrize("form", WHOLE)
def test_a_file_cut_anywhere_is_an_error_and_never_data(scratch: Path, form: str) -> None:
    whole = WHOLE[form]
    for length in range(0, len(whole), 11):
        (scratch / "x.pt").write_bytes(whole[:length])
        with pytest.raises(SampleError, match=r"(truncated|empty|needs code).*restore it"):
            load(scratch)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_a_file_with_changed_bytes_is_an_error_of_ours_or_a_tensor(
    scratch: Path, form: str, data: st.DataObject
) -> None:
    content = bytearray(WHOLE[form])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (scratch / "x.pt").write_bytes(content)
    message = ""
    try:
        assert isinstance(load(scratch), Tensor)
    except SampleError as error:
        message = str(error)
    assert message.isprintable()
    assert "weights_only" not in message
