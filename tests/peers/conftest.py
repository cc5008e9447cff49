"""A Loader with a seed for the tests in other libraries, with each engine in turn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from own_loop import SETTINGS

from feedrate.loader import Loader
from loader.datasets import Drawn


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=["inline", "thread", "process"])
def made(request: pytest.FixtureRequest) -> Any:
    """Makes loaders, which are closed after the test."""
    workers = {} if request.param == "inline" else {"num_workers": 1, "engine": request.param}
    if request.param == "process":
        workers["multiprocessing_context"] = "fork"
    loaders: list[Loader[Any]] = []

    def make(**settings: Any) -> Loader[Any]:
        loaders.append(Loader(Drawn(), **{**SETTINGS, **workers, **settings}))
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()
