"""Rows of a tensor, picked and copied through NumPy, are those that torch gives, for every dtype."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from feedrate.dataset.formats.memory import array_of, copy_rows, rows_of

DTYPES = [
    torch.uint8, torch.int16, torch.int64, torch.uint32, torch.bool, torch.float16, torch.bfloat16, torch.float32,
    torch.float64, torch.complex64, torch.complex32, torch.float8_e5m2,
]  # fmt: skip


def some(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    nbytes = int(np.prod(shape)) * dtype.itemsize
    if not nbytes:
        return torch.empty(shape, dtype=dtype)
    raw = np.random.default_rng(0).integers(0, 2 if dtype is torch.bool else 256, nbytes, dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype).view(shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (5,), (3, 1, 4), (2, 0)])
def test_rows_are_copied_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    source, rows = some(dtype, 20, *shape), np.array([7, 0, 19, 7])
    X = torch.empty((4, *shape), dtype=dtype)
    copy_rows(array_of(source), rows, X)
    if X.numel():
        wanted = source.view(20, -1).view(torch.uint8)[torch.from_numpy(rows)]
        assert torch.equal(X.view(4, -1).view(torch.uint8), wanted)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(), (3,)])
def test_picked_labels_are_a_copy_of_those_in_range(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    values = torch.arange(10 * max(1, *shape, 1)).to(dtype).view(10, *shape)
    picked = rows_of(values, np.array([9, 0, 3, 3]))
    assert picked.dtype == dtype
    assert torch.equal(picked, values[[9, 0, 3, 3]])
    picked += 1
    assert torch.equal(
        values[0], torch.zeros(shape, dtype=dtype) + torch.arange(max(1, *shape, 1)).to(dtype).view(shape)
    )
    with pytest.raises(IndexError):
        rows_of(values, np.array([10]))
