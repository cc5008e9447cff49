"""Comparing prints what differs between runs, and nothing that is equal."""

from __future__ import annotations

import json
import sys

import pytest

import compare
from feedrate.errors import UserError
from saved_run import with_config


def test_only_what_differs_is_printed(run_train, capsys, monkeypatch):
    first = with_config(run_train("trainer.max_epochs=1", "loader.content_digest=true"))
    second = with_config(run_train("trainer.max_epochs=1", "model=mlp", "model.hidden=[16]", "loader.batch_size=32"))
    again = with_config(run_train("trainer.max_epochs=1", "loader.content_digest=true"))
    capsys.readouterr()

    monkeypatch.setattr(sys, "argv", ["compare.py", str(first), str(second)])
    compare.main()
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split("  ")[0]: line.split() for line in lines}
    assert rows["loader.batch_size"][1:] == ["64", "32"]
    assert rows["model._target_"][1:] == ["feedrate.model.CNN", "feedrate.model.MLP"]
    assert rows["model.hidden"][1:] == ["-", "[16]"]
    assert rows["model.channels"][-1] == "-"
    assert len(set(rows["validation/loss"][1:])) == 2
    assert not {"seed", "dataset.root", "trainer.max_epochs", "status"} & set(rows)
    (equal,) = [line for line in lines if line.startswith("equal in all: data digest, order digest")]
    assert "content digest" not in equal

    monkeypatch.setattr(sys, "argv", ["compare.py", str(first), str(again)])
    compare.main()
    text = capsys.readouterr().out
    assert "configuration, data digest, order digest, content digest" in text.splitlines()[-1]
    assert "validation/" not in text

    summary = json.loads((again / "summary.json").read_text())
    (again / "summary.json").write_text(json.dumps({**summary, "content_digest": "f" * 64}))  # files have changed
    compare.main()
    output = capsys.readouterr().out
    assert f"content digest  {summary['content_digest'][:21]}…" in output
    assert "\ndata digest" not in output


def test_fewer_than_two_runs_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare.py", "outputs"])
    with pytest.raises(UserError, match="two or more runs are compared"):
        compare.main()


def test_the_best_epoch_is_named_and_its_figures_stand_beside_the_last_ones(tmp_path):
    from feedrate.runs.compare import comparison, facts
    from feedrate.runs.saved import SavedRun

    def of(best_epoch: int, loss: float) -> SavedRun:
        summary = {"best_epoch": best_epoch, "best": {"validation/loss": loss}, "metrics": {"validation/loss": 9.0}}
        return SavedRun({}, tmp_path, None, None, None, summary)

    text = comparison({"a": facts(of(1, 0.5)), "b": facts(of(7, 0.25))})
    rows = {tuple(line.split()[:-2]): line.split()[-2:] for line in text.splitlines() if line.startswith("best")}
    assert rows == {("best", "epoch"): ["1", "7"], ("best", "validation/loss"): ["0.5", "0.25"]}
