"""scikit-learn's handwritten digits, 1,797 images of 8x8 pixels, written as one file per sample on first use."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from feedrate.dataset.tensor_files import TensorFiles
from feedrate.system.files import atomic_write, file_lock

VALIDATION_EVERY = 5  # every fifth image of each class validates


class Digits(TensorFiles):
    """Handwritten digits, X (1, 8, 8) uint8, y the digit.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
    """

    @classmethod
    def prepare(cls, root: Path) -> None:
        """Writes the files unless partition.json exists; an interrupted call is repeated by the next."""
        if not (root / "partition.json").is_file():
            root.mkdir(parents=True, exist_ok=True)
            with file_lock(root / ".lock"):  # two runs may start on a fresh machine at once
                if not (root / "partition.json").is_file():
                    _write(root)


def _write(root: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    partition: dict[str, list[str]] = {"train": [], "validation": []}
    labels: dict[str, int] = {}
    seen = [0] * 10
    for number, (image, digit) in enumerate(zip(digits.images, digits.target.tolist(), strict=True)):
        ID = f"digit-{number:04d}"
        X = torch.from_numpy((image * (255 / 16)).round()).to(torch.uint8)  # pixels are 0 to 16
        torch.save(X.unsqueeze(0), root / f"{ID}.pt")
        partition["validation" if seen[digit] % VALIDATION_EVERY == 0 else "train"].append(ID)
        labels[ID] = digit
        seen[digit] += 1
    # last and by renaming: where partition.json is, everything is
    (root / "labels.json").write_text(json.dumps(labels))
    atomic_write(root / "partition.json", json.dumps(partition))
