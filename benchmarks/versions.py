"""Compares the engines with those of another checkout, such as a worktree of an earlier commit, in turns in one run.

    git worktree add ../before COMMIT
    python benchmarks/versions.py ../before                     files of 12 KB; about five minutes
    python benchmarks/versions.py ../before "150 KB" "packed, thread"

Both must deliver the samples in the same order, and read the same files, as the place of a file matters; each packs its
own shards. Turns are short and many, as the machine's speed drifts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as src/train.py does
HERE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HERE / "src"), str(HERE / "benchmarks")]

from figures import markdown, spread  # noqa: E402
from peers.bench import Processes  # noqa: E402
from peers.contenders import CONTENDERS  # noqa: E402
from peers.sets import SETS, make_set  # noqa: E402

ROUNDS, SECONDS = 60, 0.12


class OfCheckout(Processes):
    """Starts contenders that run the source of a checkout."""

    def __init__(self, checkout: Path) -> None:
        super().__init__()
        command = [sys.executable, str(checkout / "benchmarks/peers/process.py"), str(self.listener.address)]
        self.sources[sys.executable] = subprocess.Popen([*command, self.key.hex()], stdin=subprocess.PIPE, text=True)


def _same_files(home: Path, other: Path) -> Path:
    """`other`, a folder with links to the files of `home`; shards are packed there, since their format may differ."""
    other.mkdir(parents=True, exist_ok=True)
    for kind in ("pt", "npy"):
        if (home / kind).exists() and not (other / kind).is_symlink():
            (other / kind).symlink_to(home / kind)
    return other


def main(other: str, name: str = "12 KB", part: str = "") -> None:
    of = next(of for of in SETS if of.name == name)
    chosen = [c for c in CONTENDERS if c.kind == "ours" and part in c.name and (c.ragged or not of.ragged)]
    checkouts = Path(other).resolve(), HERE
    with OfCheckout(checkouts[0]) as before, OfCheckout(checkouts[1]) as now:
        running: list[list[Any]] = []
        for contender in chosen:
            home = make_set(of, HERE / "data/peers")
            ours = now.start(contender, home, of)
            pair = [before.start(contender, _same_files(home, checkouts[0] / "data/peers" / home.name), of), ours]
            digests = {process.call("check", True)["digest"] for process in pair}
            assert len(digests) == 1, f"{contender.name}: the checkouts differ in the order of samples"
            running.append(pair)
        turns: list[list[list[Any]]] = [[[], []] for _ in chosen]
        for number in range(ROUNDS):
            for pair, found in zip(running, turns, strict=True):
                for side in (0, 1) if number % 2 else (1, 0):
                    found[side].append(pair[side].call("measure", SECONDS, "none"))
    rows = []
    for contender, found in zip(chosen, turns, strict=True):
        rates = [[turn["samples"] / turn["seconds"] for turn in side] for side in found]
        cpu = [median(1e6 * turn["cpu"] / turn["samples"] for turn in side) for side in found]
        ratio = spread([b / a for a, b in zip(*rates, strict=True)])
        rows.append((contender.name, *(spread(side, 0) for side in rates), ratio, f"{cpu[0]:.1f}, {cpu[1]:.1f}"))
    head = [name, "before, samples/s", "now", "now to before, by turn", "CPU us a sample, before and now"]
    print(markdown(head, rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
