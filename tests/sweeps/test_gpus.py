"""Jobs of a sweep that run side by side see one GPU each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hydra_plugins.feedrate_launcher._process import GPUS, visible_gpus
from hydra_plugins.feedrate_launcher._sweep import Sweep


def seen_by(jobs: int, devices: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What each job sees of the GPUs."""
    seen = []

    def start(self: Sweep, job: Any, environment: Mapping[str, str]) -> tuple[Any, Path, Any]:
        seen.append(environment[GPUS])
        answers = iter([None, None, 0])  # goes on until its neighbour runs, too
        return job, Path(), SimpleNamespace(ended=lambda: next(answers, 0), send=lambda signum: None)

    monkeypatch.setattr(Sweep, "_start", start)
    monkeypatch.setattr(Sweep, "_record", lambda self, job, folder, code: self.results.update({job.number: None}))
    sweep: Any = Sweep(master=None, folder=None, at_once=jobs, name="", settings={}, report=None,
                       config=SimpleNamespace(sweep=SimpleNamespace(fail_fast=False)), words=str)  # type: ignore[arg-type]  # fmt: skip
    sweep.run(
        SimpleNamespace(number=i, environment={}, config=SimpleNamespace(trainer=SimpleNamespace(device=device)))
        for i, device in enumerate(devices)
    )
    return seen


def test_jobs_side_by_side_get_one_gpu_each_unless_their_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GPUS, "3,5")
    assert seen_by(2, ["auto", "cuda", "auto"], monkeypatch)[:2] == ["3", "5"]
    assert seen_by(2, ["cpu", "cuda:1"], monkeypatch) == ["3,5", "3,5"]
    assert seen_by(1, ["auto"], monkeypatch) == ["3,5"]


def test_without_a_gpu_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GPUS, "")
    assert visible_gpus() == []
