"""What `src/pack.py` refuses to pack, and that what it writes depends on the data alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from feedrate.config import PackConfig, PackingConfig
from feedrate.dataset.writing.pack import pack
from feedrate.errors import SampleError, UserError
from packing import pack_folder, shards_of, write_folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_the_same_bytes_are_written_by_any_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feedrate.dataset.writing.pack._rows", lambda *_: 3)
    root = write_folder(tmp_path / "mine")
    node = {"_target_": "feedrate.dataset.TensorFiles", "root": str(root)}
    for workers in (0, 1, 2, 5):
        packing = PackingConfig(num_workers=workers)
        pack(PackConfig(dataset=node, root=str(tmp_path / f"by{workers}"), pack=packing))
    first = content(tmp_path / "by0")
    assert len(first) == 6 + 2 + 2 + 1
    for workers in (1, 2, 5):
        assert content(tmp_path / f"by{workers}") == first


def test_shards_are_about_as_large_as_asked(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine", sample=lambda number: torch.full((1000, 100), float(number)), count=12)
    packed = pack_folder(root, shard_mb=1)  # 0.4 MB each
    assert [path.stat().st_size // 400_000 for path in shards_of(packed)] == [2, 2, 2, 2, 2, 2]


def test_a_random_transform_is_refused_since_packing_would_freeze_one_draw(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        pack(PackConfig(dataset={"_target_": "packed_datasets.Noisy"}, root=str(tmp_path / "packed")))
    assert "packed_datasets.Noisy gives another sample '0' in each epoch" in str(caught.value)
    assert "+dataset.transform._target_" in str(caught.value)
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize(("what", "text"), [
    ("text", "sample '9' cannot be packed: X is a str; return a dense tensor"),
    ("shape", r"sample '9' cannot be packed: X is tensor float32 \(2, 1\), not tensor float32 \(2,\) as in"),
    ("dtype", "sample '9' cannot be packed: X is .*int64.*, not .*float32.* as in the first sample"),
    ("y", r"sample '9' cannot be packed: y is .*float.*, not .*int.* as in the first sample"),
    ("complex", "sample '9' cannot be packed: X is a Tensor of dtype torch.complex64"),
    ("error", "sample '9': Odd.__getitem__ failed with ValueError: no such sample"),
])  # fmt: skip
@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_cannot_be_packed_is_named(tmp_path: Path, what: str, text: str, workers: int) -> None:
    node = {"_target_": "packed_datasets.Odd", "what": what}
    config = PackConfig(dataset=node, root=str(tmp_path / "packed"), pack=PackingConfig(num_workers=workers))
    with pytest.raises(SampleError, match=text) as caught:
        pack(config)
    assert caught.value.ID == "9"
    assert not list((tmp_path / "packed").glob(".partial-*"))
    with pytest.raises(UserError, match="packing is not complete; run the same command"):
        pack_read(tmp_path / "packed")


def pack_read(root: Path) -> Any:
    from feedrate.dataset import Packed

    return Packed(root)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine", count=6)
    (tmp_path / "mine-packed").mkdir()
    (tmp_path / "mine-packed/thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"holds other files \(thesis.txt; 1 in all\); choose a new folder"):
        pack_folder(root)
    with pytest.raises(UserError, match="holds other files"):
        pack(PackConfig(dataset={"_target_": "feedrate.dataset.TensorFiles", "root": str(root)}, root=str(root)))


def test_shards_of_another_data_set_are_not_replaced(tmp_path: Path) -> None:
    for name in ("mine", "other"):
        write_folder(tmp_path / name, count=6)
    packed = pack_folder(tmp_path / "mine")
    before = content(packed)
    node = {"_target_": "feedrate.dataset.TensorFiles", "root": str(tmp_path / "other")}
    with pytest.raises(UserError) as caught:
        pack(PackConfig(dataset=node, root=str(packed)))
    assert f"holds shards of feedrate.dataset.TensorFiles of {tmp_path}/mine; choose another root" in str(caught.value)
    assert content(packed) == before


def test_without_a_folder_to_lie_beside_root_must_be_given() -> None:
    with pytest.raises(UserError, match="root is missing"):
        pack(PackConfig(dataset={"_target_": "packed_datasets.Noisy"}))


def test_packing_an_unchanged_set_again_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_folder(tmp_path / "mine")
    packed = pack_folder(root)
    before = {path.name: path.stat().st_mtime_ns for path in packed.iterdir()}
    pack_folder(root)
    assert "mine-packed is already done: 16 train, 4 validation, 4 test in 3 shards" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in packed.iterdir() if path.name != ".lock"} == {
        name: time for name, time in before.items() if name != ".lock"
    }


def test_other_keys_of_the_class_pack_all_anew(tmp_path: Path) -> None:
    for what in ("none", "other"):
        node = {"_target_": "packed_datasets.Odd", "what": what}
        pack(PackConfig(dataset=node, root=str(tmp_path / "packed"), pack=PackingConfig(num_workers=0)))
    assert float(pack_read(tmp_path / "packed")[0][0][0]) == 1000


def test_limited_data_is_packed_as_such(tmp_path: Path) -> None:
    from packing import data_of

    root = write_folder(tmp_path / "mine")
    packed = pack_folder(root, limit=3)
    data = data_of(packed, "feedrate.dataset.Packed")
    assert {name: len(part) for name, part in data.partition.items()} == {"train": 3, "validation": 3, "test": 3}
    assert data.digest == data_of(root, "feedrate.dataset.TensorFiles", limit=3).digest
    assert json.loads((packed / "index.json").read_text())["partition"]["train"]["samples"] == 3
