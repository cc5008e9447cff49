"""Kills runs at random instants and goes on with them, for as long as you like; then many runs at once.

    make soak
    make soak ARGS="--kills 200 --seed 7"
    python tests/soak.py --kills 30 --workers 0,2 --record

Exit code 1 on any difference from a run that was not killed, and on anything that was left behind.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests/helpers")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="how many; 0: none (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the instants, signals and settings")
    parser.add_argument("--workers", default="0,1,2", help="one of these for each start (default: %(default)s)")
    parser.add_argument("--record", action="store_true", help="in MLflow, and compare what is recorded, too")
    parser.add_argument("--rounds", type=int, default=10, help="of runs at once; 0: none (default: %(default)s)")
    parser.add_argument("--at-once", type=int, default=8, help="runs in a round (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave the folder with all runs where it is")
    arguments = parser.parse_args()

    begin = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="feedrate-soak-"))
    try:
        faults = soak(arguments, work)
    finally:
        if not arguments.keep:
            shutil.rmtree(work)
    for fault in faults:
        print(f"FAULT {fault}")
    verdict = f"{len(faults)} faults" if faults else "all equal bit for bit, nothing left behind"
    print(f"{verdict}, {time.monotonic() - begin:.0f} s{f', {work}' if arguments.keep else ''}")
    return 1 if faults else 0


def soak(arguments: argparse.Namespace, work: Path) -> list[str]:
    """What was not as it should be, in words."""
    from feedrate.dataset import Digits
    from kills import Soak
    from rounds import rounds_at_once

    Digits.prepare(work / "digits")
    workers = tuple(map(int, arguments.workers.split(",")))
    faults = []
    if arguments.kills:
        kills = Soak(work / "kills", work / "digits", arguments.seed, workers, arguments.record)
        kills.run(arguments.kills)
        faults += kills.faults
    return faults + rounds_at_once(work / "rounds", work / "digits", arguments.rounds, arguments.at_once)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.exit(main())
