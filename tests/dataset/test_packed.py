"""`dataset=packed` gives what the dataset that was packed gave, and refuses shards that are damaged or out of date."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from feedrate.dataset import Packed, build_data
from feedrate.dataset.formats.sample_reader import fresh
from feedrate.errors import SampleError, UserError
from feedrate.loader import Loader
from packing import data_of, pack_folder, picture, shards_of, write_folder

FILES, SHARDS = "feedrate.dataset.TensorFiles", "feedrate.dataset.Packed"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "mine")


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


def assert_same_data(data: Any, packed: Any) -> None:
    assert set(packed.partition) == set(data.partition)
    assert packed.digest == data.digest
    assert (packed.targets.task, packed.targets.classes, packed.targets.num_outputs) == (
        data.targets.task,
        data.targets.classes,
        data.targets.num_outputs,
    )
    assert (packed.sample_shape, packed.sample_dtype) == (data.sample_shape, data.sample_dtype)
    for name, dataset in data.partition.items():
        other = packed.partition[name]
        assert list(other.list_IDs) == list(dataset.list_IDs)
        assert len(other) == len(dataset)
        for index in range(len(dataset)):
            for a, b in zip(dataset[index], other[index], strict=True):
                assert_same(a, b)


LABELS = {
    "classes": lambda n: n % 3,
    "texts": lambda n: "abc"[n % 3],
    "numbers": lambda n: n / 7,
    "vectors": lambda n: [n, n / 3, -1],
}


@pytest.mark.parametrize("access", ["mmap", "pread"])
@pytest.mark.parametrize("kind", LABELS)
def test_shards_give_the_samples_labels_IDs_and_digest_of_the_files(tmp_path: Path, kind: str, access: str) -> None:
    root = write_folder(tmp_path / "mine", LABELS[kind])
    packed = pack_folder(root)
    assert_same_data(data_of(root, FILES), data_of(packed, SHARDS, access=access, verify="crc", stale="all"))


DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.int32, torch.int64, torch.uint32,
    torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn,
]  # fmt: skip


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 2)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_every_dtype_and_shape_comes_back_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    def sample(number: int) -> torch.Tensor:
        size = int(np.prod(shape, dtype=int)) * dtype.itemsize
        generator = torch.Generator().manual_seed(number)
        raw = torch.randint(0, 2 if dtype == torch.bool else 256, (size,), dtype=torch.uint8, generator=generator)
        return raw.view(dtype).view(shape)

    root = write_folder(tmp_path / "mine", sample=sample, count=6)
    data, packed = data_of(root, FILES), data_of(pack_folder(root), SHARDS)
    assert_same_data(data, packed)
    for indices in ([0, 1, 2, 3], [3, 0, 0]):
        X, y = packed.partition["train"].load_batch(np.array(indices), fresh)
        assert_same(X, torch.stack([data.partition["train"][i][0] for i in indices]))
        assert y.tolist() == [int(data.partition["train"][i][1]) for i in indices]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_every_batch_and_both_digests_are_those_of_the_files(
    root: Path, context: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feedrate.dataset.writing.pack._rows", lambda *_: 5)  # several shards
    packed = pack_folder(root)
    assert len(shards_of(packed)) == 4 + 1 + 1

    def digests(data: Any, **settings: Any) -> tuple[list[Any], str, str | None]:
        loader = Loader(data.partition["train"], batch_size=3, shuffle=True, seed=1, content_digest=True, **settings)
        batches = [[X.tolist(), y.tolist()] for _ in range(2) for X, y in loader]
        loader.close()
        return batches, loader.order_digest(), loader.content_digest()

    expected = digests(data_of(root, FILES))
    workers = {"num_workers": 2, "multiprocessing_context": context, "persistent_workers": True}
    assert digests(data_of(packed, SHARDS)) == expected
    for access in ("mmap", "pread") if context == "fork" else ("mmap",):
        assert digests(data_of(packed, SHARDS, access=access), **workers) == expected
    moved = root.with_name("moved")
    shutil.rmtree(root)  # the shards stand alone
    packed.rename(moved)
    assert digests(data_of(moved, SHARDS)) == expected


def ragged(number: int) -> torch.Tensor:
    return torch.arange(number, number + 2 * (1 + number % 4), dtype=torch.float32).view(-1, 2)


def test_samples_of_various_lengths_equal_the_files_and_the_users_collate_gets_them(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine", sample=ragged)
    data, packed = data_of(root, FILES), data_of(pack_folder(root), SHARDS, verify="crc")
    assert_same_data(data, packed)

    def padded(samples: list[Any]) -> Any:
        return torch.nn.utils.rnn.pad_sequence([X for X, _ in samples]), torch.stack([y for _, y in samples])

    settings: dict[str, Any] = {"batch_size": 4, "shuffle": True, "seed": 0, "collate_fn": padded}
    a, b = (list(Loader(d.partition["train"], **settings)) for d in (data, packed))
    assert len(a) == len(b) == 4
    for (X, y), (X2, y2) in zip(a, b, strict=True):
        assert_same(X, X2)
        assert_same(y, y2)
    with pytest.raises(
        SampleError, match="sample 'scan-"
    ):  # as of the files: default_collate cannot make a batch of them
        list(Loader(packed.partition["train"], batch_size=4, seed=0))


@pytest.mark.parametrize("target", ["own_datasets.Squares", "own_datasets.Plain", "feedrate.dataset.Generated"])
def test_a_class_without_files_is_packed_with_its_types(target: str, tmp_path: Path) -> None:
    from feedrate.config import PackConfig, PackingConfig
    from feedrate.dataset.writing.pack import pack

    keys = {"size": 30, **({"validation_size": 4, "image_size": 32} if "Generated" in target else {})}
    node = {"_target_": target, **({} if "Squares" in target else keys)}
    pack(PackConfig(dataset=node, root=str(tmp_path / "packed"), pack=PackingConfig(num_workers=2)))
    data, packed = build_data(node, 0), data_of(tmp_path / "packed", SHARDS)
    assert_same_data(data, packed)
    a, b = (
        Loader(d.partition["train"], batch_size=4, shuffle=True, seed=0, content_digest=True) for d in (data, packed)
    )
    for (X, y), (X2, y2) in zip(a, b, strict=True):
        assert_same(X, X2)
        assert_same(y, y2)
    assert a.order_digest() == b.order_digest()
    assert a.content_digest() == b.content_digest()


def test_indices_from_the_end_mean_what_they_mean_in_a_list_and_others_are_refused(root: Path) -> None:
    pack_folder(root)
    packed = Packed(f"{root}-packed")
    size = len(packed)
    found = packed.load_batch(np.array([-1, 0, -size]), fresh)
    assert found is not None
    for X, y, index in zip(*found, (size - 1, 0, 0), strict=True):
        assert_same(X, packed[index][0])
        assert_same(y, packed[index][1])
    for index in (size, -size - 1):
        with pytest.raises(IndexError):
            packed.load_batch(np.array([0, index]), fresh)


def test_a_transform_is_applied_to_what_the_shards_hold(root: Path) -> None:
    packed = Packed(pack_folder(root), transform=lambda X: X.float() + 1)
    assert torch.equal(packed[3][0], picture(3).float() + 1)
    assert packed.load_batch(np.arange(4), fresh) is None


def test_a_transform_is_named_in_the_configuration_and_is_for_training_samples_alone(root: Path) -> None:
    from feedrate.config import check_node

    node = {"_target_": SHARDS, "root": str(pack_folder(root)), "transform": {"_target_": "packed_datasets.Halved"}}
    check_node(node, "dataset")
    data = build_data(node, 0)
    assert torch.equal(data.partition["train"][3][0], picture(3).float() / 2)
    for name, first in (("validation", 16), ("test", 20)):
        assert torch.equal(data.partition[name][0][0], picture(first))


def test_what_is_predicted_from_shards_or_files_is_not_transformed(root: Path) -> None:
    from feedrate.runs.unlabelled import unlabelled

    packed = pack_folder(root)
    node = {"_target_": SHARDS, "root": str(packed), "transform": {"_target_": "packed_datasets.Halved"}}
    data = build_data(node, 0)
    files = {**node, "_target_": "feedrate.dataset.TensorFiles"}
    for of, folder in ((node, packed), (node, root), (files, root)):
        assert {X.dtype for X, _ in unlabelled(of, folder, data, 0).partition["train"]} == {torch.uint8}


def test_packing_transforms_training_samples_alone(root: Path) -> None:
    packed = pack_folder(root, transform={"_target_": "packed_datasets.Inverted"})
    for name, first in (("train", 0), ("validation", 16), ("test", 20)):
        wanted = 255 - picture(first) if name == "train" else picture(first)
        assert torch.equal(Packed(packed, name)[0][0], wanted)


def test_what_a_sample_gives_can_be_changed_without_changing_the_next(root: Path) -> None:
    packed = Packed(pack_folder(root))
    packed[0][0].zero_()
    X, _ = packed.load_batch(np.array([0, 1]), fresh)
    X.zero_()
    assert torch.equal(packed[0][0], picture(0))


def test_a_pickled_dataset_opens_its_shards_again(root: Path) -> None:
    packed = Packed(pack_folder(root), "validation")
    before = packed[1]
    X, y = pickle.loads(pickle.dumps(packed))[1]
    assert_same(X, before[0])
    assert_same(y, before[1])


# ---------------------------------------------------------------------------------------------------------
# damaged and out of date
# ---------------------------------------------------------------------------------------------------------


def test_a_truncated_or_missing_shard_is_named(root: Path) -> None:
    packed = pack_folder(root)
    path = shards_of(packed)[1]
    content = path.read_bytes()
    cut = content.find(picture(9).numpy().tobytes()) + 5
    path.write_bytes(content[:cut])
    with pytest.raises(UserError) as caught:
        data_of(packed, SHARDS)
    assert f"shard {path}: has {cut:,} bytes, not {len(content):,}\n" in str(caught.value)
    assert "python src/pack.py" in str(caught.value)
    path.unlink()
    with pytest.raises(UserError, match=f"shard {path}: is missing"):
        data_of(packed, SHARDS)
    pack_folder(root)
    assert path.read_bytes() == content


def test_a_flipped_bit_anywhere_in_a_shard_is_found_or_harmless(root: Path) -> None:
    packed = pack_folder(root)

    def samples() -> list[Any]:
        data = data_of(packed, SHARDS, verify="crc")
        return [[[*X.tolist(), int(y)] for X, y in part] for part in data.partition.values()]

    whole = samples()
    path = next(shard for shard in shards_of(packed) if shard.name.startswith("test"))
    content = path.read_bytes()
    found = 0
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        try:
            assert samples() == whole, at
        except UserError as error:
            found += str(path) in str(error)
    assert found > len(content) / 28


def test_a_damaged_sample_is_named_with_its_shard(root: Path) -> None:
    packed = pack_folder(root)
    path = shards_of(packed)[1]
    content = bytearray(path.read_bytes())
    at = content.find(picture(5).numpy().tobytes())
    content[at + 7] ^= 1
    path.write_bytes(content)
    data = data_of(packed, SHARDS, verify="crc")
    for read in (lambda d: d[5], lambda d: d.load_batch(np.array([4, 5, 6]), fresh)):
        with pytest.raises(SampleError) as caught:
            read(data.partition["train"])
        assert data.partition["train"].list_IDs[5] == caught.value.ID
        assert str(caught.value).startswith(f"sample 'scan-1/ü05' (shard {path}): its bytes do not match the CRC-32")


def test_a_changed_source_is_refused_with_shard_and_sample_and_packed_again_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("feedrate.dataset.writing.pack._rows", lambda *_: 5)
    packed = pack_folder(root)
    changed = root / "scan-1/ü07.pt"
    torch.save(picture(99), changed)
    with pytest.raises(UserError) as caught:
        data_of(packed, SHARDS)
    assert f"{packed}/train-00001.safetensors: the file of sample 'scan-1/ü07' ({changed}) has changed" in str(
        caught.value
    )
    assert "dataset.stale=ignore" in str(caught.value)
    assert torch.equal(data_of(packed, SHARDS, stale="ignore").partition["train"][7][0], picture(7))

    before = {path.name: path.stat().st_mtime_ns for path in shards_of(packed)}
    pack_folder(root)
    again = {path.name for path in shards_of(packed) if path.stat().st_mtime_ns != before[path.name]}
    assert again == {"train-00001.safetensors"}
    assert torch.equal(data_of(packed, SHARDS, stale="all").partition["train"][7][0], picture(99))


def test_changed_labels_are_refused_and_all_is_packed_again(root: Path) -> None:
    packed = pack_folder(root)
    labels = json.loads((root / "labels.json").read_text())
    labels["scan-1/ü07"] = 0
    (root / "labels.json").write_text(json.dumps(labels))
    with pytest.raises(UserError, match=r"labels\.json has changed since it was packed"):
        data_of(packed, SHARDS)
    pack_folder(root)
    assert_same_data(data_of(root, FILES), data_of(packed, SHARDS))


def test_a_sample_taken_out_leaves_no_shard_of_before(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feedrate.dataset.writing.pack._rows", lambda *_: 5)
    packed = pack_folder(root)
    partition = json.loads((root / "partition.json").read_text())
    partition["train"] = partition["train"][:9]
    del partition["test"]
    (root / "partition.json").write_text(json.dumps(partition))
    pack_folder(root)
    assert [path.name for path in shards_of(packed)] == [
        "train-00000.safetensors",
        "train-00001.safetensors",
        "validation-00000.safetensors",
    ]
    assert_same_data(data_of(root, FILES), data_of(packed, SHARDS))


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "feedrate shards 1"}', '{"format": "other"}'])
def test_an_index_that_cannot_be_read_is_one_error(root: Path, text: str) -> None:
    packed = pack_folder(root)
    (packed / "index.json").write_text(text)
    with pytest.raises(UserError, match=r"index\.json: is"):
        data_of(packed, SHARDS)


@pytest.mark.parametrize(("keys", "text"), [
    ({"access": "ram"}, "dataset.access=ram: must be mmap or pread"),
    ({"verify": "sha"}, "dataset.verify=sha: must be none or crc"),
    ({"stale": "yes"}, "dataset.stale=yes: must be some, all or ignore"),
    ({"partition": "tset"}, "has no partition 'tset'; packed are train"),
])  # fmt: skip
def test_a_wrong_argument_is_named(root: Path, keys: dict[str, str], text: str) -> None:
    with pytest.raises(UserError) as caught:
        Packed(pack_folder(root), **keys)  # type: ignore[arg-type]
    assert text in str(caught.value)


def test_a_folder_without_shards_says_how_to_make_them(root: Path) -> None:
    for folder in (root, root / "nowhere"):
        with pytest.raises(
            UserError, match=r"holds no index\.json; name the folder that python src/pack\.py has written"
        ):
            data_of(folder, SHARDS)


def test_whole_numbers_that_were_packed_as_classes_can_be_taken_for_numbers(root: Path) -> None:
    packed = pack_folder(root)
    data = data_of(packed, SHARDS, task="regression")
    assert_same_data(data_of(root, FILES, task="regression"), data)
    assert data.partition["train"][1][1].dtype == torch.float32


def test_labels_of_a_table_are_packed_as_they_were_read(root: Path) -> None:
    partition, labels = (json.loads((root / f"{name}.json").read_text()) for name in ("partition", "labels"))
    rows = [f"{ID},0{labels[ID]}.0,{name}" for name, IDs in partition.items() for ID in IDs]
    (root / "samples.csv").write_text("\n".join(["id,label,partition", *rows, ""]), encoding="utf-8")
    (root / "partition.json").unlink()
    packed = pack_folder(root)
    assert data_of(packed, SHARDS).targets.classes == ("00.0", "01.0", "02.0")
    for task in ("auto", "regression"):
        assert_same_data(data_of(root, FILES, task=task), data_of(packed, SHARDS, task=task))


def test_shards_are_plain_safetensors_with_IDs_labels_and_fingerprints_inside(root: Path) -> None:
    from safetensors.torch import load_file

    packed = pack_folder(root)
    found = load_file(packed / "validation-00000.safetensors")
    assert found["X"].shape == (4, 2, 3, 4)
    assert found["y"].tolist() == [16 % 3, 17 % 3, 18 % 3, 19 % 3]
    assert bytes(found["ID.text"].numpy()).decode() == "scan-0/ü16scan-1/ü17scan-0/ü18scan-1/ü19"
    path = root / "scan-1/ü17.pt"
    assert found["source"][1].tolist() == [path.stat().st_size, path.stat().st_mtime_ns]
