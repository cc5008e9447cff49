"""Packs what a dataset yields into shards, for dataset=packed.

    python src/pack.py dataset=tensor_files dataset.root=data/mine
    python src/pack.py dataset=tensor_files dataset.root=data/mine root=/fast/mine pack.num_workers=8

conf/pack.yaml explains each key. Interrupted, the same command goes on; after changes it packs again what has changed.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> None:
    # -----------------------------------------------------------------------------------------------------
    # Settings
    # -----------------------------------------------------------------------------------------------------
    from feedrate.config import PackConfig, check_dataset
    from feedrate.launch import plain
    from feedrate.validation import validate

    config = validate(PackConfig, plain(cfg), "")
    check_dataset(config.dataset)

    # -----------------------------------------------------------------------------------------------------
    # The shards; torch is imported only now, since it takes seconds
    # -----------------------------------------------------------------------------------------------------
    from feedrate.dataset.pack import pack

    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        pack(config)
    except KeyboardInterrupt as error:
        print(f"interrupted: {error}" if str(error) else "interrupted", file=sys.stderr)
        sys.exit(130)


def _quit(*_: object) -> NoReturn:
    """Ctrl-C while packages are imported: nothing is begun, and an exception could be lost in their code."""
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
        signal.signal(signal.SIGINT, _quit)
    if {"-m", "--multirun"} & set(sys.argv):
        sys.exit("error: -m: a sweep is for train.py; give pack.py one dataset")
    from feedrate.launch import launch

    launch(main, "pack")
