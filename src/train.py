"""Trains a model and records the run.

    python src/train.py
    python src/train.py loader.num_workers=8 loader.batch_size=128
    python src/train.py dataset=tensor_files dataset.root=/data/mine model=resnet18
    python src/train.py -m loader.num_workers=0,2,4 loader.batch_size=64,256

conf/train.yaml is the table of contents of everything that can be set.
"""

from __future__ import annotations

import logging
import time

from omegaconf import DictConfig

from feedrate.launch import describe, launch, plain

log = logging.getLogger("feedrate")


def train(cfg: DictConfig) -> float:
    """One run; returns the lowest validation loss, which a search minimises."""

    # -----------------------------------------------------------------------------------------------------
    # Configuration: everything that can be wrong without data is found here
    # -----------------------------------------------------------------------------------------------------
    from hydra.core.hydra_config import HydraConfig

    from feedrate.config import check

    resolved = plain(cfg)
    config = check(resolved)
    hydra = HydraConfig.get()

    # torch is imported only now, since it takes seconds
    from pathlib import Path

    from feedrate.tracking import without_secrets
    from feedrate.trainer.provenance import command_line
    from feedrate.trainer.record import Run, closing_line, record_end, record_failure, record_start
    from feedrate.trainer.run_folder import RunFolder

    folder = RunFolder(Path(hydra.runtime.output_dir))
    command = without_secrets(command_line(hydra.overrides.task))
    run = Run(resolved, dict(hydra.runtime.choices), folder.path, command)
    tracker, loaders = None, {}
    try:
        # -------------------------------------------------------------------------------------------------
        # Data
        # -------------------------------------------------------------------------------------------------
        from feedrate.dataset import build_data
        from feedrate.trainer.device import choose_device, choose_precision
        from feedrate.trainer.seeds import seed_everything

        seed_everything(config.seed, config.trainer.num_threads)
        device = choose_device(config.trainer.device)
        data = build_data(config.dataset, config.seed)

        # -------------------------------------------------------------------------------------------------
        # Loaders: their workers start now, since forking is safe only before CUDA, MLflow and other threads
        # -------------------------------------------------------------------------------------------------
        from feedrate.loader import build_loaders, close_loaders

        loaders = build_loaders(config.loader, data, config.seed, device)
        for name in ("train", "validation"):
            if hasattr(loaders[name], "start"):
                loaders[name].start()

        # -------------------------------------------------------------------------------------------------
        # Tracking
        # -------------------------------------------------------------------------------------------------
        from feedrate.tracking import open_tracker, run_name

        name = run_name({**resolved, "dataset": data.name, "model": run.choices["model"]}, hydra.overrides.task)
        tracker = open_tracker(config.tracking, run_name=name, run_folder=folder.path)

        # -------------------------------------------------------------------------------------------------
        # Model, optimizer, schedule
        # -------------------------------------------------------------------------------------------------
        from feedrate.trainer.assemble import build_model, build_optimizer, total_steps
        from feedrate.trainer.schedule import Schedule

        precision = choose_precision(config.trainer.precision, device)
        model = build_model(config.model, data, device)
        optimizer = build_optimizer(config.optimizer, model, device)
        schedule = Schedule(
            config.scheduler, optimizer, total_steps(config.trainer, loaders["train"]), config.trainer.max_epochs
        )
        parameters = sum(p.numel() for p in model.parameters())
        train_size, validation_size = (len(data.partition[p]) for p in ("train", "validation"))
        log.info("%s: %d training and %d validation samples %s, %s", data.name, train_size, validation_size,
                 tuple(data.sample_shape), data.targets.describe())  # fmt: skip
        log.info("%s with %s parameters on %s, precision %s (%s)", type(model).__name__, f"{parameters:,}", device,
                 precision.name, precision.reason)  # fmt: skip
        record_start(tracker, run, data, parameters, str(device), precision.name)

        # -------------------------------------------------------------------------------------------------
        # Train
        # -------------------------------------------------------------------------------------------------
        from feedrate.trainer.loop import Trainer
        from feedrate.trainer.profile import profiled

        trainer = Trainer(config.trainer, data, loaders, model, optimizer, schedule, device, precision,
                          folder.path / "checkpoints", tracker.metrics)  # fmt: skip
        begin = time.perf_counter()
        with profiled(config.trainer.profile, folder.path):
            result = trainer.fit()

        # -------------------------------------------------------------------------------------------------
        # Record
        # -------------------------------------------------------------------------------------------------
        digests = trainer.digests()
        summary = record_end(tracker, run, trainer, result, time.perf_counter() - begin, digests)
        if config.tracking.log_model:
            tracker.model(model, trainer.example())
        tracker.end("FINISHED")
        log.info("%s", closing_line(result, summary["seconds"]))
        log.info("run folder  %s", folder.path)
        if tracker.url:
            log.info("this run    %s", tracker.url)
            log.info("all runs    %s   (start the pages with: make ui)", tracker.experiment_url)
        return result.best["validation/loss"]
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        record_failure(run, status, describe(error))
        if tracker is not None:
            tracker.end(status, describe(error))
        raise
    finally:
        if loaders:
            close_loaders(loaders)
        folder.release()


if __name__ == "__main__":
    launch(train, config_name="train")
