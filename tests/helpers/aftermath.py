"""What a run leaves: its outcome, in a form that shows any difference, and what should not be there any more."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch

from feedrate.runs.run_folder import read_summary

MARK = "FEEDRATE_SOAK"  # in the environment of all processes that belong together
MEASURED = ("train/", "validation/")  # metrics that must be equal; the others are times
SHARED = ("torch_", "sem.mp-", "psm_", "pym-")  # how names begin that torch and multiprocessing give to shared memory


def outcome(folder: Path) -> dict[str, Any]:
    """What must be equal bit for bit, by what it is called."""
    summary = read_summary(folder)
    state = torch.load(folder / "checkpoints/last.pt", weights_only=True)
    best = torch.load(folder / "checkpoints/best.pt", weights_only=True)
    history = [
        {name: value for name, value in epoch.items() if name.startswith(MEASURED)} for epoch in summary["history"]
    ]
    return {
        "status": summary["status"],
        "weights": _plain(state["model"]),
        "optimizer": _plain(state["optimizer"]),
        "random states": _plain(state["random"]),
        "best weights": _plain(best["model"]),
        "best epoch": (summary["best_epoch"], best["epoch"]),
        "metrics of the epochs": history,
        "order digest": summary["order_digest"],
        "loss of a step": set((folder.parent.with_suffix(".trace")).read_text().splitlines()),
    }


def _plain(value: Any) -> Any:
    """The same with the bytes of tensors in their place, so that == compares bit for bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def processes_of(mark: str, but: int = 0) -> Iterator[psutil.Process]:
    """Those that live and were started with this mark, or by such a one; not process number `but`.

    One that was sent SIGKILL does not live any more, though on a busy machine it may take a while to be gone.
    """
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            running = process.pid != but and process.status() != psutil.STATUS_ZOMBIE
            if running and process.environ().get(MARK) == mark and not _is_killed(process.pid):
                yield process


def _is_killed(pid: int) -> bool:
    """Whether SIGKILL is on its way to it, or has just arrived."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it is gone
        return True
    pending = [int(mask, 16) for mask in re.findall(r"^(?:SigPnd|ShdPnd):\s+(\w+)", status, re.MULTILINE)]
    return any(mask >> (signal.SIGKILL - 1) & 1 for mask in pending)


def shared_memory() -> set[str]:
    """Names in /dev/shm that torch or multiprocessing has given; what runs beside the tests may have others."""
    folder = Path("/dev/shm")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return {name for name in names if name.startswith(SHARED)}


def is_orphan(name: str) -> bool:
    """Whether no process has it mapped: one of another program that runs now has."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if f"/dev/shm/{name}" in maps.read_text():
                return False
    return Path("/dev/shm", name).exists()
