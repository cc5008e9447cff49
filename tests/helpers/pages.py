"""MLflow's pages, served by src/ui.py as a person starts them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from feedrate.config import ROOT


@dataclass
class Pages:
    """What src/ui.py has said until the pages were there, and their address."""

    process: subprocess.Popen[str]
    said: str
    url: str

    def stop(self, number: int) -> tuple[int, list[psutil.Process]]:
        """Exit code, and the processes that are left."""
        started = psutil.Process(self.process.pid).children(recursive=True)
        assert started
        self.process.send_signal(number)
        code = self.process.wait(timeout=100)
        return code, psutil.wait_procs(started, timeout=60)[1]


@contextmanager
def served(database: Path) -> Iterator[Pages]:
    """The pages of a store, which is made if it does not exist, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "src/ui.py"), "--uri", str(database)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PORT": str(port)},
        start_new_session=True,
    )
    try:
        said = ""
        for line in process.stdout or ():
            said += line
            if "Ctrl-C" in line:
                break
        url = f"http://127.0.0.1:{port}"
        assert re.search(rf"{url}/#/experiments/\d+/runs\?workflowType=machine_learning&viewStateShareKey", said), said
        yield Pages(process, said, url)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
