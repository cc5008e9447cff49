"""On an accelerator: loader with and without steps, copies during steps, host waits, gains of precision and compile.

`make bench-gpu` runs it. A step is as many matrix products as take the requested time. The last table trains Feedrate's
resnet18 on random images in memory.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from figures import markdown, spread
from torch import Tensor

BATCH, IMAGE = 128, (3, 64, 64)
COPY_MB, STEPS, REPEATS = 256, 20, 5
STEP_MS = (1.0, 5.0, 20.0)
ENGINES = (("inline", 0), ("thread", 2), ("process", 2), ("process", 8))
SECONDS = 3.0  # of a loader, and of a training
SAMPLES = 20_000
MODEL = "resnet18"


def run() -> str:
    from feedrate.trainer.device import choose_device, name_of

    device = choose_device("auto")
    if device.type == "cpu":
        sys.exit("error: torch finds no accelerator, and this benchmark needs one")
    fed = _fed(device)  # first, so that its workers are forked before the device is used
    tables = [f"{name_of(device)}.", fed, _overlap(device), _training(device)]
    return "\n\n".join(tables)


class Images(torch.utils.data.Dataset[Any]):
    """(3, 64, 64) uint8 and one of ten classes."""

    num_outputs = 10

    def __init__(self, partition: str = "train") -> None:
        generator = torch.Generator().manual_seed(0)
        self._X = torch.randint(0, 256, (1024, *IMAGE), dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._X[index % 1024].clone(), index % 10


class Busy:
    """A step of about `ms` milliseconds on the device: matrix products."""

    def __init__(self, device: torch.device) -> None:
        self._square = torch.rand(1024, 1024, device=device) / 1024
        self._each_ms = 0.0
        self._each_ms = _device_ms(device, lambda: self(None, 50)) / 50

    def __call__(self, ms: float | None, products: int = 0) -> None:
        for _ in range(products or max(1, round((ms or 0) / self._each_ms))):
            self._square = self._square @ self._square


def _device_ms(device: torch.device, work: Any) -> float:
    """Time of `work` on the device, in ms by device events, after one call as warm-up."""
    work()
    begin, end = (torch.Event(device, enable_timing=True) for _ in range(2))
    begin.record(torch.accelerator.current_stream(device))
    work()
    end.record(torch.accelerator.current_stream(device))
    end.synchronize()
    return float(begin.elapsed_time(end))


# ---------------------------------------------------------------------------------------------------------
# the loader, alone and with a step
# ---------------------------------------------------------------------------------------------------------


def _fed(device: torch.device) -> str:
    from feedrate.loader import Loader

    loaders = {
        (engine, workers): Loader(
            Images(), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0, seed=0, engine=engine,
            pin_memory=True,
        )
        for engine, workers in ENGINES
    }  # fmt: skip
    for (engine, _), loader in loaders.items():
        if engine == "process":
            loader.start()
    busy, rows = Busy(device), []
    for (engine, workers), loader in loaders.items():
        alone = _rate(loader, device, None, 0)
        for step_ms in STEP_MS:
            step = 1e3 * BATCH / step_ms
            found = _rate(loader, device, busy, step_ms)
            share = f"{100 * found / min(alone, step):.0f} %"
            rows.append(
                (f"{engine} {workers}, {step_ms:g} ms", f"{alone:,.0f}", f"{step:,.0f}", f"{found:,.0f}", share)
            )
            print(*rows[-1], sep=" | ", flush=True)
        loader.close()
    head = ["engine, step", "loader alone, samples/s", "step alone", "together", "of the slower one"]
    return markdown(head, rows)


def _rate(loader: Any, device: torch.device, busy: Busy | None, step_ms: float) -> float:
    """Samples per second, without the first ten batches."""
    from feedrate.loader import ToDevice

    count, begin = 0, 0.0
    while True:
        for batch in ToDevice(loader, device):
            if busy is not None:
                busy(step_ms)
            count += 1
            if count == 10:
                torch.accelerator.synchronize(device)
                begin = time.perf_counter()
            if count > 10 and time.perf_counter() - begin > SECONDS:
                torch.accelerator.synchronize(device)
                return (count - 10) * len(batch.X) / (time.perf_counter() - begin)


# ---------------------------------------------------------------------------------------------------------
# copies during steps
# ---------------------------------------------------------------------------------------------------------


def _overlap(device: torch.device) -> str:
    from feedrate.loader import ToDevice

    busy, rows = Busy(device), []
    y = torch.zeros(1)
    for pinned in (True, False):
        X = torch.zeros(COPY_MB << 18)
        X, y = (X.pin_memory(), y.pin_memory()) if pinned else (X, y)
        copy_ms = _device_ms(device, lambda X=X: X.to(device, non_blocking=True))

        def both_ms(step_ms: float, X: Tensor = X, y: Tensor = y) -> float:
            begin = 0.0
            for number, _ in enumerate(ToDevice(([X, y] for _ in range(STEPS + 2)), device)):
                if number == 2:
                    torch.accelerator.synchronize(device)
                    begin = time.perf_counter()
                if step_ms:
                    busy(step_ms)
            torch.accelerator.synchronize(device)
            return 1e3 * (time.perf_counter() - begin) / STEPS

        found = [both_ms(copy_ms) for _ in range(REPEATS)]
        step_ms = _device_ms(device, lambda ms=copy_ms: busy(ms))
        hidden = 100 * (copy_ms + step_ms - median(found)) / min(copy_ms, step_ms)
        kind = "page-locked" if pinned else "pageable"
        rate = f"{COPY_MB * 1.048576 / copy_ms:,.1f}"
        rows.append(
            (f"{kind}, {COPY_MB} MiB", f"{copy_ms:.2f}", rate, f"{step_ms:.2f}", spread(found), f"{hidden:.0f} %")
        )
        print(*rows[-1], sep=" | ", flush=True)
    return markdown(["memory", "copy, ms", "GB/s", "step, ms", "both, ms a batch", "of the shorter one hidden"], rows)


# ---------------------------------------------------------------------------------------------------------
# a training: host waits, precision, compile
# ---------------------------------------------------------------------------------------------------------


def _training(device: torch.device) -> str:
    from omegaconf import OmegaConf

    from feedrate.cli.launch import CONF
    from feedrate.config import TrainerConfig
    from feedrate.dataset import build_data
    from feedrate.tuning.trial_runner import Setting, TrialRunner

    def conf(name: str) -> dict[str, Any]:
        return dict(OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml")))  # type: ignore[call-overload]

    data = build_data({"_target_": "gpu.Images"}, 0)
    loader = {**conf("loader/feedrate"), "batch_size": BATCH}
    rows = []
    for compile in (False, True):
        for precision in (32, "bf16", "fp16"):
            settings = {**conf("trainer/default"), "device": "auto", "precision": precision, "compile": compile}
            config = TrainerConfig(**{**settings, "channels_last": precision != 32})
            runner = TrialRunner(config, data, loader, conf(f"model/{MODEL}"), conf("optimizer/adamw"), 0, device)
            with host_waits(device) as waits:
                times, _ = runner.run(Setting(2, engine="thread"), SECONDS)
            step_ms = times.compute[times.counted] / 1e6
            rate = 1e9 * times.samples[times.counted].sum() / times.elapsed[times.counted].sum()
            steps = max(1, len(times.wait))
            shown = ", ".join(f"{name} {count / steps:.2f}" for name, count in waits.most_common(3)) or "none"
            rows.append(
                (f"{precision}{', compiled' if compile else ''}", f"{median(step_ms):.2f}", f"{rate:,.0f}", shown)
            )
            print(*rows[-1], sep=" | ", flush=True)
    return markdown([f"{MODEL}, batch {BATCH}", "step, ms", "samples/s", "host waits a step"], rows)


@contextmanager
def host_waits(device: torch.device) -> Iterator[Counter[str]]:
    """Counts host synchronisations by file and line, from torch's warnings; CUDA only."""
    found: Counter[str] = Counter()
    if device.type != "cuda":
        found["not known"] = 0
        yield found
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for one in caught:
        if "synchroniz" in str(one.message):
            found[f"{one.filename.rpartition('/')[2]}:{one.lineno}"] += 1
