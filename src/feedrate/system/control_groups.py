"""Where the limits of this process stand: the files of its control group and of those above it, in both versions.

What the limits are is the affair of cores.py and of loader/resources.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def group_folders(controller: str, system: Path = Path("/")) -> Iterator[tuple[int, Path]]:
    """Version, 1 or 2, and folder of each group whose limit of this kind holds; a folder may not exist.

    Args:
        controller: such as 'cpu' or 'memory'.
        system: root of the file system, below which /proc and /sys are read.

    Source: cgroups(7); Linux kernel documentation, admin-guide/cgroup-v2.rst.
    """
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    mounts = system / "sys/fs/cgroup"
    for line in lines:
        _, controllers, group = line.split(":", 2)
        # In a container the group's path may be that of the host and not exist here; its limit is then at the top.
        here = PurePosixPath(group.lstrip("/"))
        for path in (here, *here.parents):
            if not controllers:
                yield 2, mounts / path
            elif controller in controllers.split(","):
                yield 1, mounts / controller / path
