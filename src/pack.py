"""Packs the samples of a dataset into shards for dataset=packed.

    python src/pack.py dataset=tensor_files dataset.root=data/mine
    python src/pack.py dataset=tensor_files dataset.root=data/mine root=/fast/mine pack.num_workers=8

conf/pack.yaml explains each key. After an interruption, the same command continues; later it packs what has changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from feedrate.system.signals import quit_on_interrupt, raise_when_stopped

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> None:
    from feedrate.cli.launch import plain
    from feedrate.config import PackConfig, check_node
    from feedrate.validation import validate

    config = validate(PackConfig, plain(cfg), "")
    check_node(config.dataset, "dataset")
    from feedrate.dataset.writing.pack import pack  # imports torch, which takes seconds

    raise_when_stopped()
    pack(config)


if __name__ == "__main__":
    quit_on_interrupt()  # before anything else is imported
    from feedrate.cli.launch import launch

    launch(main, "pack", instead_of_sweep="give pack.py one dataset")
