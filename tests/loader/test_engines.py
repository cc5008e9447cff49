"""Threads, processes and neither deliver the same; `auto` picks one and says why."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset

from feedrate.config import FeedrateLoaderConfig
from feedrate.dataset import TensorFiles, sample_rng
from feedrate.dataset.time_limit import RUNNING
from feedrate.errors import SampleError, UserError
from feedrate.loader import TRAITS, Loader
from loader.datasets import Augmented, Drawn, Faulty, Numbers, Recorded, Whole, tell, total
from loader.test_loader import same

pytestmark = pytest.mark.usefixtures("no_workers_left", "no_threads_left")
ENGINES = ("thread", "process")
NAMES = [f"scan/{i:03d}" for i in range(37)]
BATCHES = 8  # of 37 samples


def loader(data: Dataset[Any], num_workers: int = 2, **settings: Any) -> Loader:
    settings = {"batch_size": 5, "shuffle": True, "seed": 7, "content_digest": True, **settings}
    if num_workers and settings.get("engine") == "process":
        settings.setdefault("multiprocessing_context", "fork")
    return Loader(data, num_workers=num_workers, **settings)


def delivered(made: Loader, epochs: int = 2) -> tuple[list[Any], str, str | None]:
    batches = [list(made) for _ in range(epochs)]
    found = batches, made.order_digest(), made.content_digest()
    made.close()
    return found


# ---------------------------------------------------------------------------------------------------------
# the same from each
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize(("num_workers", "prefetch"), [(1, None), (2, 1), (4, 3)])
def test_threads_deliver_what_the_training_process_alone_would(
    num_workers: int, prefetch: int | None, persistent: bool
) -> None:
    settings = {"engine": "thread", "prefetch_factor": prefetch, "persistent_workers": persistent}
    threads = delivered(loader(Drawn(NAMES), num_workers, **settings), epochs=3)
    assert same(threads, delivered(loader(Drawn(NAMES), 0), epochs=3))


@pytest.mark.parametrize("engine", [*ENGINES, "auto"])
def test_whole_batches_are_the_same_from_every_engine(tmp_path: Path, engine: str) -> None:
    for number, name in enumerate(NAMES):
        path = tmp_path / f"{name}.pt"
        path.parent.mkdir(exist_ok=True)
        torch.save(torch.full((3, 80, 80), number, dtype=torch.uint8), path)
    data = TensorFiles(NAMES, dict.fromkeys(NAMES, 1), tmp_path)
    settings = {"engine": engine, "persistent_workers": True}
    assert same(delivered(loader(data, **settings)), delivered(loader(data, 0)))


@pytest.mark.parametrize("engine", ENGINES)
def test_random_numbers_of_a_sample_are_its_own_whoever_loads_it(engine: str) -> None:
    found = {int(row[0]): row for X, _ in loader(Drawn(NAMES), engine=engine) for row in X}
    alone = {int(row[0]): row for X, _ in loader(Drawn(NAMES), 0, batch_size=3, shuffle=False) for row in X}
    assert same([found[i] for i in range(37)], [alone[i] for i in range(37)])


@pytest.mark.parametrize(("before", "then"), [("thread", "process"), ("process", "thread"), ("thread", "thread")])
@pytest.mark.parametrize("batches", [3, 8, 11])
def test_a_restart_may_change_the_engine(before: str, then: str, batches: int) -> None:
    first = loader(Drawn(NAMES), engine=before, persistent_workers=True)
    for _ in range(batches // BATCHES):
        list(first)
    iterator = iter(first) if batches % BATCHES else iter(())
    for _ in range(batches % BATCHES):
        next(iterator)
    state = first.state_dict()  # a prefetched batch does not count
    first.close()
    second = loader(Drawn(NAMES), engine=then, persistent_workers=True)
    second.load_state_dict(state)
    rest = [batch for _ in range(2 - batches // BATCHES) for batch in second]
    whole, *digests = delivered(loader(Drawn(NAMES), 0))
    assert same(rest, [batch for epoch in whole for batch in epoch][batches:])
    assert [second.order_digest(), second.content_digest()] == digests
    second.close()


def test_threads_leave_the_global_random_numbers_to_the_training() -> None:
    def states() -> tuple[bytes, Any, str]:
        return torch.get_rng_state().numpy().tobytes(), random.getstate(), str(np.random.get_state())

    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    before = states()
    made = loader(Drawn(NAMES), engine="thread")
    made.start()
    for _ in made:
        assert states() == before
    assert sample_rng().random() != sample_rng().random()  # outside a loader as ever


@pytest.mark.parametrize(
    "draw", [lambda: torch.rand(()), random.random, np.random.rand], ids=["torch", "python", "numpy"]
)
def test_a_dataset_that_draws_from_a_global_generator_is_refused_by_threads(
    draw: Any, request: pytest.FixtureRequest
) -> None:
    class Drawing(Numbers):
        def __getitem__(self, index: int) -> Any:
            return float(draw())

    whose = {"torch": "torch's", "python": "Python's", "numpy": "NumPy's"}[request.node.callspec.id]
    state = torch.get_rng_state()
    with pytest.raises(UserError) as raised:
        next(iter(loader(Drawing(), engine="thread")))
    assert str(raised.value) == (
        f"loader.engine=thread: Drawing draws from {whose} global random generator, "
        "which threads share with the training\n"
        "Use feedrate.dataset.sample_rng(), whose numbers are each sample's own, or set loader.engine=process"
    )
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(UserError, match="Numbers draws from torch's"):
        next(iter(loader(Numbers(), engine="thread", collate_fn=total)))


# ---------------------------------------------------------------------------------------------------------
# threads: bounded, ordered, ended
# ---------------------------------------------------------------------------------------------------------


def test_threads_load_no_more_batches_ahead_than_asked(tmp_path: Path) -> None:
    data = Recorded(60, tmp_path / "record")
    made = loader(data, engine="thread", batch_size=3, prefetch_factor=2)
    for number, _ in enumerate(made, start=1):
        assert len(data.requested()) <= 3 * (number + 4)
    assert sorted(data.requested()) == list(range(60))


class Slow(Numbers):
    """Even batches take longer than odd ones, and their threads are overtaken."""

    def __getitem__(self, index: int) -> Any:
        time.sleep(0.002 * (index % 10 < 5))
        return super().__getitem__(index)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_batches_of_threads_come_in_their_order() -> None:
    made = loader(Slow(), 4, engine="thread", shuffle=False)
    assert [i for _, y in made for i in y.tolist()] == list(range(37))
    assert {info.load.number for info in _infos(loader(Slow(), 2, engine="thread"))} <= {-1, 0, 1}


def _infos(made: Loader) -> list[Any]:
    return [batch.info for batch in made.batches()]


class Hanging(Numbers):
    """The sample after the first batch hangs until `go` is set; `begun` is set once it is being loaded."""

    def __init__(self) -> None:
        super().__init__(20)
        self.go, self.begun = threading.Event(), threading.Event()

    def __getitem__(self, index: int) -> Any:
        if index == 5:
            self.begun.set()
            self.go.wait()
        return super().__getitem__(index)


@pytest.mark.parametrize("at_once", [True, False])
def test_closing_does_not_wait_for_a_thread_that_hangs(at_once: bool) -> None:
    data = Hanging()
    made = loader(data, engine="thread", shuffle=False)
    iterator = iter(made)
    next(iterator)
    assert data.begun.wait(60)
    made.close(at_once)
    assert any(thread.is_alive() for thread in RUNNING)
    data.go.set()  # and then it ends, as the fixture sees


class HangingFirst(Hanging):
    """Sample `hung` hangs until `go` is set."""

    thread_safe = True

    def __init__(self, hung: int) -> None:
        super().__init__()
        self.hung = hung

    def __getitem__(self, index: int) -> Any:
        if index == self.hung:
            self.begun.set()
            self.go.wait()
        return Numbers.__getitem__(self, index)


@pytest.mark.parametrize(
    ("settings", "hung"),
    [
        ({"num_workers": 0}, 0),
        ({"num_workers": 0}, 7),
        ({"engine": "auto"}, 1),  # in the first batch
        ({"engine": "auto"}, 6),  # in the measurement, alone
        ({"engine": "auto"}, 11),  # in it, beside another batch
        ({"engine": "thread"}, 2),
        ({"engine": "thread"}, 5),
    ],
    ids=str,
)
def test_a_sample_that_hangs_ends_in_the_timeout_wherever_it_is_loaded_with_its_name_and_the_remedy(
    settings: dict[str, Any], hung: int
) -> None:
    data = HangingFirst(hung)
    made = loader(data, shuffle=False, timeout=1.0, **settings)
    interval = sys.getswitchinterval()
    with pytest.raises(UserError) as raised:
        list(made)
    first = hung // 5 * 5
    said, remedy = str(raised.value).splitlines()
    batch = ", ".join(f"'{i}'" for i in range(first, first + 5))
    assert said.startswith(
        f"loader.timeout: the batch of {batch} did not come within 1 seconds: sample '{hung}' is still"
    )
    assert said.endswith("in __getitem__)")
    assert "test_engines.py, line " in said
    assert remedy == "A sample hangs, or loader.timeout is too short (0 waits for ever)"
    assert sys.getswitchinterval() == interval
    data.go.set()


def test_a_timeout_changes_nothing_of_what_the_main_process_loads() -> None:
    assert same(delivered(loader(Augmented(NAMES), 0, timeout=60)), delivered(loader(Augmented(NAMES), 0)))
    with pytest.raises(SampleError, match="not a picture"):
        list(loader(Faulty("value"), 0, timeout=60))


@pytest.mark.parametrize("persistent", [False, True])
def test_threads_end_with_their_loader_or_their_pass(persistent: bool) -> None:
    made = loader(Numbers(), engine="thread", persistent_workers=persistent)
    for _ in range(3):
        next(iter(made))  # left in the middle
    assert sum(thread.is_alive() for thread in RUNNING) <= 2 * 3
    list(made)
    with pytest.raises(SampleError):
        list(loader(Faulty("value"), engine="thread", persistent_workers=persistent))
    made = loader(Faulty("value", size=12), 1, engine="thread", shuffle=False, persistent_workers=persistent)
    made.set_epoch(0, then=None)
    with pytest.raises(SampleError):  # in the very last batch that its thread makes
        list(made)
    del made  # the fixture waits until all have ended


def test_what_a_thread_alone_cannot_foresee_reaches_the_main_one() -> None:
    class Odd(Numbers):
        def __getitem__(self, index: int) -> Any:
            if index == 20:
                raise GeneratorExit("odd")
            return index

    with pytest.raises(GeneratorExit, match="odd"):
        list(loader(Odd(), engine="thread", shuffle=False))


# ---------------------------------------------------------------------------------------------------------
# which engine
# ---------------------------------------------------------------------------------------------------------


def picked(data: Dataset[Any], caplog: pytest.LogCaptureFixture, **settings: Any) -> tuple[str, str]:
    """The engine that auto picks, and its message; checks the batches."""
    made = loader(data, shuffle=False, **settings)
    assert made.engine == "auto"
    caplog.clear()
    with caplog.at_level(logging.INFO, "feedrate"):
        made.start()
        batches = list(made)
    assert same(batches, list(loader(data, 0, shuffle=False)))
    made.close()
    (said,) = caplog.messages
    return made.engine, said


def test_auto_measures_a_dataset_that_gives_whole_batches_and_says_what_it_found(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for data in (Whole(), Subset(Whole(), range(30))):
        engine, said = picked(data, caplog)
        assert engine in ENGINES
        assert re.match(rf"loader.engine=auto: {engine} \(a batch takes .* with the GIL\)", said), said


class Costly(Whole):
    """A batch costs some 30 ms of a core, with or without the GIL, like different decoders."""

    def __init__(self, keeps_lock: bool) -> None:
        super().__init__(100)
        self.keeps_lock = keeps_lock

    def load_batch(self, indices: np.ndarray, empty: Any) -> Any:
        if self.keeps_lock:
            sum(i * i for i in range(500_000))
        else:
            hashlib.pbkdf2_hmac("sha256", b"a", b"b", 60_000)
        return super().load_batch(indices, empty)


@pytest.fixture
def burning() -> Iterator[None]:
    """Twice as many processes of others that compute all the time as there are cores."""
    program = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    started = [subprocess.Popen(program, stdout=subprocess.PIPE) for _ in range(2 * (os.cpu_count() or 1))]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    yield
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.usefixtures("burning")
@pytest.mark.parametrize(("keeps_lock", "engine"), [(False, "thread"), (True, "process")])
def test_auto_does_not_take_a_lack_of_cores_for_the_interpreters_lock(
    keeps_lock: bool, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = loader(Costly(keeps_lock), shuffle=False)
    with caplog.at_level(logging.INFO, "feedrate"):
        next(iter(made))
    made.close()
    assert made.engine == engine, caplog.messages


def test_auto_leaves_to_processes_what_threads_cannot_be_trusted_with(caplog: pytest.LogCaptureFixture) -> None:
    why = "loader.engine=auto: process ({} gives samples one by one and does not say thread_safe = True)"
    assert picked(Drawn(), caplog) == ("process", why.format("Drawn"))
    assert picked(Subset(Numbers(), range(9)), caplog) == ("process", why.format("Numbers"))
    settings = {"multiprocessing_context": "fork"}
    assert picked(Whole(), caplog, **settings)[1].endswith("process (multiprocessing_context=fork is set)")
    assert picked(Whole(), caplog, worker_init_fn=tell_nothing)[1].endswith("process (worker_init_fn is set)")


def tell_nothing(worker_id: int) -> None:
    pass


class Safe(Drawn):
    thread_safe = True


class Wrong(Augmented):
    thread_safe = True


def test_auto_measures_samples_of_a_dataset_that_says_it_is_thread_safe(caplog: pytest.LogCaptureFixture) -> None:
    assert "with the GIL" in picked(Safe(), caplog)[1]
    engine, said = picked(Wrong(), caplog)
    assert (engine, said) == (
        "process",
        "loader.engine=auto: process (Wrong draws from torch's global random generator)",
    )


class Counted(Whole):
    """Records the batches that are requested in this process."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.requested: list[list[int]] = []

    def load_batch(self, indices: np.ndarray, empty: Any) -> Any:
        self.requested.append(indices.tolist())
        return super().load_batch(indices, empty)


@pytest.mark.parametrize("size", [3, 5, 12, 100])
def test_what_was_measured_is_used_and_nothing_is_loaded_twice(size: int) -> None:
    data = Counted(size)
    made = loader(data)
    made.start()
    batches = list(made)
    measured = [index for batch in data.requested for index in batch]
    assert len(set(measured)) == len(measured)
    if made.engine == "thread":
        assert sorted(measured) == list(range(size))
    assert same(batches, list(loader(Whole(size), 0)))
    assert made.state_dict()["position"] == size


class Broken(Whole):
    def load_batch(self, indices: np.ndarray, empty: Any) -> Any:
        if 11 in indices:
            raise ValueError("broken")
        return super().load_batch(indices, empty)


@pytest.mark.parametrize("engine", ["auto", "thread", "process"])
def test_an_error_in_what_is_measured_comes_when_its_batch_is_asked_for(engine: str) -> None:
    made = loader(Broken(), shuffle=False, engine=engine)
    made.start()
    batches: list[Any] = []
    with pytest.raises(SampleError) as raised:
        batches.extend(made)
    assert str(raised.value).startswith(
        "batch of '10', '11', '12', '13', '14': Broken.load_batch failed with ValueError: broken (test_engines.py, "
    )
    assert len(batches) == 2


def test_every_engine_can_be_configured() -> None:
    assert get_args(get_type_hints(FeedrateLoaderConfig)["engine"]) == tuple(TRAITS)


def test_settings_that_contradict_the_engine_are_refused_with_the_remedy() -> None:
    for settings, reported in [
        ({"engine": "inline"}, "loader.engine=inline has no workers, and loader.num_workers=2; set"),
        ({"engine": "fast"}, "loader.engine=fast: must be one of auto, inline, thread, process"),
        ({"engine": "thread", "worker_init_fn": tell}, "worker_init_fn is for processes"),
        ({"engine": "thread", "seed": None, "content_digest": False}, "engine, .* need a seed"),
    ]:
        with pytest.raises(UserError, match=reported):
            loader(Numbers(), **settings)


@pytest.mark.parametrize("engine", ["auto", "inline", "thread", "process"])
def test_without_workers_the_engine_is_inline(engine: str) -> None:
    made = loader(Numbers(), 0, engine=engine)
    assert made.engine == "inline"
    assert len(list(made)) == BATCHES
