"""Opening MLflow's store, an SQLite file that many processes may open at the same instant, or a server."""

from __future__ import annotations

import atexit
import base64
import errno
import functools
import importlib.util
import json
import logging
import os
import re
import shlex
import shutil
import sqlite3
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from feedrate.errors import UserError
from feedrate.system.secrets import without_secrets
from feedrate.tracking.address import VIEW_KEY, Address, sqlite_url
from feedrate.tracking.moved import follow

if TYPE_CHECKING:
    from mlflow import MlflowClient

VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
# MLflow's table of runs: column -> its width in pixels. `Created`, which shows the status, is pinned beside the name.
VIEW_COLUMNS = {
    "tags.`feedrate.verdict`": 130,
    "metrics.`loader/wait_pct`": 130,
    "metrics.`loader/samples_per_s`": 180,
    "metrics.`best/accuracy`": 130,
    "metrics.`best/loss`": 100,
    "attributes.`Created`": 150,
    "metrics.`best/epoch`": 110,
    "params.`loader.num_workers`": 170,
    "params.`loader.batch_size`": 160,
    "params.`model`": 90,
    "params.`dataset`": 90,
    "attributes.`Dataset`": 300,
}

LOCK_TIMEOUT_S = 120.0  # for another process that creates the store, which takes about 3 s
ANSWER_TIMEOUT_S = 5
_READ_TIMEOUT_S = 4.0  # for an SQLite file that another process has locked; MLflow waits 20 s

# SQLite's write-ahead log does not work on these
_NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "afs", "9p", "fuse", "virtio")

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's 7 block for four minutes when the server is away
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(ANSWER_TIMEOUT_S),
    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1",  # s; with MLflow's 10 a short run shows nothing
}

_MISTAKES = {"PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "ENDPOINT_NOT_FOUND"}
_FILE_MISTAKES = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS}
_TEMPORARY = {401, 403, 404, 408, 425, 429}  # HTTP status of the whole server, or for the moment


class StoreFault(UserError):
    """The store is away, busy or broken; worth trying again."""


class StoreRefusal(UserError):
    """The store refuses this one record for good."""


def set_environment() -> None:
    """Sets what MLflow reads from the environment when it is imported; the user's own values stay."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if (folder := folder_without_percent()) is not None and folder not in sys.path:
        sys.path.insert(0, folder)


@functools.cache
def folder_without_percent() -> str | None:
    """A temporary folder to import MLflow from, where the installed one's path contains a `%`; otherwise None.

    MLflow gives that path to a ConfigParser, which takes `%` for interpolation (`_get_alembic_config` in
    mlflow/store/db/utils.py). The folder is removed when this process ends.
    """
    found = importlib.util.find_spec("mlflow")
    if found is None or found.origin is None or "%" not in found.origin:
        return None
    folder = tempfile.mkdtemp(prefix="feedrate-mlflow-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    Path(folder, "mlflow").symlink_to(Path(found.origin).parent)
    return folder


def open_store(address: Address, experiment: str) -> tuple[MlflowClient, str]:
    """A client of the store and the id of the experiment; both are created if need be.

    Raises:
        StoreFault: the server does not answer or fails, the file is locked.
        UserError: the file is no store of MLflow, the experiment was deleted, the password is wrong.
    """
    require_answer(address)
    with translated_errors(address):
        from mlflow import MlflowClient

        database = address.database
        if database is not None:
            if not database.exists() or database.stat().st_size == 0:
                with _one_at_a_time(database):
                    if not database.exists():
                        _create_database(database, address.artifacts)
                    MlflowClient(address.uri).search_experiments(max_results=1)  # gives an empty file its tables
            follow(database)
        client = MlflowClient(address.uri)
        return client, _open_experiment(client, experiment, address.artifacts)


def require_answer(address: Address) -> None:
    """Checks that something answers there, within 5 s and without importing mlflow.

    Raises:
        StoreFault: nothing does, or the file is locked.
        UserError: the file is no database.
    """
    set_environment()
    if address.is_server:
        _require_server(address)
    elif address.database is not None and address.database.is_file():
        _require_database(address, address.database)


@contextmanager
def translated_errors(address: Address) -> Iterator[None]:
    """Turns MLflow's errors into ones that name the setting and the remedy, without passwords.

    Raises:
        StoreFault: it may go well another time.
        StoreRefusal: it never will.
        UserError: a mistake in the settings.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        text = without_secrets(" ".join(str(error).split()))[:300]
        if "out-of-date database schema" in text or "Can't locate revision" in text:
            scheme, separator, path = without_secrets(address.uri).partition(":///")
            raise UserError(
                f"tracking.uri={address.shown} was written by another version of MLflow.\n"
                f"Back the file up, then run: mlflow db upgrade {scheme}{separator}{shlex.quote(path) if path else ''}"
            ) from error
        raise _kind(error)(f"tracking.uri={address.shown} cannot be used: {text}\n{_remedy(address)}") from error


def _remedy(address: Address) -> str:
    if address.database is not None:
        return "Give another file (tracking.uri=PATH), or do not record (tracking=none)."
    return "Start the server (make ui), record into a file (tracking=local), or do not record (tracking=none)."


def _kind(error: Exception) -> type[UserError]:
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        if error.error_code in _MISTAKES or getattr(error.__cause__, "errno", None) in _FILE_MISTAKES:
            return UserError
        named = re.search(r"failed with error code (\d{3})", str(error))
        status = int(named[1] if named else error.get_http_status_code())  # type: ignore[no-untyped-call]
        refused = 400 <= status < 500 and (status not in _TEMPORARY or error.error_code == "RESOURCE_DOES_NOT_EXIST")
        return StoreRefusal if refused else StoreFault
    if isinstance(error, OSError):
        status = getattr(getattr(error, "response", None), "status_code", 0)  # of requests, which uploads files
        if 400 <= status < 500 and status not in _TEMPORARY:
            return StoreRefusal
        return UserError if error.errno in _FILE_MISTAKES else StoreFault
    return StoreFault if "locked" in str(error) or "connect" in str(error).lower() else UserError  # of SQLAlchemy


def _require_database(address: Address, database: Path) -> None:
    """Reads the file's first page: MLflow itself repeats for a minute what cannot be read."""
    try:
        with closing(
            sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True, timeout=_READ_TIMEOUT_S)
        ) as file:
            file.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise StoreFault(
                f"tracking.uri={address.shown} is locked by another process.\n{_remedy(address)}"
            ) from None
    except sqlite3.DatabaseError as error:
        raise UserError(f"tracking.uri={address.shown} cannot be used: {error}\n{_remedy(address)}") from None


def _require_server(address: Address) -> None:
    """Sends one request; any answer will do, also one that wants a password."""
    import requests

    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    try:
        health = f"{address.uri}/health"
        requests.get(health, timeout=ANSWER_TIMEOUT_S, verify=not insecure, stream=True).close()
    except requests.exceptions.SSLError:
        pass  # it answers; MLflow has more settings for certificates, and names what is wrong
    except (requests.exceptions.RequestException, ValueError) as error:
        raise StoreFault(
            f"tracking.uri={address.shown} does not answer ({type(error).__name__}).\n{_remedy(address)}"
        ) from None


@contextmanager
def _one_at_a_time(database: Path) -> Iterator[None]:
    """Holds a lock beside the SQLite file: MLflow's migrations fail when two processes begin them at once."""
    from filelock import FileLock, Timeout

    database.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{database}.lock", timeout=LOCK_TIMEOUT_S):
            yield
    except Timeout:
        raise StoreFault(
            f"{database}.lock is held by another process for {LOCK_TIMEOUT_S:.0f} s already, and only one can create"
            " the store.\nEnd that process, or delete the lock file if there is none."
        ) from None


def _create_database(database: Path, artifacts: str | None) -> None:
    """Makes a store under a temporary name and renames it: a kill leaves no half-made one behind."""
    from mlflow.store.tracking import sqlalchemy_store

    open_untyped: Any = sqlalchemy_store.SqlAlchemyStore
    unfinished = database.with_name(f".{database.name}.new")
    for suffix in ("", "-journal", "-wal", "-shm"):
        unfinished.with_name(f"{unfinished.name}{suffix}").unlink(missing_ok=True)
    open_untyped(sqlite_url(unfinished), artifacts).engine.dispose()
    if not _on_network(database):
        with closing(sqlite3.connect(unfinished)) as connection:  # before others can open it
            connection.execute("PRAGMA journal_mode=WAL")  # halves the time of concurrent writers
    unfinished.rename(database)


def _on_network(path: Path) -> bool:
    import psutil

    mounts = [disk for disk in psutil.disk_partitions(all=True) if path.is_relative_to(disk.mountpoint)]
    kind = max(mounts, key=lambda disk: len(disk.mountpoint)).fstype if mounts else ""
    return kind.lower().startswith(_NETWORK_FILE_SYSTEMS)


def _open_experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    if (found := client.get_experiment_by_name(name)) is None:
        try:
            client.create_experiment(name, artifact_location=artifacts)
        except MlflowException:
            if client.get_experiment_by_name(name) is None:  # otherwise another process was faster
                raise
        found = client.get_experiment_by_name(name)
    assert found is not None
    if found.lifecycle_stage != "active":
        raise UserError(
            f"tracking.experiment={name} was deleted in MLflow, and nothing can be recorded in it.\n"
            f"Choose another name, or restore it: mlflow experiments restore -x {found.experiment_id}"
        )
    _write_view(client, found.experiment_id, present=found.tags)
    return str(found.experiment_id)


# -- The saved view: the columns of MLflow's table of runs, which by default shows no parameter and no metric ----


def _write_view(client: MlflowClient, experiment_id: str, present: Mapping[str, str]) -> None:
    """Gives the experiment our view unless it has one, which the user may have changed.

    It is MLflow's internal format, an experiment tag that its Views menu writes, so a failure is a warning.
    """
    if VIEW_TAG in present:
        return
    try:
        client.set_experiment_tag(experiment_id, VIEW_TAG, _view())
    except Exception as error:
        logging.getLogger(__name__).warning("the saved view of the table of runs was not written: %s", error)


def _view() -> str:
    """The tag's value: our columns, newest run first, all runs visible in charts."""
    widths = {"attributes.`Run Name`": 280, **VIEW_COLUMNS}
    state = {
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "searchFilter": "",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(VIEW_COLUMNS),
        "columnOrder": list(widths),
        "columnWidths": widths,
        "runsHiddenMode": "SHOW_ALL",
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now = int(time.time() * 1000)
    return json.dumps({"name": "Feedrate", "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"})
