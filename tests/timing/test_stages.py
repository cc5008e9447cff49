"""A worker's stages of a batch: each moment belongs to one stage, and the slowest samples are found."""

from __future__ import annotations

import random
import threading
import time

import pytest

from feedrate.dataset import stage
from feedrate.timing.stages import MAIN_THREAD, SAMPLED, STAGES, Computed, Load, Slowest, Watch, samples_took


def spent(load) -> dict[str, int]:
    marked = load[-len(STAGES) + 1 :]
    return dict(zip(STAGES, (load.ns - sum(marked), *marked), strict=True))


def test_what_is_not_marked_is_fetch_and_every_moment_is_counted_once() -> None:
    watch = Watch.start(Computed())
    time.sleep(0.02)
    with stage("decode"):
        time.sleep(0.02)
    with stage("transform"):
        time.sleep(0.02)
    load = Load(*watch.stop(3))
    assert min(spent(load)[name] for name in ("fetch", "decode", "transform")) >= 20_000_000
    assert spent(load)["collate"] == spent(load)["handover"] == 0
    assert load.number == 3


def test_of_parts_within_one_another_the_inner_one_counts() -> None:
    watch = Watch.start(Computed())
    with stage("transform"):
        with stage("decode"):
            time.sleep(0.03)
        with stage("transform"):
            pass
    load = Load(*watch.stop(MAIN_THREAD))
    assert spent(load)["decode"] >= 30_000_000 > spent(load)["transform"]


def test_an_error_inside_a_part_leaves_it() -> None:
    watch = Watch.start(Computed())
    with pytest.raises(KeyError), stage("decode"):
        raise KeyError("sample")
    time.sleep(0.02)
    assert spent(Load(*watch.stop(MAIN_THREAD)))["fetch"] >= 20_000_000


def test_a_mark_outside_of_a_loader_does_nothing() -> None:
    with stage("decode"):
        samples_took([1, 2])
    assert Load(*Watch.start(Computed()).stop(MAIN_THREAD)).decode_ns == 0


def test_each_thread_has_an_account_of_its_own() -> None:
    loads = []

    def load(name: str) -> None:
        watch = Watch.start(Computed())
        with stage(name):
            time.sleep(0.05)
        loads.append((name, Load(*watch.stop(MAIN_THREAD))))

    threads = [threading.Thread(target=load, args=(name,)) for name in ("decode", "transform")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, load_of in loads:
        assert spent(load_of)[name] >= 50_000_000 > spent(load_of)["fetch"]
        assert sum(v > 0 for k, v in spent(load_of).items() if k in ("decode", "transform")) == 1


def test_after_the_first_batches_what_one_computed_stands_for_some_others() -> None:
    computed, reported = Computed(), []
    for number in range(3 * SAMPLED):
        watch, end = Watch.start(computed), time.thread_time() + (0.004 if number < 2 * SAMPLED else 0.001)
        while time.thread_time() < end:
            pass
        reported.append(Load(*watch.stop(MAIN_THREAD)))
    first, middle, last = (reported[n * SAMPLED : (n + 1) * SAMPLED] for n in range(3))
    assert all(load.cpu_ns >= 4_000_000 for load in first)
    assert all(load.cpu_ns >= 4_000_000 for load in middle)
    assert all(load.cpu_ns <= load.ns for load in reported)
    assert last[-1].cpu_ns < 4_000_000  # measured again


def test_a_batch_within_a_batch_leaves_the_outer_one_its_stages() -> None:
    outer = Watch.start(Computed())
    with stage("decode"):
        time.sleep(0.02)
        inner = Load(*Watch.start(Computed()).stop(1))
    with stage("transform"):
        time.sleep(0.03)
    whole = Load(*outer.stop(0))
    assert whole.begin_ns < inner.begin_ns <= inner.end_ns <= whole.end_ns
    assert whole.decode_ns >= 20_000_000
    assert whole.transform_ns >= 30_000_000


def test_what_one_loader_computes_stands_for_no_other() -> None:
    dear, cheap = Computed(), Computed()
    for _ in range(3 * SAMPLED):
        watch, end = Watch.start(dear), time.thread_time() + 0.004
        while time.thread_time() < end:
            pass
        assert Load(*watch.stop(MAIN_THREAD)).cpu_ns >= 4_000_000
        watch = Watch.start(cheap)
        time.sleep(0.005)
        assert Load(*watch.stop(MAIN_THREAD)).cpu_ns < 4_000_000


def test_computing_and_sleeping_are_distinguished() -> None:
    watch = Watch.start(Computed())
    time.sleep(0.05)
    assert Load(*watch.stop(MAIN_THREAD)).cpu_ns < 25_000_000


def test_a_stage_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="decoding.*fetch, decode, transform"):
        stage("decoding")


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_slowest_samples_are_exact_over_any_number_of_workers(workers: int) -> None:
    numbers = random.Random(workers)
    times = [(index, numbers.randrange(1, 10_000)) for index in range(300) for _ in range(3)]  # three epochs
    numbers.shuffle(times)
    own, total = [Slowest(20) for _ in range(workers)], Slowest(20)
    for start in range(0, len(times), 8):
        batch = times[start : start + 8]
        reported = own[start // 8 % workers].add([i for i, _ in batch], [ns for _, ns in batch])
        total.add([i for i, _ in reported], [ns for _, ns in reported])
    longest: dict[int, int] = {}
    for index, ns in times:
        longest[index] = max(ns, longest.get(index, 0))
    expected = sorted(longest.values(), reverse=True)[:20]
    assert [ns for _, ns in total.longest()] == expected
    assert all(longest[index] == ns for index, ns in total.longest())
