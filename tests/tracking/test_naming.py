"""A person can tell runs apart by their names."""

from __future__ import annotations

import pytest

from feedrate.tracking import run_name

CONFIG = {
    "model": {"_target_": "feedrate.model.MLP", "sizes": [64]},
    "dataset": {"_target_": "feedrate.dataset.Digits", "name": "digits"},
    "loader": {"num_workers": 2, "batch_size": 64},
}


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "mlp-digits-w2-b64"),
        (["loader.num_workers=2", "loader.batch_size=64"], "mlp-digits-w2-b64"),
        (["optimizer.lr=0.01", "seed=3"], "mlp-digits-w2-b64-lr0.01-seed3"),
        (["optimizer.lr=1e-3", "trainer.max_epochs=5"], "mlp-digits-w2-b64-lr1e-3-epochs5"),
        (["model=cnn", "loader=torch", "experiment=small/fast"], "cnn-digits-w2-b64-torch-fast"),
        (["loader.pin_memory=false", "trainer.compile=true"], "mlp-digits-w2-b64-pin_memory_false-compile_true"),
        (["trainer.precision=bf16", "+model.activation=gelu"], "mlp-digits-w2-b64-precision_bf16-activation_gelu"),
        (["dataset.root=/data/my files/big"], "mlp-digits-w2-b64-root_big"),
        (["~scheduler", "hydra.verbose=true", "tracking=none"], "mlp-digits-w2-b64"),
    ],
)  # fmt: skip
def test_the_name_says_what_was_chosen(overrides: list[str], name: str) -> None:
    assert run_name(CONFIG, overrides) == name


def test_option_names_and_missing_parts_will_do() -> None:
    assert run_name({"model": "cnn", "dataset": "generated"}) == "cnn-generated"
    assert run_name({}) == "run"


def test_a_long_name_is_cut() -> None:
    name = run_name(CONFIG, ["model.words=" + "x" * 300, "seed=1"])
    assert name == "mlp-digits-w2-b64-words_".ljust(60, "x")
