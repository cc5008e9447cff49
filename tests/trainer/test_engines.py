"""A run is the same with every engine, records which one it was, and loads no sample that it does not train on."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from feedrate.trainer import checkpoint

SETTINGS = ("dataset=counted", "model=mlp", "loader.batch_size=4", "trainer.max_epochs=3")  # 8 batches
NUMBER = {"inline": 0, "thread": 2, "process": 2, "auto": 2}


@pytest.fixture
def trained(run_train, tmp_path):
    """Trains with an engine: the run's summary, its weights, and how often samples were requested."""

    def train(engine: str, *overrides: str):
        record = tmp_path / f"record of {engine}"
        workers = NUMBER[engine]
        settings = (*SETTINGS, f"loader.engine={engine}", f"loader.num_workers={workers}", f"dataset.record='{record}'")
        summary = run_train(*settings, *overrides)
        weights = checkpoint.load(summary["folder"] / "checkpoints/last.pt")["model"]
        return summary, weights, Counter(record.read_text().split())

    return train


def test_every_engine_trains_the_same_weights_on_the_same_order_and_loads_nothing_else(trained):
    alone, weights, requested = trained("inline")
    for engine in ("thread", "process", "auto"):
        summary, others, loaded = trained(engine)
        assert all(torch.equal(others[name], weights[name]) for name in weights)
        assert summary["order_digest"] == alone["order_digest"]
        assert loaded == requested  # nothing is prefetched after the last epoch
        assert summary["engine"] in (("thread", "process") if engine == "auto" else (engine,))
    assert alone["engine"] == "inline"


def test_nothing_is_made_ahead_where_the_number_of_steps_ends_the_run(trained):
    steps = ("trainer.max_steps=16", "trainer.max_epochs=9")
    assert trained("process", *steps)[2] == trained("inline", *steps)[2]
