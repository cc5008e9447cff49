"""What a person sees while a run trains: a live line in a terminal, one plain line per epoch anywhere else."""

from __future__ import annotations

import logging
import shutil
import sys
import time

log = logging.getLogger("feedrate")
INTERVAL_S = 0.5  # drawing the line costs well under a millisecond, counted as compute
_ERASE = "\r\x1b[2K"  # to the line's start, and erase it


class Progress:
    """The progress of one run.

    The training loop itself draws the live line: a thread would make forking workers unsafe, and compete with the step.

    Args:
        epochs: of the whole run.
        steps: batches of an epoch.
    """

    def __init__(self, epochs: int, steps: int) -> None:
        self._epochs, self._steps = epochs, steps
        self._begin = self._drawn = time.perf_counter()
        self._live = sys.stdout.isatty()

    @property
    def due(self) -> bool:
        """Whether a step should be shown now; a few nanoseconds where no line is drawn."""
        return self._live and time.perf_counter() - self._drawn > INTERVAL_S

    def step(self, epoch: int, step: int, loss: float, recent: tuple[float, float, float] | None) -> None:
        """Draws the live line.

        Args:
            epoch, step: from 0.
            loss: of this step.
            recent: of the last steps: samples per second, what a step waited for its batch in ms, and the same as a
                share of its time in percent; None where there are too few.
        """
        self._drawn = time.perf_counter()
        done = (epoch + (step + 1) / self._steps) / self._epochs
        rate, wait_ms, wait_pct = recent or (0.0, 0.0, 0.0)
        rates = f"{rate:,.0f} samples/s  wait {wait_ms:.1f} ms ({wait_pct:.0f} %)  " if recent else ""
        text = (
            f"epoch {epoch + 1}/{self._epochs}  {step + 1}/{self._steps}  loss {loss:.4f}  {rates}"
            f"{self._left(done)} left"
        )
        self._write(_ERASE + text[: shutil.get_terminal_size().columns - 1])

    def epoch(self, epoch: int, metrics: dict[str, float], wait_ms: float, training_s: float) -> None:
        """One line for an epoch that is over.

        Args:
            metrics: by their names; without rates where the epoch had too few steps for any.
            wait_ms: mean wait of a step.
            training_s: seconds of the epoch's steps, shown in place of the rates.
        """
        width = len(str(self._epochs))
        parts = [f"epoch {epoch + 1:>{width}}/{self._epochs}", f"loss {metrics['train/loss']:.4f}"]
        parts += _shown(metrics, "validation")
        if "loader/samples_per_s" in metrics:
            parts.append(f"{metrics['loader/samples_per_s']:,.0f} samples/s")
            parts.append(f"wait {wait_ms:.1f} ms ({metrics['loader/wait_pct']:.0f} %)")
        else:
            parts.append(f"{training_s:.2g} s")
        if epoch + 1 < self._epochs:
            parts.append(f"{self._left((epoch + 1) / self._epochs)} left")
        self.close()
        log.info("  ".join(parts))

    def close(self) -> None:
        """Takes the live line away, so that something else can be written."""
        if self._live:
            self._write(_ERASE)

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def _left(self, done: float) -> str:
        left = (time.perf_counter() - self._begin) * (1 - done) / max(done, 1e-9)
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _shown(metrics: dict[str, float], partition: str) -> list[str]:
    names = ("loss", "accuracy", "top5_accuracy", "mae", "rmse")
    found = [f"{name} {metrics[key]:.4f}" for name in names if (key := f"{partition}/{name}") in metrics]
    return [f"{partition} {found[0]}", *found[1:]] if found else []
