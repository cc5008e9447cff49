"""Rates of loaders, alone and beside a training step; a public function without arguments for each table.

All are measured in one way: the loaders of a table take turns, each turn skips the batches that were prefetched while
others were measured, and then counts for some seconds. The first turn of each is left out.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from cells import use_cpu
from figures import markdown, spread
from peers.sets import SETS, Set, make_set, pad
from peers.torchs import Files, open_in_memory, open_memcpy
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from feedrate.config import PackConfig
from feedrate.dataset import Catalog, Digits, Generated, InMemory, Packed, TensorFiles, build_data, sample_rng
from feedrate.dataset.writing.pack import pack
from feedrate.loader import Loader
from feedrate.system.cores import usable_cores

ROOT = Path(__file__).resolve().parents[1]
REPEATS, BATCH = 5, 64
WAYS = (("inline", 0), ("thread", 1), ("thread", 2), ("process", 1), ("process", 2))
Step = Callable[[Any], object]  # trains on X of a batch


# ---------------------------------------------------------------------------------------------------------
# How all are measured
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """One measurement.

    Attributes:
        rate: samples/s.
        wait_pct: share of the time in which the loop waited for its next batch.
        ms: a batch, with its step.
    """

    rate: float
    wait_pct: float
    ms: float


def measure(
    loaders: Mapping[str, Iterable[Any]],
    steps: Mapping[str, Step] | None = None,
    seconds: float = 0.5,
    repeats: int = REPEATS,
    skipped: int = 16,
) -> dict[tuple[str, str], list[Turn]]:
    """The turns of each loader beside each step, by their names; without `steps` of each loader alone.

    Args:
        steps: by name; a name of the form 'LOADER: ...' is a step for that loader only.
        skipped: batches at the beginning of each turn that do not count.
    """
    streams = {name: _endless(loader) for name, loader in loaders.items()}
    pairs = [
        (name, step)
        for step in steps or {"alone": _nothing}
        for name in loaders
        if ": " not in step or step.startswith(f"{name}: ")
    ]
    found: dict[tuple[str, str], list[Turn]] = {pair: [] for pair in pairs}
    for number in range(repeats + 1):
        for name, step in pairs[:: 1 if number % 2 else -1]:
            turn = _turn(streams[name], (steps or {}).get(step, _nothing), seconds, skipped)
            if number:
                found[name, step].append(turn)
    for loader in loaders.values():
        if isinstance(loader, Loader):
            loader.close()
    return found


def _turn(batches: Iterator[Any], step: Step, seconds: float, skipped: int) -> Turn:
    for _ in range(skipped):
        step(next(batches)[0])
    samples = count = 0
    waited = 0.0
    begin = now = time.perf_counter()
    while now - begin < seconds:
        X, y = next(batches)
        waited += time.perf_counter() - now
        samples, count = samples + len(y), count + 1
        step(X)
        del X, y  # freed here and not within next(), which would count as waiting
        now = time.perf_counter()
    return Turn(samples / (now - begin), 100 * waited / (now - begin), 1e3 * (now - begin) / count)


def rates(found: Mapping[tuple[str, str], list[Turn]]) -> dict[tuple[str, str], list[float]]:
    return {pair: [turn.rate for turn in turns] for pair, turns in found.items()}


def ratios(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """a to b, repeat by repeat."""
    return [x / y for x, y in zip(a, b, strict=True)]


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def _nothing(X: Any) -> None:
    pass


def _sleep(ms: float) -> Step:
    """A step that sleeps, as the host does while an accelerator computes."""
    return lambda X: time.sleep(ms / 1e3)


def _launch(kernels: int) -> Step:
    """A step that launches many small kernels, which holds the GIL."""
    small = torch.ones(8, 8)

    def step(X: Any) -> None:
        for _ in range(kernels):
            small.add_(1)

    return step


def _loaders(data: Any, ways: Iterable[tuple[str, int]] = WAYS, **settings: Any) -> dict[str, Loader]:
    """A started loader for each engine and number of workers; processes first, since they are forked."""
    torch.set_num_threads(1)
    settings = {"batch_size": BATCH, "shuffle": True, "seed": 0, **settings}
    found = {}
    for engine, workers in sorted(ways):
        chosen = {"engine": engine, "num_workers": workers, "persistent_workers": True} if workers else {}
        found[_way(engine, workers)] = Loader(data, **settings, **chosen)
        found[_way(engine, workers)].start()
    return {_way(*way): found[_way(*way)] for way in ways}


def _way(engine: str, workers: int) -> str:
    return f"{engine} {workers}" if workers else "inline"


def _workers(data: Any, counts: Iterable[int], **settings: Any) -> dict[str, Loader]:
    """Loaders whose engine is `auto`."""
    return {f"{count} workers": _loaders(data, [("auto", count)], **settings)[_way("auto", count)] for count in counts}


def _home(of: Set) -> Path:
    return make_set(of, ROOT / "data/peers")


# ---------------------------------------------------------------------------------------------------------
# Computed samples
# ---------------------------------------------------------------------------------------------------------


class Computed(Dataset[Any]):
    """Samples of 4 KB that take so many ms of pure Python."""

    def __init__(self, ms: float) -> None:
        self.seconds = ms / 1e3

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, index: int) -> Any:
        use_cpu(self.seconds)
        return torch.full((1024,), index), index


class HoldsGil:
    """Batches of 64 KB, each of which holds the GIL for some ms."""

    thread_safe = True

    def __init__(self, ms: float) -> None:
        self.seconds, self.X = ms / 1e3, torch.zeros(1024)

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, index: int) -> Any:
        return self.X, 0

    def load_batch(self, indices: np.ndarray, empty: Any) -> Any:
        use_cpu(self.seconds)
        return empty((len(indices), 1024), torch.uint8).zero_(), torch.from_numpy(indices)


def generated() -> str:
    """Gain from workers, alone and with a step that needs no CPU."""
    loaders = _workers(Generated("train", seed=0, size=4096), (0, 1, 2))
    found = rates(measure(loaders, {"0 ms": _nothing, "25 ms": _sleep(25)}, seconds=2.5, skipped=4))
    rows = []
    for (name, step), some in found.items():
        base = found["0 workers", step]
        medians = f"{median(some) / median(base):.2f}"
        rows.append((f"{name}, {step}", spread(some, 0), medians, spread(ratios(some, base))))
    return markdown(["workers, step", "samples/s", "to 0 workers, medians", "to 0 workers, by repeat"], rows)


def burn() -> str:
    """Whether each worker adds one core, up to the cores there are; a sample takes 5 ms of CPU in pure Python."""
    loaders = _workers(Computed(5.0), sorted({0, 1, 2, usable_cores()}), batch_size=8)
    found = rates(measure(loaders, seconds=2.5, skipped=8))
    rows = []
    for (name, _), some in found.items():
        wanted = 0.95 * min(max(1, int(name.split()[0])), usable_cores())
        reached = median(some) / median(found["0 workers", "alone"])
        verdict = "-" if name == "0 workers" else "pass" if reached >= wanted else "**falls short**"
        rows.append((name, spread(some, 1), f"{reached:.3f}", f"{wanted:.2f}", verdict))
    return markdown(["5 ms of CPU for each sample", "samples/s", "times 0 workers", "promised", ""], rows)


def held() -> str:
    """Threads against processes, by how long a batch holds the GIL: what `loader.engine=auto` decides by."""
    large = torch.ones(300, 300)

    def compute(X: Any) -> None:
        for _ in range(10):
            large @ large

    steps: dict[str, Step] = {"sleeps": _sleep(10), "launches": _launch(3000), "computes": compute}
    rows = []
    for ms in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0):
        loaders = _loaders(HoldsGil(ms), [("process", 1), ("thread", 1)])
        found = measure(loaders, steps, seconds=0.5, skipped=4)
        for step in steps:
            threads, processes = ([turn.ms for turn in found[f"{of} 1", step]] for of in ("thread", "process"))
            times = ratios(processes, threads)
            better = "thread" if median(times) > 1 else "process"
            rows.append((f"{ms:g} ms, {step}", f"{median(threads):.2f}", spread(times), better))
    return markdown(["a batch holds the GIL, step", "threads, ms a step", "process to thread, time", "less time"], rows)


# ---------------------------------------------------------------------------------------------------------
# One file per sample
# ---------------------------------------------------------------------------------------------------------


class OneByOne(Dataset[Any]):
    """A dataset without `load_batch`."""

    def __init__(self, data: InMemory) -> None:
        self.data, self.list_IDs = data, data.list_IDs

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        return self.data[index]


def overhead() -> str:
    """What order, keyed randomness, digest and batch infos cost: a Loader with a seed against torch's DataLoader."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        Digits.prepare(root)
        catalog = Catalog.read(root)
        train = catalog.partition["train"], catalog.labels["train"], root
        memory = InMemory(*train)
        data_sets = {
            "files of 1.2 KB": TensorFiles(*train),
            "the same in memory": memory,
            "in memory, one by one": OneByOne(memory),
        }
        for name, data in data_sets.items():
            for workers in (0, 2):
                loaders: dict[str, Any] = {
                    "torch": DataLoader(data, BATCH, True, num_workers=workers, persistent_workers=workers > 0),
                    **_workers(data, [workers]),
                }
                found = rates(measure(loaders, repeats=7))
                theirs, ours = found["torch", "alone"], found[f"{workers} workers", "alone"]
                ratio = f"{median(ours) / median(theirs):.2f}"
                rows.append((f"{name}, {workers} workers", spread(theirs, 0), spread(ours, 0), ratio))
    return markdown(["digits, batch 64", "DataLoader, samples/s", "Loader with a seed, samples/s", "ratio"], rows)


def engines() -> str:
    """The engines on one file per sample, alone and with steps: a loader that is fast alone may slow a step down."""
    rows = []
    for of in SETS[:2]:
        data = TensorFiles(of.list_IDs, of.labels, _home(of) / "pt")
        loaders: dict[str, Any] = _loaders(data)
        loaders["the same batch again"] = repeat(next(iter(Loader(data, BATCH, seed=0))))
        steps = {
            "alone": _nothing,
            "step that sleeps 5 ms": _sleep(5),
            "step of Python and small kernels": _launch(1500),
            "small CNN": _cnn(of.shape),
        }
        found = rates(measure(loaders, steps))
        for name in loaders:
            cells = [spread(found[name, step], 0) for step in steps]
            rows.append((f"{of.name}, {name}", "-" if name == "the same batch again" else cells[0], *cells[1:]))
    return markdown(["batch 64", "alone, samples/s", *list(steps)[1:]], rows)


def _cnn(shape: tuple[int | None, ...]) -> Step:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 7, 4), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)
    )
    net(torch.zeros(2, *shape))  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)

    def step(X: Tensor) -> None:
        optimizer.zero_grad()
        net(X.float().div_(255)).square().mean().backward()
        optimizer.step()

    return step


def fed() -> str:
    """Waiting of a step that sleeps, where the loader alone is 1.25, 2 or 4 times as fast as the step."""
    rows = []
    sets: list[tuple[str, Any, int, Sequence[str]]] = [
        (of.name, TensorFiles(of.list_IDs, of.labels, _home(of) / "pt"), 64, ("process", "thread")) for of in SETS[:2]
    ]
    for name, data, batch, kinds in (*sets, ("0.5 ms of computing", Computed(0.5), 32, ("process",))):
        ways = [(kind, workers) for kind in kinds for workers in (1, 2)]
        alone = rates(measure(_loaders(data, ways, batch_size=batch)))
        steps, lengths = {}, {}
        for way, _ in alone:
            for headroom in (1.25, 2.0, 4.0):
                lengths[f"{way}: {headroom:g}"] = ms = 1e3 * batch * headroom / median(alone[way, "alone"])
                steps[f"{way}: {headroom:g}"] = _sleep(ms)
        for (way, step), turns in measure(_loaders(data, ways, batch_size=batch), steps, seconds=0.7).items():
            waits = [turn.wait_pct for turn in turns]
            verdict = "pass" if median(waits) <= 2.0 else "**falls short**"
            rate = f"{median(alone[way, 'alone']):,.0f}"
            rows.append((f"{name}, {way}", rate, step.split(": ")[1], f"{lengths[step]:.2f}", spread(waits), verdict))
    head = ["samples, engine", "alone, samples/s", "headroom", "step, ms", "wait, %", "at most 2 %"]
    return markdown(head, rows)


# ---------------------------------------------------------------------------------------------------------
# Samples with a transform, or of different lengths
# ---------------------------------------------------------------------------------------------------------


def _flipped(X: Tensor) -> Tensor:
    """An augmentation with random numbers keyed by sample."""
    return X.flip(-1) if sample_rng().random() < 0.5 else X


class _Flipped(Files):
    """The same augmentation with torch's global generator."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        X, y = super().__getitem__(index)
        return X.flip(-1) if torch.rand(()) < 0.5 else X, y


def samples() -> str:
    """Files with a transform, or of different lengths, compared with torch's DataLoader."""
    rows = []
    for of in SETS:
        home = _home(of)
        collate: dict[str, Any] = {"collate_fn": pad} if of.ragged else {}
        data = TensorFiles(of.list_IDs, of.labels, home / "pt", None if of.ragged else _flipped)
        theirs = (Files if of.ragged else _Flipped)(home / "pt", of)
        loaders: dict[str, Any] = _loaders(data, [("inline", 0), ("thread", 2), ("process", 2)], **collate)
        for workers in (0, 2):
            options = {"num_workers": workers, "persistent_workers": workers > 0, **collate}
            loaders[f"torch {workers}"] = DataLoader(theirs, BATCH, True, **options)
        for loader in loaders.values():  # file layouts are learned in the first epoch
            for _ in loader:
                pass
        found = rates(measure(loaders, repeats=7))
        best = [max(pair) for pair in zip(found["torch 0", "alone"], found["torch 2", "alone"], strict=True)]
        what = "of different lengths" if of.ragged else "with a transform"
        for (name, _), some in found.items():
            rows.append((f"{of.name}, {what}", name, spread(some, 0), spread(ratios(some, best))))
    return markdown(["files", "loader, workers", "samples/s", "x torch's better one"], rows)


# ---------------------------------------------------------------------------------------------------------
# Shards
# ---------------------------------------------------------------------------------------------------------


def packed() -> str:
    """Shards, and the shard cache, compared with data in memory; loaders alone, files in the page cache."""
    rows = []
    memcpy, memory = "memcpy of whole batches", "TensorDataset, 0 workers"
    for of in SETS[:2]:
        with tempfile.TemporaryDirectory() as folder:
            root = _copied(of, Path(folder) / "data")
            with redirect_stdout(StringIO()):
                pack(PackConfig(dataset=_node(root)))
            whole = Packed(f"{root}-packed")
            buffer = torch.empty((BATCH, *of.shape), dtype=of.dtype)  # type: ignore[arg-type]
            cached = build_data(_node(root, cache="shards"), 0).partition["train"]
            filling = _epoch_rate(Loader(cached, BATCH, True, seed=0))
            loaders: dict[str, Any] = {
                memcpy: open_memcpy(root, of, BATCH, 0),
                memory: open_in_memory(root, of, BATCH, 0),
                "packed, load_batch alone": _Gathered(whole, buffer),
                **{f"packed, {name}": loader for name, loader in _workers(whole, (0, 1, 2)).items()},
                "packed with pread": Loader(Packed(f"{root}-packed", access="pread"), BATCH, True, seed=0),
                "files": Loader(build_data(_node(root), 0).partition["train"], BATCH, True, seed=0),
                "files with dataset.cache=shards, filled": Loader(cached, BATCH, True, seed=0),
            }
            found = rates(measure(loaders, repeats=7, skipped=10))
        for (name, _), some in found.items():
            cells = [spread(ratios(some, found[other, "alone"])) for other in (memory, memcpy)]
            rows.append((f"{of.name}: {name}", spread(some, 0), *cells))
        rows.append((f"{of.name}: files, while the cache fills (one epoch)", f"{filling:,.0f}", "-", "-"))
    return markdown(["samples", "samples/s", "to TensorDataset, by repeat", "to memcpy, by repeat"], rows)


class _Gathered:
    """Batches that the dataset reads without a loader, into one reused buffer, as for memcpy."""

    def __init__(self, data: Packed, buffer: Tensor) -> None:
        self.data, self.buffer = data, buffer

    def __iter__(self) -> Iterator[Any]:
        order = np.random.default_rng(0).permutation(len(self.data))
        for at in range(0, len(order) - BATCH + 1, BATCH):
            yield self.data.load_batch(order[at : at + BATCH], lambda shape, dtype: self.buffer)


def _copied(of: Set, root: Path) -> Path:
    """A folder of links to the files of a set, since packing and the cache write beside and into the folder."""
    root.mkdir()
    for path in (_home(of) / "pt").iterdir():
        (root / path.name).symlink_to(path)
    return root


def _node(root: Path, **keys: str) -> dict[str, Any]:
    return {"_target_": "feedrate.dataset.TensorFiles", "root": str(root), **keys}


def _epoch_rate(loader: Iterable[Any]) -> float:
    begin = time.perf_counter()
    return sum(len(y) for _, y in loader) / (time.perf_counter() - begin)
