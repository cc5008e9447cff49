"""Splits one file of all (X, y) into a dataset folder for dataset=tensor_files.

    python src/prepare.py source=all.pt root=data/mine
    python src/prepare.py source=all.npz root=data/mine validation_fraction=0.1 test_fraction=0.1 seed=1

conf/prepare.yaml explains each key. After an interruption, the same command continues.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from feedrate.system.signals import quit_on_interrupt, raise_when_stopped

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> None:
    from feedrate.cli.launch import plain
    from feedrate.config import PrepareConfig
    from feedrate.validation import validate

    config = validate(PrepareConfig, plain(cfg), "")
    from feedrate.dataset.writing.prepare import prepare  # imports torch, which takes seconds

    raise_when_stopped()
    prepare(config)


if __name__ == "__main__":
    quit_on_interrupt()  # before anything else is imported
    from feedrate.cli.launch import launch

    launch(main, "prepare", instead_of_sweep="give prepare.py one source and one root")
