"""A catalog of ten million IDs: seconds to read, bytes per ID, and how far workers copy it while they read."""

from __future__ import annotations

import gc
import json
import tempfile
import time
from pathlib import Path

import psutil
from figures import markdown

MILLIONS = 10
BATCH = 8192


class Touch:
    """A dataset that reads only the ID and label of a sample."""

    def __init__(self, list_IDs: object, labels: object) -> None:
        self.list_IDs, self.labels = list_IDs, labels

    def __len__(self) -> int:
        return len(self.list_IDs)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[int, int]:
        return len(self.list_IDs[index]), int(self.labels[index])  # type: ignore[index]


def run() -> str:
    from feedrate.dataset import Catalog
    from feedrate.loader import Loader

    count = MILLIONS * 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write(root, count)
        begin = time.perf_counter()
        # suffix=None: sample files are not listed, as that would measure the file system
        catalog = Catalog.read(root, suffix=None)
        seconds = time.perf_counter() - begin
    gc.collect()
    held = sum(catalog.labels[name].tensor.nbytes for name in catalog.partition)
    held += sum(ids.text.nbytes + ids.ends.nbytes for ids in catalog.partition.values())
    characters = sum(len(ids.text) for ids in catalog.partition.values())
    rows: list[tuple[str, str]] = [
        (f"IDs (of {characters / count:.0f} characters), with labels", f"{count:,}"),
        ("seconds to read and check partition.json and labels.json", f"{seconds:.1f}"),
        ("bytes per ID beyond its characters, label included", f"{(held - characters) / count:.1f}"),
    ]
    for method in ("fork", "spawn"):
        data = Touch(catalog.partition["train"], catalog.labels["train"].tensor)
        loader = Loader(data, batch_size=BATCH, shuffle=True, num_workers=2, seed=0, multiprocessing_context=method)
        batches = loader.batches()
        for _ in range(8):
            next(batches)
        workers = psutil.Process().children(recursive=True)
        before = _private(workers)
        begin = time.perf_counter()
        for batch in batches:
            grown = _private(workers) if batch.info.request.stop > len(data) - BATCH else 0
        seconds = time.perf_counter() - begin
        rows += [
            (f"{method}: private memory of each worker at the epoch's start, MB", f"{before / 2e6:.0f}"),
            (f"{method}: its growth over the epoch, MB", f"{(grown - before) / 2e6:+.1f}"),
            (f"{method}: its growth over the epoch, bytes per ID", f"{(grown - before) / 2 / len(data):+.2f}"),
            (f"{method}: seconds of the epoch of {len(data):,} samples", f"{seconds:.0f}"),
        ]
        loader.close()
        del batch, batches, loader
    return markdown(["ten million IDs", "measured"], rows)


def _private(processes: list[psutil.Process]) -> int:
    """Bytes of private memory of these processes (USS), which grows when shared pages are copied."""
    return sum(p.memory_full_info().uss for p in processes if p.is_running())


def _write(root: Path, count: int) -> None:
    ids = [f"sample-{i:08d}" for i in range(count)]
    cut = count // 10
    (root / "partition.json").write_text(json.dumps({"train": ids[cut:], "validation": ids[:cut]}))
    (root / "labels.json").write_text(json.dumps({ID: i % 100 for i, ID in enumerate(ids)}))
