"""What order, named randomness, digest and batch infos cost: `Loader` against the DataLoader that it is built on."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from figures import markdown, spread

REPEATS, EPOCHS = 7, 3


def run() -> str:
    import torch

    from feedrate.dataset import Catalog, Digits, InMemory, TensorFiles
    from feedrate.loader import Loader

    class OneByOne(torch.utils.data.Dataset[Any]):
        """Gives no whole batches."""

        def __init__(self, data: InMemory) -> None:
            self.data, self.list_IDs = data, data.list_IDs

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, index: int) -> Any:
            return self.data[index]

    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        Digits.prepare(root)
        catalog = Catalog.read(root)
        parts = catalog.partition["train"], catalog.labels["train"], root
        memory = InMemory(*parts)
        data_sets = {
            "files of 1.2 KB": TensorFiles(*parts),
            "the same in memory": memory,
            "in memory, one by one": OneByOne(memory),
        }
        for name, data in data_sets.items():
            for workers in (0, 2):
                common = {"batch_size": 64, "shuffle": True, "num_workers": workers, "persistent_workers": workers > 0}
                plain = torch.utils.data.DataLoader(data, **common)
                ours = Loader(data, **common, seed=0)
                rates: dict[str, list[float]] = {"plain": [], "ours": []}
                for repeat in range(REPEATS + 1):
                    for key, loader in (("plain", plain), ("ours", ours)):
                        rate = _rate(loader, len(data))
                        if repeat:
                            rates[key].append(rate)
                ours.close()
                plain._iterator = None
                ratio = median(rates["ours"]) / median(rates["plain"])
                row = (
                    f"{name}, {workers} workers",
                    spread(rates["plain"], 0),
                    spread(rates["ours"], 0),
                    f"{ratio:.2f}",
                )
                rows.append(row)
    return markdown(["digits, batch 64", "DataLoader, samples/s", "Loader with a seed, samples/s", "ratio"], rows)


def _rate(loader: object, size: int) -> float:
    begin = time.perf_counter()
    for _ in range(EPOCHS):
        for _batch in loader:  # type: ignore[attr-defined]
            pass
    return EPOCHS * size / (time.perf_counter() - begin)
