"""src/bench.py measures loaders without a model, side by side, and says when one has become slower."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from at_once import at_once
from feedrate.errors import UserError
from feedrate.tuning.bench import read
from started import Started, until

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
    assert sum(rows[1]["stages_pct"].values()) == pytest.approx(100)
    assert rows[2]["loader"]["num_workers"] == 1


@pytest.mark.slow
def test_the_terminal_shows_the_figures_of_the_file(compared):
    done, folder = compared
    row = json.loads((folder / "bench.json").read_text())[1]
    assert f"alone       {row['samples_per_s']:,.0f} samples/s" in done.stdout
    assert "times the first" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("times", "code"), [(0.001, 0), (1000.0, 1)])  # further than a busy machine can shift it
def test_a_loader_that_has_become_slower_than_noise_explains_fails_the_command(compared, tmp_path, times, code, digits):
    earlier = json.loads((compared[1] / "bench.json").read_text())
    for row in earlier:
        row["samples_per_s"] *= times
    (tmp_path / "earlier.json").write_text(json.dumps(earlier))
    one, data = 'bench.compare=["loader.num_workers=0"]', f"dataset.root={digits}"
    done = bench(one, data, f"bench.baseline={tmp_path}/earlier.json", folder=tmp_path / "later")
    assert done.returncode == code, done.stderr
    if code:
        assert "loader.num_workers=0:" in done.stderr
        assert "less than the" in done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "later/bench.json").exists()


MISTAKES = {
    'bench.compare=["model=cnn"]': "model=cnn: only settings of dataset, loader and seed",
    'bench.compare=["loader.num_workers=x"]': "loader.num_workers=x",
    'bench.compare=["loader.num_workers=1", "loader.num_workers=1"]': "give each once",
    'bench.compare=["loader.num_wokers=1"]': "did you mean num_workers?",
    "bench.baseline=/nowhere/bench.json": "cannot be read (No such file or directory); name a file that",
    "bench.baseline=": "bench.baseline= has no value",
    "model=cnn": "model: there is no model",
    "bench.repeats=0": "bench.repeats=0",
    "dataset=tensor_files": "dataset.root",
    "bench.repeat=3": "did you mean repeats",
}


@pytest.mark.slow
def test_a_mistake_is_reported_in_few_lines_before_anything_is_measured(tmp_path):
    runs = {argument: partial(bench, argument, folder=tmp_path / str(i)) for i, argument in enumerate(MISTAKES)}
    for argument, done in at_once(runs).items():
        assert done.returncode == 1, argument
        assert MISTAKES[argument] in done.stderr
        assert len(done.stderr.strip().splitlines()) <= 3
        assert "measuring" not in done.stdout


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "null",
        '[{"name": "a", "dataset": "digits"}]',
        '[{"name": "a", "dataset": "digits", "samples_per_s": 0}]',
        '[{"name": "a", "dataset": "digits", "samples_per_s": NaN}]',
        '[{"name": ["a"], "dataset": "digits", "samples_per_s": 900}]',
        '[{"name": "a", "dataset": "digits", "samples_per_s": 900}, 3]',
    ],
)
def test_a_damaged_baseline_is_refused_before_anything_is_measured(content, tmp_path):
    (tmp_path / "bench.json").write_text(content)
    with pytest.raises(UserError, match="it is no bench.json"):
        read(tmp_path / "bench.json")


@pytest.mark.slow
def test_a_baseline_of_other_loaders_is_refused_before_anything_is_measured(compared, tmp_path, digits):
    earlier = f"bench.baseline={compared[1]}/bench.json"
    done = bench("loader.num_workers=1", "loader.timeout=9", f"dataset.root={digits}", earlier, folder=tmp_path / "run")
    assert done.returncode == 1
    assert done.stderr == (
        "error: bench.baseline: it has no row for 'loader.num_workers=1 loader.timeout=9'; "
        "write it with the same dataset and bench.compare\n"
    )
    assert not (tmp_path / "run/bench.json").exists()


@pytest.fixture
def start(digits, tmp_path, monkeypatch):
    """Starts a measurement with a worker; its temporary files lie in a folder of their own."""
    begun = []
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))

    def run():
        own = ["loader.num_workers=1", "loader.engine=process", f"dataset.root={digits}", "bench.seconds=2"]
        begun.append(Started("bench.py", *own))
        line = begun[-1].process.stdout.readline()
        assert line.startswith("measuring"), begun[-1].process.communicate()
        return begun[-1]

    yield run
    for started in begun:
        started.close()


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_ends_it_with_one_line_and_nothing_is_left(start, tmp_path, signum, code):
    before = set(ROOT.glob("outputs/bench/*"))
    stopped = start()
    until(lambda: len(stopped.group()) >= 2)  # itself and a worker
    os.killpg(stopped.process.pid, signum)
    _, errors = stopped.process.communicate(timeout=60)
    assert stopped.process.returncode == code
    assert errors == f"stopped by {signum.name}\n"
    until(stopped.all_ended)
    assert not list((tmp_path / "temporary").glob("pymp-*"))  # folders of multiprocessing
    assert set(ROOT.glob("outputs/bench/*")) == before


@pytest.mark.slow
def test_killed_it_leaves_no_process_and_no_traceback(start):
    killed = start()
    until(lambda: len(killed.group()) >= 2)
    os.kill(killed.process.pid, signal.SIGKILL)
    killed.process.wait()
    until(killed.all_ended)
    assert killed.process.communicate()[1] == ""
