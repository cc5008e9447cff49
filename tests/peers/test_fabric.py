"""Fabric: order, random numbers, digest and exact resume are those of a loop of one's own."""

from __future__ import annotations

from typing import Any

import lightning
import pytest
import torch
from own_loop import SETTINGS, digest, flat, values, whole

from feedrate.loader import Loader
from loader.datasets import Drawn


def fabric() -> lightning.Fabric:
    return lightning.Fabric(accelerator="cpu", devices=1)


def train(loader: Any, epoch: int = 0, state: Any = None, stop: int = 99) -> tuple[list[Any], Any]:
    """What was seen in two epochs, and what a checkpoint would hold after `stop` batches."""
    seen = []
    if state is not None:
        loader.load_state_dict(state)
    batches = fabric().setup_dataloaders(loader)
    for now in range(epoch, 2):
        for batch in batches:
            seen.append(values(batch))
            if len(seen) == stop:
                return seen, (now, loader.state_dict())
    return seen, None


def test_a_loop_delivers_what_it_does_without_fabric(made: Any) -> None:
    loader = made()
    seen, _ = train(loader)
    assert seen == flat(whole(2))
    assert loader.order_digest() == digest(2)


@pytest.mark.parametrize("stop", range(1, 17))
def test_a_loop_goes_on_after_any_batch(stop: int) -> None:
    before, saved = train(Loader(Drawn(), **SETTINGS), stop=stop)
    loader = Loader(Drawn(), **SETTINGS)
    after, _ = train(loader, *saved)
    assert before + after == flat(whole(2))
    assert loader.order_digest() == digest(2)


def test_an_epoch_that_is_named_counts_from_there(made: Any) -> None:
    loader = made()
    loader.set_epoch(1)
    batches = fabric().setup_dataloaders(loader)
    assert [[values(batch) for batch in batches] for _ in range(2)] == whole(3)[1:]


def test_without_a_seed_it_is_what_dataloader_is() -> None:
    for kind in (torch.utils.data.DataLoader, Loader):
        loader = fabric().setup_dataloaders(kind(Drawn(), 5, shuffle=True))
        assert sorted(int(row[0]) for X, _ in loader for row in X) == list(range(37))


def ranked(fabric: lightning.Fabric, **settings: Any) -> None:
    given = {**SETTINGS, "batch_size": 4, "drop_last": True}
    loader = Loader(Drawn(), **given, rank=fabric.global_rank, world_size=fabric.world_size)
    seen = [values(batch) for batch in fabric.setup_dataloaders(loader, **settings)]
    one = [values(batch) for batch in Loader(Drawn(), **{**given, "batch_size": 8})]
    part = slice(4) if fabric.global_rank == 0 else slice(4, 8)
    assert seen == [batch[part] for batch in one]


def test_processes_share_the_batches() -> None:
    two = lightning.Fabric(accelerator="cpu", devices=2, strategy="ddp_fork")
    two.launch(ranked, use_distributed_sampler=False)
    with pytest.raises(Exception, match="pass rank and world_size to Loader, and use_distributed_sampler=False"):
        lightning.Fabric(accelerator="cpu", devices=2, strategy="ddp_fork").launch(ranked)
