"""The settings of a search: what is taken, and what is answered in one sentence before any job starts."""

from __future__ import annotations

import hydra
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from feedrate.cli.launch import CONF, _register_resolvers
from feedrate.errors import UserError
from hydra_plugins.feedrate_optuna._settings import checked, ends, in_words, override, ranges

LR = {"type": "float", "low": 1e-4, "high": 0.1, "log": True}
BATCH = {"type": "int", "low": 16, "high": 128, "step": 16}
MODEL = {"type": "categorical", "choices": ["mlp", "cnn"]}
WHOLE = {"study": "s", "metric": "validation/loss", "direction": "minimize", "n_trials": 3, "space": {"lr": LR}}


def test_the_three_kinds_of_ranges_become_optunas():
    found = ranges({"optimizer.lr": LR, "loader.batch_size": BATCH, "model": MODEL})
    assert list(found.values()) == [
        FloatDistribution(1e-4, 0.1, log=True),
        IntDistribution(16, 128, step=16),
        CategoricalDistribution(["mlp", "cnn"]),
    ]
    assert [in_words(space) for space in found.values()] == ["0.0001 to 0.1, log", "16 to 128, step 16", "mlp, cnn"]
    assert [ends(space) for space in found.values()] == [[1e-4, 0.1], [16, 128], ["mlp", "cnn"]]


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "hydra.sweeper.space is empty: give a key its range"),
        ({"lr": 0.1}, "space.lr=0.1: must be a mapping such as"),
        (
            {"lr": {**LR, "type": "flaot"}},
            "space.lr.type=flaot: must be float, int or categorical; did you mean float?",
        ),
        ({"lr": {**LR, "hihg": 1.0}}, "'hihg'"),
        ({"lr": {"type": "float", "low": 1.0}}, "'high'"),
        ({"lr": {**LR, "low": 0.1, "high": 0.01}}, "low=0.1, high=0.01"),
        ({"lr": {**LR, "low": 0.1}}, "low=0.1 must be less than high=0.1"),
        ({"lr": {**LR, "low": 0.0}}, "low=0.0"),
        ({"lr": {**LR, "step": 0.1}}, "step"),
        ({"lr": {**LR, "log": False, "step": -0.1}}, "step"),
        ({"lr": {**LR, "high": float("inf")}}, "space.lr.high=inf: must be a finite number"),
        ({"lr": {**LR, "low": "a"}}, "space.lr.low=a: must be a finite number"),
        ({"b": {**BATCH, "low": 16.5}}, "space.b.low=16.5: must be a whole number"),
        ({"b": {**BATCH, "step": 0}}, "step"),
        ({"m": {**MODEL, "choices": []}}, "choices"),
    ],
)
def test_a_range_that_is_none_is_answered_in_one_sentence(space, said):
    with pytest.raises(UserError) as raised:
        ranges(space)
    assert str(raised.value).startswith("hydra.sweeper.")
    assert said in str(raised.value)
    assert str(raised.value).count("\n") <= 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"direction": "up"}, "hydra.sweeper.direction=up: must be 'minimize' or 'maximize'"),
        ({"n_trials": 0}, "hydra.sweeper.n_trials=0: must be at least 1"),
        ({"n_trails": 3}, "hydra.sweeper.n_trails is not a key of this group; did you mean n_trials?"),
        ({"sampler": {"name": "TPESample"}}, "optuna.samplers.TPESample'; did you mean TPESampler?"),
        (
            {"pruner": {"name": "MedianPruner", "warmup": 1}},
            "hydra.sweeper.pruner.warmup: not taken by optuna.pruners.MedianPruner",
        ),
        ({"sampler": {"name": "os.system"}}, "optuna.samplers.os.system: cannot be imported"),
    ],
)
def test_a_wrong_setting_is_answered_in_one_sentence(change, said):
    with pytest.raises(UserError) as raised:
        checked({**WHOLE, **change})
    assert said in str(raised.value)


@given(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(["true", "null", "a\\", "a\\'", "it's", "a,b", "[1]", "${x}"]),
        st.floats(allow_nan=False),
        st.integers(),
        st.booleans(),
        st.none(),
    )
)
def test_every_value_reaches_the_configuration_as_it_is(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(override("key", value))
    assert parsed.value() == value
    assert type(parsed.value()) is type(value)
    assert not parsed.is_sweep_override()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["hydra.sweeper.space.optimizer.lr.low=0.01"], {"optimizer.lr": "0.01 to 0.1, log"}),
        (["~hydra.sweeper.space.optimizer.weight_decay"], {"optimizer.lr": "0.0001 to 0.1, log"}),
        (
            ["+hydra.sweeper.space.model={type: categorical, choices: [mlp, cnn]}", "hydra.sweeper.pruner=null"],
            {"model": "mlp, cnn"},
        ),
        (["~hydra.sweeper.pruner.n_startup_trials", "~hydra.sweeper.pruner.n_warmup_steps",
          "hydra.sweeper.pruner.name=NopPruner"], {"loader.batch_size": "16 to 128, step 16"}),
    ],
    ids=["bound", "key away", "key more", "pruner"],
)  # fmt: skip
def test_the_command_line_can_change_a_search_that_stands_in_a_file(overrides, expected):
    _register_resolvers()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("train", ["experiment=search_digits", *overrides], return_hydra_config=True)
    settings = OmegaConf.to_container(config.hydra.sweeper)
    settings.pop("_target_")
    _, found = checked(settings)
    words = {key: in_words(space) for key, space in found.items()}
    assert expected.items() <= words.items()
    assert ("optimizer.weight_decay" in words) == ("~hydra.sweeper.space.optimizer.weight_decay" not in overrides)


def test_ranges_in_groups_and_in_one_piece_mean_the_same():
    nested = {"optimizer": {"lr": LR}, "loader": {"batch_size": BATCH}, "model": MODEL, "model.width": BATCH}
    assert ranges(nested) == ranges(
        {"optimizer.lr": LR, "loader.batch_size": BATCH, "model": MODEL, "model.width": BATCH}
    )
    with pytest.raises(UserError, match=r"hydra.sweeper.space.optimizer.lr: .*'hihg'"):
        ranges({"optimizer": {"lr": {**LR, "hihg": 1}}})
