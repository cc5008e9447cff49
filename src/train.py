"""Trains a model and records the run.

    python src/train.py
    python src/train.py loader.num_workers=8 loader.batch_size=128
    python src/train.py dataset=tensor_files dataset.root=/data/mine model=resnet18
    python src/train.py trainer.resume=auto
    python src/train.py -m loader.num_workers=0,2,4 loader.batch_size=64,256

conf/train.yaml is the table of contents of everything that can be set.
"""

from __future__ import annotations

import functools
import logging
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig

from feedrate.cli.launch import describe, launch, plain
from feedrate.errors import LostWorker

log = logging.getLogger("feedrate")


def train(cfg: DictConfig) -> float:
    """One run; returns the lowest validation loss, which a search minimises."""

    # -----------------------------------------------------------------------------------------------------
    # Configuration: everything that can be wrong without data is found here
    # -----------------------------------------------------------------------------------------------------
    from hydra.core.hydra_config import HydraConfig

    from feedrate.config import check, timeout_of
    from feedrate.system.secrets import learn, mask_files, mask_logs
    from feedrate.tuning import tuning_cache as remembered

    hydra = HydraConfig.get()
    mask_files(Path(hydra.runtime.output_dir) / ".hydra")
    mask_logs()
    written = Path(hydra.runtime.output_dir) / ".hydra/config.yaml"
    resolved = plain(cfg, written)
    learn(resolved)
    if said := remembered.take(resolved, hydra.runtime.choices, hydra.overrides.task, written=written):
        log.info("%s", said)
    config = check(resolved)

    # the uploader opens the store meanwhile, in a process of its own: training waits for no server
    from feedrate.tracking import open_tracker, run_name, start_uploader, without_secrets

    uploader = start_uploader(config.tracking)

    # torch is imported only now, since it takes seconds
    from feedrate.runs import record, resume, runs
    from feedrate.runs.provenance import command_line
    from feedrate.runs.run_folder import RunFolder
    from feedrate.system.signals import Interruption
    from feedrate.trainer.state import within_epoch

    # -----------------------------------------------------------------------------------------------------
    # Run folder: a new one, or that of the run to go on with
    # -----------------------------------------------------------------------------------------------------
    fresh = Path(hydra.runtime.output_dir)
    dead = runs.mark_dead_runs(fresh.parent)
    wanted = config.trainer.resume
    command = without_secrets(command_line(hydra.overrides.task))
    earlier = resume.find_run(wanted, resolved, command, fresh.parent) if wanted else None
    folder = RunFolder(fresh) if earlier is None else RunFolder(earlier, named_by="trainer.resume")
    run = record.Run(
        resolved, dict(hydra.runtime.choices), folder.path, command, f"{datetime.now(timezone.utc):%FT%TZ}"
    )
    tracker, trainer, loaders, run_id, ended = None, None, {}, None, False
    interruption = Interruption(lambda text: None if ended else record.record_failure(run, run_id, "KILLED", text))
    interruption.listen()
    try:
        interruption.allow()  # a signal ends the start at once
        state = {}
        if earlier is not None:
            resume.adopt(fresh, earlier)
            state = within_epoch(resume.load_state(str(wanted), earlier), config.trainer.max_steps)
            resume.check_config(state, earlier, resolved)
            run_id = runs.read_summary(earlier).get("run_id")
            log.info("going on with %s after %d steps", earlier.name, state["step"])
        record.write_initial_summary(run, run_id)

        # -------------------------------------------------------------------------------------------------
        # Data
        # -------------------------------------------------------------------------------------------------
        from feedrate.dataset import build_data, check_shapes
        from feedrate.trainer.device import choose_device, choose_precision, set_arithmetic
        from feedrate.trainer.seeds import seed_everything

        seed_everything(config.seed, config.trainer.num_threads)
        set_arithmetic(config.trainer.matmul_precision, config.trainer.deterministic)
        device = choose_device(config.trainer.device)
        data = build_data(config.dataset, config.seed, timeout=timeout_of(config.loader))
        check_shapes(data, config.dataset, timeout_of(config.loader))
        if state:
            resume.check_data(state, data, config.trainer.resume_changed)

        # -------------------------------------------------------------------------------------------------
        # Loaders: their workers start now, since forking is safe only before CUDA, MLflow and other threads
        # -------------------------------------------------------------------------------------------------
        from feedrate.loader import build_loaders, close_loaders, start_loaders

        with interruption.held():
            loaders = build_loaders(config.loader, data, config.seed, device)
            if state.get("loader"):
                loaders["train"].load_state_dict(state["loader"])
            start_loaders(loaders, ("train", "validation"), data)

        # -------------------------------------------------------------------------------------------------
        # Tracking
        # -------------------------------------------------------------------------------------------------
        name = run_name({**resolved, "dataset": data.name, "model": run.choices["model"]}, hydra.overrides.task)
        tracker = open_tracker(config.tracking, run_name=name, run_folder=folder.path, run_id=run_id, uploader=uploader)
        for _, dead_folder in dead:
            log.info("note: %s was killed; it is marked so now", dead_folder.name)
            tracker.close_dead(dead_folder)

        # -------------------------------------------------------------------------------------------------
        # Model, optimizer, schedule
        # -------------------------------------------------------------------------------------------------
        from feedrate.trainer.assemble import build_model, build_optimizer, total_steps
        from feedrate.trainer.loop import Trainer
        from feedrate.trainer.schedule import Schedule

        precision = choose_precision(config.trainer.precision, device)
        model = build_model(config.model, data, device, config.trainer.channels_last)
        optimizer = build_optimizer(config.optimizer, model, device)
        steps = total_steps(config.trainer, loaders["train"], state)
        schedule = Schedule(config.scheduler, optimizer, steps, config.trainer.max_epochs)
        parameters = sum(p.numel() for p in model.parameters())
        train_size, validation_size = (len(data.partition[p]) for p in ("train", "validation"))  # type: ignore[arg-type]
        log.info("%s: %d training and %d validation samples %s, %s", data.name, train_size, validation_size,
                 tuple(data.sample_shape), data.targets.describe())  # fmt: skip
        log.info("%s with %s parameters on %s, precision %s (%s)", type(model).__name__, f"{parameters:,}", device,
                 precision.name, precision.reason)  # fmt: skip

        # -------------------------------------------------------------------------------------------------
        # Train
        # -------------------------------------------------------------------------------------------------
        from feedrate.trainer.profile import profiled
        from feedrate.trainer.throughput_history import packable
        from feedrate.trainer.trial import Trial

        trial = Trial(config.trainer.max_epochs)
        trainer = Trainer(config.trainer, data, loaders, model, optimizer, schedule, device, precision,
                          folder.path / "checkpoints", tracker.metrics, interruption, trial,
                          packable(config.dataset), functools.partial(record.record_verdict, tracker))  # fmt: skip
        if state:
            resume.check_model(state["model"], model.state_dict())
            if config.trainer.resume_optimizer:
                resume.check_optimizer(state, optimizer, schedule)
            trainer.load_state_dict(state)
            record.record_resumed(tracker, run, trainer)
        else:
            record.record_start(tracker, run, data, parameters, device, precision.name)
        with profiled(config.trainer.profile, folder.path):
            result = trainer.fit()
        interruption.allow()

        # -------------------------------------------------------------------------------------------------
        # Record
        # -------------------------------------------------------------------------------------------------
        facts = {**trainer.digests(), "engine": record.engine_of(trainer), **trial.facts(result.stopped)}
        verdict = trainer.verdict()
        summary = record.record_end(tracker, run, trainer, result, verdict, facts)
        if config.tracking.log_model:
            tracker.model(model, trainer.example())
        ended = True  # a signal from now on means only that nobody waits until the record is sent
        tracker.end("FINISHED")
        record.record_run_id(run, tracker.run_id)
        log.info("%s", record.closing_line(result, summary["seconds"], verdict))
        log.info("%s", record.verdict_words(trainer, verdict))
        log.info("run folder  %s", folder.path)
        if tracker.url:
            log.info("this run    %s", tracker.url)
            log.info("all runs    %s   (start the pages with: make ui)", tracker.experiment_url)
        return result.best["validation/loss"]
    except BaseException as error:
        interruption.safe = False
        status: Literal["KILLED", "FAILED"] = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        text = str(error) or "interrupted" if status == "KILLED" else describe(error)
        if not ended:
            verdict = trainer.verdict() if trainer is not None else None
            record.record_failure(run, tracker.run_id if tracker else run_id, status, text, trainer, verdict)
            if verdict is not None:
                log.info("until then:\n%s", verdict)
            if isinstance(error, (KeyboardInterrupt, LostWorker)) and (folder.path / "checkpoints/last.pt").exists():
                log.info("run folder  %s   (goes on with trainer.resume=auto)", folder.path)
        if tracker is not None and not ended:
            if trainer is not None and verdict is not None:
                record.record_verdict(tracker, verdict)
                tracker.tags({"feedrate.engine": record.engine_of(trainer)})
            tracker.end(status, text)
            record.record_run_id(run, tracker.run_id)
        raise
    finally:
        if uploader is not None:
            uploader.stop()
        if loaders:
            close_loaders(loaders, at_once=not ended)
        folder.release()
        interruption.leave()


if __name__ == "__main__":
    launch(train, config_name="train")
