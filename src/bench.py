"""How fast a loader is by itself, what it spends its time on, and which steps it can feed.

    python src/bench.py dataset=tensor_files dataset.root=data/mine loader.num_workers=4
    python src/bench.py 'bench.compare=["loader=torch", "loader.num_workers=0", "loader.num_workers=2"]'
    python src/bench.py loader.num_workers=4 bench.baseline=outputs/bench/DATE/bench.json

conf/bench.yaml explains each key, docs/bench.md what is measured. Run nothing else meanwhile.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> None:
    # Settings; each loader is composed and checked before anything is measured
    from hydra.core.hydra_config import HydraConfig

    from feedrate.cli.launch import plain
    from feedrate.config import BenchConfig, check_as, resolve_path
    from feedrate.errors import UserError
    from feedrate.system.signals import raise_when_stopped
    from feedrate.tuning.bench import described, entries_of, measure_all, read, slower, table, write

    raise_when_stopped()
    resolved = plain(cfg)
    settings = check_as(BenchConfig, resolved).bench
    baseline = read(resolve_path(settings.baseline)) if settings.baseline is not None else None
    hydra = HydraConfig.get()
    entries = entries_of(resolved, list(hydra.overrides.task), settings.compare)

    # Measure
    steps = 1 + len(settings.step_ms)
    seconds = len(entries) * steps * settings.repeats * settings.seconds
    print(f"measuring for about {seconds:.0f} s; run nothing else meanwhile", flush=True)
    measure_all(entries, settings, baseline)

    # Print and write
    for entry in entries:
        print(f"\n{described(entry)}")
    if len(entries) > 1:
        print(f"\n{table(entries)}")
    path = Path(hydra.runtime.output_dir) / "bench.json"
    write(entries, path)
    print(f"\nwritten to {path}", flush=True)
    if baseline is not None:
        if lines := slower(entries, baseline, settings.noise_pct):
            raise UserError("\n".join(lines))
        print("not slower than the baseline")


if __name__ == "__main__":
    from feedrate.cli.launch import launch

    launch(main, "bench", instead_of_sweep="several loaders are compared with bench.compare=[...]")
