"""What the measurements of a loader are told as."""

from __future__ import annotations

from dataclasses import replace

import pytest

from feedrate.tuning.bench import Entry, side_by_side, slower, told
from feedrate.tuning.bench_measure import About, Taken


def entry(predicted_ms: float, waits: dict[float, float], workers: int = 1) -> Entry:
    """A loader that waited that much, in percent, with steps of that many ms."""

    def taken(wait_pct: float) -> Taken:
        return Taken(1000.0, 12.0, wait_pct, 0.5, 200.0, 1100.0, 3.0, {"fetch": 100.0}, predicted_ms)

    about = About("mine", 640, 12e3, 64, workers, "thread", "0" * 64, 5000.0, 2000.0)
    return Entry("one", {"loader": {}}, about, {0.0: [taken(99.0)], **{ms: [taken(pct)] for ms, pct in waits.items()}})


@pytest.mark.parametrize(
    ("predicted_ms", "waits", "least"),
    [
        (1.4, {2.0: 1.0, 10.0: 0.1}, 1.4),
        (1.4, {2.0: 7.0, 10.0: 0.1}, 10.0),
        (1.4, {2.0: 7.0, 10.0: 3.0}, 0.0),
        (30.0, {2.0: 7.0, 10.0: 3.0}, 30.0),
        (0.0, {2.0: 7.0, 10.0: 0.1}, 10.0),  # a loader that does not tell what a batch costs
    ],
)
def test_a_loader_suffices_for_no_step_with_which_it_was_seen_to_wait(predicted_ms, waits, least):
    found = entry(predicted_ms, waits)
    assert found.row()["sufficient_step_ms"] == least
    assert (f"suffices    for steps of {least:g} ms" in told(found)) == (least > 0)
    assert ("suffices" in told(found)) == (least > 0)


@pytest.mark.parametrize(("workers", "words"), [(0, "no workers"), (1, "1 worker, thread"), (2, "2 workers, thread")])
def test_workers_are_told_in_words(workers, words):
    assert f"batches of 64, {words}\n" in told(entry(1.0, {}, workers))


def repeated(name: str, rates: list[float]) -> Entry:
    """A loader whose repeats made those rates."""
    found = entry(1.0, {})
    taken = [replace(found.taken[0.0][0], samples_per_s=rate) for rate in rates]
    return Entry(name, found.config, found.about, {0.0: taken})


def test_a_loader_that_noise_may_have_made_faster_is_said_to_be_equal():
    first, noisy = repeated("first", [1000, 1010, 990]), repeated("noisy", [1300, 900, 1100])
    table = side_by_side([first, noisy, repeated("faster", [1100, 1105, 1095])]).splitlines()
    assert [line.split()[0] for line in table[1:]] == ["first", "noisy", "faster", "~"]
    assert [" 1.00 " in table[1], " 1.11~ " in table[2], " 1.10 " in table[3]] == [True, True, True]
    assert table[4] == "~ equal to the first, within the noise"
    assert "~" not in side_by_side([first])


@pytest.mark.parametrize("old", [False, True], ids=["", "of an earlier version"])
def test_what_noise_explains_is_not_called_slower(old):
    baseline = repeated("one", [1000, 1300, 1150]).row()
    if old:
        del baseline["noise_pct"]
    assert slower([repeated("one", [1050, 950, 1000])], [baseline], 5.0) == []
    (line,) = slower([repeated("one", [705, 700, 695])], [baseline], 5.0)
    assert line.startswith("one: 700 samples/s are 39 % less than the 1,150 of the baseline, more than noise explains")
    assert slower([repeated("one", [970, 971, 972])], [repeated("one", [1000, 1001, 1002]).row()], 5.0) == []
    assert slower([repeated("one", [970, 971, 972])], [repeated("one", [1000, 1001, 1002]).row()], 1.0) != []
