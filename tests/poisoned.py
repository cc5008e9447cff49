"""A dataset with one sample that is not finite, importable by workers."""

from __future__ import annotations

import torch


class PoisonedDigits(torch.utils.data.Dataset):
    """Noise with two classes; one training sample is infinite."""

    num_outputs = 2

    def __init__(self, partition, bad="sample-7"):
        self.list_IDs = [f"sample-{i}" for i in range(40)]
        self._bad = bad if partition == "train" else None

    def __len__(self):
        return len(self.list_IDs)

    def __getitem__(self, index):
        X = torch.full((4,), float(index % 2))
        return (X * float("nan") if self.list_IDs[index] == self._bad else X), index % 2
