"""A dataset that records each requested sample; importable by workers."""

from __future__ import annotations

from pathlib import Path

import torch

from feedrate.dataset import sample_rng


class Samples(torch.utils.data.Dataset):
    """30 noisy samples in each partition.

    Args:
        record: file that gets a line for each.
        thread_safe: what the dataset says of itself.
    """

    num_outputs = 3

    def __init__(self, partition: str, record: str, thread_safe: bool) -> None:
        self.list_IDs = [f"sample-{i}" for i in range(30)]
        self._partition, self._record, self.thread_safe = partition, Path(record), thread_safe

    def __len__(self) -> int:
        return len(self.list_IDs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with self._record.open("a") as file:
            file.write(f"{self._partition}\n")
        noise = torch.from_numpy(sample_rng().normal(0, 0.3, 4)).float()
        return noise + index % 3, index % 3
