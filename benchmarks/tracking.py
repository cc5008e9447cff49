"""Does a slow tracking server slow training down? Step times while the server answers, and while it is stopped.

One run trains throughout; a real MLflow server on loopback is stopped (SIGSTOP) for a minute and continued for a
minute, in turns. A step's time runs from the end of the step before to its own end, by the clock of the training.
"""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 4
PERIOD_S = float(os.environ.get("FEEDRATE_BENCH_PERIOD_S", "60"))
WARMUP_S = 10.0
BATCH = 4  # 359 steps in each epoch of the digits


def run() -> str:
    import numpy as np
    from figures import markdown, spread

    from feedrate.dataset import Digits

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Digits.prepare(folder / "digits")
        server, url = _server(folder)
        training = _training(folder, url)
        periods: dict[str, list[tuple[float, float]]] = {"up": [], "stopped": []}
        try:
            while not (folder / "steps.bin").exists():
                assert training.poll() is None, "the training ended early"
                time.sleep(0.1)
            time.sleep(WARMUP_S)
            turns = [("up", signal.SIGCONT), ("stopped", signal.SIGSTOP)]
            for number in range(REPEATS):
                # the order alternates, so that a drift over time affects both alike
                for state, signum in turns if number % 2 == 0 else turns[::-1]:
                    os.killpg(server.pid, signum)
                    begin = time.time()
                    time.sleep(PERIOD_S)
                    periods[state].append((begin, time.time()))
        finally:
            os.killpg(server.pid, signal.SIGCONT)
            training.send_signal(signal.SIGINT)
            training.wait(60)
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        rows = np.fromfile(folder / "steps.bin", dtype=np.float64).reshape(-1, 2)
    figures: dict[str, dict[str, list[float]]] = {}
    for state, spans in periods.items():
        steps = [rows[(rows[:, 0] > begin) & (rows[:, 0] < end), 1] for begin, end in spans]
        figures[state] = {f"p{q}": [float(np.percentile(one, q)) for one in steps] for q in (50, 99)}
        figures[state]["steps"] = [float(len(one)) for one in steps]
    table = []
    for measure in ("p50", "p99"):
        up, stopped = figures["up"][measure], figures["stopped"][measure]
        ratios = [b / a for a, b in zip(up, stopped, strict=True)]
        table.append((f"step, {measure}, ms", spread(up, 3), spread(stopped, 3), spread(ratios)))
    counts = [f"{sum(figures[state]['steps']):,.0f}" for state in ("up", "stopped")]
    table.append(("steps measured", *counts, "-"))
    return markdown(["digits in memory, MLP, batch 4", "server up", "server stopped", "ratio"], table)


def _training(folder: Path, url: str) -> subprocess.Popen[bytes]:
    overrides = [
        "dataset=in_memory", f"dataset.root={folder}/digits", "model=mlp", f"loader.batch_size={BATCH}",
        "loader.num_workers=0", "trainer.max_epochs=1000000", "trainer.num_threads=1", "scheduler=none",
        # little is learned: tiny gradients would be denormal numbers, which are several times as slow
        "optimizer=sgd", "optimizer.lr=1.0e-6", "trainer.label_smoothing=0.1",
        f"tracking.uri={url}", f"hydra.run.dir={folder}/run",
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, __file__, str(folder / "steps.bin"), *overrides], stdout=subprocess.DEVNULL
    )


def _server(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port),
         "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artifacts"],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with socket.socket() as probe, suppress(OSError):
            probe.connect(("127.0.0.1", port))
            return server, f"http://127.0.0.1:{port}"
        time.sleep(0.2)
    os.killpg(server.pid, signal.SIGKILL)
    raise RuntimeError("the MLflow server did not start")


def _train_and_keep_steps(path: str, overrides: list[str]) -> None:
    """Runs src/train.py, and writes the end (seconds since 1970) and duration (ms) of each step."""
    sys.path.insert(0, str(ROOT / "src"))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import numpy as np

    from feedrate.timing import Clock, EpochTimes

    original = Clock.epoch
    file = Path(path).open("ab", buffering=0)  # noqa: SIM115

    def epoch(self: Clock) -> EpochTimes:
        times = original(self)
        since_1970 = time.time() - time.perf_counter()
        ends = since_1970 + (times.requested + times.elapsed) / 1e9
        file.write(np.stack([ends, times.elapsed / 1e6], axis=1).tobytes())
        return times

    Clock.epoch = epoch  # type: ignore[method-assign]
    sys.argv = [str(ROOT / "src/train.py"), *overrides]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    _train_and_keep_steps(sys.argv[1], sys.argv[2:])
