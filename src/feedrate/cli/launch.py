"""Starts an entry point through Hydra, and turns every mistake into one to three lines and exit code 1.

HYDRA_FULL_ERROR=1 shows the whole traceback instead. Heavy packages are imported by the job, not here.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import functools
import gc
import io
import logging
import os
import re
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, MissingMandatoryValue, OmegaConfBaseException

from feedrate.cli.output import outlive_readers
from feedrate.cli.replaced import own_defaults
from feedrate.config import ROOT, shown_path
from feedrate.errors import SampleError, UserError
from feedrate.system.signals import on_the_way_out, quit_on_interrupt

CONF = ROOT / "conf"
_FULL = "HYDRA_FULL_ERROR"
FULL_ERROR = os.environ.get(_FULL, "") not in ("", "0")  # what the user asked for; `launch` sets it for Hydra


def launch(job: Callable[[DictConfig], Any], config_name: str) -> None:
    """Composes conf/`config_name`.yaml with the command line's overrides and calls `job` with it.

    Ctrl-C ends the process at once, until the job takes it (system/signals.py). Raises SystemExit with code 1 for a
    mistake or a failure, 128 + signal where one has stopped it. For the last statement of a program, whose end it may
    take over.
    """
    alone = sys._getframe(1).f_back is None and not sys.flags.inspect  # no profiler, debugger or shell goes on after it
    try:
        _run(job, config_name)
    except SystemExit as ended:
        if alone and isinstance(ended.code, int):
            _leave(ended.code)
        raise
    if alone:
        _leave(0)


def _leave(code: int) -> None:
    """Ends the process at once where a thread is left that nobody has been able to end; returns where there is none.

    When Python takes itself apart, such a thread aborts the process, if it comes back from torch meanwhile. All else
    happens as at Python's own end.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # waits for all that are no daemons
    atexit._run_exitfuncs()
    if threading.active_count() == 1:
        return
    for written in gc.get_objects():
        if issubclass(type(written), (io.TextIOWrapper, io.BufferedWriter)):
            with contextlib.suppress(OSError, ValueError):  # nobody reads it, or it is closed
                written.flush()
    os._exit(code & 0xFF)


def _run(job: Callable[[DictConfig], Any], config_name: str) -> None:
    quit_on_interrupt()
    outlive_readers()
    root = str(CONF.parent)
    if root not in sys.path:
        sys.path.append(root)
    _register_resolvers()
    # read by OpenMP when torch is imported: its idle threads would spin for 10 ms after every operation, on the cores
    # that load the next batch
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    full, begun = FULL_ERROR, False
    os.environ[_FULL] = "1"  # Hydra then raises, instead of printing its own six to nine lines

    @functools.wraps(job)  # Hydra names the log file and the job after the file of the function it calls
    def guarded(config: DictConfig) -> Any:
        nonlocal begun
        begun = True
        if not full:
            os.environ.pop(_FULL, None)  # not for the processes that the job starts
        try:
            return job(config)
        except (Exception, KeyboardInterrupt) as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            _remove_unused_folder()
            if full or isinstance(error, KeyboardInterrupt):
                raise
            _fail(error)

    try:
        _flags_last()
        _check_arguments()
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(guarded)()
        quit_on_interrupt()  # also where the job has said otherwise
    except KeyboardInterrupt as error:
        on_the_way_out()
        print(str(error) or "interrupted", file=sys.stderr, flush=True)
        sys.exit(getattr(error, "exit_code", 130))
    except Exception as error:
        if full:
            raise
        composed = not isinstance(error, HydraException)
        _fail(_no_folder(error) if isinstance(error, OSError) and composed and not begun else error)


def plain(
    config: DictConfig, written: Path | None = None, *, job: HydraConf | None = None, quiet: bool = False
) -> dict[str, Any]:
    """The configuration as plain containers with every interpolation resolved.

    A class that takes the place of an option's own begins with its own defaults (feedrate.cli.replaced), which is said.

    Args:
        written: the file in which the run's folder keeps its configuration, changed as well.
        job: Hydra's own node (`hydra`) of the composition; None: that of the running job, where there is one.
        quiet: without a note on a class's own defaults.

    Raises:
        UserError: for an interpolation that leads nowhere, or a value still missing (`???`).
    """
    notes: list[str] = []
    if job is None and HydraConfig.initialized():
        job = HydraConfig.get()
    if job is not None:
        for key in config:
            if misplaced := _lacking_package(job.runtime.choices, str(key)):
                raise UserError(misplaced)
        config, notes = own_defaults(config, job)
    if notes and written is not None and written.is_file():
        from feedrate.tracking import masked

        OmegaConf.save(OmegaConf.create(masked(OmegaConf.to_container(config))), written)
    for note in () if quiet else notes:
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
    """What a user reads of an exception: its own text for a mistake, type and place for anything else."""
    if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
        from feedrate.loader import lost_worker  # torch raises that wherever the main process is

        error = lost_worker(error) or error
    elif isinstance(error, RuntimeError) and "torch" in sys.modules:
        from feedrate.trainer.device import explained

        error = explained(error) or error
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _describe_composition(error)
    if fault := _fault_in_file(error):
        return fault
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith("<")]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno}, in {own[-1].name})" if own else ""
    text = (str(error).strip().splitlines() or ["no text"])[0]
    return f"{type(error).__name__}: {text}{place}\n{_FULL}=1 shows the whole traceback"


def _fail(error: Exception) -> None:
    from feedrate.tracking import without_secrets

    quit_on_interrupt()
    text = without_secrets(describe(error))
    file = logging.getLogger("feedrate.file")
    if file.handlers:  # none before the job has begun; logging would then print the text a second time
        file.error(without_secrets("\n".join([text, *filter(None, [_cause(error)])])))
    print(f"error: {text}", file=sys.stderr, flush=True)
    sys.exit(1)


def _cause(error: Exception) -> str:
    """The traceback behind what the user reads, for the log file; empty where the mistake is not in code."""
    if isinstance(error, SampleError) and error.cause:
        return error.cause.rstrip()
    behind = error.__cause__ if isinstance(error, UserError) else error
    return "".join(traceback.format_exception(behind)).rstrip() if behind is not None else ""


def _remove_unused_folder() -> None:
    """The folder that Hydra has made for a job which failed before it wrote anything; not one that the user named."""
    config = HydraConfig.get()
    folder = Path(config.runtime.output_dir)
    of_hydra = {config.output_subdir, f"{config.job.name}.log"}
    if folder.name == instant() and folder.is_dir() and {path.name for path in folder.iterdir()} <= of_hydra:
        shutil.rmtree(folder)


def _no_folder(error: OSError) -> UserError:
    """Before a job begins nothing is written but its folder."""
    key = "hydra.sweep.dir" if {"-m", "--multirun"} & set(sys.argv) else "hydra.run.dir"
    return UserError(
        f"{key}={error.filename}: this folder cannot be made ({error.strerror or error}); name another one"
    )


def _flags_last() -> None:
    """Hydra's parser takes no override behind a flag that stands behind another override."""
    known = _parser()._option_string_actions
    overrides, flags, rest = [], [], sys.argv[1:]
    while rest:
        argument, *rest = rest
        name, given, _ = argument.partition("=")
        if not name.startswith("-"):
            overrides.append(argument)
            continue
        flags.append(argument)
        meant = {id(action): action for flag, action in known.items() if flag.startswith(name)}
        action = known.get(name) or (next(iter(meant.values())) if len(meant) == 1 else None)
        if rest and not given and action is not None and (action.nargs is None or rest[0] in (action.choices or ())):
            flags.append(rest.pop(0))
    sys.argv[1:] = [*overrides, *flags]


def _parser() -> argparse.ArgumentParser:
    """Hydra's, which answers a mistake with one line instead of a page of usage."""
    from hydra._internal.utils import get_args_parser

    def error(message: str) -> NoReturn:
        raise UserError(f"{message}; python {sys.argv[0]} --hydra-help lists the options")

    parser: argparse.ArgumentParser = get_args_parser()
    parser.error = error  # type: ignore[method-assign]
    return parser


def _check_arguments() -> None:
    """Finds what is no Hydra flag and no override, before Hydra's parser answers with a page of usage."""
    known, unknown = _parser().parse_known_args()
    if unknown:
        raise UserError(
            f"{unknown[0]} is no option; settings are written GROUP.KEY=VALUE, such as loader.num_workers=8"
        )
    for override in known.overrides:
        if "=" not in override and not override.startswith("~"):
            raise UserError(f"{override}: a setting needs a value, without spaces: {override}=VALUE")
        if override in ("hydra.run.dir=", "hydra.sweep.dir=", "hydra.sweep.subdir="):  # Hydra takes the current folder
            raise UserError(f"{override} names no folder; leave it out for a new one under outputs/")
        key, _, value = override.partition("=")
        if not value and "~" not in key and not (CONF / key.lstrip("+")).is_dir():
            raise UserError(
                f"{override} has no value (a shell variable that is not set?); none at all is written {key}=null, "
                f"an empty text '{key}=\"\"'"
            )


def _register_resolvers() -> None:
    """`${repository:}` is the repository's root; `${instant:}` names a run folder that no other process names."""
    OmegaConf.register_new_resolver("repository", lambda: str(CONF.parent), replace=True)
    OmegaConf.register_new_resolver("instant", instant, replace=True)


@functools.cache
def instant() -> str:
    """Names a folder that no other process names."""
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S_%f}_{os.getpid()}"


# ---------------------------------------------------------------------------------------------------------
# Hydra's own errors, in one sentence
# ---------------------------------------------------------------------------------------------------------


def _fault_in_file(error: BaseException) -> str:
    """Of a file that Hydra cannot read as YAML: its name, the line, and what is wrong; else an empty text."""
    from yaml import MarkedYAMLError, YAMLError  # type: ignore[import-untyped]

    from feedrate.validation import yaml_fault

    file = _file_read(error)
    if file is None:
        return ""
    if isinstance(error, MarkedYAMLError):
        return f"{shown_path(file)}, {yaml_fault(error)}"
    if isinstance(error, UnicodeDecodeError):
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        return f"{shown_path(file)}, line {line}: is not in UTF-8; save the file in UTF-8"
    return f"{shown_path(file)}: {str(error).splitlines()[0]}" if isinstance(error, YAMLError) else ""


def _file_read(error: BaseException) -> Path | None:
    """The configuration file that Hydra was reading when it failed; None where it was not reading one."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename.endswith("file_config_source.py") and "full_path" in frame.f_locals:
            return Path(frame.f_locals["full_path"])
    return None


def _lacking_package(choices: Mapping[str, Any], key: str) -> str:
    """Says which option's file lacks its package, so that what it sets counts for a key of the group's own name.

    Args:
        choices: option of each group.
        key: that is not known, as GROUP or GROUP.KEY.
    """
    for group in ("experiment", "debug", "local"):  # of whole configurations, which are no keys themselves
        if choices.get(group) and re.match(rf"{group}(\.|$)", key):
            name = f"{group}/{choices[group]}.yaml"
            places = [CONF, *(Path(place) for place in re.findall(r"file://([^\],'\"]+)", " ".join(sys.argv)))]
            file = next((place / name for place in places if (place / name).is_file()), Path(name))
            shown = shown_path(file) if file.is_file() else name
            return (
                f"{shown}, line 1: `# @package _global_` must stand there; without it what the file sets is taken for "
                f"keys below {group}"
            )
    return ""


def _describe_composition(error: BaseException) -> str:
    text = str(error)
    file = _file_read(error)
    if file is not None and isinstance(error.__cause__ or error, GrammarParseError):
        lines, text = file.read_text(encoding="utf-8").splitlines(), str(error.__cause__ or error).splitlines()[0]
        wrong = text.rpartition(" input ")[2].strip("'\"")
        numbers = [number for number, line in enumerate(lines, 1) if wrong and wrong in line]
        where = f", line {numbers[0]}" if numbers else ""
        return f"{shown_path(file)}{where}: an interpolation cannot be read ({text}); it is written ${{GROUP.KEY}}"
    if match := re.search(r"Could not override '([\w.@/]+)'", text):
        typed = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
        if said := _lacking_package(typed, match[1].partition("@")[2]):  # as model@experiment.model
            return said
        return _unknown_key(match[1])
    if match := re.search(r"Could not find '([\w/-]+)/([^/']*)'", text):
        group, option = match[1], match[2]
        return _unknown_option(group, option)
    if match := re.search(r"Could not (?:override|append|delete|find match)[^\n]*'([\w/]+)'", text):
        return _unknown_key(match[1])
    if isinstance(error, OverrideParseException):
        key = error.override.partition("=")[0]
        return (
            f"{error.override}: its value cannot be read; lists are written {key}=[VALUE,VALUE], and a text with "
            f"'=', brackets, commas, braces, quotes, spaces or letters beyond a to z in quotes: '{key}=\"TEXT\"'"
        )
    if match := re.search(r"Sweeping over Hydra's configuration is not supported : '([^']+)'", text):
        return f"{match[1]}: keys of hydra hold for a whole sweep, so they take one value"
    if match := re.search(r"Error merging override (\S+)", text):
        reason = str(error.__cause__ or text).strip().splitlines()[0]
        return f"{match[1]}: this key takes no such value ({reason[:1].lower()}{reason[1:]})"
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{match[1]}: several values make a sweep, which needs -m; one list is written KEY=[VALUE,VALUE]"
    lines = [line.strip() for line in f"{text}\n{error.__cause__ or ''}".splitlines()]
    kept = list(
        dict.fromkeys(line for line in lines if line and not line.startswith(("See", "full_key", "object_type")))
    )
    return "\n".join(kept[:3])


def _unknown_key(key: str) -> str:
    from feedrate.validation import nearest

    if key.startswith("hydra.sweeper.space."):
        whole = key.removeprefix("hydra.sweeper.space.").rpartition(".")[0]
        return (
            f"{key}: hydra.sweeper.space has no such key; a range is added with "
            f"'+hydra.sweeper.space.KEY={{type: float, low: 0.1, high: 0.2}}'\n"
            f"One that a file names in one piece ({whole}: ...) can be changed only there: docs/sweeps.md"
        )
    parent, _, name = key.rpartition(".")
    group = (parent or name).split(".")[0]
    if not parent and (CONF / name).is_dir() and name in (groups := _groups()):
        return _unknown_option(name, "")
    if not parent and (CONF / name).is_dir():
        return f"{name}: {_config_name()}.py has no such group; leave it out\nIts groups: {', '.join(groups) or 'none'}"
    composed = GlobalHydra.instance().is_initialized()  # then the job composes something itself
    try:
        chosen = [a for a in sys.argv[1:] if re.fullmatch(r"[\w/]+=[\w-]+", a) and (CONF / a.split("=")[0]).is_dir()]
        with contextlib.nullcontext() if composed else hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = hydra.compose(_config_name(), overrides=chosen, return_hydra_config=group == "hydra")
        if parent and group not in config:
            parent, name = "", group
        node = OmegaConf.select(config, parent) if parent else config
        valid = [str(k) for k in node if not str(k).startswith("_")] if isinstance(node, DictConfig) else []
    except Exception:  # this is help on the way out: the message below is true without it
        valid = []
    if name in valid and f"~{parent}" in sys.argv:
        return f"{parent}=null: must be given; leave ~{parent} out"
    where = f"{key} is not a key of the group {parent}" if parent else f"{key}: there is no {name}"
    lines = f"{where}{nearest(name, valid)}"
    if valid:
        lines += f"\nValid keys: {', '.join(valid)}"
    if parent and group in ("dataset", "model", "optimizer", "scheduler"):
        lines += f"\nFor a class of your own that takes it, write +{key}=..."
    return lines


def _groups() -> list[str]:
    """Those of which the command line chooses an option."""
    defaults = OmegaConf.select(OmegaConf.load(CONF / f"{_config_name()}.yaml"), "defaults", default=[])
    return [str(key) for entry in defaults if isinstance(entry, DictConfig) for key in entry if " " not in str(key)]


def _unknown_option(group: str, option: str) -> str:
    from feedrate.validation import nearest

    options = sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.is_file())
    listed = ", ".join(options) or "none"
    if (group, option) == ("loader", "tuned"):
        said = "has not been written yet; python src/tune.py with your dataset and model writes it"
        return f"{group}={option}: {said}\nOptions of {group}: {listed}"
    return f"{group}={option}: no such option{nearest(option, options)}\nOptions of {group}: {listed}"


def _config_name() -> str:
    return Path(sys.argv[0]).stem
