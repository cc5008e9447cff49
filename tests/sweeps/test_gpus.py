"""Jobs of a sweep that run side by side see one GPU each."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hydra_plugins.feedrate_launcher._gpus import VARIABLE, visible
from hydra_plugins.feedrate_launcher._running import Jobs

# goes on until its neighbour runs, too
TOLD = "import os, sys, time; open(sys.argv[1], 'w').write(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(1)"


def jobs_of(tmp_path: Path, at_once: int, devices: list[str]) -> list[str]:
    """What each job saw of the GPUs."""
    files = SimpleNamespace(
        command=lambda job, folder, resume: [sys.executable, "-c", TOLD, str(tmp_path / f"{job.number}")]
    )
    jobs: list[Any] = [
        SimpleNamespace(number=i, subfolder=str(i), job_id="", environment={},
                        config=SimpleNamespace(trainer=SimpleNamespace(device=device)))
        for i, device in enumerate(devices)
    ]  # fmt: skip
    following = iter(jobs)
    stop: Any = SimpleNamespace(signum=None, hurried=False)
    Jobs(at_once, files, tmp_path, None, stop, str).run(lambda: next(following, None), lambda *_: None)  # type: ignore[arg-type]
    return [(tmp_path / str(job.number)).read_text() for job in jobs]


def test_jobs_side_by_side_get_one_gpu_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "3,5")
    assert sorted(jobs_of(tmp_path, 2, ["auto", "cuda"])) == ["3", "5"]


def test_a_device_that_is_named_and_a_sweep_of_one_job_at_a_time_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "3,5")
    assert jobs_of(tmp_path, 2, ["cpu", "cuda:1"]) == ["3,5", "3,5"]
    assert jobs_of(tmp_path, 1, ["auto"]) == ["3,5"]


def test_without_a_gpu_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    assert visible() == []
