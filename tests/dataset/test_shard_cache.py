"""`dataset.cache=shards`: every epoch gives what the files give, whatever was killed, changed or damaged before."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from feedrate.dataset import ArrayFiles, TensorFiles
from feedrate.dataset.formats.sample_reader import fresh
from feedrate.errors import SampleError, UserError
from feedrate.loader import Loader
from packing import age, picture, write_folder
from started import until

COUNT = 24


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "mine")


def IDs_of(root: Path) -> list[str]:
    return [ID for ids in json.loads((root / "partition.json").read_text()).values() for ID in ids]


def open_files(root: Path, cache: str = "shards", **keys: Any) -> TensorFiles:
    return TensorFiles(IDs_of(root), json.loads((root / "labels.json").read_text()), root, cache=cache, **keys)


def entries(root: Path) -> np.ndarray:
    """(N, 3) size, time and CRC-32 of what is stored."""
    (path,) = root.glob(".feedrate/*/entries")
    return np.fromfile(path, dtype=np.int64).reshape(-1, 3)


def kept(root: Path) -> int:
    """Samples that are stored."""
    return int(np.count_nonzero(entries(root)[:, 0]))


def epochs(data: TensorFiles, count: int = 2, **settings: Any) -> tuple[list[Any], str, str | None]:
    """Batches, order digest and content digest of some epochs."""
    loader = Loader(data, batch_size=5, shuffle=True, seed=0, content_digest=True, **settings)
    batches = [[X.tolist(), y.tolist()] for _ in range(count) for X, y in loader]
    loader.close()
    return batches, loader.order_digest(), loader.content_digest()


@pytest.mark.parametrize("workers", [0, 2])
def test_every_epoch_of_every_run_equals_that_of_the_files(root: Path, workers: int) -> None:
    settings: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    expected = epochs(open_files(root, "none"))
    assert not (root / ".feedrate").exists()
    assert epochs(open_files(root), **settings) == expected
    assert kept(root) == COUNT
    before = entries(root)
    assert epochs(open_files(root), **settings) == expected
    assert epochs(open_files(root, verify="crc"), **settings) == expected
    assert (entries(root) == before).all()


def test_once_it_is_complete_no_file_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = epochs(open_files(root))
    data = open_files(root)
    monkeypatch.setattr(os, "preadv", None)
    monkeypatch.setattr(torch, "load", None)
    assert epochs(data) == expected
    X, y = data[3]
    assert torch.equal(X, picture(3))
    assert int(y) == 0


@pytest.mark.slow
def test_spawned_workers_fill_and_read_it_too(root: Path) -> None:
    expected = epochs(open_files(root, "none"))
    settings: dict[str, Any] = {
        "num_workers": 2,
        "persistent_workers": True,
        "multiprocessing_context": "spawn",
    }
    assert epochs(open_files(root), **settings) == expected
    assert kept(root) == COUNT


def test_samples_one_by_one_with_a_transform_are_kept_before_it(root: Path) -> None:
    for _ in range(2):
        data = open_files(root, transform=lambda X: X.float() / 2)
        for number in range(COUNT):
            assert torch.equal(data[number][0], picture(number).float() / 2)
    assert kept(root) == COUNT
    assert torch.equal(open_files(root)[5][0], picture(5))


def test_arrays_in_npy_files_are_kept_too(tmp_path: Path) -> None:
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", picture(number).numpy())
        age(tmp_path / f"{number}.npy")
    IDs, labels = [str(n) for n in range(4)], {str(n): n for n in range(4)}
    for _ in range(2):
        X, y = ArrayFiles(IDs, labels, tmp_path, cache="shards").load_batch(np.arange(4), fresh) or (None, None)
        assert torch.equal(X, torch.stack([picture(n) for n in range(4)]))
        assert y.tolist() == [0, 1, 2, 3]
    assert kept(tmp_path) == 4


def test_a_file_that_changes_between_runs_is_read_and_stored_again(root: Path) -> None:
    epochs(open_files(root))
    changed = root / "scan-1/ü07.pt"
    torch.save(picture(99), changed)
    os.utime(changed, ns=(1, changed.stat().st_mtime_ns - 10**10))
    expected = epochs(open_files(root, "none"))
    before = entries(root)
    for _ in range(2):
        assert epochs(open_files(root)) == expected
        assert np.flatnonzero((entries(root) != before).any(axis=1)).tolist() == [7]


def test_samples_unlike_the_first_stay_in_their_files(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine", sample=lambda n: picture(n) if n % 3 else picture(n)[:, : 1 + n % 2])
    for _ in range(2):
        data, files = open_files(root), open_files(root, "none")
        for number in range(COUNT):
            assert torch.equal(data[number][0], files[number][0])
        with pytest.raises(SampleError, match="sample 'scan-"):
            list(Loader(data, batch_size=6, seed=0))
        alike = [n for n in range(COUNT) if data[n][0].shape == data[0][0].shape]
        X, _ = data.load_batch(np.array(alike), fresh) or (None, None)
        assert torch.equal(X, torch.stack([files[n][0] for n in alike]))
        assert kept(root) == len(alike)


def test_a_missing_file_is_named_as_without_a_cache(root: Path) -> None:
    data = open_files(root)
    (root / "scan-1/ü07.pt").unlink()
    for read in (lambda: data[7], lambda: data.load_batch(np.arange(10), fresh)):
        with pytest.raises(SampleError, match=r"sample 'scan-1/ü07' .*: no such file"):
            read()


def test_another_list_of_IDs_takes_the_place_of_the_one_before(root: Path) -> None:
    labels = json.loads((root / "labels.json").read_text())
    IDs = IDs_of(root)
    for chosen in (IDs, IDs[:10], IDs[::-1]):
        data = TensorFiles(chosen, labels, root, cache="shards", partition="train")
        epochs(data)
        assert len(list((root / ".feedrate").iterdir())) == 1
    other = TensorFiles(IDs[:3], labels, root, cache="shards", partition="validation")
    epochs(other)
    assert len(list((root / ".feedrate").iterdir())) == 2


@pytest.mark.parametrize("fault", ["cut off", "gone", "zeros", "flipped", "noise", "no entries", "half the entries"])
def test_what_a_crash_leaves_is_never_taken_for_a_sample(root: Path, fault: str) -> None:
    expected = epochs(open_files(root))
    (path,) = root.glob(".feedrate/*/samples")
    content, table = bytearray(path.read_bytes()), path.with_name("entries")
    if fault == "cut off":
        path.write_bytes(content[:-100])
    if fault == "gone":
        path.unlink()
    if fault == "zeros":  # the entries were on disk, the samples were not
        path.write_bytes(bytes(len(content)))
    if fault == "flipped":
        content[5 * picture(0).nbytes] ^= 1
        path.write_bytes(content)
    if fault == "noise":
        table.write_bytes(np.random.default_rng(0).bytes(24 * COUNT))
    if fault == "no entries":
        table.unlink()
    if fault == "half the entries":
        table.write_bytes(table.read_bytes()[:50])
    for _ in range(2):
        assert epochs(open_files(root)) == expected
        assert kept(root) == COUNT


def test_with_verify_a_bit_that_flips_during_a_run_is_mended(root: Path) -> None:
    expected = epochs(open_files(root, "none"))
    data = open_files(root, verify="crc")
    assert epochs(data) == expected
    (path,) = root.glob(".feedrate/*/samples")
    with path.open("rb+") as file:
        file.seek(5 * picture(0).nbytes)
        file.write(bytes([255 ^ int(picture(5)[0, 0, 0])]))
    assert epochs(data) == expected


def test_two_runs_at_once_fill_it_without_disturbing_each_other(root: Path) -> None:
    expected = epochs(open_files(root, "none"))
    first, second = open_files(root), open_files(root)
    passes = [iter(Loader(data, batch_size=5, shuffle=True, seed=0)) for data in (first, second)]
    for one, other in zip(*passes, strict=True):
        assert one[0].tolist() == other[0].tolist()
    assert kept(root) == COUNT
    for data in (first, second, open_files(root)):
        assert epochs(data) == expected


def test_a_file_that_was_written_this_instant_is_not_kept_yet(root: Path) -> None:
    path = root / "scan-0/ü00.pt"
    data = open_files(root)
    torch.save(picture(50), path)
    assert torch.equal(data[0][0], picture(50))
    torch.save(picture(51), path)  # within the same tick of the clock, perhaps
    assert torch.equal(open_files(root, "none")[0][0], picture(51))
    assert torch.equal(open_files(root)[0][0], picture(51))


def test_no_room_is_an_error_before_the_first_batch(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(UserError, match=r"needs 0.0 MB and 0.0 MB are free.*set dataset\.cache=none"):
        open_files(root)


def test_a_disk_that_fills_up_leaves_the_rest_in_the_files(root: Path) -> None:
    expected = epochs(open_files(root, "none"))
    data = open_files(root)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))  # no file grows beyond so many bytes
    try:
        found = epochs(data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert found == expected
    assert kept(root) < COUNT
    assert epochs(open_files(root)) == expected


def test_a_folder_that_cannot_be_written_is_an_error(root: Path) -> None:
    (root / ".feedrate").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \(.*\); .*, or set dataset\.cache=none"):
        open_files(root)


KILLED = """
import sys, time
from pathlib import Path
sys.path[:0] = [{src!r}, {tests!r}, {tests!r} + "/helpers"]
from dataset.test_shard_cache import Loader, open_files
data, workers = open_files(Path({root!r})), {workers}
ahead = {{"engine": "process", "prefetch_factor": 1}} if workers else {{}}
batches = iter(Loader(data, batch_size=1, shuffle=True, seed=3, num_workers=workers, **ahead))
next(batches)
time.sleep(600)  # of the 24 samples two workers have kept a few by then
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_in_the_middle_the_next_run_goes_on_from_there(root: Path, workers: int) -> None:
    expected = epochs(open_files(root, "none"))
    tests = Path(__file__).resolve().parents[1]
    program = KILLED.format(src=str(tests.parent / "src"), tests=str(tests), root=str(root), workers=workers)
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        until(lambda: any(root.glob(".feedrate/*/entries")) and kept(root) > 0)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = entries(root)
    assert 0 < np.count_nonzero(before[:, 0]) < COUNT
    assert epochs(open_files(root)) == expected
    assert kept(root) == COUNT
    assert (entries(root) == before)[before > 0].all()
