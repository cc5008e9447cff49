"""`python src/prepare.py source=all.pt root=data/mine`, as a person runs it, kills it, and starts it again."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from feedrate.config import ROOT
from feedrate.dataset.catalog import Catalog
from started import PATIENCE_S, Started, in_the_middle, until

pytestmark = pytest.mark.slow

COUNT = 6_000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "all.pt"
    X = torch.rand((COUNT, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    torch.save((X, torch.arange(COUNT) % 10), path)
    return path


@pytest.fixture(scope="module")
def uninterrupted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uninterrupted") / "mine"
    done = command(f"source={source}", f"root={root}", "num_workers=0")
    assert done.returncode == 0, done.stderr
    return root


def command(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "src/prepare.py"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.fixture
def start() -> Iterator[Callable[..., Started]]:
    begun: list[Started] = []

    def run(*arguments: str, python: tuple[str, ...] = ()) -> Started:
        begun.append(Started("prepare.py", *arguments, python=python))
        return begun[-1]

    yield run
    for started in begun:
        started.close()


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def written(root: Path) -> list[str]:
    return [name for name in names(root) if name.endswith(".pt") and name[0] != "."] if root.is_dir() else []


def content(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir() if path.name != ".lock"}


def test_the_command_makes_a_folder_to_train_on(source: Path, tmp_path: Path) -> None:
    done = command(f"source={source}", f"root={tmp_path}/mine", "test_fraction=0.1", folder=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "4,200 train, 1,200 validation, 600 test" in done.stdout
    assert f"python src/train.py dataset=tensor_files dataset.root={tmp_path}/mine" in done.stdout
    assert f"100 %: {COUNT:,} of {COUNT:,} samples are written" in done.stdout
    catalog = Catalog.read(tmp_path / "mine")
    assert {name: len(ids) for name, ids in catalog.partition.items()} == {
        "train": 4200,
        "validation": 1200,
        "test": 600,
    }
    assert names(tmp_path) == ["mine"]  # nothing of Hydra's

    again = command(f"source={source}", f"root={tmp_path}/mine", "test_fraction=0.1", folder=tmp_path)
    assert again.returncode == 0
    assert "already done" in again.stdout


def test_killed_at_any_instant_it_goes_on_and_loses_nothing(
    source: Path, uninterrupted: Path, tmp_path: Path, start: Callable[..., Started]
) -> None:
    def kill_twice(folder: Path) -> tuple[Path, dict[str, int]] | None:
        root = folder / "mine"
        reached: dict[str, int] = {}
        for least in (1, COUNT // 4):
            killed = start(f"source={source}", f"root={root}", "num_workers=2")
            until(lambda least=least: len(written(root)) >= least)  # type: ignore[misc]
            os.kill(killed.process.pid, signal.SIGKILL)  # the main process alone: its workers must notice
            killed.process.wait()
            until(killed.all_ended)
            now = {name: (root / name).stat().st_mtime_ns for name in written(root)}
            if len(now) == COUNT:
                return None
            assert not (root / "partition.json").exists()
            whole = content(uninterrupted)
            for name in now:
                assert (root / name).read_bytes() == whole[name]
            assert reached.items() <= now.items()
            reached = now
        return root, reached

    root, reached = in_the_middle(tmp_path, kill_twice)
    arguments = (f"source={source}", f"root={root}", "num_workers=2")
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert f"{len(reached):,} of {COUNT:,} samples are there from before" in done.stdout
    assert content(root) == content(uninterrupted)
    assert {name: (root / name).stat().st_mtime_ns for name in reached} == reached


@pytest.mark.parametrize("workers", [2])
def test_CtrlC_says_one_line_and_leaves_nothing_running(
    source: Path, uninterrupted: Path, tmp_path: Path, start: Callable[..., Started], workers: int
) -> None:
    def interrupt(folder: Path) -> tuple[Path, Started, str] | None:
        root = folder / "mine"
        stopped = start(f"source={source}", f"root={root}", f"num_workers={workers}")
        until(lambda: len(written(root)) >= 100)
        os.killpg(stopped.process.pid, signal.SIGINT)
        _, errors = stopped.process.communicate(timeout=PATIENCE_S)
        return None if len(written(root)) == COUNT else (root, stopped, errors)

    root, stopped, errors = in_the_middle(tmp_path, interrupt)
    assert stopped.process.returncode == 130
    until(stopped.all_ended)
    count = len(written(root))
    assert errors == (f"interrupted: {count:,} of {COUNT:,} samples are written; the same command goes on from there\n")
    assert 100 <= count < COUNT
    assert {name for name in names(root) if name.startswith(".")} <= {".lock"}

    done = command(f"source={source}", f"root={root}", f"num_workers={workers}")
    assert done.returncode == 0
    assert content(root) == content(uninterrupted)


@pytest.mark.parametrize("module", ["torch._C"])
def test_CtrlC_while_it_starts_says_one_line(
    source: Path, tmp_path: Path, start: Callable[..., Started], module: str
) -> None:
    stopped = start(f"source={source}", f"root={tmp_path}/mine", python=("-X", "importtime"))
    assert stopped.process.stderr is not None
    for line in stopped.process.stderr:
        if line.rpartition("|")[2].strip().startswith(module):
            break
    os.killpg(stopped.process.pid, signal.SIGINT)
    rest = [line for line in stopped.process.stderr if not line.startswith("import time:")]
    assert stopped.process.wait(PATIENCE_S) == 130
    assert rest == ["interrupted\n"]
    assert not (tmp_path / "mine").exists()


def test_two_at_once_do_not_mix(source: Path, tmp_path: Path, start: Callable[..., Started]) -> None:
    def stop(folder: Path) -> tuple[Path, Started, subprocess.CompletedProcess[str]] | None:
        root = folder / "mine"
        arguments = (f"source={source}", f"root={root}", "num_workers=0")
        first = start(*arguments)
        until(lambda: len(written(root)) >= 10)
        first.stop()
        try:
            return None if len(written(root)) == COUNT else (root, first, command(*arguments))
        finally:
            first.process.send_signal(signal.SIGCONT)

    root, first, second = in_the_middle(tmp_path, stop)
    assert second.returncode == 1
    assert (
        second.stderr == f"error: root={root}: another command is writing there; wait for it, or choose another root\n"
    )
    assert first.process.wait(PATIENCE_S) == 0


def test_a_terminal_shows_a_bar(source: Path, tmp_path: Path) -> None:
    terminal, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "src/prepare.py"), f"source={source}", f"root={tmp_path}/mine"],
        stdout=side,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(side)
    shown = b""
    while True:
        try:
            part = os.read(terminal, 65_536)
        except OSError:  # what a pseudo-terminal answers when the other side is closed
            break
        if not part:
            break
        shown += part
    os.close(terminal)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert errors == b""
    text = shown.decode()
    assert "writing samples" in text
    assert "100%" in text
    assert "━" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("root=x",), "source is missing"),
        (("source=nowhere.pt", "root=x"), f"source={ROOT}/nowhere.pt: no such file"),
        (("source=a.pt", "root=x", "validation_fraction=0", "num_workers=many"), "num_workers=many: must be"),
        (("source=a.pt", "root=x", "validation_fractoin=0.1"), "did you mean validation_fraction?"),
        (("-m", "source=a.pt", "root=x", "seed=0,1"), "a sweep is for train.py"),
    ],
)
def test_a_mistake_ends_in_one_to_three_lines(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = command(*arguments, folder=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert 1 <= len(done.stderr.splitlines()) <= 3
    assert done.stdout == ""
    assert names(tmp_path) == []


@pytest.mark.skipif(
    shutil.which("unshare") is None or os.geteuid() != 0, reason="a full disk is made with unshare and mount, as root"
)
@pytest.mark.parametrize(
    ("limits", "message"),
    [("size=8m", r"6,000 samples need about 25 MB and \d MB are free"), ("nr_inodes=1000", "No space left on device")],
)
def test_a_full_disk_is_explained(source: Path, tmp_path: Path, limits: str, message: str) -> None:
    prepare = f"{sys.executable} {ROOT}/src/prepare.py source={source} root={tmp_path}/mine num_workers=2"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o {limits} none {tmp_path} || exit 77; {prepare}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(f"mount: {done.stderr}")
    assert done.returncode == 1
    assert re.search(message, done.stderr), done.stderr
    assert "Make room" in done.stderr or "make room" in done.stderr
    assert len(done.stderr.splitlines()) <= 3


def test_help_shows_every_key_and_does_not_wait_for_torch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "src/prepare.py"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    for key in ("source", "root", "validation_fraction", "test_fraction", "seed", "num_workers"):
        assert f"\n{key}: " in done.stdout
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "numpy", "mlflow", "pandas"}
