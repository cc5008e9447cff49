"""An error names the sample and the remedy, with the same text for 0 and n workers; nothing hangs or stays behind."""

from __future__ import annotations

import gc
import re
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, Subset

from feedrate.errors import LostWorker, SampleError, UserError
from feedrate.loader import Loader, lost_worker
from loader.conftest import wait_until_loaders_are_gone, workers
from loader.datasets import BAD, Faulty, Numbers
from loader.test_loader import same

pytestmark = pytest.mark.usefixtures("no_workers_left", "no_threads_left")
WHERE = f"sample 's/{BAD}' (/data/s/{BAD}.pt): "


def loader(data: Dataset[Any], num_workers: int, **settings: Any) -> Loader:
    settings = {"batch_size": 4, "seed": 0, "multiprocessing_context": "fork" if num_workers else None, **settings}
    return Loader(data, num_workers=num_workers, **settings)


def fail(data: Dataset[Any], **settings: Any) -> SampleError:
    """The error that the loader raises, after as many batches as came before it, from every engine."""
    errors = []
    for engine in ("inline", "process", "thread"):
        made = loader(data, 0 if engine == "inline" else 2, engine=engine, **settings)
        batches: list[Any] = []
        with pytest.raises(SampleError) as raised:
            batches.extend(made)
        before = len(batches)
        assert made.state_dict()["position"] == before * (made.batch_size or 1)
        errors.append((raised.value, before, raised.value.worker))
    (alone, first, no_worker), *others = errors
    for other, second, _ in others:
        assert str(alone) == str(other)
        assert (alone.ID, alone.path, first) == (other.ID, other.path, second)
    assert no_worker is None
    assert others[0][2] in (0, 1)
    return alone


# ---------------------------------------------------------------------------------------------------------
# a sample fails
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reported"),
    [
        ("value", "Faulty.__getitem__ failed with ValueError: not a picture"),
        ("key", "Faulty.__getitem__ failed with KeyError: 'missing'"),
        ("two arguments", "Faulty.__getitem__ failed with TwoArguments: broken (code 7)"),
        ("unpicklable", "Faulty.__getitem__ failed with Unpicklable: holds a lambda"),
        ("unprintable", "Faulty.__getitem__ failed with Unprintable"),
        ("stop", "Faulty.__getitem__ failed with StopIteration"),
        ("exit", "Faulty.__getitem__ failed with SystemExit: 3"),
        ("shape", "is X float32 (4,), y int64 (), and sample 's/8' is X float32 (3,), y int64 (); make them alike"),
        ("dtype", "is X float64 (3,), y int64 (), and sample 's/8' is X float32 (3,)"),
        ("nested", "is X float32 (3,), y.box float32 (2,), y.name str, and sample 's/8' is X float32 (3,)"),
        ("structure", "is .0 float32 (3,), .1 int64 (), .2 int64 (), and sample 's/8' is X float32 (3,)"),
        ("object", "is X float32 (3,), y object, and sample 's/8' is X float32 (3,)"),
        ("none", "is NoneType, and sample 's/8' is X float32 (3,)"),
    ],
)
def test_an_error_names_the_sample_and_is_the_same_from_every_engine(fault: str, reported: str) -> None:
    error = fail(Faulty(fault))
    assert str(error).startswith(WHERE + reported)
    assert "\n" not in str(error)
    assert (error.ID, error.path) == (f"s/{BAD}", f"/data/s/{BAD}.pt")


def test_the_traceback_of_the_sample_is_kept_for_those_who_ask() -> None:
    for num_workers in (0, 2):
        with pytest.raises(SampleError) as raised:
            list(loader(Faulty("value"), num_workers))
        assert 'raise ValueError("not a picture' in raised.value.cause
        assert "not a picture" in str(raised.value.__cause__)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_an_error_is_the_same_for_every_order_of_arrival() -> None:
    texts = set()
    for num_workers in (1, 2, 4):
        with pytest.raises(SampleError) as raised:
            list(loader(Faulty("value"), num_workers, shuffle=True, prefetch_factor=3))
        texts.add(str(raised.value))
    assert len(texts) == 1


class Raises(Faulty):
    """Raises the errors that are meant for the user."""

    def __init__(self, error: Exception) -> None:
        super().__init__("")
        self.error = error

    def __getitem__(self, index: int) -> Any:
        if index == BAD:
            raise self.error
        return super().__getitem__(index)


def test_an_error_that_was_written_for_the_user_is_passed_on_with_the_samples_name() -> None:
    assert str(fail(Raises(UserError("too dark; take another")))) == WHERE + "too dark; take another"
    assert str(fail(Raises(SampleError("too dark")))) == WHERE + "too dark"
    assert str(fail(Raises(SampleError("sample 'a' is dark", ID="a")))) == "sample 'a' is dark"


class NoIDs(Numbers):
    path = "some folder"

    def __getitem__(self, index: int) -> Any:
        return [][index] if index == BAD else super().__getitem__(index)


class OwnPath(NoIDs):
    def path(self) -> str:  # type: ignore[override]
        """Takes no ID, and so is not what names a sample's file."""
        return "some folder"


@pytest.mark.parametrize("data", [NoIDs(), OwnPath(), Subset(NoIDs(), range(37))], ids=["none", "own", "subset"])
def test_a_sample_without_an_ID_is_named_by_its_index(data: Dataset[Any]) -> None:
    error = fail(data)
    assert str(error).startswith(f"sample '{BAD}': ")
    assert ".__getitem__ failed with IndexError: list index out of range (test_errors.py, line " in str(error)
    assert error.path is None


def test_batch_size_none_names_the_sample_too() -> None:
    assert str(fail(Faulty("value"), batch_size=None)).startswith(WHERE)


# ---------------------------------------------------------------------------------------------------------
# a batch fails
# ---------------------------------------------------------------------------------------------------------


def collate_badly(samples: list[Any]) -> Any:
    raise ValueError("wrong number of dimensions")


def collate_to_nothing_that_travels(samples: list[Any]) -> Any:
    return {"X": torch.zeros(2), "call": lambda: None}


def collate_with_history(samples: list[Any]) -> Any:
    return torch.ones(3, requires_grad=True) * 2


class Objects(Numbers):
    def __getitem__(self, index: int) -> Any:
        return object()


def test_a_batch_that_cannot_be_collated_names_its_samples() -> None:
    assert str(fail(Objects())).startswith(
        "batch of '0', '1', '2', '3': collating failed with TypeError: default_collate"
    )
    assert str(fail(Objects())).endswith("return tensors of one shape, numbers or texts, or pass a collate_fn")
    reported = str(fail(Numbers(), collate_fn=collate_badly, batch_size=7))
    where = r"\(test_errors.py, line \d+, in collate_badly\)"
    assert re.fullmatch(rf".*ValueError: wrong number of dimensions {where}; fix collate_badly", reported)
    assert reported.startswith("batch of '0', '1', '2', '3', '4', ... (7 in all): collating failed with ")


@pytest.mark.parametrize(
    ("collate", "reported"), [(collate_to_nothing_that_travels, "lambda"), (collate_with_history, "detach()")]
)
def test_a_batch_that_cannot_leave_its_worker_is_an_error_and_no_endless_wait(
    collate: Callable[..., Any], reported: str
) -> None:
    with pytest.raises(SampleError, match="batch of '0', '1', '2', '3': cannot leave its worker") as raised:
        list(loader(Numbers(), 2, collate_fn=collate))
    assert reported in str(raised.value)


class Tracked(Numbers):
    def __getitem__(self, index: int) -> Any:
        return torch.full((2,), float(index), requires_grad=True) * 2


def test_samples_with_a_gradients_history_collate_alike_with_and_without_workers() -> None:
    found = [list(loader(Tracked(), num_workers)) for num_workers in (0, 2)]
    assert same(*found)
    assert not found[0][0].requires_grad


# ---------------------------------------------------------------------------------------------------------
# a worker fails
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reported"),
    [
        ("killed", r"a worker of the loader was ended by SIGKILL\nMost likely memory ran out: lower loader\.num"),
        ("leaves", r"a worker of the loader ended with exit code 3\nLoad the samples one by one, dataset\[index\]"),
    ],
)
@pytest.mark.parametrize("persistent", [False, True])
def test_a_lost_worker_ends_the_pass_with_help_and_takes_the_others_along(
    fault: str, reported: str, persistent: bool
) -> None:
    before = set(workers())
    made = loader(Faulty(fault), 2, persistent_workers=persistent)
    with pytest.raises(UserError, match=reported) as raised:
        list(made)
    assert len(str(raised.value).splitlines()) == 2
    assert not set(workers()) - before  # although the error is still at hand


def test_after_a_lost_worker_the_same_loader_goes_on_from_its_position(tmp_path: Path) -> None:
    made = loader(Faulty("killed", marker=tmp_path / "once"), 1, persistent_workers=True)
    with pytest.raises(UserError, match="ended by SIGKILL"):
        list(made)
    state = made.state_dict()
    assert state["position"] <= BAD
    made.load_state_dict(state)
    assert [i for _, y in made for i in y.tolist()] == list(range(state["position"], 20))
    made.close()


def test_the_death_of_a_worker_is_told_where_its_batch_is_asked_for_and_disturbs_no_step() -> None:
    before = set(workers())
    made = loader(Numbers(), 1)
    iterator = iter(made)
    next(iterator)
    (worker,) = set(workers()) - before
    worker.kill()
    time.sleep(1)  # a step, in which torch's loader would raise it
    with pytest.raises(UserError, match="^a worker of the loader was ended by SIGKILL\n"):
        list(iterator)
    for error in (RuntimeError("shapes do not match"), ValueError("DataLoader worker")):
        assert lost_worker(error) is None


def test_the_signal_that_ended_a_worker_is_told_of_torchs_loader_too() -> None:
    before = set(workers())
    torchs = torch.utils.data.DataLoader(Numbers(), 4, num_workers=1, multiprocessing_context="fork")
    iterator: Any = iter(torchs)
    next(iterator)
    (worker,) = set(workers()) - before

    def step() -> None:
        worker.kill()  # torch may tell it at once
        time.sleep(60)

    with pytest.raises(RuntimeError, match="killed by signal") as at_once:
        step()

    def wait() -> None:
        while True:  # the batches that it has prefetched come first
            iterator._try_get_data(0.1)

    with pytest.raises(RuntimeError, match="exited unexpectedly") as awaited:
        wait()
    for raised in (at_once, awaited):
        reported = lost_worker(raised.value)
        assert isinstance(reported, LostWorker)
        assert str(reported).startswith("a worker of the loader was ended by SIGKILL\nMost likely memory ran out")


def test_a_sample_that_hangs_ends_in_the_timeout_with_the_remedy() -> None:
    with pytest.raises(UserError) as raised:
        list(loader(Faulty("hang"), 1, timeout=0.3))
    assert str(raised.value) == (
        "loader.timeout: the batch of 's/8', 's/9', 's/10', 's/11' did not come within 0.3 seconds\n"
        "A sample hangs, or loader.timeout is too short (0 waits for ever); "
        "loader.num_workers=0 names the sample and the line that hangs"
    )


@pytest.mark.filterwarnings("ignore:Got pickle error when attempting to start a worker")
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_that_the_system_cannot_start_are_one_error_that_names_the_key(
    capfd: pytest.CaptureFixture[str],
) -> None:
    wait_until_loaders_are_gone()  # of other tests, which would make room for more descriptors
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len([*Path("/proc/self/fd").iterdir()]) + 20, hard))
    try:
        with pytest.raises(UserError, match="the loader's worker processes failed with: Too many open files") as raised:
            next(iter(loader(Numbers(), 32)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "lower loader.num_workers" in str(raised.value)
    del raised
    gc.collect()
    assert "Traceback" not in capfd.readouterr().err


def test_what_cannot_be_sent_to_a_spawned_worker_says_so() -> None:
    class Local(Numbers):
        pass

    with pytest.raises(UserError, match="multiprocessing_context=spawn.*cannot be pickled.*\n.*=fork"):
        list(loader(Local(), 1, multiprocessing_context="spawn"))
    gc.collect()


# ---------------------------------------------------------------------------------------------------------
# after an error
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_after_an_error_the_pass_is_over_and_another_loader_works(num_workers: int) -> None:
    made = loader(Faulty("value"), num_workers, persistent_workers=bool(num_workers))
    iterator = iter(made)
    next(iterator), next(iterator)
    for _ in range(2):
        with pytest.raises(SampleError, match="not a picture"):
            next(iterator)
    assert made.state_dict()["position"] == 8
    assert len(list(loader(Numbers(), num_workers))) == 10
    with pytest.raises(SampleError, match="not a picture"):
        list(made)
    made.close()


class Waiting(Numbers):
    """Sample 8 hangs until a file exists."""

    def __init__(self, go: Path) -> None:
        super().__init__(20)
        self.go = go

    def __getitem__(self, index: int) -> Any:
        while index == 8 and not self.go.exists():
            time.sleep(0.01)
        return super().__getitem__(index)


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("engine", ["inline", "thread", "process"])
def test_a_pass_that_was_broken_off_says_so_and_how_to_go_on(engine: str, persistent: bool, tmp_path: Path) -> None:
    data = Waiting(tmp_path / "go")
    workers = {"num_workers": 1, "engine": engine, "persistent_workers": persistent} if engine != "inline" else {}
    made = Loader(data, 4, seed=0, **workers)
    iterator = iter(made)
    next(iterator), next(iterator)
    former = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            next(iterator)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    data.go.touch()
    for _ in range(2):
        with pytest.raises(UserError, match="this iterator of the loader was interrupted by KeyboardInterrupt; iter"):
            next(iterator)
    made.load_state_dict(made.state_dict())
    assert [i for _, y in made for i in y.tolist()] == list(range(8, 20))
    made.close()
