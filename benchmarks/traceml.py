"""Compares our verdict with that of TraceML, on the cells of verdict.py that torch's DataLoader can run.

The true verdict is that of verdict.py. TraceML (traceml-ai, in the peers' environment) traces the same samples and
steps with torch's DataLoader, since it does not support ours.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from cells import BATCH, CELLS, Cell, Costly
from figures import markdown

BIN = Path(__file__).resolve().parent / ".venv/bin"
SECONDS, MIN_STEPS, WARMUP = 3.0, 60, 10  # of tracing; batches before it, while workers start
WORDS = {"INPUT_BOUND": "input-bound", "COMPUTE_BOUND": "compute-bound", "NO_CLEAR_PERFORMANCE_BOTTLENECK": "balanced"}


def run() -> str:
    from verdict import judged

    if not (BIN / "traceml").exists():
        return "not measured: make bench-peers installs the peers' environment, which has TraceML"
    logging.getLogger("feedrate").setLevel(logging.ERROR)
    rows, right = [], Counter[str]()
    chosen = [cell for cell in CELLS if cell.engine != "thread" and cell.sample_ms != 1.0 and cell.step_ms != 6.0]
    for cell in chosen:
        ours, theirs = judged(cell), _traced(cell)
        word, clear = ours.truth
        found = WORDS.get(theirs["primary_diagnosis"]["kind"], theirs["primary_diagnosis"]["status"].lower())
        if clear:
            right.update(cells=1, ours=ours.verdict.kind == word, theirs=found == word)
        times = theirs["step_time"]["global"]["average"]
        wait = 100 * times["input_wait_ms"] / times["step_time_ms"]
        remedy = ours.verdict.remedies[0].override if ours.verdict.remedies else "-"
        rows.append(
            (str(cell), f"{100 * ours.lost:.1f}", f"{word}{'' if clear else ', near a boundary'}", ours.verdict.kind,
             found, f"{ours.verdict.figures['wait_pct']:.1f}", f"{wait:.1f}", remedy)
        )  # fmt: skip
        print(*rows[-1], sep=" | ", flush=True)
    summary = (
        f"Of {right['cells']} cells that lie clear of a boundary, our verdict is right in {right['ours']}, "
        f"TraceML's in {right['theirs']}."
    )
    head = ["cell", "rate lost to loading, %", "truth", "Feedrate", "TraceML", "our wait, %", "TraceML's input wait, %"]
    return f"{summary}\n\n{markdown([*head, 'our first remedy'], rows)}"


def _traced(cell: Cell) -> Any:
    """TraceML's final summary of a cell."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [cell.kind, str(cell.sample_ms), str(cell.step_ms), str(cell.workers)]
        command = [str(BIN / "traceml"), "run", __file__, "--mode=summary", f"--logs-dir={folder}"]
        done = subprocess.run([*command, "--args", *arguments], capture_output=True, text=True, check=False)
        for path in Path(folder).rglob("final_summary.json"):
            return json.loads(path.read_text())
        sys.exit(f"error: TraceML wrote no summary for {cell}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _train(kind: str, sample_ms: float, step_ms: float, workers: int) -> None:
    import torch
    import traceml_ai
    from torch import Tensor, nn
    from torch.utils.data import DataLoader

    class Sleeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 2)

        def forward(self, X: Tensor) -> Tensor:
            time.sleep(step_ms / 1e3)
            out: Tensor = self.layer(X)
            return out

    traceml_ai.init(mode="auto")
    torch.set_num_threads(1)
    model = Sleeps()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    begin = time.perf_counter()
    for number, (X, y) in enumerate(DataLoader(Costly(kind, sample_ms), BATCH, num_workers=workers)):
        with traceml_ai.trace_step(model) if number >= WARMUP else nullcontext():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X), y).backward()
            optimizer.step()
        if number >= MIN_STEPS and time.perf_counter() - begin > SECONDS:
            break
    traceml_ai.final_summary()


if __name__ == "__main__":
    _train(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
