"""Sweeps as a person starts them: fresh processes, deaths among the jobs, a second start."""

from __future__ import annotations

import csv
import json
import re
from statistics import mean, median, stdev
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from PIL import Image

from sweep_process import sweep

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def swept(tmp_path_factory, digits, make_store):
    """Three jobs, of which one fails and one is killed; then the same command again."""
    folder = tmp_path_factory.mktemp("swept")
    arguments = [
        "+model.death=no,raise,kill", f"+model.edits={folder}/conf/experiment/tiny.yaml",
        f"tracking.uri={make_store(folder)}", "tracking.system_metrics=false",
    ]  # fmt: skip
    first = sweep(folder, digits, *arguments, f"hydra.sweep.dir={folder}/first")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("feedrate").experiment_id

    def read() -> SimpleNamespace:
        runs = client.search_runs([experiment])
        children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
        parents = [run for run in runs if run not in children]
        return SimpleNamespace(parents=parents, children=children)

    after_first = read()
    rows = list(csv.DictReader((folder / "first/sweep.csv").open()))
    second = sweep(folder, digits, *arguments, f"hydra.sweep.dir={folder}/second")
    return SimpleNamespace(
        folder=folder,
        first=first,
        second=second,
        rows=rows,
        after_first=after_first,
        after_second=read(),
        client=client,
    )


def test_a_failed_and_a_killed_job_are_reported_and_the_others_go_on(swept):
    assert swept.first.returncode == 1
    assert "job 1 FAILED: model: deadly.Net(...) failed with ValueError: this net was told" in swept.first.stderr
    assert "job 2 KILLED: killed by SIGKILL" in swept.first.stderr
    assert "error: 2 of 3 jobs did not finish" in swept.first.stderr
    assert "Traceback" not in swept.first.stderr
    assert [row["status"] for row in swept.rows] == ["FINISHED", "FAILED", "KILLED"]
    assert float(swept.rows[0]["samples_per_s"]) > 0
    assert swept.rows[1]["samples_per_s"] == ""


def test_mlflow_has_one_parent_and_a_child_per_job_with_its_true_status(swept):
    (parent,) = swept.after_first.parents
    assert parent.info.run_name == "sweep mlp-digits death"
    assert parent.info.status == "FAILED"
    assert parent.data.tags["feedrate.error"] == "2 of 3 jobs did not finish"
    children = swept.after_first.children
    assert len(children) == 3
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.data.tags["feedrate.job"]: run.info.status for run in children} == {
        "0": "FINISHED", "1": "FAILED", "2": "KILLED",
    }  # fmt: skip
    errors = {run.info.status: run.data.tags.get("feedrate.error", "") for run in children}
    assert errors["FINISHED"] == ""
    assert "told to fail" in errors["FAILED"]
    assert "SIGKILL" in errors["KILLED"]


def test_every_job_has_a_process_of_its_own(swept):
    notes = [path.name for path in (swept.folder / "notes").iterdir()]
    assert sorted(name.split("-")[0] for name in notes) == ["kill", "kill", "no", "raise", "raise"]
    assert len({name.split("-")[1] for name in notes}) == 5


def test_editing_the_configuration_while_a_sweep_runs_does_not_change_its_later_jobs(swept):
    for job in range(3):
        config = OmegaConf.load(swept.folder / f"first/{job}/.hydra/config.yaml")
        assert config.trainer.max_epochs == 1


def test_the_same_command_again_skips_what_finished_and_runs_the_rest(swept):
    assert swept.second.returncode == 0, swept.second.stderr
    assert "job 0 finished before: model.death=no" in swept.second.stdout
    assert not (swept.folder / "second").exists()
    jobs = sorted(path.name for path in (swept.folder / "first").glob("[0-9]*"))
    assert jobs == ["0", "1", "1_2", "2", "2_2"]  # neither the one that failed nor the one without a checkpoint goes on
    (parent,) = swept.after_second.parents
    assert parent.info.run_id == swept.after_first.parents[0].info.run_id
    assert parent.info.status == "FINISHED"
    assert "feedrate.error" not in parent.data.tags
    finished = [run.data.tags["feedrate.job"] for run in swept.after_second.children if run.info.status == "FINISHED"]
    assert sorted(finished) == ["0", "1", "2"]


def test_the_parent_shows_table_pictures_and_the_command_of_the_best_job(swept):
    (parent,) = swept.after_second.parents
    names = {artifact.path for artifact in swept.client.list_artifacts(parent.info.run_id)}
    assert names == {"sweep.md", "sweep.csv", "metric.png", "samples_per_s.png", "wait_pct.png"}
    note = parent.data.tags["mlflow.note.content"].replace("\u00a0\u00a0", " ")
    assert re.match(r"(\*\*Best|The best) validation accuracy", note)  # it is not the loader that is swept
    assert all(f" {head} |" in note for head in ("best epoch", "step ms", "free cores"))
    assert "| FINISHED |" in note
    assert "python src/train.py experiment=tiny" in note
    pictures = [line for line in note.splitlines() if line.startswith("![")]
    assert pictures == [
        f"![metric.png](get-artifact?path=metric.png&run_uuid={parent.info.run_id}) "
        f"![samples_per_s.png](get-artifact?path=samples_per_s.png&run_uuid={parent.info.run_id}) "
        f"![wait_pct.png](get-artifact?path=wait_pct.png&run_uuid={parent.info.run_id})"
    ]
    (link,) = re.findall(r"^\[best job\]\(#/experiments/\d+/runs/(\w+).*\)\n\n", note, re.MULTILINE)
    best_job = next(run for run in swept.after_second.children if run.info.run_id == link)
    assert f"death {best_job.data.params['model.death']}" == parent.data.tags["feedrate.best"]
    table = (swept.folder / "first/sweep.md").read_text().strip()
    assert re.sub(r"(\[best job\]|!\[metric).*\n\n", "", note).strip() == table
    assert " ".join(table.split()) in " ".join(swept.second.stdout.split())  # wrapped in the terminal
    rows = list(csv.DictReader((swept.folder / "first/sweep.csv").open()))
    best = max(float(row["validation/accuracy"]) for row in rows)
    assert parent.data.metrics["best/accuracy"] == pytest.approx(best)
    shown = [row for row in rows if float(row["validation/accuracy"]) == best]
    assert parent.data.metrics["loader/samples_per_s"] in [
        pytest.approx(float(row["samples_per_s"]), rel=1e-5) for row in shown
    ]
    assert {row["best_epoch"] for row in rows} == {"1"}
    assert all(float(row["free_cores"]) > 0 and float(row["step_ms"]) > 0 for row in rows)
    assert parent.data.tags["feedrate.best"].startswith("death ")
    for name in ("samples_per_s", "metric"):
        with Image.open(swept.folder / f"first/{name}.png") as picture:
            assert min(picture.size) > 200


def test_jobs_at_once_have_their_lines_marked_and_seeds_give_true_mean_and_spread(tmp_path, digits):
    done = sweep(tmp_path, digits, "tracking=none", "+model.death=no", "seed=1,2,3", "trainer.max_epochs=3",
                 "hydra.launcher.jobs=2", f"hydra.sweep.dir={tmp_path}/out")  # fmt: skip
    assert done.returncode == 0, done.stderr
    for job in range(3):
        assert f"[{job}] epoch 1/3" in done.stdout
    assert "this sweep" not in done.stdout  # nothing is recorded
    summaries = [json.loads((tmp_path / f"out/{job}/summary.json").read_text()) for job in range(3)]
    best = [summary["best"]["validation/accuracy"] for summary in summaries]
    rates = [median(epoch["loader/samples_per_s"] for epoch in summary["history"][1:]) for summary in summaries]
    assert len(set(best)) > 1  # the seeds make a difference
    text = (tmp_path / "out/sweep.md").read_text()
    head, _, row = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("|")][
        :3
    ]
    shown = dict(zip(head, row, strict=True))
    assert shown["job"] == "0, 1, 2"
    for name, values in (("samples/s", rates), ("validation accuracy", best)):
        middle, spread = (float(figure.replace(",", "")) for figure in shown[name].split(" ± "))
        assert middle == pytest.approx(mean(values), abs=stdev(values))  # rounded to what its noise leaves
        assert spread == pytest.approx(stdev(values), rel=0.05)


def test_fail_fast_starts_no_job_after_one_that_failed(tmp_path, digits):
    done = sweep(tmp_path, digits, "tracking=none", "+model.death=raise,no", "sweep.fail_fast=true",
                 f"hydra.sweep.dir={tmp_path}/out")  # fmt: skip
    assert done.returncode == 1
    rows = list(csv.DictReader((tmp_path / "out/sweep.csv").open()))
    assert [row["status"] for row in rows] == ["FAILED", "NOT RUN"]
    assert not (tmp_path / "out/1").exists()


def test_a_secret_that_is_swept_is_written_nowhere(tmp_path, digits, make_store):
    done = sweep(tmp_path, digits, "+model.death=raise", "+model.password=sw3pt-one,sw3pt-two", "hydra.launcher.jobs=2",
                 f"tracking.uri={make_store(tmp_path)}", f"hydra.sweep.dir={tmp_path}/out")  # fmt: skip
    assert len(list(csv.DictReader((tmp_path / "out/sweep.csv").open()))) == 2
    assert "***" in done.stdout
    assert "sw3pt" not in done.stdout + done.stderr
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"sw3pt" not in path.read_bytes(), path


def test_a_mistake_in_any_job_is_answered_before_the_first_one_starts(tmp_path, digits):
    done = sweep(tmp_path, digits, "tracking=none", "+model.death=no", "loader.batch_size=32,0",
                 f"hydra.sweep.dir={tmp_path}/out")  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip() == "error: loader.batch_size=0: must be at least 1"
    assert not list((tmp_path / "notes").iterdir())
