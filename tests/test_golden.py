"""Batches, weights and metrics of small runs are those in helpers/golden.json, with every engine, fresh and resumed.

Digests are compared exactly. Weights and metrics are compared with a tolerance, since their last bits depend on the
processor; within a test they are bitwise equal for all engines, fresh and resumed.

After a change that is meant to alter results: FEEDRATE_WRITE_GOLDEN=1 make test ARGS=tests/test_golden.py
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from packing import pack_folder, picture, write_folder

GOLDEN = Path(__file__).with_name("helpers") / "golden.json"
SMALL = (
    "loader.batch_size=16", "loader.content_digest=true", "model=mlp", "model.hidden=[16]", "scheduler=none",
    "trainer.max_epochs=2",
)  # fmt: skip
ENGINES = {
    "inline": ("loader.num_workers=0",),
    "thread": ("loader.num_workers=2", "loader.engine=thread"),
    "process": ("loader.num_workers=2", "loader.engine=process"),
}


def digits(tmp_path: Path, digits: Path) -> list[str]:
    return ["dataset.limit=100"]


def augmented(tmp_path: Path, digits: Path) -> list[str]:
    root = write_folder(tmp_path / "files", count=120)
    return ["dataset=tensor_files", "dataset._target_=golden.Augmented", f"dataset.root={root}"]


def generated(tmp_path: Path, digits: Path) -> list[str]:
    return ["dataset=generated", "dataset.size=100", "dataset.validation_size=20", "dataset.image_size=32"]


def packed(tmp_path: Path, digits: Path) -> list[str]:
    root = pack_folder(write_folder(tmp_path / "files", sample=lambda number: picture(number).float(), count=120))
    return ["dataset=packed", f"dataset.root={root}", "dataset.transform={_target_: golden.AddNoise}"]


def figures(summary: dict[str, Any]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What is recorded of a run, and its weights."""
    weights = torch.load(summary["folder"] / "checkpoints/last.pt", weights_only=True)["model"]
    metrics = {
        key: value
        for key, value in summary["history"][-1].items()
        if key.startswith(("train/", "validation/")) and "second" not in key and not key.endswith("_s")
    }
    return {
        "order_digest": summary["order_digest"],
        "content_digest": summary["content_digest"],
        "weights": sum(float(tensor.double().abs().sum()) for tensor in weights.values()),
        "metrics": metrics,
    }, weights


@pytest.mark.parametrize("make", [digits, augmented, generated, packed], ids=lambda make: make.__name__)
def test_results_are_those_recorded_with_every_engine_fresh_and_resumed(
    make: Callable[[Path, Path], list[str]], run_train: Callable[..., dict[str, Any]], tmp_path: Path, request: Any
) -> None:
    data = make(tmp_path, request.getfixturevalue("digits"))
    found, reference = figures(run_train(*data, *SMALL, *ENGINES["inline"]))
    for workers in ENGINES.values():
        fresh = run_train(*data, *SMALL, *workers)
        stopped = run_train(*data, *SMALL, *workers, "trainer.max_steps=9")  # within the second epoch
        resumed = run_train(*data, *SMALL, *workers, f"trainer.resume={stopped['folder']}")
        for summary in (fresh, resumed):
            again, weights = figures(summary)
            assert again == found
            assert all(torch.equal(weights[name], reference[name]) for name in reference)
    if os.environ.get("FEEDRATE_WRITE_GOLDEN"):
        recorded = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        GOLDEN.write_text(json.dumps({**recorded, make.__name__: found}, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())[make.__name__]
    assert found["order_digest"] == golden["order_digest"]
    if make is not generated:  # whose samples are computed: their last bits depend on the processor
        assert found["content_digest"] == golden["content_digest"]
    assert found["weights"] == pytest.approx(golden["weights"], rel=1e-4)
    assert found["metrics"] == pytest.approx(golden["metrics"], rel=1e-3, abs=1e-4)
