"""Trains a model and records the run.

    python src/train.py
    python src/train.py loader.num_workers=8 loader.batch_size=128
    python src/train.py dataset=tensor_files dataset.root=/data/mine model=resnet18
    python src/train.py trainer.resume=auto
    python src/train.py -m loader.num_workers=0,2,4 loader.batch_size=64,256

conf/train.yaml is the table of contents of everything that can be set.
"""

from __future__ import annotations

import logging

from omegaconf import DictConfig

from feedrate.cli.launch import launch

log = logging.getLogger("feedrate")


def train(cfg: DictConfig) -> float:
    """One run; returns the lowest validation loss, which a search minimises."""
    from feedrate.runs.run import Run, resolve_config

    # Configuration: resolved, secrets masked
    resolved = resolve_config(cfg)

    # The run: checks the configuration; owns folder, signals, tracker and status; resumes an earlier run
    with Run.open(resolved) as run:
        # torch and all that needs it are imported only now, since that takes seconds
        from feedrate.config import timeout_of
        from feedrate.dataset import build_data, check_shapes
        from feedrate.trainer.assemble import build_model, build_optimizer, total_steps
        from feedrate.trainer.device import set_up_device
        from feedrate.trainer.loop import Trainer
        from feedrate.trainer.profile import profiled
        from feedrate.trainer.progress import headline
        from feedrate.trainer.schedule import Schedule
        from feedrate.trainer.throughput_history import packable

        config = run.config
        device = set_up_device(config.trainer, config.seed)

        # Data
        timeout_s = timeout_of(config.loader)
        data = build_data(config.dataset, config.seed, timeout=timeout_s)
        check_shapes(data, config.dataset, timeout_s)
        log.info("%s", headline(run.origin.choices["model"], data, device))

        # Loaders: their workers start now, since forking is safe only before CUDA, MLflow and other threads
        loaders = run.start_loaders(data, device)
        run.start_tracking(data)

        # Model, optimizer, schedule
        model = build_model(config.model, data, device, config.trainer.channels_last)
        optimizer = build_optimizer(config.optimizer, model, device)
        steps = total_steps(config.trainer, loaders["train"], run.checkpoint)
        schedule = Schedule(config.scheduler, optimizer, steps, config.trainer.max_epochs)

        # Train
        trainer = Trainer(config.trainer, data, loaders, model, optimizer, schedule, device,
                          run.folder.checkpoints, run.tracker, run.interruption, packable(config.dataset))  # fmt: skip
        run.start(trainer)  # a resumed run's checkpoint is loaded here
        with profiled(config.trainer.profile, run.folder.path):
            trainer.fit()
        run.finish()
    return trainer.result.best["validation/loss"]


if __name__ == "__main__":
    launch(train, config_name="train")
