"""Computed samples that need no download: a simulated ripple tank, whose physical parameters are the label."""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from feedrate.errors import UserError

Grid = NDArray[np.floating[Any]]

# The label's parameters: lowest and highest value; lengths in widths of the tank, times in crossings of a wave
PARAMETERS = {
    "frequency": (4.0, 10.0),  # of the waves, so their length is 0.25 down to 0.1
    "gap": (0.1, 0.6),  # width of the opening in the wall
    "wall": (0.25, 0.55),  # distance of the wall from the left edge
    "damping": (0.0, 3.0),  # loss rate k: a wave's height falls by exp(-k t / 2)
}
MAX_SIZE = 10**15


class Generated(Dataset[tuple[Tensor, Tensor]]):
    """Images of plane waves in a tank that meet a wall with a gap, and the parameters as labels.

    X is (1, image_size, image_size) uint8: 128 still water, brighter higher, the wall black. y is (4,) float32: the
    `PARAMETERS` in their order, drawn uniformly, scaled from -1 (lowest) to 1 (highest). A sample is a function of
    (seed, ID), computed at each access: 3 to 4 ms on one core with 64 pixels.

    Args:
        partition: 'train', 'validation' or 'test'; IDs are such as 'train-000001'.
        seed: whole number.
        size: samples in 'train', 1 to 10**15; any size costs the same memory.
        validation_size: samples in 'validation', and in 'test'; 1 to 10**15.
        image_size: pixels along each side, 32 to 256.
    """

    num_outputs = len(PARAMETERS)
    partitions = ("train", "validation", "test")

    def __init__(
        self, partition: str, seed: int, size: int = 2000, validation_size: int = 500, image_size: int = 64
    ) -> None:
        sizes = {"train": size, "validation": validation_size, "test": validation_size}
        if partition not in sizes:
            raise UserError(f"dataset partition {partition!r}: must be one of {', '.join(sizes)}")
        for key, value, lowest, highest in (
            ("size", size, 1, MAX_SIZE),
            ("validation_size", validation_size, 1, MAX_SIZE),
            ("image_size", image_size, 32, 256),
        ):
            if type(value) is not int or not lowest <= value <= highest:
                raise UserError(f"dataset.{key}={value}: must be a whole number from {lowest:,} to {highest:,}")
        self.list_IDs = NumberedIDs(partition, range(sizes[partition]))
        self.seed, self.image_size = seed, image_size

    def __len__(self) -> int:
        return len(self.list_IDs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        text = f"{self.seed},{self.list_IDs[index]}".encode()
        key = hashlib.blake2b(text, digest_size=16, person=b"feedrate tank").digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
        unit = generator.random(self.num_outputs)
        values = {
            name: low + (high - low) * share
            for (name, (low, high)), share in zip(PARAMETERS.items(), unit.tolist(), strict=True)
        }
        image = draw_tank(**values, pixels=self.image_size)
        return torch.from_numpy(image).unsqueeze(0), torch.from_numpy((2 * unit - 1).astype(np.float32))


class NumberedIDs(Sequence[str]):
    """The IDs 'train-000000', 'train-000001', ..., computed on access."""

    def __init__(self, prefix: str, numbers: range) -> None:
        self.prefix, self.numbers = prefix, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:  # no slices
        return f"{self.prefix}-{self.numbers[operator.index(index)]:06d}"


def draw_tank(frequency: float, gap: float, wall: float, damping: float, pixels: int) -> NDArray[np.uint8]:
    """The tank from above, (pixels, pixels) uint8, after the time of 1.6 crossings.

    Solves the damped wave equation u_tt + k u_t = u_xx + u_yy + f on the unit square with central differences, half a
    cell per step (Langtangen and Linge, "Finite Difference Computing with PDEs", Springer 2017, chapter 2). k rises
    towards the edges, which absorb the waves (Cerjan et al., Geophysics 50, 1985). f drives one column of cells.
    """
    cell = 1 / pixels
    step = cell / 2
    centre = (np.arange(pixels) + 0.5) * cell

    # -- What lies where: an absorbing rim of a tenth, and a wall of two cells (cells may be part wall) -----
    to_edge = np.minimum(centre, 1 - centre)
    rim = 60 * np.clip(1 - 10 * to_edge, 0, 1) ** 2
    k = damping + np.maximum.outer(rim, rim)
    beside_gap = 1 - _overlap(centre, cell, 0.5 - gap / 2, 0.5 + gap / 2)
    is_wall = np.multiply.outer(beside_gap, _overlap(centre, cell, wall - cell, wall + cell))

    # -- u(t + step) = from_now (4 u + its four neighbours) + from_before u(t - step) + source --------------
    open_share = (1 - is_wall) / (1 + k * step / 2)
    from_now = (open_share / 4).astype(np.float32)
    from_before = (-open_share * (1 - k * step / 2)).astype(np.float32)
    now, before = np.zeros((2, pixels + 2, pixels + 2), dtype=np.float32)  # still water, a border of one cell
    scratch = np.empty((pixels, pixels), dtype=np.float32)
    column = round(0.1 * pixels) + 1
    turn = 2 * math.pi * frequency * step
    push = 2 * turn * step / cell  # makes a wave of height 1
    for count in range(1, round(1.6 / step) + 1):
        np.multiply(now[1:-1, 1:-1], 4.0, out=scratch)
        scratch += now[2:, 1:-1]
        scratch += now[:-2, 1:-1]
        scratch += now[1:-1, 2:]
        scratch += now[1:-1, :-2]
        scratch *= from_now
        following = before[1:-1, 1:-1]
        following *= from_before
        following += scratch
        now, before = before, now
        now[1:-1, column] += push * math.cos(turn * count)

    grey = np.clip(128 + 100 * now[1:-1, 1:-1], 0, 255) * (1 - is_wall)
    return np.asarray(np.rint(grey), dtype=np.uint8)


def _overlap(centre: Grid, cell: float, low: float, high: float) -> Grid:
    """The share of each cell, given by its centre, that lies between low and high."""
    inside = np.minimum(centre + cell / 2, high) - np.maximum(centre - cell / 2, low)
    return np.asarray(np.clip(inside / cell, 0, 1))
