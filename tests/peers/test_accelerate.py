"""accelerate: `prepare` makes a DataLoader of its own, in the loader's order; beside it the loader works as ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from own_loop import SETTINGS, digest, values, whole

from feedrate.loader import Loader
from loader.datasets import Drawn


def indices(epochs: Any) -> list[list[list[int]]]:
    return [[[int(row[0]) for row in batch] for batch in epoch] for epoch in epochs]


def seen(batches: Any) -> list[Any]:
    return [values(batch) for batch in batches]


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def test_prepare_keeps_the_order(made: Any, accelerator: Accelerator) -> None:
    prepared = accelerator.prepare(made())
    assert len(prepared) == 8
    assert indices([seen(prepared) for _ in range(3)]) == indices(whole(3))
    named = accelerator.prepare(made())
    for epoch in (2, 0, 1):
        named.set_epoch(epoch)
        assert indices([seen(named)]) == indices(whole(3)[epoch : epoch + 1])


def test_prepare_goes_on_from_the_position_of_the_loader(made: Any, accelerator: Accelerator) -> None:
    first, loader = made(), made()
    list(first)
    iterator = iter(first)
    next(iterator), next(iterator)
    loader.load_state_dict(first.state_dict())
    prepared = accelerator.prepare(loader)
    found = [seen(prepared) for _ in range(2)]
    assert indices(found) == indices([whole(3)[1][2:], whole(3)[2]])


def test_skip_first_batches_leaves_out_the_first(made: Any, accelerator: Accelerator) -> None:
    assert indices([seen(skip_first_batches(made(), 3))]) == indices([whole(1)[0][3:]])
    prepared = accelerator.prepare(made())
    prepared.set_epoch(1)
    found = [seen(skip_first_batches(prepared, 3))]
    prepared.set_epoch(2)
    found.append(seen(prepared))
    assert indices(found) == indices([whole(3)[1][3:], whole(3)[2]])


def test_without_prepare_nothing_is_lost(made: Any, accelerator: Accelerator) -> None:
    """Order, random numbers, digest and exact resume; so docs/elsewhere.md recommends it."""
    loader = made(rank=accelerator.process_index, world_size=accelerator.num_processes)
    model, optimizer = accelerator.prepare(*model_and_optimizer())
    found = []
    for _ in range(2):
        found.append([])
        for X, _ in loader:
            accelerator.backward(model(X.to(accelerator.device)).mean())
            optimizer.step()
            found[-1].append(X.tolist())
    assert found == whole(2)
    assert loader.order_digest() == digest(2)


def model_and_optimizer() -> tuple[Any, Any]:
    model = torch.nn.Linear(4, 1).double()
    return model, torch.optim.SGD(model.parameters(), 0.01)


def test_a_checkpoint_holds_the_position(made: Any, accelerator: Accelerator, tmp_path: Path) -> None:
    first = made()
    accelerator.register_for_checkpointing(first)
    iterator = iter(first)
    head = [values(next(iterator)) for _ in range(3)]
    accelerator.save_state(str(tmp_path))
    second, other = made(), Accelerator(cpu=True)
    other.register_for_checkpointing(second)
    other.load_state(str(tmp_path))
    assert head + seen(second) == whole(1)[0]
    assert second.order_digest() == digest(1)


def test_without_a_seed_it_is_what_dataloader_is(accelerator: Accelerator) -> None:
    for kind in (torch.utils.data.DataLoader, Loader):
        prepared = accelerator.prepare(kind(Drawn(), 5, shuffle=True))
        assert sorted(i for batch in indices([seen(prepared)])[0] for i in batch) == list(range(37))
        assert len(seen(skip_first_batches(kind(Drawn(), 5), 3))) == 5


def test_processes_share_the_batches(tmp_path: Path) -> None:
    """With two processes, each step's batches are the next two of the loader's order."""
    script = tmp_path / "two.py"
    script.write_text(
        "from pathlib import Path\n"
        "from accelerate import Accelerator\n"
        "from feedrate.loader import Loader\n"
        "from loader.datasets import Drawn\n"
        "accelerator = Accelerator(cpu=True)\n"
        f"prepared = accelerator.prepare(Loader(Drawn(size=40), **{SETTINGS}))\n"
        "found = [[int(row[0]) for row in X] for _ in range(2) for X, _ in prepared]\n"
        f"(Path({str(tmp_path)!r}) / f'{{accelerator.process_index}}.txt').write_text(repr(found))\n"
    )
    here = Path(__file__).resolve().parents[2]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(script)]
    subprocess.run(
        launch,
        check=True,
        env={"PYTHONPATH": f"{here / 'src'}:{here / 'tests'}", "OMP_NUM_THREADS": "1"},
    )
    one, two = (eval((tmp_path / f"{rank}.txt").read_text()) for rank in (0, 1))
    loader = Loader(Drawn(size=40), **SETTINGS)
    assert [batch for pair in zip(one, two, strict=True) for batch in pair] == indices(
        [[values(batch) for _ in range(2) for batch in loader]]
    )[0]
