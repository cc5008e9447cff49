"""A multi-layer perceptron on flattened samples of any shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear, ReLU and dropout for each hidden layer, then a linear layer.

    Args:
        sample_shape: of any number of dimensions; `()` is a scalar.
        hidden: units of each hidden layer; an empty list makes the model linear.
    """

    def __init__(
        self,
        sample_shape: Sequence[int],
        num_outputs: int,
        hidden: Sequence[int] = (512, 512),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.num_inputs = math.prod(sample_shape)

        layers: list[nn.Module] = []
        width = self.num_inputs
        for units in hidden:
            layers += [nn.Linear(width, units), nn.ReLU(), nn.Dropout(dropout)]
            width = units
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_outputs))

    def forward(self, X: Tensor) -> Tensor:
        """X: (B, *sample_shape) float -> (B, num_outputs)."""
        # not flatten(1), which refuses a batch of scalars
        outputs: Tensor = self.layers(X.reshape(X.shape[0], self.num_inputs))
        return outputs
