"""Stops a run of this process at an optimizer step, as a signal that arrives there would."""

from __future__ import annotations

import pytest

from feedrate.system.signals import Interruption
from feedrate.trainer.step import TrainingStep


def stop_at_step(monkeypatch: pytest.MonkeyPatch, step: int, signum: int) -> None:
    """Applies to the next runs, until the patch is undone."""
    interruptions: list[Interruption] = []
    listen, optimize = Interruption.listen, TrainingStep.optimize

    def listening(self: Interruption) -> None:
        interruptions.append(self)
        listen(self)

    def stopping(self: TrainingStep) -> None:
        optimize(self)
        if self.state.step == step:
            interruptions[-1].signum = signum

    monkeypatch.setattr(Interruption, "listen", listening)
    monkeypatch.setattr(TrainingStep, "optimize", stopping)
