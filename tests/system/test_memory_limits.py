"""The memory that is free is that of the machine and of its control groups, of both versions."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from cgroups import system
from feedrate.system.memory import free_memory

MB, GB = 10**6, 10**9

STAT = "anon 5\nfile 9\ninactive_file 300000000\nactive_file 200000000\nslab 7\n"
STAT_1 = f"cache 9\n{STAT}total_inactive_file 300000000\ntotal_active_file 200000000\n"
VERSION_1 = "memory__memory-limit_in_bytes", "memory__memory-usage_in_bytes", "memory__memory-stat"


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
