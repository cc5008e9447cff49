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
import time
import urllib.request
from contextlib import suppress

from feedrate.errors import UserError
from feedrate.tracking.address import UI_HOST, UI_PORT, experiment_link, read_address

DEFAULT_URI = "outputs/mlflow.db"  # as in conf/tracking/local.yaml
DEFAULT_EXPERIMENT = "feedrate"


def main() -> int:
    # -- What to show, and where ---------------------------------------------------------------------------
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", nargs="?", type=int, default=os.environ.get("PORT") or UI_PORT, help="default: 5000")
    parser.add_argument("--uri", default=DEFAULT_URI, help="SQLite file of runs (default: %(default)s)")
    arguments = parser.parse_args()
    address = read_address(arguments.uri)
    if address.database is None:
        raise UserError(f"--uri={address.shown}: only an SQLite file can be shown; a server has pages of its own")
    with socket.socket() as probe:  # another server that answers there would pass for MLflow's
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((UI_HOST, arguments.port))
        except (OSError, OverflowError) as error:
            raise UserError(f"port {arguments.port}: {error}; choose another: make ui PORT=5001") from None
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # each ends it, also when started in the background
        signal.signal(signum, signal.default_int_handler)
    print("Starting MLflow's pages, which takes 10 to 30 s ...", flush=True)

    # -- The store, created if it does not exist -----------------------------------------------------------
    from feedrate.tracking.store import open_store

    client, _ = open_store(address, DEFAULT_EXPERIMENT)
    experiments = client.search_experiments(max_results=20, order_by=["last_update_time DESC"])

    # -- MLflow's server, until it is stopped --------------------------------------------------------------
    url = f"http://{UI_HOST}:{arguments.port}"
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--host", UI_HOST, "--port", str(arguments.port)]
    command += ["--backend-store-uri", address.uri]
    command += ["--artifacts-destination", str(address.artifacts)]  # for runs that use it as their server
    # otherwise 13 more processes and 2.5 GB
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, env=environment, cwd=address.database.parent, start_new_session=True
    )
    try:
        while server.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
                break
            time.sleep(0.2)
        else:
            raise UserError(f"MLflow's server ended with exit code {server.returncode}; the lines above say why")
        for one in experiments:
            if one.experiment_id != "0":  # MLflow's empty Default
                print(f"  {one.name}  {experiment_link(url, one.experiment_id)}")
        print("Ctrl-C ends it.", flush=True)
        return server.wait()
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)  # a second one must not disturb the ending
        for signum in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signum)
            with suppress(subprocess.TimeoutExpired):
                server.wait(timeout=5)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit(0)
