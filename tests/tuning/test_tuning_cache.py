"""A tuned setting belongs to a dataset, a model, a batch size and a machine, and a typed key goes before it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from feedrate.errors import UserError
from feedrate.tuning import tuning_cache
from feedrate.tuning.tuning_cache import CachedSetting, check_folder, load, save, take

CONFIG: dict[str, Any] = {
    "dataset": {"_target_": "feedrate.dataset.Digits", "root": "data/digits", "name": None},
    "model": {"_target_": "feedrate.model.MLP", "hidden": [64]},
    "loader": {"batch_size": 64, "shuffle": True, "num_workers": 2, "engine": "auto", "prefetch_factor": None},
    "trainer": {"device": "auto", "precision": "auto", "compile": False, "num_threads": None, "max_epochs": 3},
}
FOUND = CachedSetting(
    date="2026-01-02",
    words="1 thread, 4 prefetched each: 900 samples/s, waited 0.1 %",
    data_digest="abc",
    overrides={"num_workers": 1, "engine": "thread", "prefetch_factor": 4},
    option="batch_size: 64\n",
)


def changed(group: str, key: str, value: Any) -> dict[str, Any]:
    config = deepcopy(CONFIG)
    config[group][key] = value
    return config


def test_it_is_found_again_whatever_setting_is_there_now(tmp_path: Path) -> None:
    assert load(CONFIG, tmp_path) is None
    save(CONFIG, FOUND, tmp_path)
    assert load(CONFIG, tmp_path) == FOUND
    for same in (
        changed("loader", "num_workers", 7),
        changed("trainer", "max_epochs", 9),
        changed("dataset", "name", "x"),
    ):
        assert load(same, tmp_path) == FOUND


@pytest.mark.parametrize(
    "other",
    [
        changed("dataset", "root", "data/other"),
        changed("model", "hidden", [65]),
        changed("loader", "batch_size", 65),
        changed("trainer", "device", "cuda"),
    ],
)
def test_another_question_has_no_answer_yet(tmp_path: Path, other: dict[str, Any]) -> None:
    save(CONFIG, FOUND, tmp_path)
    assert load(other, tmp_path) is None


def test_another_machine_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(CONFIG, FOUND, tmp_path)
    monkeypatch.setattr(tuning_cache.platform, "node", lambda: "elsewhere")
    assert load(CONFIG, tmp_path) is None


def test_a_damaged_file_is_none(tmp_path: Path) -> None:
    save(CONFIG, FOUND, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text()[:40])
    assert load(CONFIG, tmp_path) is None


def test_a_run_takes_it_only_with_loader_tuned_and_without_a_word_of_its_own(tmp_path: Path) -> None:
    save(CONFIG, FOUND, tmp_path)
    config = deepcopy(CONFIG)
    assert take(config, {"loader": "feedrate"}, [], tmp_path) == ""
    assert take(config, {"loader": "tuned"}, ["loader=tuned", "loader.num_workers=2"], tmp_path) == ""
    assert config == CONFIG
    said = take(config, {"loader": "tuned"}, ["loader=tuned", "trainer.max_epochs=3"], tmp_path)
    assert said == f"loader=tuned: {FOUND.words}, found on 2026-01-02 for this dataset and model"
    assert config["loader"] == {**CONFIG["loader"], **FOUND.overrides}


def test_a_run_that_finds_none_says_so_and_keeps_what_it_has(tmp_path: Path) -> None:
    config = deepcopy(CONFIG)
    assert take(config, {"loader": "tuned"}, [], tmp_path).startswith("note: loader=tuned was not tuned for this")
    assert config == CONFIG


def test_the_configuration_that_the_run_folder_keeps_is_that_of_what_is_used(tmp_path: Path) -> None:
    save(CONFIG, FOUND, tmp_path / "tuned")
    written = tmp_path / "config.yaml"
    OmegaConf.save(OmegaConf.create({**CONFIG, "seed": "${oc.env:SEED}"}), written)
    take(deepcopy(CONFIG), {"loader": "tuned"}, [], tmp_path / "tuned", written)
    kept = OmegaConf.to_container(OmegaConf.load(written))
    assert kept == {**CONFIG, "loader": {**CONFIG["loader"], **FOUND.overrides}, "seed": "${oc.env:SEED}"}


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "tuned").touch()
    said = rf"^{tmp_path}/tuned: cannot be written \(.*\); make room there or fix its permissions$"
    for attempt in (lambda: check_folder(tmp_path / "tuned"), lambda: save(CONFIG, FOUND, tmp_path / "tuned")):
        with pytest.raises(UserError, match=said):
            attempt()
