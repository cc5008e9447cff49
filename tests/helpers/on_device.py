"""Datasets and models for runs on a device, importable by workers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Wide(torch.utils.data.Dataset):
    """(64,) float32, and one of ten classes or a number."""

    num_outputs = 10

    def __init__(self, partition: str, size: int = 256, numbers: bool = False) -> None:
        self.size, self.numbers = size, numbers
        if numbers:
            self.num_outputs = 1

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        return torch.full((64,), index / self.size), index / self.size if self.numbers else index % 10


class Hungry(nn.Module):
    """Takes 4 MB more in the forward or the backward pass, or has parameters of which the optimizer takes 4 MB more; or
    a kernel of it fails.
    """

    def __init__(self, num_outputs: int, where: str = "nowhere") -> None:
        super().__init__()
        self.linear, self.where = nn.Linear(64, num_outputs), where
        self.large = nn.Parameter(torch.zeros(1 << 19 if where == "optimizer" else 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _More.apply(self.linear(x.flatten(1)) + self.large[:1], self.where)


class _More(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, where: str) -> torch.Tensor:
        ctx.where = where
        if where == "forward":
            torch.empty(1 << 20, device=x.device)
        if where == "kernel":
            x[:1].index_select(0, torch.tensor([7], device=x.device))
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        if ctx.where == "backward":
            torch.empty(1 << 20, device=grad.device)
        if ctx.where == "put":
            return grad.clone().put_(torch.zeros(1, dtype=torch.int64), grad[0, :1]), None
        if ctx.where == "mps":
            raise RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GiB, max allowed: 9.07 GiB)")
        return grad, None


class NoFused(torch.optim.AdamW):
    """Knows the argument, but not for an accelerator."""

    def __init__(self, params: Any, lr: float = 0.1, fused: bool | None = None) -> None:
        if fused:
            raise RuntimeError("`fused=True` requires all the params to be on another device")
        super().__init__(params, lr)
