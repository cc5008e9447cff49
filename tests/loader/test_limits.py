"""What is free is read from the kernel: descriptors, /dev/shm, memory, control groups of both versions."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from feedrate.config import ROOT
from feedrate.loader.limits import Limits, read_limits, shown
from feedrate.system.cores import usable_cores
from loader.conftest import wait_until_loaders_are_gone

GB = 10**9


def system(folder: Path, groups: str, available: int = 64 * GB, **files: str) -> Path:
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(groups)
    (folder / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {available // 1024} kB\nBuffers: 1 kB\n")
    for name, text in files.items():
        path = folder / "sys/fs/cgroup" / name.replace("__", "/").replace("-", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_they_are_those_of_this_process() -> None:
    wait_until_loaders_are_gone()  # of other tests, which would close descriptors meanwhile
    limits = read_limits()
    assert limits.cores == usable_cores()
    assert limits.open_files == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    with open("/dev/null") as _one, open("/dev/null") as _two:  # noqa: PTH123
        assert read_limits().opened == limits.opened + 2
    assert limits.memory is not None
    assert 0 < limits.memory <= psutil.virtual_memory().total
    assert limits.shared_memory is not None


def test_a_lowered_limit_of_open_files_is_seen() -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))\n"
    code += "from feedrate.loader.limits import read_limits; print(read_limits().open_files)"
    environment = {"PYTHONPATH": f"{ROOT}/src"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "200\n", done.stderr


STAT = "anon 5\nfile 9\ninactive_file 300000000\nactive_file 200000000\nslab 7\n"
STAT_1 = f"cache 9\n{STAT}total_inactive_file 300000000\ntotal_active_file 200000000\n"


@pytest.mark.parametrize(
    ("groups", "files", "memory", "of"),
    [
        ("0::/\n", {}, 64 * GB, "the machine"),
        # 4 GB, of which 3 are used, half a gigabyte of that as page cache
        (
            "0::/job\n",
            {"job__memory-max": "4000000000", "job__memory-current": "3000000000", "job__memory-stat": STAT},
            1.5 * GB,
            "the control group, limited to 4.0 GB,",
        ),
        (
            "0::/job\n",
            {"job__memory-max": "max", "job__memory-current": "3000000000", "job__memory-stat": STAT},
            64 * GB,
            "the machine",
        ),
        # the group above has less left
        (
            "0::/job/step\n",
            {
                "job__memory-max": "2000000000",
                "job__memory-current": "1900000000",
                "job__memory-stat": STAT,
                "job__step__memory-max": "8000000000",
                "job__step__memory-current": "1000000000",
                "job__step__memory-stat": STAT,
            },
            0.6 * GB,
            "the control group, limited to 2.0 GB,",
        ),
        # in a container the group's path may be the host's
        (
            "0::/of/the/host\n",
            {"memory-max": "1000000000", "memory-current": "900000000", "memory-stat": STAT},
            0.6 * GB,
            "the control group, limited to 1.0 GB,",
        ),
        (
            "9:cpu:/\n4:memory:/docker/1\n0::/\n",
            {
                "memory__memory-limit_in_bytes": "3000000000\n",
                "memory__memory-usage_in_bytes": "1000000000\n",
                "memory__memory-stat": STAT_1,
            },
            2.5 * GB,
            "the control group, limited to 3.0 GB,",
        ),
        (
            "4:memory:/\n",
            {
                "memory__memory-limit_in_bytes": "9223372036854771712\n",
                "memory__memory-usage_in_bytes": "1000000000\n",
                "memory__memory-stat": STAT_1,
            },
            64 * GB,
            "the machine",
        ),
        ("0::/\n", {"memory-max": "nonsense", "memory-current": "1", "memory-stat": STAT}, 64 * GB, "the machine"),
    ],
)
def test_the_narrowest_group_or_the_machine_bounds_the_memory(
    tmp_path: Path, groups: str, files: dict[str, str], memory: float, of: str
) -> None:
    limits = read_limits(system(tmp_path, groups, **files))
    assert (limits.memory, limits.memory_of) == (memory, of)


def test_the_machine_bounds_it_where_it_has_less_than_the_group(tmp_path: Path) -> None:
    files = {"memory-max": "64000000000", "memory-current": "1000000000", "memory-stat": STAT}
    limits = read_limits(system(tmp_path, "0::/\n", available=2 * 2**30, **files))
    assert (limits.memory, limits.memory_of) == (2 * 2**30, "the machine")


def test_a_group_that_is_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    stat = "inactive_file 0\nactive_file 0\n"
    files = {"memory-max": "1000", "memory-current": "2000", "memory-stat": stat}
    assert read_limits(system(tmp_path, "0::/\n", **files)).memory == 0


def test_where_the_system_tells_nothing_there_is_no_bound(tmp_path: Path) -> None:
    limits = read_limits(tmp_path)
    assert (limits.memory, limits.shared_memory) == (None, None)
    assert isinstance(limits, Limits)


@pytest.mark.parametrize(
    ("nbytes", "text"), [(1.26e9, "1.3 GB"), (23_400_000, "23 MB"), (4_200_000, "4.2 MB"), (1.5e12, "1,500.0 GB")]
)
def test_sizes_are_short(nbytes: float, text: str) -> None:
    assert shown(nbytes) == text
