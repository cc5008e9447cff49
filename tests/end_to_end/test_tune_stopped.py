"""tune.py that is stopped in the middle of a trial leaves nothing: no process, no file, no temporary folder."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from feedrate.config import ROOT
from started import Started, until

pytestmark = pytest.mark.slow


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Started]]:
    """Starts a tuning that is in its second trial, with a worker process, when it is returned."""
    begun: list[Started] = []
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests/helpers"))

    def run() -> Started:
        dataset = ["dataset=hanging", f"dataset.note={tmp_path}/note", f"hydra.searchpath=[file://{ROOT}/tests/conf]"]
        own = ["model=mlp", "loader.batch_size=8", "tune.trial_s=3"]
        output = f"tune.output={tmp_path}/option/tuned.yaml"
        begun.append(Started("tune.py", *dataset, *own, output))
        until(lambda: len(begun[-1].group()) > 1)
        return begun[-1]

    yield run
    for started in begun:
        started.close()


@pytest.mark.parametrize(
    ("signum", "code", "whole_group"),
    [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, False), (signal.SIGHUP, 129, True)],
    ids=["Ctrl-C", "SIGTERM to the process alone", "a closed terminal"],
)
def test_a_signal_ends_it_with_one_line_and_nothing_is_left(
    start: Callable[[], Started], tmp_path: Path, signum: signal.Signals, code: int, whole_group: bool
) -> None:
    before = set(ROOT.glob("outputs/tune*/*"))
    stopped = start()
    (os.killpg if whole_group else os.kill)(stopped.process.pid, signum)
    output, errors = stopped.process.communicate(timeout=60)
    assert stopped.process.returncode == code
    assert errors == f"stopped by {signum.name}\n"
    assert "no workers: " in output
    assert stopped.all_ended()
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]
    assert not list((tmp_path / "temporary").glob("pymp-*"))  # folders of multiprocessing
    assert set(ROOT.glob("outputs/tune*/*")) == before


def test_killed_it_leaves_no_process_and_no_option(start: Callable[[], Started], tmp_path: Path) -> None:
    killed = start()
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.process.wait()
    until(killed.all_ended)  # its workers look for it each five seconds
    assert killed.process.communicate()[1] == ""
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]
