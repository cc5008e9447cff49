"""Finds the cheapest setting of the loader that keeps a model fed, and writes it as loader=tuned.

    python src/tune.py dataset=tensor_files dataset.root=data/mine model=resnet18
    python src/tune.py model=simulated model.step_ms=8 tune.budget_s=20

conf/tune.yaml explains each key, docs/tune.md what is tried. Let nothing else run meanwhile.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> None:
    # -----------------------------------------------------------------------------------------------------
    # Settings
    # -----------------------------------------------------------------------------------------------------
    from hydra.core.hydra_config import HydraConfig

    from feedrate.cli.launch import instant, plain
    from feedrate.config import ROOT, check_tune, resolve_path, timeout_of
    from feedrate.system.signals import raise_when_stopped
    from feedrate.tracking import learn, without_secrets
    from feedrate.tracking.address import read_address
    from feedrate.tuning import tuning_cache as remembered

    resolved = plain(cfg)
    learn(resolved)
    config = check_tune(resolved)
    if config.tracking.uri is not None:
        read_address(config.tracking.uri, config.tracking.artifacts)  # a wrong one is told before the trials
    hydra = HydraConfig.get()
    model = str(hydra.runtime.choices["model"])
    if given := remembered.sought(hydra.overrides.task):
        print(f"note: not used, as this command finds them: {', '.join(given)}")
    path = resolve_path(config.tune.output)

    # -----------------------------------------------------------------------------------------------------
    # Data; torch is imported only now, since it takes seconds
    # -----------------------------------------------------------------------------------------------------
    from feedrate.dataset import build_data
    from feedrate.loader.resources import free_memory
    from feedrate.runs.provenance import command_line
    from feedrate.trainer.device import choose_device, set_arithmetic
    from feedrate.trainer.seeds import seed_everything
    from feedrate.tuning import tuned
    from feedrate.tuning.max_batch_size import largest_batch
    from feedrate.tuning.trial_runner import TrialRunner
    from feedrate.tuning.tune import tune

    tuned.check(path)
    remembered.check_folder()
    raise_when_stopped()
    seed_everything(config.seed, config.trainer.num_threads)
    set_arithmetic(config.trainer.matmul_precision, config.trainer.deterministic)
    device = choose_device(config.trainer.device)
    data = build_data(config.dataset, config.seed, timeout=timeout_of(config.loader))
    command = without_secrets(command_line(hydra.overrides.task))
    data_and_model, about = f"{data.name} and {model}", remembered.data_and_model(resolved)
    if said := tuned.replaces(path, data_and_model, about):
        print(said, flush=True)
    known = None if config.tune.again or config.tune.batch_size else remembered.recall(resolved)
    if known is not None and known.data_digest == data.digest:
        tuned.write(path, known.option)
        print(f"tuned on {known.date}: {known.words}; tune.again=true tries anew\nwritten to {path}; {tuned.use(path)}")
        return

    # -----------------------------------------------------------------------------------------------------
    # Try
    # -----------------------------------------------------------------------------------------------------
    bed = TrialRunner(config.trainer, data, config.loader, config.model, config.optimizer, config.seed, device)
    print(f"{data_and_model} on {device}: trials for at most {config.tune.budget_s:g} s", flush=True)
    begin = time.perf_counter()
    if config.tune.batch_size:
        size, samples = config.loader["batch_size"], len(data.partition["train"])  # type: ignore[arg-type]
        largest = largest_batch(bed.fits, size, samples, free_memory(), config.tune.budget_s / 4)
        said = " stays" if largest.batch_size == size else f", not {size}, which changes the training"
        print(f"loader.batch_size={largest.batch_size}{said}; {largest.ended_by}", flush=True)
        resolved["loader"] = {**resolved["loader"], "batch_size": largest.batch_size}
    left_s = config.tune.budget_s - (time.perf_counter() - begin)
    found = tune(bed, left_s, config.tune.trial_s, lambda trial: print(tuned.line(trial), flush=True))
    same = tuned.compare(bed, found.best, found.trials[0].samples_per_s)

    # -----------------------------------------------------------------------------------------------------
    # Write
    # -----------------------------------------------------------------------------------------------------
    text = tuned.option(bed.node, found, same, command, data_and_model, about)
    tuned.write(path, text)
    remembered.remember(
        resolved,
        remembered.Remembered(
            date=tuned.today(),
            words=tuned.words(found),
            data_digest=data.digest,
            overrides=found.best.setting.overrides,
            option=text,
        ),
    )
    print(
        f"\n{tuned.words(found)}; the step can take {found.step_samples_per_s:,.0f}; "
        f"{len(found.trials)} settings tried in {found.seconds:.0f} s\n{same}\n"
        + (f"note: {found.unsteady}\n" if found.unsteady else "")
        + f"written to {path}; {tuned.use(path)}"
    )

    # -----------------------------------------------------------------------------------------------------
    # Record
    # -----------------------------------------------------------------------------------------------------
    if config.tracking.uri is not None:
        from feedrate.tuning.record import Tuning, record_tuning

        tags = {"command": command, "data_digest": data.digest, "order_digest": same.order}
        tuning = Tuning(
            name=f"tune {model}-{data.name}",
            folder=ROOT / "outputs/tunings" / instant(),
            tags={f"feedrate.{name}": text for name, text in tags.items()},
            note=tuned.note(found, same, command),
            file=path,
            best=tuned.tried(found.best, found),
            tried=[tuned.tried(trial, found) for trial in found.trials],
        )
        if url := record_tuning(config.tracking, tuning):
            print(f"recorded: {url}")


if __name__ == "__main__":
    if {"-m", "--multirun"} & set(sys.argv):
        sys.exit("error: -m: a sweep is for train.py; give tune.py one dataset and one model")
    from feedrate.cli.launch import launch

    launch(main, "tune")
