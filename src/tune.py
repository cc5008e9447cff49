"""Finds the cheapest setting of the loader that keeps a model fed, and writes it as loader=tuned.

    python src/tune.py dataset=tensor_files dataset.root=data/mine model=resnet18
    python src/tune.py model=simulated model.step_ms=8 tune.budget_s=20

conf/tune.yaml explains each key, docs/tune.md what is tried. Run nothing else meanwhile.
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
    from feedrate.tuning import tuning_cache

    resolved = plain(cfg)
    learn(resolved)
    config = check_tune(resolved)
    if config.tracking.uri is not None:
        read_address(config.tracking.uri, config.tracking.artifacts)  # a wrong one ends it before the trials
    hydra = HydraConfig.get()
    model = str(hydra.runtime.choices["model"])
    if unused := tuning_cache.tuned_overrides(hydra.overrides.task):
        print(f"note: not used, as this command finds them: {', '.join(unused)}")
    path = resolve_path(config.tune.output)

    # -----------------------------------------------------------------------------------------------------
    # Data; torch is imported only now, since it takes seconds
    # -----------------------------------------------------------------------------------------------------
    from feedrate.dataset import build_data
    from feedrate.runs.provenance import command_line
    from feedrate.system.memory import free_memory
    from feedrate.trainer.device import set_up_device
    from feedrate.tuning import tuned
    from feedrate.tuning.max_batch_size import largest_batch
    from feedrate.tuning.trial_runner import TrialRunner
    from feedrate.tuning.tune import tune

    tuned.check(path)
    tuning_cache.check_folder()
    raise_when_stopped()
    device = set_up_device(config.trainer, config.seed)
    data = build_data(config.dataset, config.seed, timeout=timeout_of(config.loader))
    known = None if config.tune.again or config.tune.batch_size else tuning_cache.load(resolved)
    if known is not None and known.data_digest == data.digest:
        tuned.write(path, known.option)
        print(
            f"tuned on {known.date}: {known.words}; tune.again=true tunes again\nwritten to {path}; {tuned.use(path)}"
        )
        return

    # -----------------------------------------------------------------------------------------------------
    # Try
    # -----------------------------------------------------------------------------------------------------
    runner = TrialRunner(config.trainer, data, config.loader, config.model, config.optimizer, config.seed, device)
    print(f"{data.name} and {model} on {device}: trials for at most {config.tune.budget_s:g} s", flush=True)
    begin = time.perf_counter()
    if config.tune.batch_size:
        size, samples = config.loader["batch_size"], len(data.partition["train"])  # type: ignore[arg-type]
        largest, reason = largest_batch(runner.fits, size, samples, free_memory(), config.tune.budget_s / 4)
        change = " stays" if largest == size else f", not {size}, which changes the training"
        print(f"loader.batch_size={largest}{change}; {reason}", flush=True)
        resolved["loader"] = {**resolved["loader"], "batch_size": largest}
    left_s = config.tune.budget_s - (time.perf_counter() - begin)
    found = tune(runner, left_s, config.tune.trial_s, lambda trial: print(trial, flush=True))
    same = tuned.compare(runner, found.best.setting, found.trials[0].samples_per_s)

    # -----------------------------------------------------------------------------------------------------
    # Write
    # -----------------------------------------------------------------------------------------------------
    command = without_secrets(command_line(hydra.overrides.task))
    text = tuned.option(runner.node, found, same, command, f"{data.name} and {model}")
    tuned.write(path, text)
    kept = {"date": tuned.today(), "words": str(found), "data_digest": data.digest, "option": text}
    tuning_cache.save(resolved, tuning_cache.CachedSetting(overrides=found.best.setting.overrides, **kept))
    print(
        f"\n{found}; the step can take {found.step_samples_per_s:,.0f}; "
        f"{len(found.trials)} settings tried in {found.seconds:.0f} s\n{same}\n"
        + (f"note: {found.unsteady}\n" if found.unsteady else "")
        + f"written to {path}; {tuned.use(path)}"
    )

    # -----------------------------------------------------------------------------------------------------
    # Record
    # -----------------------------------------------------------------------------------------------------
    if config.tracking.uri is not None:
        tags = {"command": command, "data_digest": data.digest, "order_digest": same.order}
        url = tuned.record(
            config.tracking,
            f"tune {model}-{data.name}",
            ROOT / "outputs/tunings" / instant(),
            found,
            same,
            path,
            {f"feedrate.{name}": text for name, text in tags.items()},
        )
        if url:
            print(f"recorded: {url}")


if __name__ == "__main__":
    if {"-m", "--multirun"} & set(sys.argv):
        sys.exit("error: -m: a sweep is for train.py; give tune.py one dataset and one model")
    from feedrate.cli.launch import launch

    launch(main, "tune")
