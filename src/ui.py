"""Shows the recorded runs in a browser:  make ui   or   python src/ui.py

Examples:
    python src/ui.py                                outputs/mlflow.db on http://127.0.0.1:5000
    python src/ui.py 5001                           on another port; so does PORT=5001 in the environment
    python src/ui.py --uri /data/team/mlflow.db     another file of runs
Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from feedrate.errors import UserError
from feedrate.tracking.address import Address, read_address
from feedrate.tracking.moved import follow
from feedrate.tracking.ui_server import UIServer, free_port

DEFAULT_URI = "outputs/mlflow.db"  # as in conf/tracking/local.yaml
DEFAULT_EXPERIMENT = "feedrate"


def main() -> int:
    # -- What to show, and where ---------------------------------------------------------------------------
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", nargs="?", default=os.environ.get("PORT") or "5000", help="default: PORT, or 5000")
    parser.add_argument("--uri", default=DEFAULT_URI, help="SQLite file of runs (default: %(default)s)")
    arguments = parser.parse_args()
    if not arguments.port.isdigit():
        raise UserError(f"port {arguments.port}: a port is a number, for example 5001")
    address = read_address(arguments.uri)
    if address.database is None:
        raise UserError(f"--uri={address.shown}: only an SQLite file can be shown; a server has pages of its own")
    _stop_on_signals()

    # -- A store to show: made here when no run has made it ------------------------------------------------
    if not address.database.exists():
        print(f"No run is recorded in {address.shown} yet; making an empty one.")
        _make_store(address)
    follow(address.database)

    # -- The server ----------------------------------------------------------------------------------------
    port = free_port(int(arguments.port))
    if port != int(arguments.port):
        print(f"Port {arguments.port} is taken; using {port}.")
    with tempfile.TemporaryDirectory(prefix="feedrate-ui-") as folder:
        server = UIServer(address, port, log=Path(folder) / "server.log")
        try:
            print("Starting MLflow's pages, which takes 10 to 30 s ...", flush=True)
            server.wait_until_ready()
            _print_links(server.links())
            code = server.wait()
            raise UserError(f"MLflow's server ended by itself with exit code {code}")
        except KeyboardInterrupt:
            return 0
        finally:
            server.close()


def _make_store(address: Address) -> None:
    from feedrate.tracking.store import open_store

    open_store(address, DEFAULT_EXPERIMENT)


def _print_links(links: dict[str, str]) -> None:
    width = max((len(name) for name in links), default=0)
    for name, link in links.items():
        print(f"  {name:{width}}  {link}")
    print("Ctrl-C ends it.", flush=True)


def _stop_on_signals() -> None:
    """SIGTERM and a closed terminal end it as Ctrl-C does, also when started in the background."""

    def stop(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)  # one is enough: a second must not disturb the ending
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        signal.signal(number, stop)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit(0)
