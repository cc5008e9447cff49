"""Models and optimizers as a user of the repository would write them."""

from __future__ import annotations

import torch
from torch import nn


class Needy(nn.Module):
    """Has no default for the units of its layer, and one of its own for dropout."""

    def __init__(self, sample_shape, num_outputs, hidden, dropout=0.0):
        super().__init__()
        size = torch.Size(sample_shape).numel()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(size, hidden[0]), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden[0], num_outputs)
        )

    def forward(self, X):
        return self.layers(X)


class TwiceThrough(torch.optim.SGD):
    """Needs the loss in each step, so it is refused when it is built."""

    def step(self, loss, *, again, retain=False):
        raise NotImplementedError


class Signs(torch.optim.Optimizer):
    """Steps of one length, without a learning rate."""

    def __init__(self, params, size=1e-4):
        super().__init__(params, {"size": size})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["size"] * parameter.grad.sign())
