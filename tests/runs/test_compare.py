"""Comparing prints what differs between runs, and nothing that is equal."""

from __future__ import annotations

import json
import re
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
    assert "equal in all: data (IDs, labels, order; content not compared), code" in lines

    monkeypatch.setattr(sys, "argv", ["compare.py", str(first), str(again)])
    compare.main()
    text = capsys.readouterr().out
    assert "configuration, data (IDs, labels, order, content), code" in text.splitlines()[-1]
    assert "validation/" not in text

    summary = json.loads((again / "summary.json").read_text())
    (again / "summary.json").write_text(json.dumps({**summary, "content_digest": "f" * 64}))  # files have changed
    compare.main()
    rows = {line.split("  ")[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["content digest"] == ["digest", summary["content_digest"][:12], "f" * 12]
    assert "data digest" not in rows


def test_data_and_code_of_which_nothing_was_recorded_are_not_known_to_be_equal(run_train, capsys, monkeypatch):
    first, second = (with_config(run_train("trainer.max_epochs=1", "dataset.limit=64")) for _ in range(2))
    monkeypatch.setattr(sys, "argv", ["compare.py", str(first), str(second)])

    def printed_without(*names: str) -> list[str]:
        for folder in (first, second):
            summary = json.loads((folder / "summary.json").read_text())
            (folder / "summary.json").write_text(json.dumps({k: v for k, v in summary.items() if k not in names}))
        capsys.readouterr()
        compare.main()
        return capsys.readouterr().out.splitlines()

    (equal,) = [line for line in printed_without("order_digest") if line.startswith("equal in all")]
    assert "data (IDs, labels; order, content not compared)" in equal
    lines = printed_without("data_digest", "commit", "uncommitted")
    assert "equal in all: configuration" in lines
    assert "not known: data (not recorded), code (not recorded)" in lines
    (first / "summary.json").write_text(json.dumps({"data_digest": "f" * 64}))
    lines = printed_without()
    assert ["data digest", "f" * 12, "not recorded"] in [re.split("  +", line) for line in lines]
    assert "not known: code (not recorded)" in lines


def test_fewer_than_two_runs_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare.py", "outputs"])
    with pytest.raises(UserError, match="two or more runs are compared"):
        compare.main()


def test_the_commit_is_compared_without_tracking_too(run_train, capsys, monkeypatch):
    first, second = (with_config(run_train("trainer.max_epochs=1")) for _ in range(2))
    summary = json.loads((second / "summary.json").read_text())
    (second / "summary.json").write_text(json.dumps({**summary, "commit": "f" * 40, "uncommitted": "nothing"}))
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["compare.py", str(first), str(second)])
    compare.main()
    rows = {line.split("  ")[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["commit"] == [summary["commit"][:12] or "not", *([] if summary["commit"] else ["recorded"]), "f" * 12]


def test_the_best_epoch_is_named_and_its_figures_stand_beside_the_last_ones(tmp_path):
    from feedrate.runs.compare import comparison, facts
    from feedrate.runs.saved import SavedRun

    def of(best_epoch: int, loss: float) -> SavedRun:
        summary = {"best_epoch": best_epoch, "best": {"validation/loss": loss}, "metrics": {"validation/loss": 9.0}}
        return SavedRun({}, tmp_path, None, None, None, summary)

    text = comparison([facts("a", of(1, 0.5)), facts("b", of(7, 0.25))])
    rows = {tuple(line.split()[:-2]): line.split()[-2:] for line in text.splitlines() if line.startswith("best")}
    assert rows == {("best", "epoch"): ["1", "7"], ("best", "validation/loss"): ["0.5", "0.25"]}
