"""Every mistake ends in one to three lines with the value, the rule and the remedy, exit code 1, and no traceback."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import forked
from feedrate.cli.launch import describe, plain
from feedrate.errors import SampleError, UserError
from feedrate.runs.run_folder import RunFolder
from saved_run import composed_with_hydra

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "src/train.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **(environment or {})},
    )


@pytest.fixture(scope="module")
def answers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What the commands of the two tests below answer, by the test's name."""
    runs = tmp_path_factory.mktemp("runs")
    before = set(ROOT.glob("outputs/runs/*"))

    def arguments(test: pytest.Function) -> list[str]:
        begins = ["tracking=none", f"hydra.run.dir={runs}/{test.callspec.id}"] if "torch" in test.name else []
        return ["src/train.py", *begins, *test.callspec.params["arguments"]]

    chosen = [t for t in request.session.items if t.module is request.module and "answers" in t.fixturenames]
    found = forked.answers([arguments(test) for test in chosen])
    by_name = {test.name: answer for test, answer in zip(chosen, found, strict=True)}
    return SimpleNamespace(by_name=by_name, left=set(ROOT.glob("outputs/runs/*")) - before)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["loader.num_wokers=8"], ["loader.num_wokers is not a key", "did you mean num_workers?"]),
        (["+loader.num_wokers=8"], ["loader.num_wokers is not a key", "did you mean num_workers?"]),
        (["loader=nope"], ["loader=nope: no such option", "Options of loader: feedrate, torch"]),
        (["loader=feedrat"], ["did you mean feedrate?"]),
        (["loader.num_workers=abc"], ["loader.num_workers=abc: must be a whole number or 'auto'"]),
        (["loader.num_workers=-1"], ["loader.num_workers=-1: must be at least 0"]),
        (["loader.num_workers=1.5"], ["loader.num_workers=1.5: must be a whole number"]),
        (["loader.num_workers=true"], ["loader.num_workers=true: must be a whole number"]),
        (["loader.batch_size=0"], ["loader.batch_size=0: must be at least 1"]),
        (["loader.batch_size=null"], ["loader.batch_size=null: must be a whole number"]),
        (["trainer.precision=half"], ["trainer.precision=half: must be 'auto', 'bf16', 'fp16' or 32"]),
        (["traner.max_epochs=3"], ["traner.max_epochs: there is no traner", "did you mean trainer?"]),
        (["optimizer.lr=-1"], ["optimizer.lr=-1: must be greater than 0"]),
        (["dataset=tensor_files"], ["dataset.root is missing"]),
        (["seed=${nope}"], ["seed: Interpolation key 'nope' not found"]),
        (["loader.num_workers=1,2"], ["several values make a sweep, which needs -m"]),
        (["--num_workers", "8"], ["--num_workers", "GROUP.KEY=VALUE"]),
        (["loader.num_workers", "8"], ["loader.num_workers has no value"]),
        (["model="], ["model= has no value"]),
        (["model.channels=[32"], ["model.channels=[32: its value cannot be read; lists are written"]),
        (["dataset.root=/data/Möwen"], ["letters beyond a to z in quotes: 'dataset.root=\"TEXT\"'"]),
        (["~trainer", "trainer.max_epochs=1"], ["trainer.max_epochs: there is no trainer"]),
        (["~dataset"], ["dataset._target_=null: must be"]),
        (["debug=one_batch", "loader.batch_size=abc"], ["error: loader.batch_size=abc: must be a whole number"]),
        (["tracking.experiment=2024"], ["must be a text; write 'tracking.experiment=\"2024\"' on the command line"]),
        (["tracking.run_name=1e5"], ['\'tracking.run_name="1e5"\' on the command line, "1e5" in a file']),
        (["tracking.run_name=lr=0.1"], ["a text with '=', brackets, commas", "'tracking.run_name=\"TEXT\"'"]),
        (["dataset.root="], ["dataset.root= has no value", "dataset.root=null"]),
        (["loader.num_workers=0", "--cfg", "jobs", "seed=3"], ["argument --cfg/-c: invalid choice: 'jobs'"]),
        (["experiment=nope"], ["experiment=nope: no such option", "digits_mlp"]),
        (["hydra.run.dir=/dev/null/x"], ["Not a directory: '/dev/null/x'"]),
        (["hydra.run.dir="], ["hydra.run.dir= has no value"]),
        (["hydra.run.dir=null"], ["hydra.run.dir=null"]),
        (["-m", "seed=0,1", "hydra.sweep.dir=/dev/null/x"], ["Not a directory: '/dev/null/x'"]),
        (["-m", "seed=0,1", "hydra.launcher.jobs=1,2"], ["hydra.launcher.jobs=1,2"]),
        (["-m", "seed=0,1", "hydra.launcher.joobs=2"], ["hydra.launcher.joobs is not a key", "did you mean jobs?"]),
        (
            ["-m", "experiment=search_digits", "hydra.sweeper.space.optimizer.lrr.low=1"],
            ["hydra.sweeper.space.optimizer.lrr.low", "did you mean lr?"],
        ),
        (["-m", "experiment=search_digits", "hydra.sweeper.n_trails=1"], ["did you mean n_trials?"]),
        (["seed=0,1", "-m", "hydra.launcher.joobs=2"], ["hydra.launcher.joobs is not a key", "did you mean jobs?"]),
    ],
)
def test_a_mistake_in_the_configuration_is_answered_before_any_work(answers, request, arguments, parts):
    done = answers.by_name[request.node.name]
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert 1 <= len(lines) <= 3, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stdout == ""
    assert not answers.left
    for part in parts:
        assert part in done.stderr


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["trainer.device=xpu:7"], ["trainer.device=xpu:7: this machine has", "set trainer.device=auto"]),
        (["dataset=tensor_files", "dataset.root=/nowhere"], ["dataset.root=/nowhere: no such folder"]),
        (["model._target_=nowhere.Net"], ["model._target_=nowhere.Net: cannot be imported"]),
    ],
    ids=["device", "root", "target"],
)
def test_a_mistake_that_needs_torch_to_be_found_reads_the_same_way(answers, request, arguments, parts):
    done = answers.by_name[request.node.name]
    assert done.returncode == 1
    assert 1 <= len(done.stderr.strip().splitlines()) <= 3, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Three commands in one go: with flags among the overrides, with a folder of the user's, and with a run in use."""
    named, owner = tmp_path_factory.mktemp("named"), RunFolder(tmp_path_factory.mktemp("used"))
    before = set(ROOT.glob("outputs/runs/*"))
    commands = [
        ["loader.batch_size=3", "--cfg", "job", "seed=4", "-p", "loader", "loader.timeout=5"],
        ["loader.batch_size=0", f"hydra.run.dir={named}"],
        ["tracking=none", f"trainer.resume={owner.path}"],
    ]
    try:
        flags, refused, used = forked.answers([["src/train.py", *command] for command in commands])
    finally:
        owner.release()
    left = set(ROOT.glob("outputs/runs/*")) - before
    return SimpleNamespace(flags=flags, refused=refused, used=used, named=named, owner=owner, left=left)


def test_flags_of_hydra_may_stand_among_the_overrides(others):
    assert (others.flags.returncode, others.flags.stderr) == (0, "")
    assert "batch_size: 3" in others.flags.stdout
    assert "timeout: 5" in others.flags.stdout


def test_a_folder_that_the_user_named_stays_when_the_run_never_began(others):
    assert others.refused.returncode == 1
    assert others.named.is_dir()


def test_a_run_in_use_is_not_gone_on_with_and_leaves_no_folder(others):
    assert others.used.returncode == 1
    path = others.owner.path
    assert f"trainer.resume={path}: process {os.getpid()} uses this run folder" in others.used.stderr
    assert not others.left
    assert list(path.iterdir()) == []


FAULTS = {
    "tab": ("# @package _global_\nmodel:\n\thidden: [3]\n", "line 3: "),
    "open": ("# @package _global_\nmodel: [1, 2\n", "line 3: "),
    "twice": ("# @package _global_\nseed: 1\nseed: 2\n", "found duplicate key seed"),
    "indented": ("# @package _global_\nmodel:\n  width: 1\n   depth: 3\n", "line 4: "),
    "documents": ("seed: 1\n---\nseed: 2\n", "line 2: expected a single document"),
    "alias": ("# @package _global_\nseed: *one\n", "line 2: found undefined alias 'one'"),
    "brace": ("# @package _global_\n\nseed: ${a\n", "line 3: "),
    "latin": ("# @package _global_\n# M\xf6we\n", "line 2: 'utf-8' codec"),
    "bare": ("trainer:\n  max_epochs: 3\n", "line 1: `# @package _global_` must stand there"),
    "choosing": ("defaults:\n  - override /model: mlp\n", "line 1: `# @package _global_` must stand there"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_file_of_the_configuration_names_file_and_line(tmp_path, monkeypatch, name):
    text, said = FAULTS[name]
    (tmp_path / "experiment").mkdir()
    (tmp_path / f"experiment/{name}.yaml").write_bytes(text.encode("latin-1"))
    overrides = [f"hydra.searchpath=[file://{tmp_path}]", f"experiment={name}"]
    monkeypatch.setattr(sys, "argv", ["train.py", *overrides])
    with pytest.raises(Exception) as caught, composed_with_hydra("train", *overrides) as config:
        plain(config)
    lines = describe(caught.value).splitlines()
    assert lines[0].startswith(f"{tmp_path}/experiment/{name}.yaml")
    assert said in lines[0]
    assert len(lines) == 1


def test_a_run_that_is_not_gone_on_with_since_its_data_has_changed_says_so_and_leaves_no_folder(digits, tmp_path):
    own = ["tracking=none", "model=mlp", "loader.num_workers=0", f"dataset.root={digits}"]
    assert command(*own, "dataset.limit=100", "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}/run").returncode == 0
    before = set(ROOT.glob("outputs/runs/*"))
    done = command(*own, "dataset.limit=90", "trainer.max_epochs=2", f"trainer.resume={tmp_path}/run")
    assert done.returncode == 1
    assert done.stderr.startswith("error: trainer.resume: the data has changed since the checkpoint (")
    assert len(done.stderr.splitlines()) == 2
    assert set(ROOT.glob("outputs/runs/*")) == before


def test_cuda_without_one_says_so(run_train):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA, so that asking for it is no mistake")
    with pytest.raises(UserError, match=r"trainer.device=cuda: this machine has .*set trainer.device=auto"):
        run_train("trainer.device=cuda")


def test_the_whole_traceback_is_shown_on_demand():
    done = command("loader.batch_size=0", environment={"HYDRA_FULL_ERROR": "1"})
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "loader.batch_size=0: must be at least 1" in done.stderr


class Harmful:
    """Makes a file when unpickled by something that runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def damage(kind: str, file: Path) -> None:
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:-200])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "text":
        file.write_text("this is no tensor")
    elif kind == "code":
        with zipfile.ZipFile(file) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in records.items():
                harmful = pickle.dumps(Harmful(file.parent / "harm"), protocol=2)
                archive.writestr(name, harmful if name.endswith("data.pkl") else content)
    elif kind == "shape":
        torch.save(torch.zeros(1, 9, 8, dtype=torch.uint8), file)
    elif kind == "dtype":
        torch.save(torch.zeros(1, 8, 8), file)


@pytest.fixture
def mine(tmp_path):
    """40 samples, of which 'id-13' will be damaged."""
    root = tmp_path / "mine"
    root.mkdir()
    ids = [f"id-{i:02d}" for i in range(40)]
    for i, ID in enumerate(ids):
        torch.save(torch.full((1, 8, 8), i, dtype=torch.uint8), root / f"{ID}.pt")
    (root / "partition.json").write_text(json.dumps({"train": ids[:32], "validation": ids[32:]}))
    (root / "labels.json").write_text(json.dumps({ID: i % 2 for i, ID in enumerate(ids)}))
    return root


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("truncated", "truncated"),
        ("empty", "empty"),
        ("text", "not a file that torch.save wrote"),
        ("code", "which is refused; restore it, save the tensor"),
        ("shape", "(1, 9, 8)"),
        ("dtype", "float32"),
    ],
)
def test_a_bad_sample_is_named_with_the_same_text_for_any_number_of_workers(run_train, mine, kind, rule):
    damage(kind, mine / "id-13.pt")
    texts = []
    for workers in (0, 2):
        with pytest.raises(SampleError) as caught:
            run_train("dataset=tensor_files", f"dataset.root={mine}", "loader.batch_size=8", "model=mlp",
                      f"loader.num_workers={workers}", "trainer.max_epochs=1")  # fmt: skip
        texts.append(str(caught.value))
        assert caught.value.ID == "id-13"
    assert texts[0] == texts[1]
    assert rule in texts[0]
    assert f"sample 'id-13' ({mine}/id-13.pt)" in texts[0]
    assert len(texts[0].splitlines()) <= 3
    assert "weights_only" not in texts[0]
    assert not (mine / "harm").exists()


def test_a_missing_file_is_found_before_training(run_train, mine):
    (mine / "id-13.pt").unlink()
    with pytest.raises(UserError, match=r"without a file.*'id-13'"):
        run_train("dataset=tensor_files", f"dataset.root={mine}")


def test_drop_last_that_leaves_no_batch_is_refused(run_train, mine):
    with pytest.raises(UserError, match=r"loader.drop_last=true with loader.batch_size=64 leaves no batch of the 32"):
        run_train("dataset=tensor_files", f"dataset.root={mine}", "loader.drop_last=true")
