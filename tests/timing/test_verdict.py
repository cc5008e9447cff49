"""The verdict says whether training waited, why, and what would end it; and nothing where nothing would."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from feedrate.reporting.trace import rows_of, trace
from feedrate.timing.epoch_times import Steps, joined
from feedrate.timing.stages import Load
from feedrate.timing.verdict import judge
from histories import MS, held_up, history, setup


@pytest.mark.parametrize(
    ("load_ms", "step_ms", "workers", "kind"),
    [
        (40, 10, 0, "input-bound"),
        (40, 10, 2, "input-bound"),
        (21.6, 10, 2, "balanced"),  # 1.08 of the step
        (10, 10, 2, "compute-bound"),
        (0.1, 10, 0, "compute-bound"),
        (0.5, 10, 0, "balanced"),
    ],
)
def test_wait_and_ceilings_decide_the_word(load_ms: float, step_ms: float, workers: int, kind: str) -> None:
    engine = "process" if workers else "inline"
    assert judge(history(load_ms, step_ms, workers), setup(engine, workers)).kind == kind


def test_ceilings_are_what_each_side_reaches_alone() -> None:
    figures = judge(history(40, 10, 2), setup()).figures
    assert figures["loader_ceiling_samples_per_s"] == pytest.approx(8 / 0.020)
    assert figures["compute_ceiling_samples_per_s"] == pytest.approx(8 / 0.010)
    assert figures["efficiency_pct"] == pytest.approx(100, rel=0.01)
    assert figures["wait_pct"] == pytest.approx(50, rel=0.02)


def test_a_loop_without_a_step_has_no_ceiling_of_one() -> None:
    text = judge(history(4, 0.00001, 0), setup("inline", 0)).reason
    assert "the loader makes 2,000 samples/s, there was no training step" in text


def test_an_input_bound_run_names_figures_cause_and_an_override_with_its_gain() -> None:
    verdict = judge(history(40, 10, 2, cpu_share=0.0, stage="decode"), setup())
    lines = str(verdict).splitlines()
    assert lines[0].startswith("input-bound   training waited 50 % of")
    assert (
        lines[1] == "why           2 workers can make 400 samples/s, the step can take 800; 100 % of the load is decode"
    )
    assert verdict.remedies[0].override == "loader.num_workers=4"
    assert verdict.remedies[0].gain == pytest.approx(2.0, rel=0.02)
    assert lines[2].startswith("try           loader.num_workers=4 (about 2.0x)")
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("way_ms", [0.0, 0.9, 3.0])
def test_that_batches_are_long_on_their_way_does_not_hide_what_another_worker_brings(way_ms: float) -> None:
    """A process sends a batch while it loads the next one; in pure Python it rarely does both at once."""
    times = history(9, 6, 1, receive_ms=0.02, way_ms=way_ms)
    (reported, *_) = judge(times, setup("process", 1, 2.0)).remedies
    assert reported.override == "loader.num_workers=2"
    assert reported.gain == pytest.approx(1.5, rel=0.07)


def test_where_loading_is_computing_no_more_workers_than_cores_are_advised() -> None:
    computing = history(40, 10, 2, cpu_share=1.0)
    verdict = judge(computing, setup(cores=2.0))
    assert verdict.kind == "input-bound"
    assert verdict.remedies == ()
    assert "no loader setting would change that" in verdict.reason
    assert judge(computing, setup(cores=4.0)).remedies[0].override == "loader.num_workers=4"


def test_cores_that_others_compute_on_are_not_promised() -> None:
    verdict = judge(history(40, 10, 0), setup("inline", 0, cores=1.0, usable_cores=8))
    assert "only 1.0 of 8 cores were free" in verdict.reason
    assert [remedy.override for remedy in verdict.remedies] == ["loader.num_workers=1"]


@pytest.mark.parametrize(("free_range", "promised"), [((0.96, 1.04), True), ((0.9, 1.1), False), (None, True)])
def test_nothing_is_promised_where_the_free_cores_changed_by_more_than_a_tenth(
    free_range: tuple[float, float] | None, promised: bool
) -> None:
    beside = setup("inline", 0, cores=1.0, usable_cores=2, free_cores=1.0, free_range=free_range)
    verdict = judge(history(40, 10, 0, cpu_share=0.4), beside)
    assert verdict.remedies[0].override == "loader.num_workers=3"
    if promised:
        assert (
            "only 1.0 of 2 cores were free beside other programs, which more workers would slow down" in verdict.reason
        )
        assert "loader.num_workers=3 (about " in str(verdict)
    else:
        assert "0.9 to 1.1 of 2 cores were free beside other programs, so no gain is promised" in verdict.reason
        assert str(verdict).endswith("\ntry           loader.num_workers=3")
        assert [remedy.gain for remedy in verdict.remedies] == [None]


def test_workers_that_only_wait_take_nothing_from_those_who_compute() -> None:
    beside = setup("inline", 0, cores=1.0, usable_cores=2, free_cores=1.0, free_range=(1.0, 1.0))
    verdict = judge(history(40, 10, 0, cpu_share=0.0), beside)
    assert verdict.remedies
    assert "slow down" not in verdict.reason


def test_on_shifting_cores_no_worker_is_called_superfluous() -> None:
    waste = history(0.15, 10, 2)
    assert judge(waste, setup(cores=2.0, usable_cores=2)).remedies
    assert judge(waste, setup(cores=2.0, usable_cores=2, free_cores=1.5, free_range=(1.0, 2.0))).remedies == ()


def test_a_run_without_workers_learns_how_many_are_enough() -> None:
    remedy = judge(history(8, 10, 0, cpu_share=0.0), setup("inline", 0)).remedies[0]
    assert remedy.override == "loader.num_workers=1"
    assert 1.5 < remedy.gain <= 1.8  # taking batches over costs something


def test_small_batches_are_left_to_a_thread_where_the_dataset_allows_it() -> None:
    times = history(0.3, 1.1, 0)
    remedy = judge(times, setup("inline", 0, threadable=True)).remedies[0]
    assert remedy.override == "loader.num_workers=1"
    assert 1.15 < remedy.gain < 1.4 / 1.1
    assert judge(times, setup("inline", 0)).remedies == ()  # a process takes as long to hand a batch over


def test_being_held_up_is_reported_beside_the_waiting() -> None:
    verdict = judge(held_up(2.0, 3.0, 2.0), setup("thread", 1))
    assert verdict.kind == "input-bound"
    assert re.match(r"training waited \S+ % of \S+ s and was slowed down by 3\d %$", verdict.waited)


def test_what_was_achieved_is_no_more_than_a_ceiling() -> None:
    rows = Steps(0, {8})
    for number in range(30):  # each batch was loaded while the run evaluated, which belongs to no step
        begin = number * 100 * MS
        load = Load(begin - 50 * MS, begin - 10 * MS, 40 * MS, 0)
        rows.add(begin, begin, begin, begin + MS, 8, 1000, load)
    figures = judge(rows.times(), setup("process", 1)).figures
    assert figures["samples_per_s"] == pytest.approx(8000)
    assert figures["efficiency_pct"] == pytest.approx(100)


def test_shards_are_advised_where_the_dataset_can_keep_them_and_reading_is_the_load() -> None:
    reading = history(40, 1, 2, stage="decode")
    verdict = judge(reading, setup(packable="dataset.cache=shards"))
    assert verdict.remedies[0].override == "dataset.cache=shards"
    assert "dataset.cache=shards from the second epoch on (about 20" in str(verdict)
    transforming = history(40, 1, 2, stage="transform")
    assert judge(transforming, setup(packable="dataset.cache=shards")).remedies == ()


def test_uneven_loads_are_bridged_by_more_batches_made_ahead() -> None:
    uneven = history([10 if number % 20 else 120 for number in range(200)], 10, 2, cpu_share=0.0)
    overrides = [remedy.override.partition("=")[0] for remedy in judge(uneven, setup()).remedies]
    assert "loader.prefetch_factor" in overrides or "loader.num_workers" in overrides


def test_workers_that_are_waste_are_named() -> None:
    verdict = judge(history(0.15, 10, 2), setup())
    assert verdict.kind == "compute-bound"
    assert str(verdict.remedies[0]) == "loader.num_workers=0 (at the same rate)"


def test_a_compute_bound_run_names_the_part_of_the_step_that_takes_longest() -> None:
    fed = history(10, 10, 2)
    parts = np.tile(np.array([2, 7, 1]) * MS, (len(fed.compute), 1))
    verdict = judge(replace(fed, parts=parts), setup())
    assert verdict.kind == "compute-bound"
    assert "of 10 ms a step, 70 % are backward" in verdict.reason
    slow = replace(history(10, 1230, 2), parts=parts * 123)
    assert "of 1,230 ms a step" in judge(slow, setup()).reason
    assert "a step" not in judge(fed, setup()).reason  # a loop that is not ours tells nothing
    assert "backward" not in judge(replace(history(40, 10, 2), parts=parts), setup()).reason


def test_a_healthy_run_gets_no_advice() -> None:
    for times, how in [
        (history(9, 10, 1), setup("process", 1)),  # one worker, and it is needed
        (history(0.1, 10, 0), setup("inline", 0)),
        (history(14, 10, 2), setup()),
    ]:
        assert judge(times, how).remedies == (), judge(times, how)


def test_steps_that_threads_hold_up_count_as_waiting_and_processes_are_advised() -> None:
    held = held_up(11, 12, 3, cpu_share=1.0)
    verdict = judge(held, setup("thread", 1, cores=8.0))
    assert verdict.kind == "input-bound"
    assert verdict.figures["wait_pct"] < 10  # it is the steps that take longer
    assert verdict.figures["compute_ceiling_samples_per_s"] == pytest.approx(8 / 0.003, rel=0.01)
    assert "threads hold the GIL: a step takes 11.7 ms, 3 ms alone" in verdict.reason
    assert [remedy.override for remedy in verdict.remedies] == ["loader.engine=process loader.num_workers=4"]


def test_a_few_quiet_steps_that_are_shorter_by_chance_hold_nothing_against_the_threads() -> None:
    accused = 0
    for seed in range(40):
        uneven = np.random.default_rng(seed).uniform(-3, 3, 200)
        accused += "hold the GIL" in judge(held_up(4, 12, 12, cpu_share=1.0, more_ms=uneven), setup("thread", 1)).reason
    assert accused <= 4  # one in twenty is to be expected, and one in two if the spread did not count


def test_threads_hold_a_step_up_for_no_longer_than_they_compute() -> None:
    figures = judge(held_up(11, 12, 3, cpu_share=0.2), setup("thread", 1, cores=8.0)).figures
    assert figures["compute_ceiling_samples_per_s"] == pytest.approx(8 / (0.0117 - 0.0022), rel=0.01)


def test_where_all_cores_compute_processes_would_not_help_against_what_threads_take() -> None:
    held = held_up(4, 12, 9, cpu_share=1.0, step_cpu_ms=24)
    verdict = judge(held, setup("thread", 1, cores=2.0))
    assert "the loader's threads take its cores: a step takes" in verdict.reason
    assert "all 2.0 cores are busy" in verdict.reason
    assert verdict.remedies == ()


def test_where_others_leave_less_than_a_core_threads_are_not_said_to_hold_the_interpreter() -> None:
    held = held_up(11, 12, 3, cpu_share=0.4)
    verdict = judge(held, setup("thread", 1, cores=1.0, usable_cores=2, free_cores=0.4, free_range=(0.4, 0.4)))
    assert verdict.remedies == ()
    assert "hold the GIL" not in verdict.reason


@pytest.mark.parametrize(("step_cpu_ms", "cores"), [(17, 2.0), (45, 4.0)])
def test_where_steps_compute_on_nearly_all_cores_processes_would_take_them_too(
    step_cpu_ms: float, cores: float
) -> None:
    held = held_up(4, 12, 9, cpu_share=1.0, step_cpu_ms=step_cpu_ms + 4)
    verdict = judge(held, setup("thread", 1, cores=cores))
    assert "the loader's threads take its cores: a step takes" in verdict.reason
    assert verdict.remedies == ()


def test_where_a_step_computes_on_one_core_processes_help_against_threads_that_hold_it_up() -> None:
    held = held_up(11, 12, 3, cpu_share=1.0, step_cpu_ms=12)
    verdict = judge(held, setup("thread", 1, cores=4.0))
    assert "the loader's threads hold the GIL: a step takes" in verdict.reason
    assert verdict.remedies[0].override.startswith("loader.engine=process")


def test_queueing_for_a_core_makes_no_load_cheaper_than_what_it_computes() -> None:
    busy = history(2, 10, 2, cpu_share=0.5)
    fed = judge(busy, setup(worker_delay_s=float(busy.load[busy.counted].sum() / 1e9)))
    assert [remedy.override for remedy in fed.remedies] == ["loader.num_workers=1"]  # without any, 1 ms of 10 is lost


def test_of_a_loader_that_tells_nothing_only_the_waiting_is_judged() -> None:
    known = history(40, 10, 2)
    silent = replace(known, begin=known.begin * 0, end=known.end * 0)
    verdict = judge(silent, setup("torch"))
    assert verdict.kind == "input-bound"
    assert "loader=feedrate shows why" in verdict.reason
    assert "loader_ceiling_samples_per_s" not in verdict.figures


def test_several_epochs_are_judged_as_one() -> None:
    one, two = history(40, 10, 2), history(10, 10, 2)
    both = joined([one, two])
    assert len(both.wait) == 200
    assert judge(both, setup()).figures["wait_pct"] == pytest.approx(
        100 * both.wait[both.counted].sum() / both.elapsed[both.counted].sum()
    )


def test_batches_that_are_ready_are_counted() -> None:
    assert history(1, 10, 2).ready[-10:-4].tolist() == [4] * 6  # two workers, two ahead each
    assert history(40, 1, 1).ready[5:].max() == 0


def test_the_trace_holds_what_happened_when_in_the_form_that_viewers_read() -> None:
    times = history(4, 10, 2, steps=20, stage="decode")
    events = json.loads(json.dumps(trace(times)))["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert list(names.values()) == ["step", "transfer", "wait", "worker 0", "worker 1"]
    spans = [event for event in events if event["ph"] == "X"]
    assert all(event["ts"] >= 0 and event["dur"] > 0 for event in spans)
    loads = [event for event in spans if event["name"] == "load"]
    assert len(loads) == 20
    assert loads[0]["args"]["decode_ms"] == loads[0]["dur"] / 1e3 == 4
    steps = [event for event in spans if names[event["tid"]] == "step"]
    assert [event["args"]["batch"] for event in steps] == list(range(20))
    assert sum(event["dur"] for event in steps) == pytest.approx(200_000)
    assert sum(end - begin for begin, end, _ in rows_of(times)["wait"]) == times.wait.sum()
