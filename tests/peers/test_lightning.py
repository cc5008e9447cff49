"""Lightning's Trainer: order, random numbers, digest and exact resume are those of a loop of one's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import BasePredictionWriter, Callback, ModelCheckpoint
from own_loop import SETTINGS, digest, flat, values, whole

from feedrate.loader import Loader
from loader.datasets import Drawn

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


class Model(lightning.LightningModule):
    """Writes down what it is given; where `make` is given, loaders come from hooks, as in Lightning's examples."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1).double()
        self.seen: list[list[list[float]]] = []

    def training_step(self, batch: Any, number: int) -> Any:
        self.seen.append(values(batch))
        return self.layer(batch[0]).mean()

    def validation_step(self, batch: Any, number: int) -> None:
        self.log("loss", self.layer(batch[0]).mean())

    def predict_step(self, batch: Any, number: int) -> Any:
        return values(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


class Hooked(Model):
    def __init__(self, make: Callable[[], Loader[Any]]) -> None:
        super().__init__()
        self.make = make

    def train_dataloader(self) -> Any:
        self.loader = self.make()
        return self.loader

    predict_dataloader = train_dataloader


def trainer(folder: Path, **settings: Any) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return lightning.Trainer(**{"max_epochs": 2, "default_root_dir": folder, **quiet, **settings})


def test_fit_delivers_what_a_loop_does(made: Any, tmp_path: Path) -> None:
    for settings in ({}, {"persistent_workers": True}):
        if settings and made().num_workers == 0:
            continue
        model, loader = Model(), made(**settings)
        trainer(tmp_path).fit(model, loader, made(shuffle=False))
        assert model.seen == flat(whole(2))
        assert loader.order_digest() == digest(2)


def saved(folder: Path, model: Any, loaders: Any, *callbacks: Callback, **settings: Any) -> list[Path]:
    trainer(folder, callbacks=list(callbacks), **settings).fit(model, *loaders)
    return sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


def test_a_fit_goes_on_after_any_batch(tmp_path: Path) -> None:
    expected = flat(whole(2))
    each = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    found = saved(tmp_path, Model(), [Loader(Drawn(), **SETTINGS)], each)
    assert len(found) == 16
    for path in found:
        model, loader, step = Model(), Loader(Drawn(), **SETTINGS), int(path.stem.partition("=")[2])
        trainer(tmp_path).fit(model, loader, ckpt_path=path)
        assert model.seen == expected[step:], path
        assert loader.order_digest() == digest(2)


@pytest.mark.parametrize("where", ["epoch", "validation"])
def test_a_fit_goes_on_after_an_epoch_or_a_validation(made: Any, where: str, tmp_path: Path) -> None:
    expected = whole(3)
    settings = {"save_on_train_epoch_end": where == "epoch", "filename": "{epoch}-{step}", "save_top_k": -1}
    check = {"val_check_interval": 4} if where == "validation" else {}
    callback = ModelCheckpoint(tmp_path, **settings)
    loaders = [made(), made(shuffle=False)]
    found = saved(tmp_path, Model(), loaders, callback, max_epochs=3, **check)
    assert len(found) == (3 if where == "epoch" else 6)
    for path in found:
        step = int(path.stem.rpartition("=")[2])
        model, loader = Model(), made()
        if where == "epoch":  # Lightning names the next epoch, and leaves the loader's state alone
            trainer(tmp_path, max_epochs=3, **check).fit(model, loader, made(shuffle=False), ckpt_path=path)
            assert model.seen == flat(expected)[step:], path
            model, loader = Model(), made()
            (state,) = torch.load(path)["loops"]["fit_loop"]["state_dict"]["combined_loader"]
            loader.load_state_dict(state)
        trainer(tmp_path, max_epochs=3, **check).fit(model, loader, made(shuffle=False), ckpt_path=path)
        assert model.seen == flat(expected)[step:], path
        assert loader.order_digest() == digest(3)


def test_a_loader_that_is_made_anew_for_each_epoch_follows_the_epochs(made: Any, tmp_path: Path) -> None:
    model = Hooked(made)
    trainer(tmp_path, max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(model)
    assert model.seen == flat(whole(3))
    each = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1)
    for path in saved(tmp_path, Hooked(made), [], each, max_epochs=3, reload_dataloaders_every_n_epochs=1):
        model = Hooked(made)
        trainer(tmp_path, max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(model, ckpt_path=path)
        assert model.seen == flat(whole(3))[int(path.stem.partition("=")[2]) :]


class Written(BasePredictionWriter):
    def __init__(self) -> None:
        super().__init__("batch_and_epoch")
        self.batches: list[Any] = []

    def write_on_batch_end(self, trainer: Any, module: Any, outputs: Any, indices: Any, *args: Any) -> None:
        self.batches.append(indices)

    def write_on_epoch_end(self, trainer: Any, module: Any, outputs: Any, indices: Any) -> None:
        self.epoch = indices[0]


@pytest.mark.parametrize("hook", [False, True])
def test_predict_keeps_the_order_and_knows_the_indices(made: Any, hook: bool, tmp_path: Path) -> None:
    for settings in ({}, {"drop_last": True}, {"shuffle": False}):
        writer = Written()
        loader = made(**settings)
        model = Hooked(lambda loader=loader, settings=settings: made(**settings)) if hook else Model()
        given = [] if hook else [loader]
        found = trainer(tmp_path, callbacks=[writer]).predict(model, *given)
        indices = [[int(row[0]) for row in batch] for batch in found]
        assert writer.batches == writer.epoch == indices
        if settings == {"shuffle": False}:
            assert flat(indices) == list(range(37))
        else:
            assert found == whole(1)[0]  # also what drop_last leaves out in training


@pytest.mark.parametrize("hook", [False, True])
def test_overfit_batches_turns_shuffling_off(made: Any, hook: bool, tmp_path: Path) -> None:
    model = Hooked(made) if hook else Model()
    trainer(tmp_path, overfit_batches=2).fit(model, *([] if hook else [made()]))
    assert [[int(row[0]) for row in batch] for batch in model.seen] == 2 * [list(range(5)), list(range(5, 10))]


def test_overfit_batches_has_nothing_to_turn_off_without_shuffling(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "You requested to overfit but enabled")
        model = Model()
        trainer(tmp_path, overfit_batches=2).fit(model, Loader(Drawn(), **{**SETTINGS, "shuffle": False}))
    assert [[int(row[0]) for row in batch] for batch in model.seen] == 2 * [list(range(5)), list(range(5, 10))]


class Ranked(Model):
    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__()
        self.folder, self.settings = folder, settings

    def train_dataloader(self) -> Any:
        ranks = {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        return Loader(Drawn(), **self.settings, **(ranks if "seed" in self.settings else {}))

    def on_train_end(self) -> None:
        torch.save(self.seen, self.folder / f"{self.trainer.global_rank}.pt")


def test_processes_share_the_batches(tmp_path: Path) -> None:
    """Each takes its part of the global batch, which is that of one process."""
    settings = {**SETTINGS, "batch_size": 4, "drop_last": True}
    ddp = {"strategy": "ddp_fork", "devices": 2, "use_distributed_sampler": False}
    trainer(tmp_path, **ddp).fit(Ranked(tmp_path, **settings))
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    one = Loader(Drawn(), **{**settings, "batch_size": 8})
    assert [a + b for a, b in zip(*ranks, strict=True)] == [X.tolist() for _ in range(2) for X, _ in one]
    del ddp["use_distributed_sampler"]
    with pytest.raises(Exception, match="pass rank and world_size to Loader, and use_distributed_sampler=False"):
        trainer(tmp_path, **ddp).fit(Ranked(tmp_path, **settings))


# ---------------------------------------------------------------------------------------------------------
# without a seed
# ---------------------------------------------------------------------------------------------------------


def test_without_a_seed_it_is_what_dataloader_is(tmp_path: Path) -> None:
    for kind in (torch.utils.data.DataLoader, Loader):
        model = Model()
        trainer(tmp_path, callbacks=[ModelCheckpoint(tmp_path)]).fit(model, kind(Drawn(), 5, shuffle=True))
        assert len(model.seen) == 16
        assert sum(map(len, trainer(tmp_path).predict(Model(), kind(Drawn(), 5)))) == 37
        model = Model()
        trainer(tmp_path, overfit_batches=2).fit(model, kind(Drawn(), 5, shuffle=True))
        assert [int(row[0]) for row in model.seen[0]] == list(range(5))
        model = Hooked(lambda kind=kind: kind(Drawn(), batch_size=5, shuffle=True))
        assert sum(map(len, trainer(tmp_path).predict(model))) == 37


def test_without_a_seed_processes_share_the_samples(tmp_path: Path) -> None:
    trainer(tmp_path, strategy="ddp_fork", devices=2, max_epochs=1).fit(Ranked(tmp_path, batch_size=4, shuffle=True))
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert {int(row[0]) for seen in ranks for batch in seen for row in batch} == set(range(37))
