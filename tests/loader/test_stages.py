"""Each batch comes with the times of its loading stages, from every engine; slow samples are known by ID."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from feedrate.dataset import TensorFiles, stage
from feedrate.loader import BatchInfo, Loader

ENGINES = [("inline", 0), ("thread", 2), ("process", 2)]
SLOW = {3, 17, 25}


class Marked(Dataset[Any]):
    """Sample i is the time that it took to load, in ns, and i."""

    thread_safe = True

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> tuple[int, int]:
        begin = time.perf_counter_ns()
        with stage("decode"):
            time.sleep(0.04 if index in SLOW else 0.004)
        with stage("transform"):
            time.sleep(0.002)
        return time.perf_counter_ns() - begin, index


def infos(loader: Loader) -> list[BatchInfo]:
    return [batch.info for batch in loader.batches()]


def loader_of(data: Dataset[Any], engine: str, workers: int, **more: Any) -> Loader:
    chosen = {"engine": engine} if workers else {}
    return Loader(data, 8, seed=0, num_workers=workers, **chosen, **more)


@pytest.mark.parametrize(("engine", "workers"), ENGINES)
def test_the_parts_that_a_dataset_marks_are_told_apart(engine: str, workers: int) -> None:
    for info in infos(loader_of(Marked(), engine, workers)):
        load = info.load
        slow = len(SLOW & set(info.request.indices.tolist()))
        assert load.decode_ns >= (8 * 4 + slow * 36) * 1_000_000
        assert load.transform_ns >= 8 * 2_000_000
        assert load.collate_ns > 0
        assert (load.handover_ns > 0) == (engine == "process")
        assert load.cpu_ns < load.ns


@pytest.mark.parametrize(("engine", "workers"), ENGINES)
def test_a_batch_is_made_before_it_is_handed_out_by_one_clock(engine: str, workers: int) -> None:
    loader = loader_of(Marked(), engine, workers)
    for batch in loader.batches():
        now = time.perf_counter_ns()
        load = batch.info.load
        assert 0 < load.begin_ns < load.end_ns < now


@pytest.mark.parametrize(("engine", "workers"), ENGINES)
def test_the_samples_that_took_longest_are_named_with_their_times(engine: str, workers: int) -> None:
    reported: dict[int, int] = {}
    took: dict[int, int] = {}
    loader = loader_of(Marked(), engine, workers)
    for batch in loader.batches():
        times, indices = batch.data
        took |= dict(zip(indices.tolist(), times.tolist(), strict=True))
        for index, ns in batch.info.slow:
            assert index in indices
            reported[index] = max(ns, reported.get(index, 0))
    assert reported.keys() >= SLOW
    assert all(reported[index] >= took[index] for index in reported)
    # on a busy machine any sample may be one of the longest
    longest = sorted(reported, key=reported.__getitem__, reverse=True)[: len(SLOW)]
    assert min(reported[index] for index in longest) >= 40_000_000
    others = took.keys() - set(longest)
    assert max(took[index] for index in others) <= min(reported[index] for index in longest)


def test_a_transform_of_tensor_files_is_a_part_of_its_own(tmp_path: Path) -> None:
    for name in "abcdefgh":
        torch.save(torch.zeros(3), tmp_path / f"{name}.pt")
    data = TensorFiles(list("abcdefgh"), dict.fromkeys("abcdefgh", 0), tmp_path, transform=_slowly)
    (info,) = infos(loader_of(data, "inline", 0))
    assert 8 * 3_000_000 <= info.load.transform_ns < info.load.ns


def test_a_file_that_only_torch_load_understands_is_decoded(tmp_path: Path) -> None:
    for name in "abcdefgh":
        torch.save((torch.zeros(3), 0), tmp_path / f"{name}.pt")
    data = TensorFiles(list("abcdefgh"), dict.fromkeys("abcdefgh", 0), tmp_path)
    shares = []
    for _ in range(20):  # a pause of the machine may fall into what is not decoding
        (info,) = infos(loader_of(data, "inline", 0))
        shares.append(info.load.decode_ns / info.load.ns)
    assert max(shares) > 0.5


def _slowly(X: torch.Tensor) -> torch.Tensor:
    time.sleep(0.003)
    return X


def test_the_report_says_what_the_waiting_was_for() -> None:
    loader = Loader(Marked(), 2, seed=0)
    list(loader)
    report = loader.report()
    assert report.verdict is not None
    assert report.verdict.kind == "input-bound"
    assert "of the load is decode" in str(report)
