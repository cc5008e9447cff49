"""Opening MLflow's store: one SQLite file that many processes may open at the same instant, or a server.

What is recorded there is in delivery.py.
"""

from __future__ import annotations

import atexit
import errno
import functools
import importlib.util
import os
import re
import shlex
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from feedrate.errors import UserError
from feedrate.system.secrets import without_secrets
from feedrate.tracking.address import Address, sqlite_url
from feedrate.tracking.moved import follow
from feedrate.tracking.view import write_view

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCK_TIMEOUT_S = 120.0  # creating a store takes about 3 s; a longer wait means a lock file that nobody frees
ANSWER_TIMEOUT_S = 5

# SQLite's write-ahead log needs memory that all writers share; machines that share one of these have none.
_NETWORK_FILE_SYSTEMS = (
    "nfs",
    "cifs",
    "smb",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "afs",
    "9p",
    "fuse",
    "virtio",
)

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # also silences alembic's line per migration
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # MLflow's 7 block for four minutes when the server is away
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(ANSWER_TIMEOUT_S),
    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1",  # s; with the default of 10 a short run shows nothing
}


_LOCK_WAIT_S = 4.0  # to read an SQLite file that another process has locked; MLflow's own wait is 20 s

# what a store refuses for good: trying the same again would change nothing
_REFUSALS = {
    "INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS", "NOT_FOUND",
    "RESOURCE_DOES_NOT_EXIST", "RESOURCE_CONFLICT",
}  # fmt: skip
_PASSING = {401, 403, 404, 407, 408, 425, 429}  # HTTP's: of the whole store, or for the moment
_REFUSED = re.compile(r"failed with error code 4(?!01|03|04|07|08|25|29)\d\d")
_MISTAKES = {"PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "ENDPOINT_NOT_FOUND"}
_OWN_FAULTS = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS}


class StoreFault(UserError):
    """The store cannot be used now, through no mistake of the user: it is away, busy or broken. Worth trying again."""


class StoreRefusal(UserError):
    """The store takes everything but this: trying the same again would change nothing."""


def set_environment() -> None:
    """Settings that MLflow reads from the environment when it is imported; those that the user made stay."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if (folder := folder_without_percent()) is not None and folder not in sys.path:
        sys.path.insert(0, folder)


@functools.cache
def folder_without_percent() -> str | None:
    """A temporary folder from which MLflow is importable, where the path of the installed one contains a `%`.

    MLflow hands that path to a ConfigParser as it is, which reads `%` as interpolation, so that no SQLite file could be
    opened (`_get_alembic_config` in mlflow/store/db/utils.py). The folder is removed when this process ends.

    Returns:
        None where it is not needed.
    """
    found = importlib.util.find_spec("mlflow")
    if found is None or found.origin is None or "%" not in found.origin:
        return None
    folder = tempfile.mkdtemp(prefix="feedrate-mlflow-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    Path(folder, "mlflow").symlink_to(Path(found.origin).parent)
    return folder


def open_store(address: Address, experiment: str) -> tuple[MlflowClient, str]:
    """A client of the store, which is created if need be, and the ID of the experiment, likewise.

    Raises:
        StoreFault: the server does not answer or answers with its own failure, the file is locked.
        UserError: the file is no store of MLflow, the experiment was deleted, the password is wrong.
    """
    require_answer(address)
    return open_answering(address, experiment)


def require_answer(address: Address) -> None:
    """Sees whether anything answers there, within 5 s and before mlflow is imported.

    Raises:
        StoreFault: nothing does, or the file is locked.
        UserError: the file is no database.
    """
    set_environment()
    if address.is_server:
        _require_server(address)
    elif address.database is not None and address.database.is_file():
        _require_database(address, address.database)


def open_answering(address: Address, experiment: str) -> tuple[MlflowClient, str]:
    """`open_store` without the first look."""
    with translated_errors(address):
        from mlflow import MlflowClient

        if address.database is not None and not _is_made(address.database):
            with _one_at_a_time(address.database):
                if not address.database.exists():
                    _create_database(address.database, address.artifacts)
                MlflowClient(address.uri).search_experiments(max_results=1)  # an empty file gets its tables here
        if address.database is not None:
            follow(address.database)
        client = MlflowClient(address.uri)
        return client, _open_experiment(client, experiment, address.artifacts)


def _is_made(database: Path) -> bool:
    """Whether there is a store that processes may open side by side; `_create_database` gives none its name before."""
    return database.exists() and database.stat().st_size > 0


@contextmanager
def translated_errors(address: Address) -> Iterator[None]:
    """MLflow's errors as a UserError that names the setting and the remedy, without passwords.

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
        remedy = (
            "Mend what it says, or give another file (tracking.uri=PATH), or do not record (tracking=none)."
            if address.database
            else "See that the server is up, record into a file (tracking=local), or nowhere (tracking=none)."
        )
        kind = _kind(error)
        raise kind(f"tracking.uri={address.shown} cannot be used: {text}\n{remedy}") from error


def _kind(error: Exception) -> type[UserError]:
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        if error.error_code in _MISTAKES:
            return UserError
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _OWN_FAULTS:
            return UserError
        refused = error.error_code in _REFUSALS or _REFUSED.search(str(error))
        return StoreRefusal if refused else StoreFault
    if isinstance(error, OSError):
        status = getattr(getattr(error, "response", None), "status_code", 0)  # of requests, which uploads files
        if 400 <= status < 500 and status not in _PASSING:
            return StoreRefusal
        return UserError if error.errno in _OWN_FAULTS else StoreFault
    return StoreFault if "locked" in str(error) or "connect" in str(error).lower() else UserError  # of SQLAlchemy


def _require_database(address: Address, database: Path) -> None:
    """Reads the file's first page: MLflow itself repeats for a minute what cannot be read."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True, timeout=_LOCK_WAIT_S)) as file:
            file.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise StoreFault(
                f"tracking.uri={address.shown} is locked by another process.\n"
                "End that process, or give another file (tracking.uri=PATH)."
            ) from None
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"tracking.uri={address.shown} cannot be used: {error}\n"
            "Mend what it says, or give another file (tracking.uri=PATH), or do not record (tracking=none)."
        ) from None


def _require_server(address: Address) -> None:
    """One request: any answer will do, also one that asks for a password."""
    import requests

    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    try:
        health = f"{address.uri}/health"
        requests.get(health, timeout=ANSWER_TIMEOUT_S, verify=not insecure, stream=True).close()
    except requests.exceptions.SSLError:
        pass  # it answers; MLflow knows more settings for certificates and will say what is wrong
    except (requests.exceptions.RequestException, ValueError) as error:
        raise StoreFault(
            f"tracking.uri={address.shown} does not answer ({type(error).__name__}).\n"
            "Start the server (make ui), record into a file (tracking=local), or nowhere (tracking=none)."
        ) from None


@contextmanager
def _one_at_a_time(database: Path) -> Iterator[None]:
    """A lock beside the SQLite file, since MLflow's migrations fail when two processes begin them at once."""
    from filelock import FileLock, Timeout

    database.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{database}.lock")
    try:
        lock.acquire(timeout=LOCK_TIMEOUT_S)
    except Timeout:
        raise StoreFault(
            f"{database}.lock has been held by another process for {LOCK_TIMEOUT_S:.0f} s; only one at a"
            " time makes the store.\nEnd that process, or delete the lock file if there is none."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _create_database(database: Path, artifacts: str | None) -> None:
    """A fresh store under a temporary name, then renamed: a kill leaves no half-migrated file behind."""
    from mlflow.store.tracking import sqlalchemy_store

    open_untyped: Any = sqlalchemy_store.SqlAlchemyStore
    unfinished = database.with_name(f".{database.name}.new")
    for suffix in ("", "-journal", "-wal", "-shm"):
        unfinished.with_name(f"{unfinished.name}{suffix}").unlink(missing_ok=True)
    open_untyped(sqlite_url(unfinished), artifacts).engine.dispose()
    if not _on_network(database):
        # before it has its name, from when on others may be at it, and would keep it from being changed
        with closing(sqlite3.connect(unfinished)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")  # stays so; halves the time of concurrent writers
    unfinished.rename(database)


def _on_network(path: Path) -> bool:
    import psutil

    mounts = [disk for disk in psutil.disk_partitions(all=True) if path.is_relative_to(disk.mountpoint)]
    kind = max(mounts, key=lambda disk: len(disk.mountpoint)).fstype if mounts else ""
    return kind.lower().startswith(_NETWORK_FILE_SYSTEMS)


def _open_experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        experiment_id = _create_experiment(client, name, artifacts)
    elif found.lifecycle_stage != "active":
        raise UserError(
            f"tracking.experiment={name} was deleted in MLflow, and nothing can be recorded in it.\n"
            f"Choose another name, or restore it: mlflow experiments restore -x {found.experiment_id}"
        )
    else:
        experiment_id = str(found.experiment_id)
    write_view(client, experiment_id, present=found.tags if found else {})
    return experiment_id


def _create_experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(name, artifact_location=artifacts))
    except MlflowException:
        if (found := client.get_experiment_by_name(name)) is None:
            raise
        return str(found.experiment_id)  # another process was faster
