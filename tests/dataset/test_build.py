"""Any class with `__len__` and `__getitem__` is a dataset; it gets what its constructor names; mistakes are named."""

from __future__ import annotations

import json
import logging
import pickle
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

import own_datasets
from feedrate.config import ROOT
from feedrate.dataset import Data, TensorFiles, build_data, list_IDs
from feedrate.dataset.rng import name_sample, sample_seeds
from feedrate.dataset.subset import SubsetWithIDs
from feedrate.errors import SampleError, UserError
from feedrate.loader import Loader

LABELS = {"a": "cat", "b": "dog", "scans/c": "cat", "d": "dog", "e": "emu"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five samples (2, 3) float32 with three classes."""
    root = tmp_path / "mine"
    (root / "scans").mkdir(parents=True)
    partition = {"train": ["a", "b", "scans/c"], "validation": ["d"], "test": ["e"]}
    (root / "partition.json").write_text(json.dumps(partition))
    (root / "labels.json").write_text(json.dumps(LABELS))
    for number, ID in enumerate(LABELS):
        torch.save(torch.full((2, 3), float(number)), root / f"{ID}.pt")
    return root


@pytest.fixture
def notes(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="feedrate")
    return caplog


def own(name: str, seed: int = 0, **keys: Any) -> Data:
    return build_data({"_target_": f"own_datasets.{name}", **keys}, seed)


def test_an_x_that_is_a_python_number_has_the_type_that_torch_collates_it_to() -> None:
    data = own("Returning", what="float as X")
    assert data.sample_dtype == next(iter(Loader(data.partition["train"], 2, seed=0)))[0].dtype


def refused(name: str, error: type[UserError] = UserError, **keys: Any) -> str:
    with pytest.raises(error) as caught:
        own(name, **keys)
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    return message


def sizes(data: Data) -> list[int]:
    return [len(part) for part in data.partition.values()]  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------
# a folder
# ---------------------------------------------------------------------------------------------------------


def test_a_folder_says_all_that_a_model_must_know(folder: Path) -> None:
    data = build_data({"_target_": "feedrate.dataset.TensorFiles", "root": str(folder)}, 0)
    assert list(data.partition) == ["train", "validation", "test"]
    assert sizes(data) == [3, 1, 1]
    assert (data.name, data.source) == ("mine", str(folder))
    assert (data.sample_shape, data.sample_dtype) == ((2, 3), torch.float32)
    assert (data.targets.task, data.targets.classes) == ("classification", ("cat", "dog", "emu"))
    assert (data.mean, data.std) == (None, None)
    assert len(data.digest) == 64
    assert list(list_IDs(data.partition["train"]) or []) == ["a", "b", "scans/c"]


def test_a_relative_root_counts_from_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert own("Divided", root="no/where").partition["train"].root == f"{ROOT}/no/where"  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=f"dataset.root={ROOT}/no/where: no such folder"):
        build_data({"_target_": "feedrate.dataset.TensorFiles", "root": "no/where"}, 0)


def test_an_own_root_has_the_default_of_the_class_where_none_is_given() -> None:
    assert own("Divided").partition["train"].root == "nowhere"  # type: ignore[attr-defined]
    assert own("Divided", root=None).partition["train"].root == "nowhere"  # type: ignore[attr-defined]


def test_the_class_of_the_tutorial_works_as_it_stands_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder.parent / "data").symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    data = own("TutorialDataset", root=str(folder))
    assert [y for _, y in (data.partition["train"][i] for i in range(3))] == [0, 1, 0]
    assert data.partition["validation"].labels.indexed  # type: ignore[attr-defined] # before workers are forked
    batches = [list(Loader(data.partition["train"], batch_size=2, seed=0, num_workers=n)) for n in (0, 2)]
    for (X0, y0), (X2, y2) in zip(*batches, strict=True):
        assert torch.equal(X0, X2)
        assert torch.equal(y0, y2)
    assert pickle.loads(pickle.dumps(data.partition["train"])).labels["b"] == 1


def test_a_class_that_does_not_keep_the_IDs_is_still_known_by_them(folder: Path) -> None:
    data = own("Forgetful", root=str(folder))
    assert list(list_IDs(data.partition["train"]) or []) == ["a", "b", "scans/c"]
    assert data.partition["train"].dataset.partition == "train"  # type: ignore[attr-defined]
    assert data.partition["train"].dataset.root == str(folder)  # type: ignore[attr-defined]


def test_a_class_may_read_files_with_another_ending(folder: Path) -> None:
    assert "without a file ID.npy" in refused("Arrays", root=str(folder))
    for ID in LABELS:
        np.save(folder / f"{ID}.npy", np.zeros(4))
    data = own("Arrays", root=str(folder))
    assert (data.sample_shape, data.sample_dtype) == ((4,), torch.float64)


def test_a_class_that_extends_a_shipped_one_and_hands_on_the_rest_gets_what_that_one_gets(folder: Path) -> None:
    data = own("Doubled", root=str(folder), factor=10.0)
    assert data.partition["train"][1][0].tolist() == [[10.0] * 3] * 2
    assert isinstance(data.partition["train"], TensorFiles)


def test_a_transform_is_a_nested_target_in_YAML(folder: Path) -> None:
    yaml = """
        # python src/train.py dataset=scaled
        _target_: feedrate.dataset.TensorFiles
        root: ???
        transform:
          _target_: own_datasets.Scale
          factor: 3.0
    """
    node = OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(textwrap.dedent(yaml)), {"root": str(folder)}))
    data = build_data(node, 0)  # type: ignore[arg-type]
    assert data.partition["train"][1][0].tolist() == [[3.0] * 3] * 2
    node["transform"]["factr"] = node["transform"].pop("factor")  # type: ignore[index,call-overload,union-attr]
    with pytest.raises(UserError, match="factr"):
        build_data(node, 0)  # type: ignore[arg-type]


SCALE = {"_target_": "own_datasets.Scale", "factor": 10.0}


@pytest.mark.parametrize("target", ["feedrate.dataset.TensorFiles", "own_datasets.Doubled"])
def test_a_transform_never_touches_validation_or_test_of_a_folder(folder: Path, notes: Any, target: str) -> None:
    node = {"_target_": target, "root": str(folder)}
    plain, data = build_data(node, 0), build_data({**node, "transform": SCALE}, 0)
    assert "dataset.transform is applied to training samples, not to those of validation and test" in notes.text
    for name, part in data.partition.items():
        factor = 10.0 if name == "train" else 1.0
        assert torch.equal(part[0][0], plain.partition[name][0][0] * factor)
    assert (data.digest, data.targets) == (plain.digest, plain.targets)


def test_a_transform_never_touches_validation_or_test_of_an_own_class_unless_named_for_them() -> None:
    data = own("AugmentedParts", transform=SCALE)
    for name, part in data.partition.items():
        assert isinstance(part[0][0], torch.Tensor)
        assert (part.transform is not None) == (name == "train"), name  # type: ignore[attr-defined]
    named = own("AugmentedParts", transform=SCALE, test_transform={**SCALE, "factor": 2.0})
    assert named.partition["test"].transform.factor == 2.0  # type: ignore[attr-defined]
    assert named.partition["validation"].transform is None  # type: ignore[attr-defined]


def test_a_transform_never_touches_the_fifth_that_is_held_out() -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    plain = own("Augmented", transform=None, base=1)
    torch.set_rng_state(state)
    data = own("Augmented", transform=SCALE, base=1)
    assert sizes(data) == [16, 4]
    for name, factor in (("train", 10.0), ("validation", 1.0)):
        for (X, y), (X0, y0) in zip(data.partition[name], plain.partition[name], strict=True):
            assert torch.equal(X, X0 * factor)
            assert y == y0


def test_a_transform_that_makes_training_samples_unlike_the_others_is_refused_before_training(folder: Path) -> None:
    from feedrate.dataset import check_shapes

    node = {"_target_": "feedrate.dataset.TensorFiles", "root": str(folder), "transform": SCALE}
    check_shapes(build_data(node, 0), node)
    node["transform"] = {"_target_": "torch.nn.Flatten", "start_dim": 0}
    with pytest.raises(UserError, match=r"makes training samples \(6,\) torch.float32; those of validation, to which"):
        check_shapes(build_data(node, 0), node)


def test_the_first_sample_that_cannot_be_read_is_named_before_training(folder: Path) -> None:
    (folder / "a.pt").write_bytes(b"")
    with pytest.raises(SampleError, match=r"sample 'a' .*is an empty file"):
        build_data({"_target_": "feedrate.dataset.TensorFiles", "root": str(folder)}, 0)


def test_notes_of_the_catalog_and_files_that_hold_far_too_much_are_logged(folder: Path, notes: Any) -> None:
    node = {"_target_": "feedrate.dataset.TensorFiles", "root": str(folder)}
    build_data(node, 0)
    assert len(notes.messages) == 1
    assert "labels: 1 class without a training sample" in notes.messages[0]
    notes.clear()
    (folder / "labels.json").write_text(json.dumps({**LABELS, "e": "cat", "z": "cat"}))
    torch.save(torch.zeros(10_000, 2, 3)[5], folder / "a.pt")
    build_data(node, 0)
    assert "labels whose ID is in no partition: 'z' (1 in all)" in notes.messages[0]
    assert "uses 24 of the 240000 bytes in its file" in notes.messages[1]
    assert "torch.save(X.clone(), path)" in notes.messages[1]


# ---------------------------------------------------------------------------------------------------------
# classes that need no folder
# ---------------------------------------------------------------------------------------------------------


def test_len_and_getitem_are_enough_and_a_fifth_is_held_out_by_seed(notes: Any) -> None:
    data = own("Squares", seed=3)
    assert sizes(data) == [16, 4]
    assert (data.name, data.source) == ("squares", "own_datasets.Squares")
    assert (data.sample_shape, data.targets.num_outputs) == ((2,), 3)
    held, kept = ([int(X[0]) for X, _ in part] for part in (data.partition["validation"], data.partition["train"]))
    assert sorted(held + kept) == list(range(20))
    assert held == sorted(held)
    assert list(list_IDs(data.partition["validation"]) or []) == [str(i) for i in held]
    again, other = own("Squares", seed=3), own("Squares", seed=4)
    assert list(again.partition["validation"].indices) == held  # type: ignore[attr-defined]
    assert list(other.partition["validation"].indices) != held  # type: ignore[attr-defined]
    assert data.digest == again.digest != other.digest
    assert "a fifth of its samples (by seed) is for validation" in notes.text


def test_what_is_held_out_is_numbered_in_few_bytes_and_by_whole_numbers_of_Python() -> None:
    data = own("Plain", size=100_000, num_outputs=2)
    part = data.partition["train"]
    assert len(pickle.dumps(part)) < 8.2 * len(part)  # type: ignore[arg-type]
    names = list_IDs(part)
    assert names is not None
    assert names[5:7][1] == names[6] == str(part.indices[6])  # type: ignore[attr-defined]


@pytest.mark.parametrize("keys", [{"size": 20}, {"size": 20, "channels": 3}])
def test_neither_torchs_base_class_nor_tensors_are_needed(keys: dict[str, int]) -> None:
    data = own("Plain", **keys)
    assert data.sample_shape == (keys.get("channels", 1), 2, 2)
    assert (data.sample_dtype, data.targets.num_outputs) == (torch.uint8, 2)
    for make in (Loader, DataLoader):
        batch, y = next(iter(make(data.partition["train"], batch_size=4)))
        assert (batch.dtype, y.dtype) == (torch.uint8, torch.int64)


def test_a_class_that_names_partition_and_seed_is_built_for_each_partition() -> None:
    data = own("Divided", seed=11)
    assert list(data.partition) == ["train", "validation"]
    assert [data.partition[p].partition for p in data.partition] == ["train", "validation"]  # type: ignore[attr-defined]
    assert [data.partition[p].seed for p in data.partition] == [11, 11]  # type: ignore[attr-defined]
    assert sizes(data) == [30, 6]
    assert list(list_IDs(data.partition["validation"]) or [])[:2] == ["validation-0", "validation-1"]
    node = {"_target_": "own_datasets.Divided", "name": "other", "seed": 5}
    assert build_data(node, 11).name == "other"
    assert build_data(node, 11).partition["train"].seed == 5  # type: ignore[attr-defined] # its YAML's comes first


def test_a_number_of_classes_that_the_class_states_is_taken() -> None:
    assert own("Divided").targets.num_outputs == 7
    assert own("Divided").targets.classes == tuple(range(7))
    assert own("Labelled", y=[0, 1, 2], states=7).targets.num_outputs == 7  # with samples held out too
    assert "Labelled.num_outputs=2: the labels need at least 3" in refused("Labelled", y=[0, 1, 2], states=2)
    assert "num_outputs is 'x'" in refused("Labelled", y=[0, 1, 2], states="x")
    assert "a number to predict; it must be 1" in refused("Labelled", y=[0.5], states=2)


def test_the_number_of_outputs_may_be_stated_in_the_configuration(folder: Path) -> None:
    assert own("Squares", num_outputs=10).targets.num_outputs == 10
    assert "dataset.num_outputs=2: the labels need at least 3" in refused("Squares", num_outputs=2)
    node = {"_target_": "feedrate.dataset.TensorFiles", "root": str(folder), "num_outputs": 9}
    assert build_data(node, 0).targets.num_outputs == 9
    with pytest.raises(UserError, match="at least 3"):
        build_data({**node, "num_outputs": 2}, 0)
    (folder / "labels.json").write_text(json.dumps({ID: [1, 2] for ID in LABELS}))
    with pytest.raises(UserError, match="2 numbers to predict; it must be 2"):
        build_data(node, 0)


def test_classes_counted_in_some_of_the_samples_are_noted(notes: Any) -> None:
    own("Labelled", y=[0, 1, 2, 3], size=5000)
    assert "note: 4 classes in the labels of 1000 samples; dataset.num_outputs states it" in notes.messages
    notes.clear()
    own("Labelled", y=[0, 1, 2, 3], size=5000, **{"num_outputs": 4})
    assert not any("classes" in message for message in notes.messages)


def test_classes_that_no_sample_has_are_noted(notes: Any) -> None:
    assert own("Labelled", y=[0, 10, 20], size=30).targets.num_outputs == 21
    text = "note: labels: 18 of 21 classes are not among the labels of 24 samples; "
    assert any(message.startswith(text) for message in notes.messages)
    notes.clear()
    own("Labelled", y=[2, 0, 1], size=30)
    own("Labelled", y=[0, 10, 20], size=30, **{"num_outputs": 21})
    assert not any("not among the labels" in message for message in notes.messages)


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize(
    ("y", "keys", "task", "outputs"),
    [
        ([0, 4, 2], {}, "classification", 5),
        ([False, True], {}, "classification", 2),
        ([0.5, 1.0], {}, "regression", 1),
        ([1, 2, 3], {"task": "regression"}, "regression", 1),
        ([1.0, 2.0], {"task": "regression"}, "regression", 1),
        ([[1.0, 2.0], [3.0, 4.0]], {}, "regression", 2),
        ([[0], [4], [2]], {}, "classification", 5),
        ([[0.5], [1.0]], {}, "regression", 1),
        ([[1.0], [2.0]], {"task": "regression"}, "regression", 1),
    ],
)
def test_what_y_means_is_told_from_the_samples(
    y: list[Any], keys: dict[str, Any], task: str, outputs: int, as_tensor: bool
) -> None:
    targets = own("Labelled", y=y, as_tensor=as_tensor, **keys).targets
    assert (targets.task, targets.num_outputs) == (task, outputs)


@pytest.mark.parametrize(
    ("y", "keys", "parts"),
    [
        (["cat"], {}, ["y='cat'", "class index"]),
        ([-1], {}, ["y=-1", "class index"]),
        ([1.0, 2.0], {}, ["a float without a fraction", "int(y)", "dataset.task=regression"]),
        ([None], {}, ["null"]),
        ([[1.0], [1.0, 2.0]], {}, ["as that of ID", "each label must be a list of"]),
        ([[[1.0]]], {}, ["[[1.0]]"]),
        ([float("nan"), 0.5], {}, ["NaN", "finite"]),
        ([[1.0]], {"task": "classification"}, ["y=1.0", "int(y)"]),
        ([[1.0, 2.0]], {"task": "classification"}, ["[1.0, 2.0]", "dataset.task=classification"]),
    ],
    ids=repr,
)
def test_a_y_that_is_no_label_is_shown_with_its_sample(y: list[Any], keys: dict[str, Any], parts: list[str]) -> None:
    message = refused("Labelled", y=y, **keys)
    assert "own_datasets.Labelled" in message
    for part in parts:
        assert part in message


def test_looking_at_samples_leaves_the_runs_random_numbers_alone() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    data = own("Random")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]
    part = data.partition["train"]
    with sample_seeds():
        name_sample(0, 0, str(part.indices[0]))  # type: ignore[attr-defined]
        expected = part[0][0]
    assert expected.shape == data.sample_shape


def test_a_class_may_make_its_own_data_once(tmp_path: Path) -> None:
    own_datasets.Downloaded.calls = 0
    data = own("Downloaded", root=str(tmp_path / "new/folder"))
    assert sizes(data) == [8, 4]
    assert own_datasets.Downloaded.calls == 1
    assert data.sample_shape == ()
    assert "dataset.root is missing" in refused("Downloaded")
    assert "Unprepared.prepare failed with RuntimeError: the server said no" in refused("Unprepared", root="x")
    assert sizes(own("Preparing", root="x")) == [16, 4]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file/below", Path("/proc/digits")):
        with pytest.raises(UserError) as caught:
            build_data({"_target_": "feedrate.dataset.Digits", "root": str(root)}, 0)
        assert f"dataset.root={root}: feedrate.dataset.Digits.prepare failed with " in str(caught.value)


def test_a_function_may_stand_in_the_place_of_a_class() -> None:
    data = own("make_squares", size=20)
    assert (sizes(data), data.targets.num_outputs, data.name) == ([16, 4], 4, "make_squares")


# ---------------------------------------------------------------------------------------------------------
# keys that every dataset has
# ---------------------------------------------------------------------------------------------------------


def test_limit_takes_the_first_samples_of_each_partition(folder: Path) -> None:
    node = {"_target_": "feedrate.dataset.TensorFiles", "root": str(folder), "limit": 2}
    data = build_data(node, 0)
    assert sizes(data) == [2, 1, 1]
    train = data.partition["train"]
    assert list(list_IDs(train) or []) == ["a", "b"]
    assert train.path("b") == f"{folder}/b.pt"  # type: ignore[attr-defined]
    assert train[1][0].max() == 1
    with pytest.raises(IndexError):
        train[2]
    assert data.digest != build_data({**node, "limit": None}, 0).digest  # other samples are other data
    limited, whole = own("Squares", limit=3).partition["train"], own("Squares").partition["train"]
    assert list(list_IDs(limited) or []) == list(list_IDs(whole) or [])[:3]
    assert sizes(own("Divided", limit=10)) == [10, 6]
    huge = build_data({"_target_": "feedrate.dataset.Generated", "size": 10**12, "image_size": 32, "limit": 4}, 0)
    assert list(list_IDs(huge.partition["train"]) or [])[-1] == "train-000003"


def test_mean_and_std_are_one_number_or_one_for_each_channel() -> None:
    data = own("Divided", mean=[0.1, 0.2, 0.3], std=2)
    assert (data.mean, data.std) == ((0.1, 0.2, 0.3), (2.0,))
    message = refused("Divided", mean=[0.1, 0.2])
    assert "dataset.mean has 2 values, a sample has shape (3, 4, 4): give one, or one per channel" in message
    assert "dataset.std=[1.0, 0.0, 1.0]: must be above 0" in refused("Divided", std=[1, 0, 1])
    assert "dataset.std=nan: must be a list or a finite number" in refused("Divided", std=float("nan"))
    assert "dataset.mean=inf: must be a list or a finite number" in refused("Divided", mean=float("inf"))


# ---------------------------------------------------------------------------------------------------------
# mistakes
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "keys", "parts"),
    [
        ("Plain", {"size": 9, "chanels": 3}, ["dataset.chanels", "did you mean channels?", "It takes: size, channels"]),
        ("Squares", {"crop": 3}, ["dataset.crop", "Squares", "It takes: nothing"]),
        ("Plain", {}, ["dataset.size", "own_datasets.Plain"]),
        ("Divided", {"sed": 3}, ["dataset.sed", "It takes: root"]),
        ("Failing", {"size": 4}, ["own_datasets.Failing(...) failed with RuntimeError: no licence for 4"]),
        ("TutorialDataset", {}, ["dataset.root is missing", "takes list_IDs"]),
        ("Empty", {}, ["has no samples"]),
        ("Miscounting", {"what": "list"}, ["__len__ failed with ValueError", "must return the number of samples"]),
        ("Returning", {"what": "complex"}, ["complex numbers (torch.complex64)", "torch.view_as_real(X)"]),
        ("Returning", {"what": "elsewhere"}, ["returns an X on meta", "leave out .to(...)"]),
        ("Lengthless", {}, ["has no __len__", "map-style"]),
        ("Streaming", {}, ["has no __len__", "map-style"]),
        ("Plain", {"size": 4}, ["has 4 samples", "at least 5"]),
        ("Misnumbered", {}, ["20 samples and 2 list_IDs"]),
        ("Returning", {"what": "X alone"}, ["returns a Tensor", "the pair (X, y)"]),
        ("Returning", {"what": "three"}, ["returns a tuple of length 3", "the pair (X, y)"]),
        ("Returning", {"what": "dict"}, ["returns a dict", "the pair (X, y)"]),
        ("Returning", {"what": "dict as X"}, ["returns X as dict", "a tensor, an array or a number"]),
        ("Returning", {"what": "text as X"}, ["returns X as str"]),
        ("Returning", {"what": "None as X"}, ["returns X as NoneType"]),
        ("Returning", {"what": "objects as X"}, ["no tensor can be made"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_class_that_cannot_serve_is_refused_with_the_reason(
    name: str, keys: dict[str, Any], parts: list[str]
) -> None:
    message = refused(name, **keys)
    for part in parts:
        assert part in message


def test_a_pair_may_be_a_list_and_X_a_number() -> None:
    assert own("Returning", what="list").sample_shape == (2, 3)
    assert own("Returning", what="number as X").sample_shape == ()


@pytest.mark.parametrize(("what", "said"), [("two lines", "ValueError: first line"), ("key", "KeyError: 'key'")])
def test_an_error_in_getitem_reads_as_the_loader_says_it(what: str, said: str) -> None:
    message = refused("Returning", SampleError, what=what)
    ID = message.split("'")[1]
    pattern = rf"sample '{ID}': Returning.__getitem__ failed with {said} \(own_datasets.py, line \d+, in __getitem__\)"
    assert re.fullmatch(pattern, message)
    assert message == from_loader(own_datasets.Returning(what), int(ID))


def from_loader(dataset: Any, index: int) -> str:
    with pytest.raises(SampleError) as caught:
        list(Loader(SubsetWithIDs(dataset, [index]), batch_size=1, seed=0))
    return str(caught.value)


def test_an_error_in_a_class_that_knows_its_files_names_the_file(folder: Path) -> None:
    message = refused("Cropped", SampleError, root=str(folder))
    assert message.startswith(
        f"sample 'a' ({folder}/a.pt): Cropped.__getitem__ failed with ValueError: 3 columns (own_"
    )
    assert message == from_loader(own_datasets.Cropped(["a"], {"a": 0}, folder), 0)


@pytest.mark.parametrize("keys", [{}, {"num_outputs": 3}], ids=str)
def test_a_sample_that_hangs_before_the_loader_exists_ends_in_the_timeout(keys: dict[str, Any]) -> None:
    own_datasets.Hanging.go_on.clear()
    node = {"_target_": "own_datasets.Hanging", **keys}
    try:
        with pytest.raises(UserError) as raised:
            build_data(node, 0, timeout=0.3)
    finally:
        own_datasets.Hanging.go_on.set()
    said, remedy = str(raised.value).splitlines()
    ID = said.split("'")[1]
    assert said.startswith(f"loader.timeout: sample '{ID}' did not come within 0.3 seconds: it is still being loaded (")
    assert "own_datasets.py, line " in said
    assert remedy == "A sample hangs, or loader.timeout is too short (0 waits for ever)"


def test_the_look_at_samples_finds_the_same_with_a_timeout() -> None:
    plain, limited = (build_data({"_target_": "own_datasets.Random"}, 0, timeout=timeout) for timeout in (0, 1e300))
    assert plain.targets == limited.targets
    assert refused("Returning", SampleError, what="two lines")  # and fails with the same error
    with pytest.raises(SampleError, match="ValueError: first line"):
        build_data({"_target_": "own_datasets.Returning", "what": "two lines"}, 0, timeout=60)
