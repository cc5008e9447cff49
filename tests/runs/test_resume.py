"""A run that was interrupted goes on at the exact batch: weights, losses and digest are those of one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from feedrate.errors import UserError
from feedrate.system.signals import Interrupted
from feedrate.trainer import checkpoint
from feedrate.trainer.loop import Trainer
from saved_run import with_config
from started import until
from stops import stop_at_step

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ("loader.batch_size=32", "model=mlp", "trainer.max_epochs=2")  # 8 steps an epoch; dropout is on


def last(folder: Path) -> dict:
    return checkpoint.load(folder / "checkpoints" / "last.pt")


def same_run(resumed: dict, undisturbed: dict) -> None:
    ours, theirs = last(resumed["folder"]), last(undisturbed["folder"])
    for name, tensor in theirs["model"].items():
        assert torch.equal(ours["model"][name], tensor), name
    assert ours["step"] == theirs["step"]
    assert resumed["order_digest"] == undisturbed["order_digest"]
    for mine, other in zip(resumed["history"], undisturbed["history"], strict=True):
        for name in ("train/loss", "train/accuracy", "validation/loss", "validation/accuracy", "train/learning_rate"):
            assert mine[name] == other[name]


@pytest.fixture
def stop_after(monkeypatch):
    """Stops the next run as a signal would, after some optimizer steps."""

    def stop(step: int, signum: int = signal.SIGTERM) -> None:
        stop_at_step(monkeypatch, step, signum)

    return stop


def interrupted(run_train, tmp_path, *overrides: str) -> Path:
    with pytest.raises(Interrupted):
        run_train(*SETTINGS, *overrides)
    folder = max(tmp_path.glob("run*"))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "KILLED"
    with_config({**summary, "folder": folder})
    assert not (folder / "lock").exists()
    return folder


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def undisturbed(run_train, kept, tmp_path_factory):
    """A run that was not interrupted, trained once for all tests."""
    if not kept:
        summary = run_train(*SETTINGS)
        folder = summary["folder"].rename(tmp_path_factory.mktemp("undisturbed") / "run")
        kept.update({**summary, "folder": folder})
    return kept


@pytest.mark.parametrize("step", [1, 5, 7, 8, 9, 15, 16])
def test_it_goes_on_bit_for_bit_from_any_step(run_train, tmp_path, undisturbed, stop_after, monkeypatch, step):
    stop_after(step)
    folder = interrupted(run_train, tmp_path)
    monkeypatch.undo()
    resumed = run_train(*SETTINGS, f"trainer.resume={folder}")
    assert resumed["folder"] == folder
    same_run(resumed, undisturbed)


def test_it_goes_on_with_shards_in_the_place_of_files_and_back(
    run_train, tmp_path, undisturbed, stop_after, monkeypatch, digits
):
    from feedrate.config import PackConfig
    from feedrate.dataset.writing.pack import pack

    pack(PackConfig(dataset={"_target_": "feedrate.dataset.Digits", "root": str(digits)}, root=f"{tmp_path}/packed"))
    shards = ("dataset=packed", f"dataset.root={tmp_path}/packed", "dataset.limit=256")
    stop_after(3)
    folder = interrupted(run_train, tmp_path, *shards)
    monkeypatch.undo()
    stop_after(11)
    with pytest.raises(Interrupted):
        run_train(*SETTINGS, f"trainer.resume={folder}")  # the files
    monkeypatch.undo()
    same_run(run_train(*SETTINGS, *shards, f"trainer.resume={folder}"), undisturbed)


def test_it_goes_on_a_second_time_in_the_same_epoch_with_other_workers(
    run_train, tmp_path, undisturbed, stop_after, monkeypatch
):
    stop_after(2)
    folder = interrupted(run_train, tmp_path)
    monkeypatch.undo()
    stop_after(5)
    with pytest.raises(Interrupted):
        run_train(*SETTINGS, f"trainer.resume={folder}", "loader.num_workers=2")
    monkeypatch.undo()
    same_run(run_train(*SETTINGS, f"trainer.resume={folder}", "loader.num_workers=1"), undisturbed)


def test_accumulated_gradients_are_finished_before_it_stops(run_train, tmp_path, stop_after, monkeypatch):
    whole = run_train(*SETTINGS, "trainer.accumulate=3")
    stop_after(2)
    folder = interrupted(run_train, tmp_path, "trainer.accumulate=3")
    assert last(folder)["batches"] == 6
    monkeypatch.undo()
    same_run(run_train(*SETTINGS, "trainer.accumulate=3", f"trainer.resume={folder}"), whole)


def test_auto_finds_the_newest_unfinished_run_of_the_same_result(
    run_train, tmp_path, undisturbed, stop_after, monkeypatch
):
    stop_after(3)
    folder = interrupted(run_train, tmp_path)
    monkeypatch.undo()
    resumed = run_train(*SETTINGS, "trainer.resume=auto", "loader.num_workers=1", "trainer.log_every=7")
    assert resumed["folder"] == folder
    same_run(resumed, undisturbed)
    assert run_train(*SETTINGS, "trainer.resume=auto")["folder"] != folder  # nothing is left unfinished


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_taken(
    run_train, tmp_path, undisturbed, stop_after, monkeypatch, caplog
):
    stop_after(6)
    folder = interrupted(run_train, tmp_path, "trainer.checkpoint_every_s=0")
    path = folder / "checkpoints" / "last.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # torch.load alone would not notice
    path.write_bytes(content)
    monkeypatch.undo()
    with caplog.at_level("WARNING", logger="feedrate"):
        resumed = run_train(*SETTINGS, f"trainer.resume={folder}")
    assert "last.pt: is damaged" in caplog.text
    same_run(resumed, undisturbed)


def test_other_data_and_another_model_are_refused_with_the_difference(run_train, tmp_path, stop_after, monkeypatch):
    stop_after(3)
    folder = interrupted(run_train, tmp_path)
    monkeypatch.undo()
    changed = r"the data has changed since the checkpoint \(training samples 256 then, 200 now.*\n.*resume_changed=true"
    with pytest.raises(UserError, match=changed):
        run_train(*SETTINGS, f"trainer.resume={folder}", "dataset.limit=200")
    with pytest.raises(UserError, match=r"weights do not fit MLP: .*layers\."):
        run_train(*SETTINGS, f"trainer.resume={folder}", "model.hidden=[9]")
    with pytest.raises(UserError, match="the optimizer or the scheduler has changed"):
        run_train(*SETTINGS, f"trainer.resume={folder}", "optimizer=sgd")
    with pytest.raises(UserError, match="no run folder, no checkpoint and no id of a run"):
        run_train(*SETTINGS, "trainer.resume=nowhere")


def test_another_seed_is_refused_by_name_where_it_also_decides_what_is_held_out(
    run_train, tmp_path, stop_after, monkeypatch
):
    monkeypatch.syspath_prepend(ROOT / "tests/dataset")
    own = ("dataset=squares", "model=mlp", "loader.batch_size=4")
    stop_after(3)
    with pytest.raises(Interrupted):
        run_train(*own)
    monkeypatch.undo()
    with pytest.raises(UserError, match="the run began with seed=0, and seed=3 .*; set seed=0"):
        run_train(*own, f"trainer.resume={tmp_path}/run1", "seed=3", "trainer.resume_changed=true")


def test_other_settings_that_change_the_result_are_taken_with_a_note(
    run_train, tmp_path, stop_after, monkeypatch, caplog
):
    stop_after(3)
    folder = interrupted(run_train, tmp_path)
    monkeypatch.undo()
    fetching = ("loader.num_workers=1", "trainer.log_every=7", "trainer.max_epochs=3", "optimizer.lr=0.1")
    with pytest.raises(UserError, match="the data has changed"):
        run_train(*SETTINGS, *fetching, f"trainer.resume={folder}", "dataset.limit=200")
    assert "than the run began with: dataset.limit was 256, is 200" in caplog.text
    caplog.clear()
    run_train(*SETTINGS, *fetching, f"trainer.resume={folder}", "trainer.accumulate=2", "model.dropout=0.3")
    assert [text for text in caplog.messages if "than the run began with" in text] == [
        "note: from here on with other settings than the run began with: "
        "model.dropout was 0.2, is 0.3; trainer.accumulate was 1, is 2"
    ]


def test_other_data_is_taken_where_that_is_allowed(run_train, tmp_path, stop_after, monkeypatch):
    stop_after(11)
    folder = interrupted(run_train, tmp_path)
    monkeypatch.undo()
    resumed = run_train(*SETTINGS, f"trainer.resume={folder}", "dataset.limit=200", "trainer.resume_changed=true")
    assert resumed["status"] == "FINISHED"
    assert last(folder)["step"] == 11 + 7  # the interrupted epoch begins again, over the 200 samples
    assert last(folder)["meter"]["samples"] == 200


def test_the_learning_rate_that_is_typed_is_taken_where_that_is_asked_for(
    run_train, tmp_path, undisturbed, stop_after, monkeypatch, caplog
):
    stop_after(5)
    folder = interrupted(run_train, tmp_path)
    shutil.copytree(folder, tmp_path / "run-copy")
    monkeypatch.undo()
    typed = ("optimizer.lr=0.0003", "optimizer.weight_decay=0.5")
    kept = run_train(*SETTINGS, f"trainer.resume={folder}", *typed)
    said = [text for text in caplog.messages if "is not used: the run keeps" in text]
    assert len(said) == 2
    assert any(text.startswith("note: optimizer.lr=0.0003 is not used: the run keeps 0.003,") for text in said)
    same_run(kept, undisturbed)
    caplog.clear()
    folder = tmp_path / "run-copy"
    taken = run_train(*SETTINGS, f"trainer.resume={folder}", *typed, "trainer.resume_optimizer=false")
    assert "is not used" not in caplog.text
    group = last(folder)["optimizer"]["param_groups"][0]
    assert (group["initial_lr"], group["weight_decay"]) == (0.0003, 0.5)
    assert last(folder)["optimizer"]["state"][0]["step"] == 16 - 5  # the running means began again
    for mine, other in zip(taken["history"], undisturbed["history"], strict=True):  # the schedule is where it was
        assert mine["train/learning_rate"] == pytest.approx(other["train/learning_rate"] / 10)
    assert taken["order_digest"] == undisturbed["order_digest"]


def test_another_optimizer_and_scheduler_are_taken_where_that_is_asked_for(
    run_train, tmp_path, stop_after, monkeypatch
):
    stop_after(11)
    folder = interrupted(run_train, tmp_path)
    monkeypatch.undo()
    own = ("optimizer=sgd", "scheduler._target_=torch.optim.lr_scheduler.StepLR", "+scheduler.step_size=1")
    with pytest.raises(UserError, match=r"has changed; .*those of now: trainer.resume_optimizer=false"):
        run_train(*SETTINGS, f"trainer.resume={folder}", *own)
    resumed = run_train(*SETTINGS, f"trainer.resume={folder}", *own, "trainer.resume_optimizer=false")
    assert resumed["history"][1]["train/learning_rate"] == pytest.approx(0.1 * 0.1)  # one epoch was there before
    assert "momentum_buffer" in last(folder)["optimizer"]["state"][0]


@pytest.mark.parametrize(
    ("scheduler", "typed", "said"),
    [
        (("scheduler=plateau",), "scheduler.patience=9", "scheduler.patience=9 is not used: the run keeps 3,"),
        (
            ("scheduler=one_cycle",),
            "scheduler.max_lr=0.5",
            "scheduler.max_lr=0.5 is not used: the run keeps 0.003,",
        ),
        (("scheduler=none",), "optimizer.lr=0.5", "optimizer.lr=0.5 is not used: the run keeps 0.003,"),
    ],
    ids=["plateau", "one cycle", "none"],
)
def test_settings_that_a_checkpoint_brings_back_are_said_and_no_others(
    run_train, tmp_path, stop_after, monkeypatch, caplog, scheduler, typed, said
):
    stop_after(9)
    folder = interrupted(run_train, tmp_path, *scheduler)
    shutil.copytree(folder, tmp_path / "run-copy")
    monkeypatch.undo()
    run_train(*SETTINGS, *scheduler, f"trainer.resume={folder}")
    assert "is not used" not in caplog.text
    run_train(*SETTINGS, *scheduler, f"trainer.resume={tmp_path}/run-copy", typed)
    assert [text for text in caplog.messages if "is not used" in text] == [
        f"note: {said} as its checkpoint has it; trainer.resume_optimizer=false takes what is set now"
    ]


@pytest.fixture
def stop_in(monkeypatch):
    """Stops the next run as a signal would, at a call of one of the trainer's methods."""

    def stop(method: str, when) -> None:
        original = getattr(Trainer, method)

        def called(self, *arguments):
            if when(self.state):
                self._stop.signum = signal.SIGTERM
            return original(self, *arguments)

        monkeypatch.setattr(Trainer, method, called)

    return stop


def test_it_goes_on_from_the_very_end_of_an_epoch(run_train, tmp_path, undisturbed, stop_in, monkeypatch):
    stop_in("_save", lambda state: state.phase == "done" and state.epoch == 0)
    folder = interrupted(run_train, tmp_path)
    assert last(folder)["phase"] == "done"
    monkeypatch.undo()
    same_run(run_train(*SETTINGS, f"trainer.resume={folder}"), undisturbed)


def test_a_validation_that_is_interrupted_twice_is_repeated_as_it_was(
    run_train, tmp_path, undisturbed, stop_in, monkeypatch
):
    stop_in("evaluate", lambda state: state.epoch == 0)
    folder = interrupted(run_train, tmp_path)
    with pytest.raises(Interrupted):
        run_train(*SETTINGS, f"trainer.resume={folder}")
    assert last(folder)["phase"] == "validation"
    monkeypatch.undo()
    same_run(run_train(*SETTINGS, f"trainer.resume={folder}"), undisturbed)


def test_a_kill_between_the_two_checkpoints_of_an_epoch_s_end_loses_neither(
    run_train, tmp_path, undisturbed, monkeypatch
):
    def killed(folder, name, other):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "copy", killed)
    with pytest.raises(KeyboardInterrupt):
        run_train(*SETTINGS)
    monkeypatch.undo()
    folder = max(tmp_path.glob("run*"))
    assert not (folder / "checkpoints/best.pt").exists()
    resumed = run_train(*SETTINGS, f"trainer.resume={folder}")
    same_run(resumed, undisturbed)
    best, expected = (checkpoint.load(run["folder"] / "checkpoints/best.pt") for run in (resumed, undisturbed))
    assert best["epoch"] == expected["epoch"]
    assert all(torch.equal(best["model"][name], value) for name, value in expected["model"].items())


@pytest.mark.parametrize(("batch_size", "steps"), [(48, 3 + 4 + 6), (20, 3 + 8 + 13)])
def test_with_another_batch_size_it_goes_on_at_the_sample_where_it_was(
    run_train, tmp_path, undisturbed, stop_after, monkeypatch, batch_size, steps
):
    schedule = ("scheduler=one_cycle", "scheduler.interval=step")  # it refuses a step more than it was made for
    stop_after(3)
    folder = interrupted(run_train, tmp_path, *schedule)
    assert last(folder)["loader"]["position"] == 96
    monkeypatch.undo()
    resumed = run_train(*SETTINGS, *schedule, f"trainer.resume={folder}", f"loader.batch_size={batch_size}")
    assert last(folder)["step"] == steps
    assert last(folder)["meter"]["samples"] == 256
    # over the IDs of all samples in their order: none left out, none twice
    assert resumed["order_digest"] == undisturbed["order_digest"]


def test_a_run_that_was_stopped_early_goes_on_with_more_steps_allowed(run_train, undisturbed):
    first = run_train(*SETTINGS, "trainer.max_steps=8")
    assert first["stopped"] == "stopped at trainer.max_steps=8"
    resumed = run_train(*SETTINGS, f"trainer.resume={first['folder']}")
    assert (resumed["stopped"], resumed["epochs"]) == ("", 2)
    assert resumed["order_digest"] == undisturbed["order_digest"]


def test_a_run_with_nothing_left_to_train_says_why(run_train, caplog):
    first = run_train(*SETTINGS)
    caplog.set_level("INFO", logger="feedrate")
    run_train(*SETTINGS, f"trainer.resume={first['folder']}", "trainer.max_steps=80")
    assert "nothing was left to train: trainer.max_epochs=2 is reached" in caplog.messages
    assert "" not in caplog.messages


def start(folder: Path, data: Path, *extra: str) -> subprocess.Popen[str]:
    arguments = [
        f"hydra.run.dir={folder}",
        f"dataset.root={data}",
        *("tracking=none", "model=simulated", "model.step_ms=150", "trainer.max_epochs=2"),
        *("loader.num_workers=2", "loader.batch_size=32", "dataset.limit=640"),
        *extra,
    ]
    return subprocess.Popen(
        [sys.executable, "src/train.py", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def group_is_gone(number: int) -> bool:
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_whole_group_ends_in_a_checkpoint_and_leaves_nothing(tmp_path, digits, signum, code):
    process = start(tmp_path / "run", digits, "trainer.checkpoint_every_s=0", "trainer.max_epochs=1000")
    until((tmp_path / "run/checkpoints/last.pt").exists)
    os.killpg(process.pid, signum)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == code, output
    assert "Traceback" not in output
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "KILLED"
    assert not (tmp_path / "run/lock").exists()
    until(lambda: group_is_gone(process.pid))  # no process is left in it


@pytest.mark.slow
def test_after_SIGKILL_the_next_command_marks_the_run_and_goes_on(tmp_path, digits):
    whole = start(tmp_path / "whole", digits)
    process = start(tmp_path / "runs/run", digits, "trainer.checkpoint_every_s=0")
    until((tmp_path / "runs/run/checkpoints/last-1.pt").exists)
    process.kill()
    process.communicate()
    summary = tmp_path / "runs/run/summary.json"
    assert json.loads(summary.read_text())["status"] == "RUNNING"
    resumed = start(tmp_path / "runs/again", digits, "trainer.resume=auto")
    output, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, output
    assert "resuming run after" in output
    assert json.loads(summary.read_text())["status"] == "FINISHED"
    assert not (tmp_path / "runs/again").exists()
    assert whole.wait(timeout=300) == 0
    undisturbed = json.loads((tmp_path / "whole/summary.json").read_text())
    same_run(
        {**json.loads(summary.read_text()), "folder": tmp_path / "runs/run"},
        {**undisturbed, "folder": tmp_path / "whole"},
    )


@pytest.mark.parametrize("scheduler", ["none", "plateau"])
def test_a_run_that_max_steps_stopped_within_an_epoch_goes_on_in_that_epoch(run_train, scheduler):
    settings = ("loader.batch_size=16", f"scheduler={scheduler}", "trainer.max_epochs=3")  # 16 steps in an epoch
    whole = run_train(*settings, "trainer.max_steps=40")
    part = run_train(*settings, "trainer.max_steps=20")
    assert part["stopped"] == "stopped at trainer.max_steps=20"
    resumed = run_train(*settings, "trainer.max_steps=40", f"trainer.resume={part['folder']}")
    assert resumed["order_digest"] == whole["order_digest"]
    assert resumed["epochs"] == whole["epochs"] == 3
    same = ("train/loss", "train/accuracy", "validation/loss", "validation/accuracy", "train/learning_rate")
    for then, now in zip(whole["history"], resumed["history"], strict=True):
        assert {name: now[name] for name in same} == {name: then[name] for name in same}
