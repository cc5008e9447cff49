"""Before the first worker starts: what the loaders of a run will need, against what is free, and which setting fits.

Functions of plain figures; limits.py reads what is free, build.py knows the loaders.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from feedrate.errors import UserError
from feedrate.loader.buffers import usual_slots
from feedrate.loader.limits import Limits, shown
from feedrate.loader.worker_footprint import NOTHING, Parcel

NEAR = 0.8  # of what is free: above it a warning, above all of it an error

# Measured with torch 2.13 on Linux by tests/loader/test_preflight.py, which also holds the prediction to its measure.
OWN_BYTES = {"fork": 20_000_000, "forkserver": 170_000_000, "spawn": 170_000_000}  # of a worker, beside its batches
PRELOADED_BYTES = 55_000_000  # of one whose server has imported torch for it, as that of 'process' has
SERVER_BYTES = 170_000_000  # of that server
SURE_SHARE = 0.75  # of a worker's own bytes that it takes whatever the system; the rest differs with allocators
FILES_OF_WORKER = 4  # a queue to it has two ends, and so has what tells that it ended
FILES_OF_POOL = 4  # the queue of results, and what a hand-over opens for a moment
LATER_FILES = 64  # for what the run opens besides: log, checkpoints, the device's driver
TENSORS = 2  # of a batch, X and y: each that crosses in torch's way is a descriptor
_PAGE = 4096


@dataclass(frozen=True)
class Pool:
    """One loader of a run.

    Attributes:
        sample_bytes: X and y of a sample, as loaded.
        batch_size, samples: of the loader.
        parcel: its dataset, as it reaches each of its workers.
    """

    sample_bytes: int
    batch_size: int
    samples: int
    parcel: Parcel = NOTHING

    @property
    def batch_bytes(self) -> int:
        return self.sample_bytes * min(self.batch_size, self.samples)

    @property
    def batches(self) -> int:
        return -(-self.samples // self.batch_size)


@dataclass(frozen=True)
class Setup:
    """The loaders that a run starts, all with the same settings.

    Attributes:
        engine: 'inline', 'thread', 'process', or 'torch' for processes with PyTorch's own hand-over.
        num_workers, prefetch_factor: of each loader.
        pools: a loader each.
        start_method: of processes.
        persistent: the workers live on between epochs, and those of 'process' make batches of the next one.
        pinned: batches are also copied to page-locked memory.
        by_descriptor: tensors that cross in PyTorch's way are handed over as descriptors, not as names of files.
        exact: every batch is as large as the first sample lets expect.
    """

    engine: str
    num_workers: int
    prefetch_factor: int
    pools: tuple[Pool, ...]
    start_method: str = "fork"
    persistent: bool = True
    pinned: bool = False
    by_descriptor: bool = True
    exact: bool = True


@dataclass(frozen=True)
class Needs:
    """What loaders will have taken when all that is made ahead is there.

    Attributes:
        shared_memory: bytes in /dev/shm at most.
        sure_shared: the part of it that is taken for longer than a moment.
        memory: bytes, shared ones included, beyond what the main process has now.
        sure_memory: the part of it that workers, batches and what is sent to workers take in any case.
        workers_memory: the part of that which workers take before there is any batch.
        open_files: descriptors of the main process, beyond those that are open now.
        sure_files: the part of it that is open in any case.
    """

    shared_memory: int = 0
    sure_shared: int = 0
    memory: int = 0
    sure_memory: int = 0
    workers_memory: int = 0
    open_files: int = 0
    sure_files: int = 0


def needs(setup: Setup) -> Needs:
    """The prediction."""
    workers, pools = setup.num_workers, setup.pools
    batch = pools[0].batch_bytes
    if not workers or setup.engine == "inline":
        # one is in use while the next is made, and each loader keeps its memory
        return Needs(memory=2 * sum(pool.batch_bytes for pool in pools) + batch, sure_memory=2 * batch)
    # by each worker: the samples of a batch before they are one, and as much that the allocator keeps
    made = 2 * workers * sum(pool.batch_bytes for pool in pools)
    if setup.engine == "thread":
        # two more: the one in use and the one that takes its place
        batches = sum((_ahead(setup, pool) + 2) * pool.batch_bytes for pool in pools)
        return Needs(memory=batches + made, sure_memory=batches)
    ours = setup.engine == "process"
    crossing = _slots(setup) if ours else _torchs(setup)
    pinned = max(_ahead(setup, pool) * pool.batch_bytes for pool in pools) if setup.pinned else 0
    # with torch's, the workers of one loader may end before those of the next begin
    alive = pools if ours or setup.persistent else pools[:1]
    own = workers * len(alive) * _own(setup)
    born = round(SURE_SHARE * own) + workers * sum(pool.parcel.copied for pool in alive)
    sure = crossing + pinned + born
    likely = made + own - round(SURE_SHARE * own) + workers * sum(pool.parcel.objects for pool in alive)
    if ours and setup.start_method == "forkserver":
        likely += SERVER_BYTES
    files = len(alive) * (workers * FILES_OF_WORKER + FILES_OF_POOL)
    tensors = 0
    if ours:
        files += sum(_slot_count(setup, pool) for pool in pools)
    elif setup.by_descriptor:
        tensors = TENSORS * max(_ahead(setup, pool) + 1 for pool in pools)
    moved = sum(pool.parcel.shared for pool in pools)
    return Needs(
        shared_memory=crossing + moved,
        sure_shared=crossing + moved - (0 if ours else max(pool.batch_bytes for pool in alive)),
        memory=sure + likely,
        sure_memory=sure,
        workers_memory=born,
        open_files=files + tensors,
        sure_files=files,
    )


def _own(setup: Setup) -> int:
    """Bytes of a worker before it has loaded anything."""
    if setup.engine == "process" and setup.start_method == "forkserver":
        return PRELOADED_BYTES
    return OWN_BYTES[setup.start_method]


def _ahead(setup: Setup, pool: Pool) -> int:
    """Batches that are asked for before they are needed."""
    count = setup.num_workers * setup.prefetch_factor
    goes_on = setup.persistent and setup.engine != "torch"  # into the next epoch
    return count if goes_on else min(count, pool.batches)


def _slot_count(setup: Setup, pool: Pool) -> int:
    """Slots that a loader's workers come to fill."""
    count = setup.num_workers * usual_slots(setup.num_workers, setup.prefetch_factor)
    return count if setup.persistent else min(count, pool.batches)


def _slots(setup: Setup) -> int:
    """Bytes of the slots of all loaders, which keep them."""
    return sum(_slot_count(setup, pool) * _paged(pool.batch_bytes) for pool in setup.pools)


def _torchs(setup: Setup) -> int:
    """Bytes of the batches on their way: of one loader at a time, since none is made beyond an epoch's end.

    Two more than are asked for: the one in use and, for a moment, the one that follows. Workers of another loader that
    are forked while a batch is in use hold on to it.
    """
    most = max((_ahead(setup, pool) + 2) * (_paged(pool.batch_bytes) + _PAGE) for pool in setup.pools)
    inherited = len(setup.pools) > 1 and setup.start_method == "fork"
    return most + inherited * _paged(setup.pools[0].batch_bytes)


def _paged(nbytes: int) -> int:
    """Bytes that the system gives for so many."""
    return -(-nbytes // _PAGE) * _PAGE


# ---------------------------------------------------------------------------------------------------------
# against what is free
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """One thing that is needed.

    Attributes:
        needed, sure: with all that is likely, and without.
        free: what there is of it.
        text: what is needed, with the figure and the rule.
        besides: what else helps, as a command.
    """

    needed: int
    sure: int
    free: int
    text: str
    besides: str


def preflight(setup: Setup, limits: Limits) -> str:
    """A warning of one line where more than `NEAR` of what is free is needed, else an empty text.

    Raises:
        UserError: it cannot work, with the settings that can.
    """
    rows = list(_rows(setup, limits))
    short = [row for row in rows if row.sure > row.free]
    tight = [row for row in rows if row.needed > NEAR * row.free]
    if not tight:
        return ""
    row = max(short or tight, key=lambda row: row.needed / max(1, row.free))
    fitting = _fitting(setup, limits)
    if not short:
        advice = " or ".join(fitting) or row.besides
        return f"note: {row.text}; {advice}{' fits' if len(fitting) == 1 else ' fit' if fitting else ''}"
    advice = " or ".join(fitting)
    besides = row.besides[0].upper() + row.besides[1:]
    raise UserError(f"{row.text}\nSet {advice}, or {row.besides}" if advice else f"{row.text}\n{besides}")


def _rows(setup: Setup, limits: Limits) -> Iterator[_Row]:
    found = needs(setup)
    who = _who(setup)
    about = "about " if setup.exact else "as the first sample lets expect, about "
    if limits.shared_memory is not None and found.shared_memory:
        yield _Row(
            found.shared_memory,
            found.sure_shared if setup.exact else 0,
            limits.shared_memory,
            f"{who} {about}{shown(found.shared_memory)} of shared memory, and /dev/shm has "
            f"{shown(limits.shared_memory)} free",
            "enlarge /dev/shm",
        )
    if limits.memory is not None:
        yield _Row(
            found.memory,
            found.sure_memory if setup.exact else found.workers_memory,
            limits.memory,
            f"{who} {about}{shown(found.memory)} of memory{_objects(setup, found)}, and {limits.memory_of} has "
            f"{shown(limits.memory)} left",
            "give it more memory",
        )
    if limits.open_files is not None and found.open_files:
        free = max(0, limits.open_files - limits.opened - LATER_FILES)
        wanted = found.open_files + limits.opened + LATER_FILES
        yield _Row(
            found.open_files,
            found.sure_files - LATER_FILES,
            free,
            f"{who} about {found.open_files:,} open files, and the limit of {limits.open_files:,} leaves {free:,}",
            f"raise the limit first (ulimit -n {1 << (round(wanted / NEAR)).bit_length()})",
        )


def _who(setup: Setup) -> str:
    if not setup.num_workers:
        return f"loader.batch_size={setup.pools[0].batch_size} needs"
    return f"loader.num_workers={setup.num_workers}{', for training and validation,' * (len(setup.pools) > 1)} needs"


def _objects(setup: Setup, found: Needs) -> str:
    """Where most of the memory is for Python objects, says so: the cure is another dataset, not another loader."""
    each = sum(pool.parcel.copied + pool.parcel.objects for pool in setup.pools)
    if setup.engine not in ("process", "torch") or 2 * each * setup.num_workers < found.memory:
        return ""
    size = shown(each / len(setup.pools))
    return f", {size} of it in each worker for what the dataset holds in lists and dictionaries"


def _fitting(setup: Setup, limits: Limits) -> list[str]:
    """Overrides that leave room, each the nearest of its kind to the present setting, with nothing else changed."""

    def fits(other: Setup) -> bool:
        return all(row.needed <= NEAR * row.free for row in _rows(other, limits))

    workers, factor = setup.num_workers, setup.prefetch_factor
    fewer = range(workers - 1, 0, -1)
    found = [f"loader.prefetch_factor={n}" for n in range(factor - 1, 0, -1) if fits(replace(setup, prefetch_factor=n))]
    found = found[:1] + [f"loader.num_workers={n}" for n in fewer if fits(replace(setup, num_workers=n))][:1]
    if not found and workers:
        both = [n for n in fewer if fits(replace(setup, num_workers=n, prefetch_factor=1))][:1]
        found += [f"loader.num_workers={n} loader.prefetch_factor=1" for n in both]
        found += ["loader.num_workers=0"] if fits(replace(setup, num_workers=0)) else []
    if not found:
        size = setup.pools[0].batch_size
        while (size := size // 2) and not fits(_of_size(setup, size)):
            pass
        found += [f"loader.batch_size={size}"] if size else []
    return found


def _of_size(setup: Setup, batch_size: int) -> Setup:
    return replace(setup, pools=tuple(replace(pool, batch_size=batch_size) for pool in setup.pools))
