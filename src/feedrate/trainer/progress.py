"""The terminal's view of a run: its first line, a live line in a terminal, and a plain line per epoch."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from datetime import timedelta

import torch

from feedrate.dataset import Data
from feedrate.dataset.subset import size_of

log = logging.getLogger("feedrate")
INTERVAL_S = 0.5  # drawing the line costs well under a millisecond, counted as compute
_ERASE = "\r\x1b[2K"  # to the line's start, and erase it


def headline(model: str, data: Data, device: torch.device) -> str:
    """What trains on what."""
    train, validation = (size_of(data.partition[name]) for name in ("train", "validation"))
    shape, targets = tuple(data.sample_shape), data.targets.describe()
    samples = f"{train} training and {validation} validation samples"
    return f"{model} on {data.name}: {samples} {shape}, {targets}, on {device}"


class Progress:
    """The progress of a run, drawn by the training loop itself: a thread would make forking unsafe."""

    def __init__(self, epochs: int, steps: int, expected: float) -> None:
        self._epochs, self._steps = epochs, steps
        self._expected = expected  # epochs until training ends, which `trainer.max_steps` may lower
        self._live = sys.stdout.isatty()
        self.begin(0.0)

    def begin(self, done: float) -> None:
        """Training starts now, or goes on after `done` epochs."""
        self._begin = self._drawn = time.perf_counter()
        self._first = done

    @property
    def due(self) -> bool:
        """Whether the live line should be drawn now; takes nanoseconds outside a terminal."""
        return self._live and time.perf_counter() - self._drawn > INTERVAL_S

    def step(self, epoch: int, steps: int, loss: float, recent: tuple[float, float, float] | None) -> None:
        """Draws the live line, after `steps` of an epoch (from 0) and with the loss of the last one.

        `recent`: samples per second, wait in ms per step and in percent over the last steps; None if too few.
        """
        self._drawn = time.perf_counter()
        rate, wait_ms, wait_pct = recent or (0.0, 0.0, 0.0)
        rates = f"{rate:,.0f} samples/s  wait {wait_ms:.1f} ms ({wait_pct:.0f} %)  " if recent else ""
        text = (
            f"epoch {epoch + 1}/{self._epochs}  {steps}/{self._steps}  loss {loss:.4f}  "
            f"{rates}{self._left(epoch + steps / self._steps)} left"
        )
        print(_ERASE + text[: shutil.get_terminal_size().columns - 1], end="", flush=True)

    def epoch(self, epoch: int, metrics: dict[str, float], training_s: float) -> None:
        """Logs a finished epoch (from 0), with the duration of its steps where they were too few for rates."""
        width = len(str(self._epochs))
        parts = [f"epoch {epoch + 1:>{width}}/{self._epochs}", f"loss {metrics['train/loss']:.4f}"]
        parts.append(f"val loss {metrics['validation/loss']:.4f}")
        name = next((n for n in ("accuracy", "mae") if f"validation/{n}" in metrics), None)
        parts += [f"{name} {metrics[f'validation/{name}']:.4f}"] if name else []
        if "loader/samples_per_s" in metrics:
            parts += [f"{metrics['loader/samples_per_s']:,.0f} samples/s", f"wait {metrics['loader/wait_pct']:.0f} %"]
        else:
            parts.append(f"{training_s:.2g} s")
        if epoch + 1 < self._expected:
            parts.append(f"{self._left(epoch + 1)} left")
        self.close()
        log.info("  ".join(parts))

    def close(self) -> None:
        """Erases the live line, so that something else can be written."""
        if self._live:
            print(_ERASE, end="", flush=True)

    def _left(self, done: float) -> str:
        left = (time.perf_counter() - self._begin) * (self._expected - done) / max(done - self._first, 1e-9)
        return str(timedelta(seconds=round(left))).removeprefix("0:")
