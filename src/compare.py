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

from feedrate.errors import UserError

DEFAULT_URI = "outputs/mlflow.db"  # as in conf/tracking/local.yaml


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run id, run folder or checkpoint; two or more")
    parser.add_argument("--uri", default=DEFAULT_URI, help="where run ids are looked up (default: %(default)s)")
    arguments = parser.parse_args()
    if len(arguments.runs) < 2:
        raise UserError(f"{len(arguments.runs)} given: two or more runs are compared: python src/compare.py RUN RUN")

    from feedrate.runs.compare import Facts, comparison, facts
    from feedrate.runs.saved import find_saved

    runs: dict[str, Facts] = {}
    for name in arguments.runs:
        saved = find_saved(name, arguments.uri)
        title = saved.recorded.name if saved.recorded is not None else saved.folder.name
        runs[name if title in runs else title] = facts(saved)
    print(comparison(runs), end="")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
