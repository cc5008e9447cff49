"""Runs benchmarks and writes their tables into benchmarks/README.md.

    python benchmarks/run.py                 all
    python benchmarks/run.py startup         one: a file beside this one, or a table of throughput.py

Run nothing else meanwhile. Each benchmark interleaves what it compares, leaves warm-up out, and gives medians
with the spread from the lowest to the highest repeat.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import sys
from datetime import datetime, timezone
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as src/train.py does
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "src"), str(HERE)]
THROUGHPUT = ("generated", "burn", "held", "overhead", "engines", "fed", "samples", "packed")  # in throughput.py
NAMES = (
    "startup", *THROUGHPUT, "tracking", "catalog", "scale", "flat", "verdict", "traceml", "instruments", "tuner",
    "peers",
)  # fmt: skip
BY_NAME_ONLY = ("gpu",)  # not run by default, since it needs an accelerator


def main(chosen: list[str]) -> None:
    for name in chosen or NAMES:
        if name not in (*NAMES, *BY_NAME_ONLY):
            sys.exit(f"error: {name}: no such benchmark; choose from {', '.join((*NAMES, *BY_NAME_ONLY))}")
        print(f"== {name}", flush=True)
        table = _run(name)
        print(table, flush=True)
        _write(name, f"{table}\n\n{_where()}")
        if name == "peers":
            importlib.import_module("summary").write()


def _run(name: str) -> str:
    module, function = ("throughput", name) if name in THROUGHPUT else (name, "run")
    table: str = getattr(importlib.import_module(module), function)()
    return table


def _where() -> str:
    import torch

    now = datetime.now(timezone.utc)
    return (
        f"*{now:%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, CPython {platform.python_version()}, "
        f"torch {torch.__version__}.*"
    )


def _write(name: str, text: str) -> None:
    path = HERE / "README.md"
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    written, count = pattern.subn(lambda _: f"{begin}\n{text}\n{end}", path.read_text())
    assert count == 1, f"{path} has no marks for {name}"
    path.write_text(written)


if __name__ == "__main__":
    main(sys.argv[1:])
