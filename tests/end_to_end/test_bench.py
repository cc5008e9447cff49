"""src/bench.py measures loaders without a model, side by side, and says when one has become slower."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["bench.repeats=2", "bench.seconds=0.1", "bench.step_ms=[3]"]


def bench(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "src/bench.py"), *SHORT, f"hydra.run.dir={folder}", *arguments]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def compared(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("bench") / "one"
    three = 'bench.compare=["loader=torch loader.num_workers=0", "loader.num_workers=0", "loader.num_workers=1"]'
    return bench(three, f"dataset.root={digits}", folder=folder), folder


@pytest.mark.slow
def test_loaders_are_measured_side_by_side(compared):
    done, folder = compared
    assert done.returncode == 0, done.stderr
    rows = json.loads((folder / "bench.json").read_text())
    assert [row["name"] for row in rows] == [
        "loader=torch loader.num_workers=0", "loader.num_workers=0", "loader.num_workers=1"
    ]  # fmt: skip
    for row in rows:
        assert row["samples_per_s"] > 0
        assert row["spread"][0] <= row["samples_per_s"] <= row["spread"][1]
        assert row["repeats"] == 2
        assert row["cpu_s_per_1000"] > 0
        assert row["peak_rss_mb"] > 50
        assert [step["step_ms"] for step in row["steps"]] == [3]
        assert row["steps"][0]["samples_per_s"] < 64 / 0.003
    assert rows[0]["order_digest"] == ""
    assert rows[1]["order_digest"] == rows[2]["order_digest"] != ""
    assert sum(rows[1]["stages_pct"].values()) == pytest.approx(100)
    assert rows[2]["loader"]["num_workers"] == 1


@pytest.mark.slow
def test_the_terminal_shows_the_figures_of_the_file(compared):
    done, folder = compared
    row = json.loads((folder / "bench.json").read_text())[1]
    assert f"alone       {row['samples_per_s']:,.0f} samples/s" in done.stdout
    assert f"suffices    for steps of {row['sufficient_step_ms']:.3g} ms" in done.stdout
    assert "reads such files at" in done.stdout
    assert "times the first" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("times", "code"), [(0.001, 0), (1000.0, 1)])  # further than a busy machine can shift it
def test_a_loader_that_has_become_slower_than_noise_explains_fails_the_command(compared, tmp_path, times, code, digits):
    earlier = json.loads((compared[1] / "bench.json").read_text())
    for row in earlier:
        row["samples_per_s"] *= times
        row["spread"] = [row["samples_per_s"]] * 2
    (tmp_path / "earlier.json").write_text(json.dumps(earlier))
    one, data = 'bench.compare=["loader.num_workers=0"]', f"dataset.root={digits}"
    done = bench(one, data, f"bench.baseline={tmp_path}/earlier.json", folder=tmp_path / "later")
    assert done.returncode == code, done.stderr
    if code:
        assert "loader.num_workers=0:" in done.stderr
        assert "less than the" in done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "later/bench.json").exists()


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ('bench.compare=["model=cnn"]', "model=cnn: only settings of dataset, loader and seed"),
        ('bench.compare=["loader.num_workers=x"]', "loader.num_workers=x"),
        ('bench.compare=["loader.num_workers=1", "loader.num_workers=1"]', "give each once"),
        ("bench.baseline=/nowhere/bench.json", "bench.baseline=/nowhere/bench.json: cannot be read"),
        ("bench.repeats=0", "bench.repeats=0"),
        ("dataset=tensor_files", "dataset.root"),
        ("bench.repeat=3", "did you mean repeats"),
    ],
)
def test_a_mistake_is_told_in_few_lines_before_anything_is_measured(argument, text, tmp_path):
    done = bench(argument, folder=tmp_path / "run")
    assert done.returncode == 1
    assert text in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3
    assert "measuring" not in done.stdout
