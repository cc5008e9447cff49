"""MLflow's pages as a process of ours: light, on this machine only, gone when we are.

A bare `mlflow ui` starts 15 processes with 3 GB and opens on a page where the runs look lost; this starts 2
with 0.5 GB and knows the links.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import IO

from feedrate.errors import UserError
from feedrate.tracking.address import UI_HOST, UI_PORT, Address, experiment_link, ui_address_file
from feedrate.tracking.store import folder_without_percent
from feedrate.tracking.view import VIEW_KEY, VIEW_TAG

START_TIMEOUT_S = 180.0
END_TIMEOUT_S = 5.0


class UIServer:
    """MLflow's server on one SQLite file; `close` ends it and all that it started."""

    def __init__(self, address: Address, port: int, log: Path) -> None:
        """Start it, without waiting until it answers.

        Args:
            address: store in an SQLite file, which exists.
            port: a free port.
            log: file for what the server says.
        """
        assert address.database is not None
        self.url = f"http://{UI_HOST}:{port}"
        self._address = address
        self._log_path = log
        self._log: IO[bytes] = log.open("wb")
        environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        if (folder := folder_without_percent()) is not None:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "ui",
            "--workers",
            "1",
            "--host",
            UI_HOST,
            "--port",
            str(port),
        ]
        command += ["--backend-store-uri", address.uri]
        command += ["--artifacts-destination", str(address.artifacts)]  # for runs that use it as their server
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            cwd=address.database.parent,
            start_new_session=True,  # Ctrl-C reaches us alone, and one signal ends the whole group
        )
        self._notice = ui_address_file(address.database)

    def wait_until_ready(self) -> None:
        """Return when pages are served.

        Raises:
            UserError: the server ended, or did not answer in three minutes.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise UserError(f"MLflow's server ended while starting.{self._last_words()}")
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                if answer.status == 200:
                    self._notice.write_text(self.url, encoding="utf-8")
                    return
            time.sleep(0.2)
        raise UserError(f"MLflow's server does not answer in {START_TIMEOUT_S:.0f} s.{self._last_words()}")

    def links(self) -> dict[str, str]:
        """Experiment name -> link to its runs, the last changed first; without MLflow's empty Default."""
        request = urllib.request.Request(
            f"{self.url}/api/2.0/mlflow/experiments/search",
            data=json.dumps({"max_results": 20, "order_by": ["last_update_time DESC"]}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found = json.load(answer).get("experiments", [])
        named = [experiment for experiment in found if experiment["experiment_id"] != "0"] or found
        return {
            experiment["name"]: experiment_link(
                self.url,
                experiment["experiment_id"],
                VIEW_KEY if any(tag["key"] == VIEW_TAG for tag in experiment.get("tags", [])) else None,
            )
            for experiment in named
        }

    def wait(self) -> int:
        """Return the exit code when the server has ended by itself."""
        return self._process.wait()

    def close(self) -> None:
        """End the server and every process of its group, by force after 5 s. May be called twice."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            deadline = time.monotonic() + END_TIMEOUT_S
            while time.monotonic() < deadline and _group_lives(self._process):
                time.sleep(0.05)
        with suppress(OSError):
            if self._notice.read_text(encoding="utf-8") == self.url:
                self._notice.unlink()
        self._log.close()

    def _last_words(self) -> str:
        lines = self._log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "\n".join([" The last it said:", *lines[-5:]]) if lines else ""


def free_port(wanted: int = UI_PORT) -> int:
    """`wanted`, or the next port that nobody listens on.

    Raises:
        UserError: fifty ports in a row are taken, or `wanted` is no port.
    """
    if not 0 < wanted < 65536:
        raise UserError(f"port {wanted}: a port is a number from 1 to 65535")
    for port in range(wanted, min(wanted + 50, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            with suppress(OSError):
                probe.bind((UI_HOST, port))
                return port
    raise UserError(f"ports {wanted} to {wanted + 49} are all taken: give another one, for example PORT=8123")


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # collects it: a dead child that is not collected still counts as a member of its group
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True
