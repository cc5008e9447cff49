"""What the measurements of a loader are told as."""

from __future__ import annotations

import pytest

from feedrate.bench.compare import Entry, told
from feedrate.bench.measure import About, Taken


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
