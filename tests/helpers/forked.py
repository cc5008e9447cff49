"""An entry point run many times from one process that has imported Hydra already: each time in a fork of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SERVER = """
import json, os, runpy, sys, tempfile
sys.path.insert(0, "src")
import feedrate.cli.launch

for line in sys.stdin:
    outputs = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]
    child = os.fork()
    if child == 0:
        for number, output in enumerate(outputs, 1):
            os.dup2(output.fileno(), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv[:] = json.loads(line)
        code = 0
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    texts = []
    for output in outputs:
        output.seek(0)
        texts.append(output.read().decode())
    print(json.dumps([code, *texts]), flush=True)
"""


@dataclass(frozen=True)
class Answer:
    """What a command answers."""

    returncode: int
    stdout: str
    stderr: str


def answers(commands: Sequence[Sequence[str]]) -> list[Answer]:
    """What commands answer, given as script and arguments, in the repository's root."""
    text = "".join(json.dumps(list(command)) + "\n" for command in commands)
    done = subprocess.run(
        [sys.executable, "-c", SERVER], cwd=ROOT, input=text, capture_output=True, text=True, timeout=500, check=True
    )
    return [Answer(*json.loads(line)) for line in done.stdout.splitlines()]
