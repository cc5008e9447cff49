"""A program that loads with one engine and ends in one of several ways; test_endings.py looks at what it leaves."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from feedrate.loader import Loader


class Images(Dataset[Any]):
    """Samples large enough for shared buffers; sample 40 hangs if `hangs`."""

    def __init__(self, note: Path, hangs: bool) -> None:
        self.note, self.hangs = note, hangs

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 40 and self.hangs:
            self.note.touch()
            time.sleep(1000)
        return torch.full((3, 64, 64), index, dtype=torch.float32)


def main(engine: str, way: str, note: Path) -> None:
    data = Images(note, hangs=way == "a sample that hangs")
    workers = 0 if engine == "inline" else 2
    loader = Loader(data, 4, seed=0, engine=engine, num_workers=workers, persistent_workers=workers > 0)
    for number, _ in enumerate(loader):
        if number < 7:  # batch 10 is being loaded by then
            continue
        if way == "exception":
            raise ValueError("no more")
        if way == "exit":
            sys.exit(3)
        if way in ("Ctrl-C", "SIGKILL"):
            note.touch()
            time.sleep(1000)
        if data.hangs:
            while not note.exists():
                time.sleep(0.01)
            raise ValueError("no more")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
