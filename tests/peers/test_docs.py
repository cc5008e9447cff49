"""The examples of docs/elsewhere.md run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from ignite.engine.deterministic import DeterministicEngine
from test_lightning import Model

from loader.datasets import Drawn

TEXT = (Path(__file__).resolve().parents[2] / "docs/elsewhere.md").read_text()
LEADING, *SECTIONS = re.split(r"^## ", TEXT, flags=re.MULTILINE)


def code(text: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("section", SECTIONS, ids=[section.partition("\n")[0] for section in SECTIONS])
def test_the_examples_run(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[int] = []
    model: Any = Model()
    names: dict[str, Any] = {"data": Drawn(), "model": model, "lightning": lightning, "seen": seen}
    names |= {"step": lambda engine, batch: seen.append(len(batch[1])), "DeterministicEngine": DeterministicEngine}
    if section.startswith("accelerate"):
        model = torch.nn.Linear(4, 1)
        names |= {"model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.1)}
    if section.startswith("ignite"):
        engine = DeterministicEngine(lambda *_: None)
        engine.run(range(2), max_epochs=1)
        names["state"] = engine.state_dict()
        names["state"] |= {"epoch_length": 1, "max_epochs": 3}
    text = code(LEADING) + code(section)
    exec(compile(text, "docs/elsewhere.md", "exec"), names)
    assert names["loader"].order_digest() != names["Loader"](Drawn(), 64, True, seed=0).order_digest()
