"""Starts an entry point through Hydra; each mistake ends it with one to three lines and exit code 1.

HYDRA_FULL_ERROR=1 shows the whole traceback instead. Heavy packages are imported by the job, not here.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import logging
import os
import pickle
import shutil
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import version
from hydra._internal.callbacks import Callbacks
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime, run_job, setup_globals
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from feedrate.cli.hydra_errors import CONF, describe_composition, lacking_package
from feedrate.cli.output import outlive_readers
from feedrate.cli.replaced import own_defaults
from feedrate.errors import UserError, raised_at
from feedrate.system.secrets import masked, without_secrets
from feedrate.system.signals import on_the_way_out, quit_on_interrupt

_FULL = "HYDRA_FULL_ERROR"
FROM_STDIN = "--job-from-stdin"  # in place of arguments: a job of a sweep reads its composed configuration
FULL_ERROR = os.environ.get(_FULL, "") not in ("", "0")  # as the user set it; `launch` sets it for Hydra


def launch(job: Callable[[DictConfig], Any], config_name: str, instead_of_sweep: str = "") -> None:
    """Composes conf/`config_name`.yaml with the command line's overrides and calls `job` with it.

    The last statement of a program; exits with 1 after an error, with 128 + signal after a signal. Until the job
    handles it, Ctrl-C ends the process at once. A program that does not sweep says in `instead_of_sweep` what to do.
    """
    alone = sys._getframe(1).f_back is None and not sys.flags.inspect  # no profiler, debugger or shell around it
    code = 0
    try:
        _run(job, config_name, instead_of_sweep)
    except SystemExit as ended:
        if not alone or not isinstance(ended.code, int):
            raise
        code = ended.code
    if alone:  # what Python does at its end
        threading._shutdown()  # type: ignore[attr-defined]  # joins threads that are not daemons
        atexit._run_exitfuncs()
        if threading.active_count() > 1:  # back from torch, a daemon thread would abort the process in its finalization
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code & 0xFF)
        sys.exit(code)


def _run(job: Callable[[DictConfig], Any], config_name: str, instead_of_sweep: str) -> None:
    quit_on_interrupt()
    outlive_readers()
    root = str(CONF.parent)
    if root not in sys.path:
        sys.path.append(root)
    _register_resolvers()
    # read by OpenMP when torch is imported: its idle threads would otherwise spin for 10 ms after each operation, on
    # the cores that load the next batch
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ[_FULL] = "1"  # Hydra raises, instead of printing its own six to nine lines

    @functools.wraps(job)  # Hydra names the log file and the job after the file of the function
    def wrapped(config: DictConfig) -> Any:
        if not FULL_ERROR:
            os.environ.pop(_FULL, None)  # not for the processes that the job starts
        try:
            return job(config)
        except (Exception, KeyboardInterrupt) as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            _remove_unused_folder()
            if FULL_ERROR or isinstance(error, KeyboardInterrupt):
                raise
            _fail(error)

    try:
        if instead_of_sweep and {"-m", "--multirun"} & set(sys.argv):
            raise UserError(f"-m: a sweep is for train.py; {instead_of_sweep}")
        if sys.argv[1:] == [FROM_STDIN]:
            _run_composed(wrapped, pickle.load(sys.stdin.buffer))
        else:
            _check_arguments()
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(wrapped)()
        quit_on_interrupt()
    except KeyboardInterrupt as error:
        on_the_way_out()
        print(str(error) or "interrupted", file=sys.stderr, flush=True)
        sys.exit(getattr(error, "exit_code", 130))
    except Exception as error:
        if FULL_ERROR:
            raise
        _fail(error)


def _run_composed(job: Callable[[DictConfig], Any], config: DictConfig) -> None:
    """Runs a job of a sweep as Hydra runs a single one, with a configuration that is composed already."""
    version.setbase("1.3")
    setup_globals()
    JobRuntime.instance().set("name", config.hydra.job.name)
    context = HydraContext(config_loader=None, callbacks=Callbacks(config))  # type: ignore[arg-type]
    _ = run_job(job, config, "hydra.run.dir", None, context).return_value  # raises the job's error


def plain(config: DictConfig, written: Path | None = None, *, job: HydraConf | None = None) -> dict[str, Any]:
    """The configuration as plain containers with every interpolation resolved.

    A class that replaces an option's own starts from its own defaults (feedrate.cli.replaced); a note says so.

    Args:
        written: the run folder's copy of the configuration, updated as well.
        job: Hydra's own node (`hydra`); None: that of the running job, if any.
    """
    if job is None and HydraConfig.initialized():
        job = HydraConfig.get()
    if job is not None:
        for key in config:
            if misplaced := lacking_package(job.runtime.choices, str(key)):
                raise UserError(misplaced)
        config, notes = own_defaults(config, job)
        if notes and written is not None and written.is_file():
            OmegaConf.save(OmegaConf.create(masked(OmegaConf.to_container(config))), written)
        for note in notes:
            logging.getLogger("feedrate").info("%s", note)
    try:
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "?"
        if isinstance(error, MissingMandatoryValue):
            raise UserError(f"{key} is missing; set it with {key}=...") from error
        raise UserError(f"{key}: {str(error).splitlines()[0]}") from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def describe(error: BaseException) -> str:
    """An exception as text for the user: a UserError's message; type, message and place of any other."""
    if isinstance(error, RuntimeError) and "torch" in sys.modules:
        from feedrate.system.device import explained

        error = explained(error) or error
    if isinstance(error, UserError):
        return str(error)
    if said := describe_composition(error):
        return said
    text = (str(error).strip().splitlines() or ["no text"])[0]
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker"):  # torch raises that anywhere
        return f"{text}\nIf memory ran out, lower loader.num_workers, loader.prefetch_factor or loader.batch_size"
    return f"{type(error).__name__}: {text}{raised_at(error)}\n{_FULL}=1 shows the whole traceback"


def _fail(error: Exception) -> NoReturn:
    quit_on_interrupt()
    text = without_secrets(describe(error))
    behind = error.__cause__ if isinstance(error, UserError) else error
    details = "".join(traceback.format_exception(behind)) if behind is not None else ""
    file = logging.getLogger("feedrate.file")
    if file.handlers:  # none before the job begins; logging would then print the text a second time
        file.error(without_secrets(f"{text}\n{getattr(error, 'cause', '') or details}".rstrip()))
    print(f"error: {text}", file=sys.stderr, flush=True)
    sys.exit(1)


def _remove_unused_folder() -> None:
    """Removes the folder that Hydra created for a job that wrote nothing; not one that the user named."""
    config = HydraConfig.get()
    folder = Path(config.runtime.output_dir)
    of_hydra = {config.output_subdir, f"{config.job.name}.log"}
    if folder.name == instant() and folder.is_dir() and {path.name for path in folder.iterdir()} <= of_hydra:
        shutil.rmtree(folder)


def _check_arguments() -> None:
    """Reports unknown options and malformed overrides, and moves overrides before flags, as Hydra's parser needs."""
    from hydra._internal.utils import get_args_parser

    def error(message: str) -> NoReturn:
        raise UserError(
            f"{message}; settings are written GROUP.KEY=VALUE, such as loader.num_workers=8, and "
            f"python {sys.argv[0]} --hydra-help lists the options"
        )

    parser: argparse.ArgumentParser = get_args_parser()
    parser.error = error  # type: ignore[method-assign]
    overrides = parser.parse_intermixed_args().overrides
    for override in overrides:
        key, _, value = override.partition("=")
        if not value and "~" not in key:
            raise UserError(
                f"{override} has no value (spaces around '=', or a shell variable that is not set?); none at all is "
                f"written {key}=null, an empty text '{key}=\"\"'"
            )
        sys.argv.remove(override)
    sys.argv[1:1] = overrides


def _register_resolvers() -> None:
    """`${repository:}` is the repository's root; `${instant:}` names a run folder that no other process names."""
    OmegaConf.register_new_resolver("repository", lambda: str(CONF.parent), replace=True)
    OmegaConf.register_new_resolver("instant", instant, replace=True)


@functools.cache
def instant() -> str:
    """Time and process number, as the name of a folder."""
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S_%f}_{os.getpid()}"
