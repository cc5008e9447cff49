"""Memory that grows from epoch to epoch is reported, and a cache that fills up is not."""

from __future__ import annotations

import pytest
import torch

from feedrate.timing.memory import grew


@pytest.mark.parametrize(
    ("mb", "reported"),
    [
        ([300, 500, 600, 700, 800, 900], True),
        ([300, *(500 + epoch + epoch % 2 for epoch in range(200))], True),  # up and down, but upwards
        ([300, 500, 510, 520, 530, 540], False),  # by less than a tenth
        ([10, 20, 24, 28, 32, 36], False),  # by less than 20 MB
        ([300, 500, 600, 700, 800], True),
        ([300, 500, 600, 700], False),  # too few epochs
        ([300, 900, 900, 900, 900, 900], False),  # the first epoch does not count
        ([300, 500, 700, 800, 850, 860, 860], False),  # levels off
        ([300, 500, 800, 500, 800, 900], False),
    ],
)
def test_only_steady_growth_is_reported(mb: list[float], reported: bool) -> None:
    assert grew(mb) is reported


def run(run_train, caplog):
    with caplog.at_level("INFO", "feedrate"):
        summary = run_train("model=mlp", "trainer.max_epochs=6", "loader.batch_size=16")
    return summary["memory_growth"], caplog.messages[-2]


def test_a_model_that_keeps_tensors_is_a_note_with_its_figure(run_train, caplog, monkeypatch) -> None:
    kept, forward = [], torch.nn.Linear.forward

    def keeping(self, X):
        kept.append(torch.ones(500_000))
        return forward(self, X)

    monkeypatch.setattr(torch.nn.Linear, "forward", keeping)
    (note,), said = run(run_train, caplog)
    assert note.startswith("host memory grew by ")
    assert "over 5 epochs" in note
    assert said.splitlines()[-1] == f"note: {note}"
    assert len(said.splitlines()[-1]) <= 100


def test_a_run_that_keeps_nothing_has_no_such_note(run_train, caplog) -> None:
    growth, said = run(run_train, caplog)
    assert growth == []
    assert "memory" not in said
