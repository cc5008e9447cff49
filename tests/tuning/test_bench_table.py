"""What the measurements of loaders are reported as."""

from __future__ import annotations

from typing import Any

import pytest

from feedrate.tuning.bench import Entry, described, slower, table


def entry(waits: dict[float, float], workers: int = 1) -> Entry:
    """A loader that waited that much, in percent, with steps of that many ms."""

    facts = {"dataset": "mine", "samples": 640, "batch_size": 64, "workers": workers, "engine": "thread"}
    figures = {"mb_per_s": 12.0, "cpu_s_per_1000": 0.5, "peak_rss_mb": 200.0, "load_ms": 3.0, "fetch": 100.0}

    def measured(wait_pct: float) -> list[dict[str, Any]]:
        return [{"samples_per_s": 1000.0, "wait_pct": wait_pct, **figures, **facts}]

    steps = {step_ms: measured(wait_pct) for step_ms, wait_pct in waits.items()}
    return Entry("one", {"loader": {}}, {0.0: measured(99.0), **steps})


@pytest.mark.parametrize(("workers", "words"), [(0, "no workers"), (1, "1 worker, thread"), (2, "2 workers, thread")])
def test_workers_are_named(workers, words):
    assert f"batches of 64, {words}\n" in described(entry({}, workers))


def repeated(name: str, rates: list[float]) -> Entry:
    """A loader whose repeats made those rates."""
    found = entry({})
    taken = [{**found.measurements[0.0][0], "samples_per_s": rate} for rate in rates]
    return Entry(name, found.config, {0.0: taken})


def test_a_loader_that_noise_may_have_made_faster_is_said_to_be_equal():
    first, noisy = repeated("first", [1000, 1010, 990]), repeated("noisy", [1300, 900, 1100])
    _, _, *text = table([first, noisy, repeated("faster", [1100, 1105, 1095])]).splitlines()
    assert [line.split()[0] for line in text] == ["first", "noisy", "faster", "~"]
    assert [" 1.00 " in text[0], " 1.11~ " in text[1], " 1.10 " in text[2]] == [True, True, True]
    assert text[3] == "~ equal to the first, within the noise"
    assert "~" not in table([first])


def test_what_noise_explains_is_not_called_slower():
    def baseline(rates):
        row = repeated("one", rates).row()
        return {(row["name"], row["dataset"]): (row["samples_per_s"], row["noise_pct"])}

    noisy, steady = baseline([1000, 1300, 1150]), baseline([1000, 1001, 1002])
    assert slower([repeated("one", [1050, 950, 1000])], noisy, 5.0) == []
    (line,) = slower([repeated("one", [705, 700, 695])], noisy, 5.0)
    assert line.startswith("one: 700 samples/s are 39 % less than the 1,150 of the baseline")
    assert slower([repeated("one", [970, 971, 972])], steady, 5.0) == []
    assert slower([repeated("one", [970, 971, 972])], steady, 1.0) != []
