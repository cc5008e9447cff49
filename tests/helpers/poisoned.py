"""A dataset with one sample that is not finite, importable by workers."""

from __future__ import annotations

import torch


class PoisonedDigits(torch.utils.data.Dataset):
    """Two classes; one sample, of the partition `where`, is multiplied by `value`: 3e38 is finite, its loss is not."""

    num_outputs = 2

    def __init__(self, partition, bad="sample-7", where="train", value=float("nan")):
        self.list_IDs = [f"sample-{i}" for i in range(40)]
        self._bad, self._value = bad if partition == where else None, value

    def __len__(self):
        return len(self.list_IDs)

    def __getitem__(self, index):
        X = torch.full((4,), float(index % 2))
        return (X * self._value if self.list_IDs[index] == self._bad else X), index % 2
