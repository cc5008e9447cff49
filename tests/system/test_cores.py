"""`num_workers=auto` means the cores that this process may use, by affinity and by control-group quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cgroups import system
from feedrate.system.cores import usable_cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_a_process_bound_to_one_core_may_use_one() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {"cpu-max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu-max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu-max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu-max": "10000 100000\n"}, 1),
        ("0::/job/step\n", {"job__cpu-max": "300000 100000\n", "job__step__cpu-max": "max 100000\n"}, 3),
        ("0::/job/step\n", {"job__cpu-max": "300000 100000\n", "job__step__cpu-max": "400000 100000\n"}, 3),
        ("0::/of/the/host\n", {"cpu-max": "400000 100000\n"}, 4),
        (
            "4:memory:/x\n3:cpu,cpuacct:/docker/1\n0::/\n",
            {"cpu__cpu-cfs_quota_us": "500000\n", "cpu__cpu-cfs_period_us": "100000\n"},
            5,
        ),
        ("1:cpu:/\n", {"cpu__cpu-cfs_quota_us": "-1\n", "cpu__cpu-cfs_period_us": "100000\n"}, 8),
        ("0::/\n", {"cpu-max": "nonsense\n"}, 8),
    ],
)
def test_quotas_of_both_versions_of_control_groups_count(
    tmp_path: Path, groups: str, files: dict[str, str], expected: int
) -> None:
    assert usable_cores(system(tmp_path, groups, **files)) == expected


@pytest.mark.usefixtures("eight_cores")
def test_without_control_groups_affinity_decides(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 8
