"""A model that simulates an accelerator: a training step takes `step_ms` of wall time and no CPU.

It shows, on a laptop, whether a loader would feed a GPU of that speed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from torch import Tensor, nn

# A backward pass does about twice the arithmetic of a forward pass: one product of matrices against two.
FORWARD_SHARE = 1 / 3
MOST_FEATURES = 64


class Simulated(nn.Module):
    """A linear layer on up to 64 values of each sample, which then sleeps until the time of its step is over.

    A forward pass takes a third of `step_ms`, in training as in evaluation, and the backward pass ends `step_ms` after
    its forward pass began, computation and loss included; the optimizer's step comes on top. The host sleeps, whatever
    the device, and leaves the CPU and the GIL to the loader.

    OMP_WAIT_POLICY=PASSIVE must be in the environment before torch is imported: otherwise torch's idle OpenMP threads
    spin for some 10 ms after an operation.

    Args:
        step_ms: duration of one forward and backward pass in ms, whatever the batch size; 0 does not sleep.
    """

    def __init__(self, sample_shape: Sequence[int], num_outputs: int, step_ms: float = 25.0) -> None:
        super().__init__()
        self.step_ns = round(1e6 * step_ms)
        elements = math.prod(sample_shape)
        self.every = max(1, elements // MOST_FEATURES)  # values spread evenly over the sample
        self.head = nn.Linear(min(elements, MOST_FEATURES), num_outputs)

    def forward(self, X: Tensor) -> Tensor:
        """X: (B, *sample_shape) float -> (B, num_outputs), a third of `step_ms` later."""
        start_ns = time.perf_counter_ns()
        values_BF = X.reshape(X.shape[0], -1)[:, :: self.every][:, : self.head.in_features]
        outputs: Tensor = self.head(values_BF)
        _sleep_until(start_ns + round(FORWARD_SHARE * self.step_ns))
        if outputs.requires_grad:
            outputs.register_hook(lambda gradient: _sleep_until(start_ns + self.step_ns))
        return outputs


def _sleep_until(end_ns: int) -> None:
    """Return at `end_ns` on the clock of time.perf_counter_ns, at once where that is past."""
    while (remaining_ns := end_ns - time.perf_counter_ns()) > 0:
        time.sleep(remaining_ns / 1e9)
