"""Finds the cheapest setting of the loader that keeps a model fed, and writes it as loader=tuned.

    python src/tune.py dataset=tensor_files dataset.root=data/mine model=resnet18
    python src/tune.py model=simulated model.step_ms=8 tune.budget_s=20

conf/tune.yaml explains each key, docs/tune.md what is tried. Run nothing else meanwhile.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> None:
    # Settings
    from hydra.core.hydra_config import HydraConfig

    from feedrate.cli.launch import plain
    from feedrate.config import TuneConfig, check_as, resolve_path, timeout_of
    from feedrate.errors import UserError
    from feedrate.system.secrets import learn, without_secrets
    from feedrate.system.signals import raise_when_stopped

    resolved = plain(cfg)
    learn(resolved)
    config = check_as(TuneConfig, resolved)
    if config.loader["_target_"] != "feedrate.loader.Loader":
        raise UserError("loader: tune.py tunes Feedrate's loader only; leave loader=... out")
    hydra = HydraConfig.get()
    path = resolve_path(config.tune.output)

    # Data; torch is imported only now, since it takes seconds
    from feedrate.dataset import build_data
    from feedrate.runs.provenance import command_line
    from feedrate.system.memory import free_memory
    from feedrate.trainer.device import set_up_device
    from feedrate.tuning import tuned
    from feedrate.tuning.max_batch_size import largest_batch
    from feedrate.tuning.trial_runner import TrialRunner
    from feedrate.tuning.tune import tune

    tuned.check(path)
    raise_when_stopped()
    device = set_up_device(config.trainer, config.seed)
    data = build_data(config.dataset, config.seed, timeout=timeout_of(config.loader))
    data_and_model = f"{data.name} and {hydra.runtime.choices['model']}"

    # Try
    runner = TrialRunner(config.trainer, data, config.loader, config.model, config.optimizer, config.seed, device)
    print(f"{data_and_model} on {device}: trials for at most {config.tune.budget_s:g} s", flush=True)
    begin = time.perf_counter()
    if config.tune.batch_size:
        size, samples = config.loader["batch_size"], len(data.partition["train"])  # type: ignore[arg-type]
        largest, reason = largest_batch(runner.fits, size, samples, free_memory(), config.tune.budget_s / 4)
        change = " stays" if largest == size else f", not {size}, which changes the training"
        print(f"loader.batch_size={largest}{change}; {reason}", flush=True)
    left_s = config.tune.budget_s - (time.perf_counter() - begin)
    found = tune(runner, left_s, config.tune.trial_s, lambda tried: print(tried, flush=True))
    compared = tuned.compare(runner, found.best.setting, found.tried[0].samples_per_s)

    # Write
    command = without_secrets(command_line(hydra.overrides.task))
    tuned.write(path, tuned.option(runner.node, found, compared, command, data_and_model))
    print(
        f"\n{found}; the step can take {found.step_samples_per_s:,.0f}; "
        f"{len(found.tried)} settings tried in {found.seconds:.0f} s\n{compared}\n"
        + (f"note: {found.unsteady}\n" if found.unsteady else "")
        + f"written to {path}; {tuned.use(path)}"
    )


if __name__ == "__main__":
    from feedrate.cli.launch import launch

    launch(main, "tune", instead_of_sweep="give tune.py one dataset and one model")
