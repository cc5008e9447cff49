"""ignite's engines: order, random numbers, digest and exact resume are those of a loop of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from ignite.engine.deterministic import DeterministicEngine
from ignite.handlers import Checkpoint, DiskSaver
from own_loop import SETTINGS, digest, flat, values, whole

from feedrate.loader import Loader
from loader.datasets import Drawn

KINDS = {"engine": Engine, "deterministic": DeterministicEngine}
pytestmark = pytest.mark.parametrize("kind", KINDS)


def engine(kind: str, seen: list[Any]) -> Any:
    return KINDS[kind](lambda _, batch: seen.append(values(batch)))


def test_an_engine_delivers_what_a_loop_does(made: Any, kind: str) -> None:
    for settings in ({}, {"persistent_workers": True}):
        loader, seen = made(), []
        if settings and loader.num_workers == 0:
            continue
        if settings:
            loader = made(**settings)
        trainer = engine(kind, seen)
        trainer.run(loader, max_epochs=3)
        assert seen == flat(whole(3))
        assert trainer.state.dataloader.order_digest() == loader.order_digest() == digest(3)


def test_the_epoch_may_be_named_as_for_a_distributed_sampler(made: Any, kind: str) -> None:
    seen: list[Any] = []
    trainer, loader = engine(kind, seen), made()
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: loader.sampler.set_epoch(engine.state.epoch + 1))
    trainer.run(loader, max_epochs=2)
    assert seen == flat(whole(4)[2:])


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stop", range(1, 16))
def test_an_engine_goes_on_after_any_batch(kind: str, stop: int) -> None:
    """From the states of engine and loader, which ignite's Checkpoint saves; a DeterministicEngine goes to the batch
    itself, and gets the epoch.
    """
    before: list[Any] = []
    trainer, loader = engine(kind, before), Loader(Drawn(), **SETTINGS)
    saved: list[Any] = []

    def save(engine: Any) -> None:
        saved.extend([engine.state_dict(), loader.state_dict()])
        engine.terminate()

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=stop), save)
    trainer.run(loader, max_epochs=2)
    after: list[Any] = []
    trainer, loader = engine(kind, after), Loader(Drawn(), **SETTINGS)
    trainer.load_state_dict(saved[0])
    if kind == "engine":
        loader.load_state_dict(saved[1])
    else:
        loader.set_epoch(trainer.state.iteration // len(loader))
    trainer.run(loader, max_epochs=2)
    assert before + after == flat(whole(2))
    if kind == "engine":
        assert loader.order_digest() == digest(2)


def test_a_checkpoint_holds_the_position(made: Any, kind: str, tmp_path: Path) -> None:
    loader, other = made(), made()
    iterator = iter(loader)
    head = [values(next(iterator)) for _ in range(3)]
    trainer = engine(kind, [])
    Checkpoint({"loader": loader, "engine": trainer}, DiskSaver(tmp_path))(trainer)
    (path,) = tmp_path.glob("*.pt")
    Checkpoint.load_objects({"loader": other}, torch.load(path, weights_only=False))  # ignite's engine holds arrays
    assert head + [values(batch) for batch in other] == whole(1)[0]


def test_without_a_seed_it_is_what_dataloader_is(kind: str) -> None:
    for make in (torch.utils.data.DataLoader, Loader):
        seen: list[Any] = []
        engine(kind, seen).run(make(Drawn(), 5, shuffle=True), max_epochs=2)
        assert sorted(int(row[0]) for batch in seen for row in batch) == sorted(2 * list(range(37)))
