"""A configuration that comes back may name only what is on the allow-list, and only whole checkpoints are used."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import evaluate
import predict
from feedrate.cli.targets import check_targets
from feedrate.errors import UserError
from feedrate.runs import restore
from feedrate.runs.evaluation_files import write_table
from feedrate.runs.saved import find_saved
from feedrate.trainer.state import data_of, facts_of
from saved_run import call, with_config


@pytest.mark.parametrize(
    "target",
    [
        "feedrate.model.CNN",
        "feedrate.dataset.Generated",
        "feedrate.dataset.tensor_files.TensorFiles",
        "torch.utils.data.DataLoader",
        "torch.nn.Linear",
        "torch.optim.AdamW",
        "torch.optim.lr_scheduler.StepLR",
    ],
)
def test_what_feedrate_and_torch_ship_is_allowed(target):
    node = {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": target}]}
    check_targets({"model": node})
    with pytest.raises(UserError, match="names code that Feedrate does not ship") as caught:
        check_targets({"model": {**node, "own": {"_target_": "os.system"}}})
    assert str(caught.value).startswith("model.own._target_=os.system: ")


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.open",
        "pathlib.Path.unlink",
        "torch.load",
        "torch.hub.load",
        "torch.nn.modules.linear.os.system",
        "torch.nn.init.ones_",
        "hydra.utils.get_method",
        "feedrate.cli.targets.build",
        "feedrate.runs.provenance.subprocess.run",
        "feedrate.runs.provenance.subprocess.Popen",
        "feedrate.tracking.uploader.UploaderProcess",
        "feedrate.nothing.here",
        "feedrate",
        "",
        "my_package.MyModel",
    ],
)
def test_nothing_else_is_allowed_at_any_depth_unless_the_user_names_it(target):
    node = {"_target_": "feedrate.model.CNN", "layers": [{"block": {"_target_": target}}]}
    with pytest.raises(UserError) as caught:
        check_targets({"model": node}, allow=["my_package.Other"])
    assert str(caught.value).startswith(f"model.layers.0.block._target_={target}: ")
    assert f"allow=[my_package.Other,{target}]" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    check_targets({"model": node}, allow=[target])


OWN = {"_target_": "own_models.Needy", "hidden": [8], "head": {"_target_": "packed_datasets.Halved"}}


def test_classes_in_the_files_of_this_repository_are_allowed_for_runs_that_it_made():
    nodes = {"model": OWN, "dataset": {"_target_": "packed_datasets.Noisy"}}
    check_targets(nodes, own=True)
    with pytest.raises(UserError) as caught:
        check_targets(nodes)
    named = "model._target_=own_models.Needy, model.head._target_=packed_datasets.Halved, "
    assert str(caught.value).startswith(f"{named}dataset._target_=packed_datasets.Noisy: ")
    assert str(caught.value).endswith("add allow=[own_models.Needy,packed_datasets.Halved,packed_datasets.Noisy]")


@pytest.mark.parametrize(
    "target",
    [
        "own_models.nn.Linear",  # a class of torch, found through one of ours
        "own_models.torch.hub.load",
        "saved_run.compose",  # a function may do anything
        "feedrate.runs.run_folder.RunFolder",
        "hydra_plugins.feedrate_launcher.FeedrateLauncher",
        "elsewhere_models.Net",
        "json.JSONDecoder",
        "pytest.MonkeyPatch",
        "os.system",
        "own_models",
    ],
)
def test_what_is_only_reached_through_this_repository_is_not_allowed(target, tmp_path, monkeypatch):
    (tmp_path / "elsewhere_models.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="names code that Feedrate does not ship"):
        check_targets({"model": {"_target_": target}}, own=True)


def test_a_run_with_own_classes_comes_back_without_being_asked_to_allow_them(run_train, monkeypatch):
    folder = with_config(run_train("model=mlp", "model._target_=own_models.Needy", "trainer.max_epochs=1"))
    saved = find_saved(str(folder), None)
    if not saved.summary["commit"]:
        pytest.skip("this copy is outside git, and the run's folder outside of it")
    _, state = restore.load_checkpoint(saved, "best")
    data = restore.open_data(saved, state, [], other_data=False)
    assert type(restore.load_model(saved, state, data, torch.device("cpu"))).__name__ == "Needy"
    foreign = replace(saved, summary={**saved.summary, "commit": "0" * 40})
    with pytest.raises(UserError, match=r"model._target_=own_models.Needy: .*allow=\[own_models.Needy\]"):
        restore.open_data(foreign, state, [], other_data=False)


def test_interpolations_and_targets_that_are_no_text_are_refused():
    with pytest.raises(UserError, match=r"model.name=\$\{oc.env:HOME\}: .*interpolation"):
        check_targets({"model": {"_target_": "feedrate.model.CNN", "name": "${oc.env:HOME}"}})
    with pytest.raises(UserError, match=r"model._target_.0=os, model._target_.1=system: "):
        check_targets({"model": {"_target_": ["os", "system"]}})


def test_a_run_comes_back_from_its_folder_with_data_and_weights(run_train, digits, tmp_path):
    folder = with_config(run_train("trainer.max_epochs=1"))
    saved = find_saved(str(folder), None)
    path, state = restore.load_checkpoint(saved, "best")
    assert path == folder / "checkpoints" / "best.pt"
    data = restore.open_data(saved, state, [], other_data=False)
    model = restore.load_model(saved, state, data, torch.device("cpu"))
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, state["model"][name])

    changed = saved.with_changes({"dataset": {"limit": 100}})
    with pytest.raises(UserError, match="the data is not that of the run .*\n.*other_data=true"):
        restore.open_data(changed, state, [], other_data=False)
    assert len(restore.open_data(changed, state, [], other_data=True).partition["train"]) == 100

    # with what the checkpoint says of the data, the samples of another folder need no training data
    facts = facts_of(data)
    assert facts_of(data_of(facts)) == facts
    torch.save(facts, tmp_path / "facts.pt")
    moved = saved.with_changes({"dataset": {"root": "/nowhere"}})
    said = {**state, "data": torch.load(tmp_path / "facts.pt", weights_only=True)}
    assert len(restore.open_folder(moved, said, str(digits), []).partition["train"]) == 1797
    with pytest.raises(UserError, match="no sample file"):
        restore.open_folder(moved, said, str(tmp_path / "run1" / ".hydra"), [])

    narrow = saved.with_changes({"model": {"channels": [4]}})
    with pytest.raises(UserError, match="weights do not fit CNN"):
        restore.load_model(narrow, state, data, torch.device("cpu"))

    foreign = saved.with_changes({"model": {"_target_": "os.system", "command": "true"}})
    with pytest.raises(UserError, match=r"model._target_=os.system: .*allow=\[os.system\]"):
        restore.open_data(foreign, state, [], other_data=False)

    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"best.pt: cannot be read as a checkpoint of Feedrate") as caught:
        restore.load_checkpoint(find_saved(str(path), None), "best")
    assert len(str(caught.value).splitlines()) == 1
    path.unlink()
    with pytest.raises(UserError, match="no such checkpoint; try weights=last"):
        restore.load_checkpoint(saved, "best")


def test_what_is_no_run_is_answered_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="no run folder, no checkpoint, and no run id"):
        find_saved("nothing", None)
    with pytest.raises(UserError, match=r"holds no .hydra/config.yaml"):
        find_saved(str(tmp_path), None)
    with pytest.raises(UserError, match="tracking.uri is null"):
        find_saved("0" * 32, None)
    with pytest.raises(UserError, match="there is no such run"):
        find_saved("0" * 32, str(tmp_path / "mlflow.db"))


def test_a_folder_that_is_named_to_an_evaluation_is_read_and_nothing_is_written_into_it(run_train, tmp_path):
    folder = with_config(run_train("trainer.max_epochs=1"))
    (tmp_path / "empty").mkdir()
    common = [f"run={folder}", "tracking=none"]
    for name, said in (("nowhere", "no such folder"), ("empty", "partition.json|no sample file")):
        own = [*common, f"dataset.root={tmp_path}/{name}"]
        with pytest.raises(UserError, match=f"{tmp_path}/{name}.*({said})"):
            call(evaluate.main, "evaluate", *own)
        with pytest.raises(UserError, match=f"{tmp_path}/{name}.*({said})"):
            call(predict.main, "predict", *own, f"output={tmp_path}/p.csv")
    for output, said in (("/dev/null/p.csv", "cannot be written"), (f"{tmp_path}/d.csv", "cannot be written")):
        (tmp_path / "d.csv").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=f"output={output}: {said}"):
            call(predict.main, "predict", *common, f"output={output}")
    assert not (tmp_path / "nowhere").exists()
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("key", ["run_id", "run", "checkpoint"])
def test_a_run_whose_name_is_empty_is_refused(key, tmp_path):
    for entry, name, own in ((evaluate.main, "evaluate", []), (predict.main, "predict", [f"output={tmp_path}/p.csv"])):
        with pytest.raises(UserError, match=f"names the run, one of them: {key}=$"):
            call(entry, name, f"{key}=", "tracking=none", *own)


def test_of_a_table_that_is_not_finished_nothing_is_left(tmp_path):
    def rows():
        yield {"id": "a"}
        raise UserError("a bad sample")

    with pytest.raises(UserError, match="a bad sample"):
        write_table(tmp_path / "new/deep/p.csv", rows())
    assert not list((tmp_path / "new/deep").iterdir())


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("loader.num_workers=5000", "at most 1024 or 'auto'"),
        ("trainer.device=gpu", "auto, cpu, cuda, mps or xpu, or one of several devices, such as cuda:1"),
    ],
)
def test_what_may_differ_from_the_run_keeps_the_rules_of_a_run(override, rule):
    for entry, name, own in ((evaluate.main, "evaluate", []), (predict.main, "predict", ["output=p.csv"])):
        with pytest.raises(UserError, match=f"{override}: must be {rule}"):
            call(entry, name, "run=nowhere", override, *own)
