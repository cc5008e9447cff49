"""Splits one file of all (X, y) into a dataset folder, for dataset=tensor_files.

    python src/prepare.py source=all.pt root=data/mine
    python src/prepare.py source=all.npz root=data/mine validation_fraction=0.1 test_fraction=0.1 seed=1

conf/prepare.yaml explains each key. Interrupted, the same command goes on from what is written.
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
    from feedrate.config import PrepareConfig
    from feedrate.launch import plain
    from feedrate.validation import validate

    config = validate(PrepareConfig, plain(cfg), "")

    # -----------------------------------------------------------------------------------------------------
    # The folder; torch is imported only now, since it takes seconds
    # -----------------------------------------------------------------------------------------------------
    from feedrate.dataset.prepare import prepare

    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        prepare(config)
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
        sys.exit("error: -m: a sweep is for train.py; give prepare.py one source and one root")
    from feedrate.launch import launch

    launch(main, "prepare")
