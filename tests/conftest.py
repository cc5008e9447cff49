"""What every test shares: quiet OpenMP threads, and a way to run the shipped configuration for real."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# its threads must not spin on the cores that load; read when torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings  # imported here: it asks the collector, which `short_collections` silences

import accelerator

ROOT = Path(__file__).resolve().parents[1]

# the same examples in each run, and none is at fault because the machine was busy
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


def pytest_configure() -> None:
    """What nohup, or a shell in the background, has set aside would be so for the programs that tests start, too."""
    for name, handler in (("SIGHUP", signal.SIG_DFL), ("SIGINT", signal.default_int_handler)):
        if signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
            signal.signal(getattr(signal, name), handler)
    if accelerator.wanted():
        accelerator.load()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of what only the simulated accelerator shows are for where it is loaded; test_accelerator.py runs them."""
    if not accelerator.wanted():
        left = [item for item in items if "simulated" in getattr(item, "fixturenames", ())]
        items[:] = [item for item in items if item not in left]
        config.hook.pytest_deselected(items=left)
    # first those that fork many workers: a process that has imported MLflow forks three times as slowly
    items.sort(key=lambda item: not item.path.is_relative_to(ROOT / "tests/loader"))


@pytest.fixture(scope="module", autouse=True)
def short_collections() -> None:
    """Garbage collection leaves out what was there before a module's tests: all of torch and MLflow, in each pass."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def simulated() -> Iterator[accelerator.Simulated]:
    """The simulated accelerator, where the tests run on it (see accelerator/__init__.py)."""
    device = accelerator.Simulated()
    device.reset()
    yield device
    device.reset()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as a dataset folder, written once for all tests."""
    from feedrate.dataset import Digits

    root = tmp_path_factory.mktemp("data") / "digits"
    Digits.prepare(root)
    return root


@pytest.fixture(scope="session")
def make_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Makes an empty MLflow store, FOLDER/mlflow.db: MLflow's migrations run once per session, and others are copies.

    That runs make theirs by themselves is tested in end_to_end/test_tracked.py, and of many at once in rounds.py.
    """
    import sqlite3
    from contextlib import closing

    from feedrate.tracking.address import read_address
    from feedrate.tracking.store import open_store

    template = tmp_path_factory.mktemp("template") / "mlflow.db"
    open_store(read_address(str(template)), "made-with-the-template")

    def make(folder: Path) -> Path:
        with closing(sqlite3.connect(template)) as source, closing(sqlite3.connect(folder / "mlflow.db")) as target:
            source.backup(target)
        return folder / "mlflow.db"

    return make


@pytest.fixture
def run_train(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Composes conf/train.yaml with overrides, trains in this process, and returns the run's summary.

    Small by default: the digits, 256 of each partition, two epochs, no workers, no tracking.
    The summary's 'folder' is the run folder.
    """
    from saved_run import composed_with_hydra
    from train import train

    count = 0

    def run(*overrides: str) -> dict[str, Any]:
        nonlocal count
        count += 1
        folder = tmp_path / f"run{count}"
        monkeypatch.setattr(sys, "argv", ["train.py", *overrides])
        small = [
            "tracking=none",
            f"dataset.root={digits}",
            "dataset.limit=256",
            "loader.num_workers=0",
            "trainer.max_epochs=2",
        ]
        chosen = {override.lstrip("+").split("=")[0] for override in overrides}
        if chosen & {"dataset", "experiment"}:
            small = [s for s in small if not s.startswith("dataset.")]
        small = [s for s in small if s.split("=")[0] not in chosen]
        # options of the tests' own, found as a user's would be
        small.append(f"hydra.searchpath=[file://{ROOT}/tests/conf]")
        with composed_with_hydra("train", *small, *overrides, folder=folder) as config:
            value = train(config)
        # a resumed run has a folder of its own
        written = max(tmp_path.glob("run*/summary.json"), key=lambda path: path.stat().st_mtime_ns)
        return {**json.loads(written.read_text()), "folder": written.parent, "value": value}

    return run
