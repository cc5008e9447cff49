"""Opening MLflow's store: one SQLite file that many processes may open at the same instant, or a server.

What a run records is in mlflow_tracker.py.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feedrate.errors import UserError
from feedrate.tracking.address import Address, without_secrets
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


def set_environment() -> None:
    """Settings that MLflow reads from the environment when it is imported; those that the user made stay."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def open_store(address: Address, experiment: str) -> tuple[MlflowClient, str]:
    """A client of the store, which is created if need be, and the ID of the experiment, likewise.

    Raises:
        UserError: the server does not answer, the file is no store of MLflow, the experiment was deleted.
    """
    set_environment()
    if address.is_server:
        _require_answer(address)
    with translated_errors(address), _one_at_a_time(address.database):
        from mlflow import MlflowClient

        if address.database is not None and not address.database.exists():
            _create_database(address.database, address.artifacts)
        client = MlflowClient(address.uri)
        return client, _open_experiment(client, experiment, address.artifacts)


@contextmanager
def translated_errors(address: Address) -> Iterator[None]:
    """MLflow's errors as a UserError that names the setting and the remedy, without passwords."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        text = without_secrets(" ".join(str(error).split()))[:300]
        if "out-of-date database schema" in text or "Can't locate revision" in text:
            raise UserError(
                f"tracking.uri={address.shown} was written by another version of MLflow.\n"
                f"Back the file up, then run: mlflow db upgrade {without_secrets(address.uri)}"
            ) from error
        remedy = (
            "Mend what it says, or give another file (tracking.uri=PATH), or do not record (tracking=none)."
            if address.database
            else "See that the server is up, record into a file (tracking=local), or nowhere (tracking=none)."
        )
        raise UserError(f"tracking.uri={address.shown} cannot be used: {text}\n{remedy}") from error


def _require_answer(address: Address) -> None:
    """One request, before mlflow is imported: any answer will do, also one that asks for a password."""
    import requests

    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    try:
        health = f"{address.uri}/health"
        requests.get(health, timeout=ANSWER_TIMEOUT_S, verify=not insecure, stream=True).close()
    except requests.exceptions.SSLError:
        pass  # it answers; MLflow knows more settings for certificates and will say what is wrong
    except (requests.exceptions.RequestException, ValueError) as error:
        raise UserError(
            f"tracking.uri={address.shown} does not answer ({type(error).__name__}).\n"
            "Start the server (make ui), record into a file (tracking=local), or nowhere (tracking=none)."
        ) from None


@contextmanager
def _one_at_a_time(database: Path | None) -> Iterator[None]:
    """A lock beside the SQLite file, since MLflow's migrations fail when two processes begin them at once."""
    if database is None:
        yield
        return
    from filelock import FileLock, Timeout

    database.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{database}.lock")
    try:
        lock.acquire(timeout=LOCK_TIMEOUT_S)
    except Timeout:
        raise UserError(
            f"{database}.lock has been held by another process for {LOCK_TIMEOUT_S:.0f} s; only one at a"
            " time opens the store.\nEnd that process, or delete the lock file if there is none."
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
    for leftover in (unfinished, unfinished.with_name(f"{unfinished.name}-journal")):
        leftover.unlink(missing_ok=True)
    open_untyped(f"sqlite:///{unfinished}", artifacts).engine.dispose()
    unfinished.rename(database)
    if not _on_network(database):
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")  # stays so; halves the time of concurrent writers


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
