"""What a step does: accumulation, inputs, and errors that name the model or the samples."""

from __future__ import annotations

import json

import pytest
import torch

from feedrate.errors import UserError
from feedrate.trainer import checkpoint
from feedrate.trainer.step import AccumulationWindow


def weights(summary):
    return checkpoint.load(summary["folder"] / "checkpoints" / "last.pt")["model"]


SGD = (
    "model=mlp",
    "model.dropout=0.0",
    "optimizer=sgd",
    "optimizer.momentum=0.0",
    "optimizer.nesterov=false",
    "scheduler=none",
    "loader.shuffle=false",
)


@pytest.mark.parametrize(
    ("large", "small"),
    [
        (
            "dataset.limit=80 loader.batch_size=64",
            "loader.batch_size=16 trainer.accumulate=4",
        ),  # the last window is short
        ("dataset.limit=40 loader.batch_size=40", "loader.batch_size=24 trainer.accumulate=2"),  # the last batch is
        ("dataset.limit=88 loader.batch_size=80 loader.drop_last=true", "loader.batch_size=16 trainer.accumulate=5"),
        ("dataset.limit=80 loader.batch_size=48 trainer.max_steps=3", "loader.batch_size=16 trainer.accumulate=3"),
        ("dataset.limit=40 loader.batch_size=40 trainer.clip_norm=0.1", "loader.batch_size=24 trainer.accumulate=2"),
    ],
)
def test_each_optimizer_step_is_the_mean_over_the_samples_of_its_window(run_train, large, small):
    once = run_train(*SGD, "optimizer.lr=0.5", *large.split())
    kept = [setting for setting in large.split() if not setting.startswith("loader.batch_size")]
    accumulated = run_train(*SGD, "optimizer.lr=0.5", *kept, *small.split())
    assert (
        checkpoint.load(once["folder"] / "checkpoints" / "last.pt")["step"]
        == (checkpoint.load(accumulated["folder"] / "checkpoints" / "last.pt")["step"])
    )
    for name, tensor in weights(once).items():
        torch.testing.assert_close(weights(accumulated)[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_window_holds_its_gradients_as_a_gradient_scaler_expects_them():
    weight = torch.nn.Parameter(torch.ones(1))
    scaler, window = torch.amp.GradScaler("cpu", init_scale=1024.0), AccumulationWindow(4)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    for batch in (torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0])):
        scaler.scale(window.scale((weight * batch).mean(), len(batch))).backward()
    window.rescale([weight])
    scaler.step(optimizer)
    assert weight.item() == pytest.approx(1 - 16 / 4)


def test_a_run_resumed_with_fewer_steps_than_it_has_made_makes_no_other(run_train):
    run = run_train(*SGD, "loader.batch_size=64", "trainer.max_epochs=1")  # 4 steps
    resumed = run_train(*SGD, "loader.batch_size=64", f"trainer.resume={run['folder']}", "trainer.max_steps=2",
                        "trainer.max_epochs=2")  # fmt: skip
    assert checkpoint.load(resumed["folder"] / "checkpoints" / "last.pt")["step"] == 4
    assert resumed["stopped"] == "stopped at trainer.max_steps=2"


def test_a_rest_that_does_not_fill_the_window_is_used_too(run_train):
    summary = run_train("trainer.max_epochs=1", "trainer.accumulate=3", "loader.batch_size=64", "dataset.limit=256")
    state = checkpoint.load(summary["folder"] / "checkpoints" / "last.pt")
    assert state["step"] == 2  # 4 batches: a window of three, and one of one


def test_a_model_that_does_not_fit_the_data_is_named(run_train):
    with pytest.raises(UserError, match=r"model: Linear failed on X of shape \(64, 1, 8, 8\)"):
        run_train("model._target_=torch.nn.Linear", "+model.in_features=64", "+model.out_features=10")


def test_a_module_with_lazy_parameters_is_refused_in_one_line(run_train):
    with pytest.raises(UserError, match="LazyLinear has parameters without a shape .* take sample_shape"):
        run_train("model._target_=torch.nn.LazyLinear", "+model.out_features=10")


def test_a_module_without_parameters_is_refused(run_train):
    with pytest.raises(UserError, match="Identity has no parameter that requires a gradient"):
        run_train("model._target_=torch.nn.Identity")


def test_what_is_no_module_is_refused(run_train):
    with pytest.raises(UserError, match="builds a Fraction, not a torch.nn.Module"):
        run_train("model._target_=fractions.Fraction")


def test_an_optimizer_of_torch_that_is_not_shipped_can_be_named(run_train):
    assert run_train("optimizer._target_=torch.optim.RMSprop", "trainer.max_epochs=1")["status"] == "FINISHED"


@pytest.mark.parametrize("target", ["torch.optim.LBFGS", "own_models.TwiceThrough"])
def test_an_optimizer_whose_step_needs_an_argument_is_refused_when_it_is_built(run_train, tmp_path, target):
    needed = "closure" if "LBFGS" in target else "loss, again"
    with pytest.raises(UserError, match=rf"optimizer._target_={target}: its step\(\) needs {needed},"):
        run_train(f"optimizer._target_={target}", "scheduler=none")
    assert not (tmp_path / "run1/checkpoints/last.pt").exists()


def test_an_optimizer_without_a_learning_rate_trains_without_a_scheduler_only(run_train):
    own = ("optimizer._target_=own_models.Signs", "model=mlp", "trainer.max_epochs=1")
    with pytest.raises(UserError, match="Signs has no learning rate.*; set scheduler=none"):
        run_train(*own)
    assert "train/learning_rate" not in run_train(*own, "scheduler=none")["metrics"]


def test_a_scheduler_of_torch_that_is_not_shipped_can_be_named(run_train):
    overrides = ("scheduler=plateau", "scheduler._target_=torch.optim.lr_scheduler.StepLR", "+scheduler.step_size=1")
    summary = run_train(*overrides, "+scheduler.gamma=0.5")
    assert summary["metrics"]["train/learning_rate"] == pytest.approx(0.0015)


def test_a_class_beyond_the_outputs_is_refused_naming_the_samples(run_train):
    with pytest.raises(UserError, match=r"dataset.num_outputs=4: the labels need at least 10"):
        run_train("dataset.num_outputs=4")


def write_folder(root, training, validation, dtype=torch.uint8):
    root.mkdir()
    IDs = [f"s{i}" for i in range(training + validation)]
    for ID in IDs:
        torch.save(torch.zeros(1, 8, 8, dtype=dtype), root / f"{ID}.pt")
    (root / "partition.json").write_text(json.dumps({"train": IDs[:training], "validation": IDs[training:]}))
    (root / "labels.json").write_text(json.dumps({ID: i % 2 for i, ID in enumerate(IDs)}))
    return root


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_samples_of_any_float_type_can_be_trained_on(run_train, tmp_path, dtype):
    root = write_folder(tmp_path / "data", 6, 2, dtype)
    summary = run_train("dataset=tensor_files", f"dataset.root={root}", "trainer.max_epochs=1")
    assert summary["status"] == "FINISHED"


def test_the_model_is_kept_also_where_one_sample_validates(run_train, tmp_path):
    root = write_folder(tmp_path / "data", 4, 1)
    overrides = ("dataset=tensor_files", f"dataset.root={root}", "tracking.log_model=true", "trainer.max_epochs=1")
    assert run_train(*overrides)["status"] == "FINISHED"
