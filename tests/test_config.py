"""The configuration that is shipped passes its own rules, and each key of a schema stands in its YAML."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from feedrate import config
from feedrate.config import SHIPPED, DatasetConfig, TrackingConfig, TrainerConfig, check, common_keys
from feedrate.errors import UserError
from feedrate.validation import validate

CONF = Path(__file__).resolve().parents[1] / "conf"
GROUPS = ("dataset", "loader", "model", "optimizer", "scheduler")
OPTIONS = sorted(path for group in GROUPS for path in (CONF / group).glob("*.yaml"))


def keys(path: Path) -> dict:
    found = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_key_of_an_option_is_in_its_schema_and_every_key_of_the_schema_in_the_option(path):
    node = keys(path)
    if "_target_" not in node:
        assert node == {"scheduler": None}
        return
    target = node.pop("_target_")
    if target not in SHIPPED:  # an option of a user's own, checked against the signature of its class
        return
    schema = SHIPPED[target]
    wanted = common_keys(schema)
    if issubclass(schema, DatasetConfig):  # those of every dataset stand in one place
        every = keys(CONF / "every_dataset.yaml")
        assert set(every) | {"root"} == common_keys(DatasetConfig)
        wanted -= set(every)
        wanted = {k for k in wanted if k != "root" or "root" in node}
    assert set(node) == wanted


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("trainer/default", TrainerConfig),
        ("tracking/local", TrackingConfig),
        ("tracking/server", TrackingConfig),
        ("tracking/none", TrackingConfig),
    ],
)
def test_trainer_and_tracking_hold_exactly_the_keys_of_their_schema(name, schema):
    node = keys(CONF / f"{name}.yaml")
    assert set(node) == {f.name for f in fields(schema)}
    validate(schema, node, name)


def test_an_unknown_key_is_answered_with_the_nearest_and_all_valid_ones():
    node = keys(CONF / "trainer/default.yaml")
    with pytest.raises(
        UserError, match="trainer.max_epoch is not a key of this group; did you mean max_epochs"
    ) as caught:
        validate(TrainerConfig, {**node, "max_epoch": 3}, "trainer")
    assert "Valid keys: max_epochs, max_steps" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("max_epochs", 0, "at least 1"),
        ("max_epochs", "3", "a whole number"),
        ("label_smoothing", 1.0, "less than 1"),
        ("clip_norm", 0, "greater than 0"),
        ("device", "gpu", "auto, cpu, cuda, mps or xpu"),
        ("compile", "yes", "true or false"),
        ("precision", 16, "'auto', 'bf16', 'fp16' or 32"),
        ("clip_norm", float("inf"), "a finite number"),
        ("num_threads", 100_000, "at most 1024"),
        ("accumulate", 10**20, "less than 9223372036854775808"),
        ("resume", "", "a text that is not empty"),
    ],
)
def test_a_value_outside_its_range_is_answered_with_the_rule(key, value, rule):
    node = {**keys(CONF / "trainer/default.yaml"), key: value}
    with pytest.raises(UserError, match=f"trainer.{key}={value}: .*{rule}"):
        validate(TrainerConfig, node, "trainer")


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("num_workers", 1_000_000, "at most 1024"),
        ("prefetch_factor", 10**9, "at most 1024"),
        ("timeout", float("inf"), "a finite number"),
    ],
)
def test_a_number_that_no_system_bears_is_refused_before_work(key, value, rule):
    node = {**keys(CONF / "loader/torch.yaml"), key: value}
    target = node.pop("_target_")
    with pytest.raises(UserError, match=f"loader.{key}={value}: must be {rule}"):
        validate(SHIPPED[target], node, "loader")


@pytest.mark.parametrize(("value", "rule"), [([], "a list of at least 1"), (32, "a list")])
def test_a_rule_for_a_list_is_told_in_plain_words(value, rule):
    with pytest.raises(UserError, match=f"must be {rule}$"):
        validate(SHIPPED["feedrate.model.CNN"], {"channels": value, "dropout": 0.0}, "model")


def test_a_node_without_target_is_refused():
    whole = {
        "seed": 0,
        "dataset": {"root": "x"},
        **{group: {"_target_": "a.B"} for group in ("loader", "model", "optimizer")},
        "scheduler": None,
        "trainer": keys(CONF / "trainer/default.yaml"),
        "tracking": keys(CONF / "tracking/none.yaml"),
    }
    with pytest.raises(UserError, match="dataset._target_=null: must be an import path"):
        check(whole)


def test_configuration_is_checked_without_torch_and_mlflow():
    import subprocess
    import sys

    code = "import sys, feedrate.config, feedrate.cli.launch; print({'torch', 'mlflow', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=CONF.parent / "src", capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_paths_count_from_the_repository_root():
    assert config.resolve_path("data/digits") == CONF.parent / "data/digits"
    assert config.resolve_path("/data/mine") == Path("/data/mine")
