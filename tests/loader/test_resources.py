"""Before workers start, memory, /dev/shm and descriptors are compared with what is free; both cgroup versions count."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from torch.utils.data import DataLoader

from at_once import at_once
from feedrate.config import ROOT
from feedrate.errors import UserError
from feedrate.loader import resources
from feedrate.loader.resources import batches_in_flight, check_resources, free_memory, shown
from loader.datasets import Numbers

MB, GB = 10**6, 10**9


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What is free, to be lowered by a test."""
    found = {"memory": 64 * GB, "shared": 32 * GB, "files": 1000}
    monkeypatch.setattr(resources, "free_memory", lambda: found["memory"])
    monkeypatch.setattr(resources, "free_shared_memory", lambda: found["shared"])
    monkeypatch.setattr(resources, "_free_descriptors", lambda: found["files"])
    return found


def check(workers: int = 8, processes: bool = True, exact: bool = True, loaders: int = 2) -> str:
    """Training and validation with batches of 64 samples of 0.1 MB."""
    made: Any = [
        DataLoader(Numbers(10_000), 64, num_workers=workers, persistent_workers=workers > 0) for _ in range(loaders)
    ]
    return check_resources(made, 100_000, processes, True, exact)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("processes", [True, False])
def test_nothing_is_said_where_there_is_room(free: dict[str, int], processes: bool) -> None:
    assert check(processes=processes) == ""


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("kind", "tight", "impossible", "what"),
    [
        ("memory", 700 * MB, 100 * MB, "of memory"),
        ("shared", 350 * MB, 100 * MB, "/dev/shm"),
        ("files", 120, 40, "open files"),
    ],
)
def test_what_is_tight_is_a_note_and_what_is_impossible_an_error(
    free: dict[str, int], kind: str, tight: int, impossible: int, what: str
) -> None:
    free[kind] = tight
    text = check()
    assert text.startswith("note: loader.num_workers=8 loader.prefetch_factor=2 loader.batch_size=64 ")
    assert what in text
    free[kind] = impossible
    with pytest.raises(UserError, match=f"loader.num_workers=8 .*{what}.*lower one of them, or "):
        check()
    assert check(exact=False).startswith("note: ")


def test_a_batch_that_does_not_fit_into_memory_is_found_without_workers_too(free: dict[str, int]) -> None:
    free["memory"] = 10 * MB
    with pytest.raises(UserError, match=r"^loader.batch_size=64 may take .* of memory, and 10 MB are free; lower it"):
        check(workers=0, processes=False)


# ---------------------------------------------------------------------------------------------------------
# what is free
# ---------------------------------------------------------------------------------------------------------

STAT = "anon 5\nfile 9\ninactive_file 300000000\nactive_file 200000000\nslab 7\n"
STAT_1 = f"cache 9\n{STAT}total_inactive_file 300000000\ntotal_active_file 200000000\n"
VERSION_1 = "memory__memory-limit_in_bytes", "memory__memory-usage_in_bytes", "memory__memory-stat"


def system(folder: Path, groups: str, **files: str) -> Path:
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = folder / "sys/fs/cgroup" / name.replace("__", "/").replace("-", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def group(limit: str, used: str, path: str = "") -> dict[str, str]:
    return {f"{path}memory-max": limit, f"{path}memory-current": used, f"{path}memory-stat": STAT}


@pytest.mark.parametrize(
    ("groups", "files", "memory"),
    [
        # 400 MB, of which 300 are used; half a gigabyte of page cache counts as free
        ("0::/job\n", group("400000000", "300000000", "job__"), 600 * MB),
        ("0::/job\n", group("max", "300000000", "job__"), None),
        # the group above has less left
        (
            "0::/job/step\n",
            group("200000000", "190000000", "job__") | group("900000000", "100000000", "job__step__"),
            510 * MB,
        ),
        # in a container the group's path may be the host's
        ("0::/of/the/host\n", group("100000000", "90000000"), 510 * MB),
        (
            "9:cpu:/\n4:memory:/docker/1\n0::/\n",
            dict(zip(VERSION_1, ("300000000\n", "100000000\n", STAT_1), strict=True)),
            700 * MB,
        ),
        ("4:memory:/\n", dict(zip(VERSION_1, ("9223372036854771712\n", "1000\n", STAT_1), strict=True)), None),
        ("0::/\n", group("nonsense", "1"), None),
        ("0::/\n", group("1000", "900000000"), 0),
    ],
)
def test_the_narrowest_group_or_the_machine_bounds_the_memory(
    tmp_path: Path, groups: str, files: dict[str, str], memory: int | None
) -> None:
    found = free_memory(system(tmp_path, groups, **files))
    if memory is None:
        assert GB < found <= psutil.virtual_memory().total
    else:
        assert found == memory


@pytest.mark.parametrize(
    ("nbytes", "text"), [(1.26e9, "1.3 GB"), (23_400_000, "23 MB"), (4_200_000, "4.2 MB"), (1.5e12, "1,500.0 GB")]
)
def test_sizes_are_short(nbytes: float, text: str) -> None:
    assert shown(nbytes) == text


# ---------------------------------------------------------------------------------------------------------
# the real thing
# ---------------------------------------------------------------------------------------------------------

NOT_MOUNTED = 77
CAN_MOUNT = shutil.which("unshare") is not None and os.geteuid() == 0


@pytest.mark.slow
def test_a_run_for_which_there_is_not_enough_ends_before_it_begins(tmp_path: Path) -> None:
    train = [sys.executable, f"{ROOT}/src/train.py", "tracking=none", "trainer.max_epochs=1", "dataset=generated",
             "model=mlp", "dataset.image_size=256", "dataset.size=64", "dataset.validation_size=16", "model.hidden=[]",
             "loader.batch_size=8"]  # fmt: skip
    small = f'mount -t tmpfs -o size=4m none /dev/shm || exit {NOT_MOUNTED}; exec "$@"'

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / str(abs(hash(command)))
        return subprocess.run([*command, f"hydra.run.dir={folder}"], capture_output=True, text=True)

    few = ("prlimit", "--nofile=90:90", *train, "loader.engine=process", "loader.num_workers=20")
    calls = {"open files": lambda: run(*few)}
    if CAN_MOUNT:
        for loader in ("loader.engine=process", "loader=torch"):
            many = (*train, loader, "loader.num_workers=2", "loader.prefetch_factor=4")
            calls[loader] = lambda many=many: run("unshare", "-m", "sh", "-c", small, "sh", *many)  # type: ignore[misc]
    for name, done in at_once(calls).items():
        if done.returncode == NOT_MOUNTED:
            continue
        assert done.returncode == 1, f"{name}: {done.stdout}"
        assert done.stderr.startswith("error: loader.num_workers="), done.stderr
        assert ("open files" if name == "open files" else "/dev/shm") in done.stderr


def test_batches_in_flight_are_an_upper_bound() -> None:
    assert batches_in_flight(0, 2) == 2
    assert batches_in_flight(4, 2) >= 4 * 2 + 3
