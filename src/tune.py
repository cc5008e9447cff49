"""Finds the cheapest setting of the loader that keeps a model fed, and writes it as loader=tuned.

    python src/tune.py dataset=tensor_files dataset.root=data/mine model=resnet18
    python src/tune.py model=simulated model.step_ms=8 tune.budget_s=20

conf/tune.yaml explains each key, docs/tune.md what is tried. Let nothing else run meanwhile.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> None:
    # -----------------------------------------------------------------------------------------------------
    # Settings
    # -----------------------------------------------------------------------------------------------------
    from hydra.core.hydra_config import HydraConfig

    from feedrate.config import check_tune, resolve_path
    from feedrate.launch import plain

    resolved = plain(cfg)
    config = check_tune(resolved)
    hydra = HydraConfig.get()

    # -----------------------------------------------------------------------------------------------------
    # Data and model; torch is imported only now, since it takes seconds
    # -----------------------------------------------------------------------------------------------------
    from feedrate.dataset import build_data
    from feedrate.tracking import without_secrets
    from feedrate.trainer import tuned
    from feedrate.trainer.bed import Bed
    from feedrate.trainer.device import choose_device
    from feedrate.trainer.provenance import command_line
    from feedrate.trainer.seeds import seed_everything
    from feedrate.trainer.tune import Trial, tune

    seed_everything(config.seed, config.trainer.num_threads)
    device = choose_device(config.trainer.device)
    data = build_data(config.dataset, config.seed)
    bed = Bed(config.trainer, data, config.loader, config.model, config.optimizer, config.seed, device)

    # -----------------------------------------------------------------------------------------------------
    # Try
    # -----------------------------------------------------------------------------------------------------
    def tell(trial: Trial) -> None:
        said = f"  (predicted {trial.predicted:,.0f})" if trial.predicted else ""
        print(f"{trial.setting}: {trial.samples_per_s:,.0f} samples/s, waited {trial.wait_pct:.1f} %{said}", flush=True)

    model = str(hydra.runtime.choices["model"])
    print(f"{data.name} and {model} on {device}: trials for at most {config.tune.budget_s:g} s", flush=True)
    found = tune(bed, config.tune.budget_s, config.tune.trial_s, tell)

    # -----------------------------------------------------------------------------------------------------
    # Write
    # -----------------------------------------------------------------------------------------------------
    path = resolve_path(config.tune.output)
    command = without_secrets(command_line(hydra.overrides.task))
    tuned.write(path, config.loader, found, command, data.name, model)
    best = found.best
    print(
        f"\n{best.setting}: {best.samples_per_s:,.0f} samples/s, the step can take {found.step_samples_per_s:,.0f}; "
        f"{len(found.trials)} settings tried in {found.seconds:.0f} s\nwritten to {path}; use it with loader=tuned"
    )


if __name__ == "__main__":
    if {"-m", "--multirun"} & set(sys.argv):
        sys.exit("error: -m: a sweep is for train.py; give tune.py one dataset and one model")
    from feedrate.launch import launch

    launch(main, "tune")
