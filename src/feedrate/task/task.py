"""Loss and metrics of classification and regression, accumulated on the device."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from feedrate.dataset.labels import Targets
from feedrate.errors import UserError

MAX_CONFUSION = 1_000  # classes up to which the confusion matrix is kept


class Task:
    """The loss that is minimised, and the metrics that are measured."""

    def __init__(self, targets: Targets, label_smoothing: float = 0.0, top5: bool = False) -> None:
        self.targets, self._smoothing = targets, label_smoothing
        self.top5 = top5 and targets.task == "classification" and targets.num_outputs > 5

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar in float32, of outputs (B, num_outputs); UserError if their shape differs.

        y: (B,) or (B, 1) int64 classes, or (B,) or (B, num_outputs) floats.
        """
        expected = (len(y), self.targets.num_outputs)
        if not isinstance(outputs, Tensor) or tuple(outputs.shape) != expected:
            got = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
            raise UserError(
                f"model: returned {got} for a batch of {len(y)}; needed is a tensor of shape {expected}: "
                "one output per " + ("class" if self.targets.task == "classification" else "number of the label")
            )
        if self.targets.task == "classification":
            return F.cross_entropy(outputs.float(), y.long().view(len(y)), label_smoothing=self._smoothing)
        return F.mse_loss(outputs.float(), y.float().view(expected))

    def meter(self, device: torch.device) -> Meter:
        """An empty meter for one pass over a partition."""
        return Meter(self, device)


class Meter:
    """Sums over the batches of one pass; read at its end, since reading waits for the device."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self._task = task
        outputs = task.targets.num_outputs
        self._classes = task.targets.task == "classification"
        self._confused = self._classes and outputs <= MAX_CONFUSION
        self.samples = 0
        dtype = torch.float32 if device.type in ("mps", "xpu") else torch.float64  # these may lack float64
        self._loss = torch.zeros((), dtype=dtype, device=device)
        # correct and top-5 correct, or absolute and squared errors
        self._sums = torch.zeros(2, dtype=dtype, device=device)
        self._confusion = torch.zeros(outputs * outputs if self._confused else 0, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, loss: Tensor, outputs: Tensor, y: Tensor) -> None:
        """Adds a batch: its mean loss, outputs (B, num_outputs) and labels."""
        count = len(y)
        self.samples += count
        self._loss += loss.detach() * count
        if not self._classes:
            error = outputs.detach().float() - y.float().view(outputs.shape)
            self._sums[0] += error.abs().mean(dim=1).sum()
            self._sums[1] += error.square().mean(dim=1).sum()
            return
        y, predicted = y.long().view(count), outputs.detach().argmax(dim=1)
        if self._confused:
            # not bincount, which waits for the device
            self._confusion.index_add_(0, y * outputs.shape[1] + predicted, torch.ones_like(y))
        else:
            self._sums[0] += (predicted == y).sum()
        if self._task.top5:
            self._sums[1] += (outputs.detach().topk(5, dim=1).indices == y[:, None]).sum()

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, for a checkpoint within an epoch."""
        return {"samples": self.samples, "loss": self._loss, "sums": self._sums, "confusion": self._confusion}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the sums of `state_dict`."""
        self.samples = int(state["samples"])
        for name in ("loss", "sums", "confusion"):
            getattr(self, f"_{name}").copy_(state[name])

    def metrics(self) -> dict[str, float]:
        """loss, and accuracy (and top5_accuracy) or mae and rmse."""
        samples = max(1, self.samples)
        found = {"loss": float(self._loss) / samples}
        first, second = (float(v) for v in self._sums.tolist())
        if not self._classes:
            return {**found, "mae": first / samples, "rmse": (second / samples) ** 0.5}
        confusion = self.confusion()
        correct = sum(row[i] for i, row in enumerate(confusion)) if confusion else first
        found["accuracy"] = correct / samples
        if self._task.top5:
            found["top5_accuracy"] = second / samples
        return found

    def confusion(self) -> list[list[int]] | None:
        """Counts by true class (row) and predicted class (column), None for regression and very many classes."""
        if not self._confused:
            return None
        return self._confusion.view(-1, self._task.targets.num_outputs).tolist()

    def per_class(self) -> list[dict[str, Any]] | None:
        """Class, samples and accuracy of each class; None where there is no confusion matrix."""
        rows = self.confusion()
        if rows is None:
            return None
        names = self._task.targets.classes or range(len(rows))
        return [
            {"class": name, "samples": sum(row), "accuracy": row[i] / sum(row) if sum(row) else None}
            for i, (name, row) in enumerate(zip(names, rows, strict=False))
        ]
