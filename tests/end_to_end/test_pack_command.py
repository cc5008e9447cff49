"""`python src/pack.py dataset=... root=...`, as a person runs it, kills it, and trains on what it wrote."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from feedrate.config import ROOT
from started import PATIENCE_S, Started, in_the_middle, until

pytestmark = pytest.mark.slow

COUNT, SHARDS = 3_000, 14


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 samples of 4 KB: 13 shards of 1 MB."""
    root = tmp_path_factory.mktemp("source") / "mine"
    root.mkdir()
    X = torch.rand((COUNT, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    IDs = [f"{number:04d}" for number in range(COUNT)]
    for ID, sample in zip(IDs, X, strict=True):
        torch.save(sample.clone(), root / f"{ID}.pt")
    (root / "partition.json").write_text(json.dumps({"train": IDs[:2500], "validation": IDs[2500:]}))
    (root / "labels.json").write_text(json.dumps({ID: number % 10 for number, ID in enumerate(IDs)}))
    return root


def arguments(source: Path, root: Path, workers: int = 2) -> tuple[str, ...]:
    return ("dataset=tensor_files", f"dataset.root={source}", f"root={root}", "pack.shard_mb=1",
            f"pack.num_workers={workers}")  # fmt: skip


def command(*given: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "src/pack.py"), *given],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


@pytest.fixture(scope="module")
def uninterrupted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uninterrupted") / "packed"
    done = command(*arguments(source, root, 0))
    assert done.returncode == 0, done.stderr
    assert f"is done: 2,500 train, 500 validation in {SHARDS} shards" in done.stdout
    return root


@pytest.fixture
def start() -> Iterator[Callable[..., Started]]:
    begun: list[Started] = []

    def run(*given: str) -> Started:
        begun.append(Started("pack.py", *given))
        return begun[-1]

    yield run
    for started in begun:
        started.close()


def written(root: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in root.glob("[!.]*.safetensors")}


def content(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir() if path.name != ".lock"}


def test_killed_at_any_instant_it_goes_on_and_loses_no_shard(
    source: Path, uninterrupted: Path, tmp_path: Path, start: Callable[..., Started]
) -> None:
    def kill_twice(folder: Path) -> tuple[Path, dict[str, int]] | None:
        root = folder / "packed"
        reached: dict[str, int] = {}
        for least in (1, 4):
            killed = start(*arguments(source, root))
            until(lambda least=least: len(written(root)) >= least)  # type: ignore[misc]
            os.kill(killed.process.pid, signal.SIGKILL)  # the main process alone: its workers must notice
            killed.process.wait()
            until(killed.all_ended)
            now = written(root)
            if len(now) == SHARDS:
                return None
            assert reached.items() <= now.items()
            for name in now:
                assert (root / name).read_bytes() == (uninterrupted / name).read_bytes()
            reached = now
            train = subprocess.run(
                [sys.executable, str(ROOT / "src/train.py"), "dataset=packed", f"dataset.root={root}", "tracking=none",
                 f"hydra.run.dir={folder}/run{least}"],
                capture_output=True, text=True,
            )  # fmt: skip
            assert train.returncode == 1
            assert "packing is not complete; run the same command" in train.stderr
        return root, reached

    root, reached = in_the_middle(tmp_path, kill_twice)
    done = command(*arguments(source, root))
    assert done.returncode == 0, done.stderr
    assert "samples are there from before" in done.stdout
    assert content(root) == content(uninterrupted)
    assert reached.items() <= written(root).items()


Stopped = tuple[Path, Started, str]


def stopper(start: Callable[..., Started], given: Callable[[Path], tuple[str, ...]], least: int) -> Any:
    """What sends Ctrl-C to a packing command and all its processes once it has written so many shards."""

    def stop(folder: Path) -> Stopped | None:
        root = folder / "packed"
        stopped = start(*given(root))
        until(lambda: len(written(root)) >= least)
        os.killpg(stopped.process.pid, signal.SIGINT)
        _, errors = stopped.process.communicate(timeout=PATIENCE_S)
        done = stopped.process.returncode == 0 and len(written(root)) == SHARDS
        return None if done else (root, stopped, errors)

    return stop


def test_CtrlC_says_one_line_and_leaves_nothing_running(
    source: Path, uninterrupted: Path, tmp_path: Path, start: Callable[..., Started]
) -> None:
    root, stopped, errors = in_the_middle(tmp_path, stopper(start, lambda root: arguments(source, root), 2))
    assert stopped.process.returncode == 130
    until(stopped.all_ended)
    assert re.fullmatch(r"interrupted: \d+ of 14 shards are written; the same command goes on from there\n", errors), (
        errors
    )
    assert not list(root.glob(".partial-*"))
    (root / ".tmpCy6MgU").touch()  # as safetensors leaves it where it is killed in the middle of a file
    assert command(*arguments(source, root)).returncode == 0
    assert content(root) == content(uninterrupted)


@pytest.mark.skipif(
    shutil.which("unshare") is None or os.geteuid() != 0, reason="a full disk is made with unshare and mount, as root"
)
@pytest.mark.parametrize(
    ("limits", "message"),
    [("size=4m", r"14 shards need about 13 MB and \d MB are free"), ("nr_inodes=6", "No space left on device")],
)
def test_a_full_disk_is_explained(source: Path, tmp_path: Path, limits: str, message: str) -> None:
    pack = " ".join([sys.executable, f"{ROOT}/src/pack.py", *arguments(source, tmp_path / "packed")])
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o {limits} none {tmp_path} || exit 77; {pack}"],
        capture_output=True,
        text=True,
    )
    if done.returncode == 77:
        pytest.skip(f"mount: {done.stderr}")
    assert done.returncode == 1
    assert re.search(message, done.stderr), done.stderr
    assert "make room" in done.stderr.lower()
    assert len(done.stderr.splitlines()) <= 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("dataset=tensor_files",), "dataset.root is missing"),
        (("pack.shard_mb=0",), "pack.shard_mb=0: must be at least 1"),
        (("pack.num_worker=2",), "did you mean num_workers?"),
        (("dataset=packd",), "did you mean packed?"),
        (("dataset.stale=no",), "stale"),
        (("-m", "seed=0,1"), "a sweep is for train.py"),
    ],
)
def test_a_mistake_ends_in_one_to_three_lines(given: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = command(f"root={tmp_path}/packed", *given, folder=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert 1 <= len(done.stderr.splitlines()) <= 3
    assert not list(tmp_path.iterdir())


def test_help_shows_every_key_and_does_not_wait_for_torch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "src/pack.py"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    for key in ("root", "seed", "pack", "  num_workers", "  shard_mb"):
        assert f"\n{key}:" in done.stdout
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not imported & {"torch", "numpy", "mlflow", "pandas"}


# ---------------------------------------------------------------------------------------------------------
# what is trained on it
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed_digits(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("digits") / "packed"
    done = command("dataset=digits", f"dataset.root={digits}", f"root={root}")
    assert done.returncode == 0, done.stderr
    assert f"Train on it: python src/train.py dataset=packed dataset.root={root}" in done.stdout
    return root


Run = Callable[..., dict[str, Any]]
DIGESTS = ("data_digest", "order_digest", "content_digest", "metrics")


def facts(summary: dict[str, Any]) -> dict[str, Any]:
    """What must be equal: digests, and all metrics that are no times."""
    metrics = {key: value for key, value in summary["metrics"].items() if key.startswith(("train/", "validation/"))}
    return {**{key: summary[key] for key in DIGESTS}, "metrics": metrics}


def test_training_on_shards_gives_the_digests_and_metrics_of_the_files(
    run_train: Run, digits: Path, packed_digits: Path
) -> None:
    same = ("loader.content_digest=true", "trainer.num_threads=1")
    files = facts(run_train(*same, f"dataset.root={digits}", "dataset.limit=null"))
    assert files["metrics"]
    shards = ("dataset=packed", f"dataset.root={packed_digits}")
    assert facts(run_train(*same, *shards)) == files
    assert (
        facts(run_train(*same, *shards, "loader.num_workers=2", "dataset.access=pread", "dataset.verify=crc")) == files
    )
    cached = ("dataset=tensor_files", f"dataset.root={digits}", "dataset.cache=shards")
    for workers in (2, 0):
        assert facts(run_train(*same, *cached, f"loader.num_workers={workers}")) == files
    assert (digits / ".feedrate").is_dir()
    shutil.rmtree(digits / ".feedrate")


def test_a_run_on_shards_is_evaluated_and_predicts_shards_and_files(
    run_train: Run, digits: Path, packed_digits: Path, tmp_path: Path
) -> None:
    import evaluate
    import predict
    from saved_run import call, with_config

    summary = run_train("dataset=packed", f"dataset.root={packed_digits}")
    folder = with_config(summary)
    metrics = call(evaluate.main, "evaluate", f"run={folder}", "tracking=none")
    assert metrics["validation/accuracy"] == pytest.approx(summary["metrics"]["validation/accuracy"], abs=1e-6)

    def predicted(root: Path) -> dict[str, str]:
        output = tmp_path / f"{root.name}.csv"
        call(predict.main, "predict", f"run={folder}", "tracking=none", f"dataset.root={root}",
             f"output={output}")  # fmt: skip
        with output.open(newline="") as file:
            return {row["id"]: row["prediction"] for row in csv.DictReader(file)}

    of_files, of_shards = predicted(digits), predicted(packed_digits)
    assert len(of_files) == 1797
    assert of_shards == of_files
