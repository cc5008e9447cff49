"""Prints what differs between runs: configuration, data, code version, results.

Examples:
    python src/compare.py RUN_ID RUN_ID                          ids, as MLflow shows them
    python src/compare.py outputs/runs/FOLDER outputs/runs/FOLDER RUN_ID
    python src/compare.py RUN_ID RUN_ID --uri http://127.0.0.1:5000
What is equal in all runs is left out.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from feedrate.errors import UserError

DEFAULT_URI = "outputs/mlflow.db"  # as in conf/tracking/local.yaml


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run id, run folder or checkpoint; two or more")
    parser.add_argument("--uri", default=DEFAULT_URI, help="where run ids are looked up (default: %(default)s)")
    arguments = parser.parse_args()
    if len(arguments.runs) < 2:
        raise UserError(f"{len(arguments.runs)} given: two or more runs are compared: python src/compare.py RUN RUN")

    from feedrate.runs.compare import comparison, facts
    from feedrate.runs.saved import find_saved

    saved = [find_saved(name, arguments.uri) for name in arguments.runs]
    names = [run.recorded.name if run.recorded is not None else run.folder.name for run in saved]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    for index, run in enumerate(saved):  # equal names get the start of the id, or the argument as it was given
        if names[index] in repeated:
            names[index] += f" {run.run_id[:8]}" if run.run_id else f" {Path(arguments.runs[index]).name}"

    print(comparison([facts(name, run) for name, run in zip(names, saved, strict=True)]), end="")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
