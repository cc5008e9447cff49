"""Before the first worker starts, what the loaders will need is compared with what is free; the advice given fits."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from at_once import at_once
from feedrate.config import ROOT
from feedrate.dataset import Data
from feedrate.dataset.ids import IDs
from feedrate.dataset.labels import Targets
from feedrate.errors import UserError
from feedrate.loader import close_loaders, start_loaders
from feedrate.loader.limits import Limits
from feedrate.loader.preflight import NEAR, Pool, Setup, needs, preflight
from feedrate.loader.worker_footprint import Parcel
from loader.datasets import Blocks
from loader.test_build import build

MB, GB = 10**6, 10**9
ENGINES = ("inline", "thread", "process", "torch")


def setup(engine: str = "process", workers: int = 8, factor: int = 4, **changes: Any) -> Setup:
    """Training and validation with batches of 64 samples of 0.1 MB."""
    pools = (Pool(100_000, 64, 10_000), Pool(100_000, 64, 2_000))
    return replace(Setup(engine, workers, factor, pools), **changes)


def limits(**changes: Any) -> Limits:
    return replace(Limits(8, 64 * GB, "the machine", 32 * GB, 1024, 20), **changes)


def after(advice: str, made_for: Setup) -> list[Setup]:
    """The setups that the overrides in an advice lead to."""
    found = []
    for overrides in advice.split(" or "):
        other = made_for
        for key, value in re.findall(r"loader\.(prefetch_factor|num_workers|batch_size)=(\d+)", overrides):
            if key == "batch_size":
                other = replace(other, pools=tuple(replace(p, batch_size=int(value)) for p in made_for.pools))
            else:
                other = replace(other, **{key: int(value)})
        found += [other] if other is not made_for else []
    return found


# ---------------------------------------------------------------------------------------------------------
# no alarm where there is room
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_said_where_there_is_room(engine: str) -> None:
    assert preflight(setup(engine), limits()) == ""


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_said_of_what_the_system_does_not_tell(engine: str) -> None:
    assert preflight(setup(engine, workers=1000), Limits(2)) == ""


@pytest.mark.parametrize("option", ["feedrate", "torch"])
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_the_shipped_settings_and_ten_million_ids_are_no_cause_for_a_word(
    option: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = data(Blocks(32, 64, IDs(f"{i:07d}" for i in range(100_000))))  # as tensors of 10 million would be
    loaders = build(option, made, num_workers=2, batch_size=8, multiprocessing_context=method)
    with caplog.at_level(logging.WARNING, "feedrate"):
        start_loaders(loaders, ("train", "validation"), made)
    close_loaders(loaders)
    assert caplog.messages == []


# ---------------------------------------------------------------------------------------------------------
# warnings and errors, with advice that fits
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["process", "torch"])
@pytest.mark.parametrize(
    ("kind", "figure"), [("shared_memory", "of shared memory"), ("memory", "of memory"), ("open_files", "open files")]
)
@pytest.mark.parametrize("tight", [True, False], ids=["tight", "impossible"])
def test_what_is_tight_is_a_line_and_what_is_impossible_an_error_and_both_name_what_fits(
    engine: str, kind: str, figure: str, tight: bool
) -> None:
    made = setup(engine)
    found = needs(made)
    sure = {"memory": found.sure_memory, "shared_memory": found.sure_shared}.get(kind, 0)
    wanted = getattr(found, kind) if tight else sure
    room = round(wanted / 0.9 if tight else wanted * 0.7)
    if kind == "open_files":
        room = wanted + 20 + 64 + 5 if tight else found.sure_files + 10
    free = limits(**{kind: room})
    if tight:
        text = preflight(made, free)
        assert text.startswith("note: loader.num_workers=8, for training and validation, needs about ")
        assert "\n" not in text
    else:
        with pytest.raises(UserError) as raised:
            preflight(made, free)
        text = str(raised.value)
        assert len(text.splitlines()) == 2
    assert figure in text
    advised = after(text.partition("; " if tight else "\n")[2], made)
    assert advised
    for other in advised:
        assert preflight(other, free) == "", text


def test_the_advice_is_the_nearest_setting_that_fits() -> None:
    made, free = setup(), limits(shared_memory=400 * MB)
    with pytest.raises(UserError) as raised:
        preflight(made, free)
    advised = after(str(raised.value).splitlines()[1], made)
    assert [(other.num_workers, other.prefetch_factor) for other in advised] == [(8, 2), (4, 4)]
    for other in (replace(made, prefetch_factor=3), replace(made, num_workers=5)):
        assert needs(other).shared_memory > NEAR * 400 * MB


def test_a_batch_that_does_not_fit_into_memory_is_found_without_workers_too() -> None:
    made = setup("inline", 0)
    with pytest.raises(UserError) as raised:
        preflight(made, limits(memory=10 * MB))
    assert str(raised.value) == (
        "loader.batch_size=64 needs about 32 MB of memory, and the machine has 10 MB left\n"
        "Set loader.batch_size=16, or give it more memory"
    )


def test_where_no_setting_fits_the_machine_must_give_way() -> None:
    made = setup("inline", 0, pools=(Pool(GB, 1, 5),))
    with pytest.raises(UserError) as raised:
        preflight(made, limits(memory=10 * MB, memory_of="the control group, limited to 1.0 GB,"))
    assert str(raised.value) == (
        "loader.batch_size=1 needs about 3.0 GB of memory, and the control group, limited to 1.0 GB, has 10 MB left\n"
        "Give it more memory"
    )


def test_an_estimate_is_called_one_and_refuses_nothing() -> None:
    text = preflight(setup(exact=False), limits(shared_memory=100 * MB))
    assert "as the first sample lets expect, about 512 MB of shared memory" in text


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("engine", ["process", "torch"])
def test_more_workers_than_there_is_memory_for_are_refused_however_small_a_batch_is(engine: str, exact: bool) -> None:
    small = (Pool(1_000, 4, 10_000), Pool(1_000, 4, 2_000))
    made = setup(engine, workers=1000, pools=small, exact=exact)
    with pytest.raises(UserError, match=r"^loader.num_workers=1000, .* about 4\d.\d GB of mem") as e:
        preflight(made, limits(memory=22 * GB, open_files=None))
    (advised,) = after(str(e.value).splitlines()[1], made)
    assert 100 < advised.num_workers < 1000
    assert preflight(advised, limits(memory=22 * GB, open_files=None)) == ""


def test_memory_of_python_objects_is_named_and_only_a_warning_where_they_may_stay_shared() -> None:
    def made(parcel: Parcel, method: str) -> Setup:
        return setup(start_method=method, pools=tuple(replace(pool, parcel=parcel) for pool in setup().pools))

    forked = made(Parcel(objects=2 * GB), "fork")
    assert ", 2.0 GB of it in each worker for what the dataset holds in lists and dictionaries" in preflight(
        forked, limits(memory=16 * GB)
    )
    spawned = made(Parcel(copied=2 * GB), "spawn")
    with pytest.raises(UserError, match="2.0 GB of it in each worker for what the dataset holds"):
        preflight(spawned, limits(memory=16 * GB))


def test_a_tensor_of_the_dataset_moves_to_shared_memory_where_workers_do_not_inherit_it() -> None:
    pools = (Pool(100, 64, 10_000, Parcel(shared=GB)), Pool(100, 64, 2_000))
    assert needs(setup(pools=pools, start_method="spawn")).shared_memory > GB


# ---------------------------------------------------------------------------------------------------------
# against the real thing
# ---------------------------------------------------------------------------------------------------------


def data(train: Blocks, validation: Blocks | None = None) -> Data:
    partition = {"train": train, "validation": validation or train, "test": train}
    return Data(
        "blocks", partition, Targets("classification", (0,), 1), (train.nbytes,), torch.uint8, None, None, "", ""
    )


CAN_MOUNT = shutil.which("unshare") is not None and os.geteuid() == 0
own_memory = pytest.mark.skipif(not CAN_MOUNT, reason="a /dev/shm of its own is made with unshare, as root")
NOT_MOUNTED = 77


def with_shared_memory(size: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with a /dev/shm of that size, which nobody else uses."""
    script = f'mount -t tmpfs -o size={size} none /dev/shm || exit {NOT_MOUNTED}; exec "$@"'
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, *command],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}/src:{ROOT}/tests"},
    )


def mounted(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    if done.returncode == NOT_MOUNTED:
        pytest.skip(f"mount: {done.stderr}")
    return done


USED: list[dict[str, Any]] = [
    {"option": "feedrate", "engine": "process", "num_workers": 2},
    {"option": "feedrate", "engine": "process", "num_workers": 3, "prefetch_factor": 4},
    {"option": "torch", "num_workers": 2},
    {"option": "torch", "num_workers": 3, "prefetch_factor": 4},
]
USED_TOO: list[dict[str, Any]] = [
    {"option": "feedrate", "engine": "process", "num_workers": 1},
    {"option": "feedrate", "engine": "process", "num_workers": 2, "persistent_workers": False},
    {"option": "feedrate", "engine": "process", "num_workers": 2, "multiprocessing_context": "forkserver"},
    {"option": "feedrate", "engine": "process", "num_workers": 2, "multiprocessing_context": "spawn"},
    {"option": "torch", "num_workers": 2, "multiprocessing_context": "spawn"},
    {"option": "feedrate", "engine": "thread", "num_workers": 3},
    {"option": "feedrate", "num_workers": 0},
]


@own_memory
@pytest.mark.parametrize("settings", [USED, pytest.param(USED_TOO, marks=pytest.mark.slow)], ids=["main", "others"])
def test_the_prediction_is_what_loaders_come_to_use(settings: list[dict[str, Any]]) -> None:
    done = mounted(with_shared_memory("1g", "-m", "loader.use", json.dumps(settings)))
    assert done.returncode == 0, done.stderr
    for given, found in zip(settings, json.loads(done.stdout), strict=True):
        predicted, used = found["predicted"], found["used"]
        told = f"{given}: {found}"
        # semaphores take some pages of /dev/shm too
        assert used["shared_memory"] <= predicted["shared_memory"] + 150_000, told
        assert predicted["shared_memory"] <= 1.25 * used["shared_memory"], told
        assert used["open_files"] <= predicted["open_files"], told
        assert predicted["open_files"] <= 1.7 * used["open_files"], told
        assert used["memory"] <= 1.5 * predicted["memory"], told
        assert predicted["memory"] <= 2.5 * used["memory"] + 10 * MB, told


@own_memory
@pytest.mark.parametrize("settings", [USED[0], USED[2]], ids=["feedrate", "torch"])
def test_shared_memory_as_large_as_predicted_is_enough(settings: dict[str, Any]) -> None:
    nbytes = 8 * (200_000 + 8)
    engine = "torch" if settings["option"] == "torch" else "process"
    made = Setup(engine, settings["num_workers"], 2, (Pool(nbytes // 8, 8, 160), Pool(nbytes // 8, 8, 80)))
    size = needs(made).shared_memory + 150_000
    done = mounted(with_shared_memory(f"{size}", "-m", "loader.use", json.dumps([settings])))
    assert done.returncode == 0, done.stderr
    assert "of shared memory, and /dev/shm has" in done.stderr


LOADERS = ("loader.engine=process", "loader=torch")
TRAIN = (f"{ROOT}/src/train.py", "tracking=none", "trainer.max_epochs=1", "dataset=generated", "model=mlp",
         "dataset.image_size=256", "dataset.size=64", "dataset.validation_size=16", "model.hidden=[]")  # fmt: skip


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """Runs for which there is not enough: of shared memory, with either loader, and of open files."""
    folder = tmp_path_factory.mktemp("refused")
    many = ("loader.num_workers=2", "loader.batch_size=8", "loader.prefetch_factor=4")

    def little_memory(loader: str) -> subprocess.CompletedProcess[str]:
        return with_shared_memory("4m", *TRAIN, *many, loader, f"hydra.run.dir={folder}/run{LOADERS.index(loader)}")

    def few_files() -> subprocess.CompletedProcess[str]:
        limited = ("prlimit", "--nofile=90:90", sys.executable, *TRAIN, f"hydra.run.dir={folder}/files")
        settings = ("loader.engine=process", "loader.num_workers=20")
        return subprocess.run([*limited, *settings], capture_output=True, text=True)

    calls = {"files": few_files}
    if CAN_MOUNT:
        calls |= {loader: partial(little_memory, loader) for loader in LOADERS}
    return at_once(calls)


@own_memory
@pytest.mark.parametrize("loader", LOADERS)
def test_too_little_shared_memory_ends_the_run_before_it_begins(
    refused: dict[str, subprocess.CompletedProcess[str]], loader: str
) -> None:
    done = mounted(refused[loader])
    assert done.returncode == 1, done.stdout
    assert re.search(
        r"^error: loader.num_workers=2, for training and validation, needs about [\d.]+ MB of shared memory, and "
        r"/dev/shm has 4.2 MB free\nSet loader.\w+=\d.*, or enlarge /dev/shm$",
        done.stderr.strip(),
    ), done.stderr


def test_too_few_open_files_end_the_run_before_it_begins(refused: dict[str, subprocess.CompletedProcess[str]]) -> None:
    done = refused["files"]
    assert done.returncode == 1, done.stdout
    assert "open files, and the limit of 90 leaves" in done.stderr
