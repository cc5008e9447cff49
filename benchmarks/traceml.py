"""Our verdict beside TraceML's on cells of verdict.py: who is right where.

TraceML (traceml-ai, in the peers' environment) traces the same samples and steps with torch's DataLoader, since it does
not know ours. Each verdict is compared with the truth of its own loader, as verdict.py measures it.
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
    from verdict import judged, truth

    if not (BIN / "traceml").exists():
        return "not measured: make bench-peers installs the peers' environment, which has TraceML"
    logging.getLogger("feedrate").setLevel(logging.ERROR)
    rows: list[tuple[str, ...]] = []
    right, clear = Counter[str](), Counter[str]()
    for cell in CELLS:
        if cell.engine == "thread" or cell.sample_ms == 1.0 or cell.step_ms == 6.0:
            continue
        ours, theirs = judged(cell), _traced(cell)
        with_torch, torch_alone = _rate_with_torch(cell, cell.step_ms), _rate_with_torch(cell, 0.0)
        lost = ours.lost, 1 - with_torch / ours.step
        truths = ours.truth, truth(lost[1], torch_alone / ours.step)
        found = WORDS.get(theirs["primary_diagnosis"]["kind"], theirs["primary_diagnosis"]["status"].lower())
        verdicts = {"Feedrate": ours.verdict.kind, "TraceML": found}
        times = theirs["step_time"]["global"]["average"]
        waits = ours.verdict.figures["wait_pct"], 100 * times["input_wait_ms"] / times["step_time_ms"]
        row = [str(cell)]
        for number, (name, verdict) in enumerate(verdicts.items()):
            word, counts = truths[number]
            clear[name] += counts
            right[name] += counts and verdict == word
            shown = f"{word}{'' if counts else ', near a boundary'}"
            row += [f"{100 * lost[number]:.1f}", shown, verdict, f"{waits[number]:.1f}"]
        rows.append(tuple(row))
        print(*row, sep=" | ", flush=True)
    summary = " ".join(
        f"{name} is right in {right[name]} of the {clear[name]} cells in which the truth of its loader is clear."
        for name in ("Feedrate", "TraceML")
    )
    head = ["cell", "lost with our loader, %", "truth", "Feedrate", "its wait, %"]
    head += ["lost with torch's DataLoader, %", "truth", "TraceML", "its input wait, %"]
    return f"{summary}\n\n{markdown(head, rows)}"


def _rate_with_torch(cell: Cell, step_ms: float) -> float:
    """Samples/s of training with torch's DataLoader and a step that sleeps, without tracing."""
    from torch.utils.data import DataLoader
    from verdict import CPU, rate_of, train

    from feedrate.timing import Clock

    warmup = 2 * cell.workers * cell.prefetch + 2
    clock = Clock(CPU, warmup)
    train(DataLoader(Costly(cell.kind, cell.sample_ms), BATCH, num_workers=cell.workers), step_ms, clock, warmup)
    return rate_of(clock.epoch(), warmup)


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
