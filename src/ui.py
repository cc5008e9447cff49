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
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from feedrate.errors import UserError
from feedrate.tracking.address import (
    UI_HOST,
    UI_PORT,
    VIEW_KEY,
    Address,
    experiment_link,
    read_address,
    ui_address_file,
)

DEFAULT_URI = "outputs/mlflow.db"  # as in conf/tracking/local.yaml
DEFAULT_EXPERIMENT = "feedrate"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # each ends it, also when started in the background


def main() -> int:
    # -- What to show, and where ---------------------------------------------------------------------------
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "port", nargs="?", default=os.environ.get("PORT") or str(UI_PORT), help="default: PORT, or 5000"
    )
    parser.add_argument("--uri", default=DEFAULT_URI, help="SQLite file of runs (default: %(default)s)")
    arguments = parser.parse_args()
    address = read_address(arguments.uri)
    if address.database is None:
        raise UserError(f"--uri={address.shown}: only an SQLite file can be shown; a server has pages of its own")
    _check_port(arguments.port)

    # -- MLflow's server, until it is stopped --------------------------------------------------------------
    for signum in SIGNALS:
        signal.signal(signum, signal.default_int_handler)
    url = f"http://{UI_HOST}:{int(arguments.port)}"
    notice = ui_address_file(address.database)  # while it exists, the links that runs print lead here
    print("Starting MLflow's pages, which takes 10 to 30 s ...", flush=True)
    links = _open(address, url)
    try:
        with tempfile.TemporaryFile() as log, _server(address, arguments.port, log) as server:
            if _becomes_ready(server, url):
                notice.write_text(url, encoding="utf-8")
                width = max(map(len, links), default=0)
                for name, link in links.items():
                    print(f"  {name:{width}}  {link}")
                print("Ctrl-C ends it.", flush=True)
            server.wait()
            log.seek(0)
            raise UserError("\n".join(["MLflow's server ended by itself:", *log.read().decode().splitlines()[-5:]]))
    finally:
        notice.unlink(missing_ok=True)


def _check_port(text: str) -> None:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise UserError(f"port {text}: a port is a number from 1 to 65535, for example {UI_PORT}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((UI_HOST, int(text)))
        except OSError as error:
            raise UserError(
                f"port {text} cannot be used ({error.strerror}): end the program that uses it,"
                " or choose another, for example PORT=5001"
            ) from None


def _open(address: Address, url: str) -> dict[str, str]:
    """Opens the store, which is made if need be; experiment name -> link to its runs, the last changed first."""
    from feedrate.tracking.moved import follow
    from feedrate.tracking.store import VIEW_TAG, open_store, require_answer, translated_errors

    assert address.database is not None
    if not address.database.exists():
        print(f"No run is recorded in {address.shown} yet; making an empty one.", flush=True)
        open_store(address, DEFAULT_EXPERIMENT)
    require_answer(address)
    follow(address.database)
    with translated_errors(address):
        from mlflow import MlflowClient

        found = MlflowClient(address.uri).search_experiments(max_results=20, order_by=["last_update_time DESC"])
    named = [one for one in found if one.experiment_id != "0"] or found  # without MLflow's empty Default
    return {
        one.name: experiment_link(url, one.experiment_id, VIEW_KEY if VIEW_TAG in one.tags else None) for one in named
    }


@contextmanager
def _server(address: Address, port: str, log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's server; it and all that it started are ended on exit."""
    from feedrate.tracking.store import folder_without_percent

    assert address.database is not None
    environment = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # otherwise 13 more processes and 2.5 GB
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    if (folder := folder_without_percent()) is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--host", UI_HOST, "--port", port]
    command += ["--backend-store-uri", address.uri]
    command += ["--artifacts-destination", str(address.artifacts)]  # for runs that use it as their server
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | environment,
        cwd=address.database.parent,
        start_new_session=True,  # one signal ends the whole group
    )
    try:
        yield process
    finally:
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_IGN)  # a second one must not disturb the ending
        for signum in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signum)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)


def _becomes_ready(server: subprocess.Popen[bytes], url: str) -> bool:
    """Waits until the server answers; whether it does, or has ended."""
    while server.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
        time.sleep(0.2)
    return False


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit(0)
