"""Sends to MLflow what runs have recorded while their tracking store was away.

Examples:
    python src/sync.py                                        every run and sweep under outputs/
    python src/sync.py outputs/runs/FOLDER outputs/sweeps/FOLDER
    python src/sync.py FOLDER tracking.uri=http://127.0.0.1:5000     to another store than the run's own
Runs that are still running are skipped: they send their own record. Exit code 1 if something could not be sent.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from feedrate.errors import UserError

URI = "tracking.uri="


def main() -> int:
    # -- Which folders -------------------------------------------------------------------------------------
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", metavar="FOLDER", help="of a run or sweep (default: all)")
    arguments = parser.parse_args().paths

    from feedrate.config import ROOT, resolve_path
    from feedrate.runs.run_folder import RunFolder, living_owner, read_summary
    from feedrate.system.secrets import without_secrets
    from feedrate.tracking.uploader import Uploader, destination, journals, pending

    uri = next((text.removeprefix(URI) for text in arguments if text.startswith(URI)), None)
    named = [Path(text) if Path(text).exists() else resolve_path(text) for text in arguments if URI not in text]
    folders = journals(named or [ROOT / "outputs" / kind for kind in ("runs", "sweeps")])
    if named and not folders:
        raise UserError(f"{named[0]}: nothing was recorded there: there is no journal.jsonl")

    # -- Send ----------------------------------------------------------------------------------------------
    stores: dict[tuple[str, str | None, str], Uploader] = {}
    failed = sent = 0
    for folder in folders:
        if not (count := pending(folder)):
            continue
        if (owner := living_owner(folder)) is not None:
            print(f"{folder}: still runs as process {owner}, which sends its own record")
            continue
        print(f"{folder}: {count} records ...", flush=True)
        own = RunFolder(folder)
        try:
            goal = destination(folder, uri)
            store = stores[goal] = stores.get(goal) or Uploader(*goal)
            state = store.upload_dead_run(folder)
            if summary := read_summary(folder):
                own.write_summary({**summary, "run_id": state.run_id})
            sent += 1
            problems = [f"refused: {line}" for line in state.rejected]
            problems += [f"not stored: {item['reason']}" for item in state.aside]
        except UserError as error:
            problems = [f"not sent: {without_secrets(str(error))}"]
        finally:
            own.release()
        for problem in problems:
            print(f"  {problem}", file=sys.stderr)
        failed += len(problems)
    print(f"{sent} sent" if sent or failed else "nothing is left to send")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
