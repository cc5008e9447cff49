"""Opening MLflow's store, an SQLite file that many processes may open at the same instant, or a server."""

from __future__ import annotations

import atexit
import base64
import errno
import importlib.util
import json
import os
import re
import shutil
import sqlite3
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
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
    """Sets what MLflow and its processes read from the environment; the user's own values stay.

    An installed MLflow whose path contains a `%` is imported through a link in a temporary folder: MLflow gives that
    path to a ConfigParser, which takes `%` for interpolation (`_get_alembic_config` in mlflow/store/db/utils.py).
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    found = importlib.util.find_spec("mlflow")
    if found is not None and "%" in str(found.origin):
        folder = tempfile.mkdtemp(prefix="feedrate-mlflow-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        Path(folder, "mlflow").symlink_to(Path(str(found.origin)).parent)
        sys.path.insert(0, folder)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))


def open_store(address: Address, experiment: str) -> tuple[MlflowClient, str]:
    """A client of the store and the id of the experiment; both are created if need be.

    Raises StoreFault if the server does not answer or the file is locked, UserError if it cannot be used.
    """
    set_environment()
    _require_answer(address)
    with translated_errors(address):
        from mlflow import MlflowClient

        if address.database is not None:
            _create_database(address.database, address.artifacts)
            follow(address.database)
        client = MlflowClient(address.uri)
        return client, _open_experiment(client, experiment, address.artifacts)


def _require_answer(address: Address) -> None:
    """Checks that something answers there within 5 s: MLflow itself repeats for a minute."""
    import requests

    shown = f"tracking.uri={address.shown}"
    try:
        if address.is_server:  # any answer will do, also one that wants a password
            with suppress(requests.exceptions.SSLError):  # MLflow has settings for certificates
                requests.get(f"{address.uri}/health", timeout=ANSWER_TIMEOUT_S, stream=True).close()
        elif address.database is not None and address.database.is_file():
            file = f"file:{quote(str(address.database))}?mode=ro"
            with closing(sqlite3.connect(file, uri=True, timeout=_READ_TIMEOUT_S)) as store:
                store.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except (requests.exceptions.RequestException, ValueError) as error:
        raise StoreFault(f"{shown} does not answer ({type(error).__name__}).\n{_remedy(address)}") from None
    except sqlite3.DatabaseError as error:
        kind = StoreFault if "locked" in str(error) else UserError
        raise kind(f"{shown} cannot be used: {error}\n{_remedy(address)}") from None


@contextmanager
def translated_errors(address: Address) -> Iterator[None]:
    """Turns MLflow's errors into UserError, StoreFault and StoreRefusal, which name the setting and the remedy."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        text = without_secrets(" ".join(str(error).split()))[:300]
        raise _kind(error)(f"tracking.uri={address.shown} cannot be used: {text}\n{_remedy(address)}") from error


def _remedy(address: Address) -> str:
    if address.database is not None:
        return "Give another file (tracking.uri=PATH), or do not record (tracking=none)."
    return "Start the server (make ui), record into a file (tracking=local), or do not record (tracking=none)."


def _kind(error: Exception) -> type[UserError]:
    from mlflow.exceptions import MlflowException

    if "database schema" in str(error) or "Can't locate revision" in str(error):  # of another version of MLflow
        return UserError
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


def _create_database(database: Path, artifacts: str | None) -> None:
    """Creates a store that is missing, under a lock: MLflow's migrations fail when two processes begin them at once.

    It is created under a temporary name and renamed, so that a kill leaves no incomplete one behind.
    """
    from filelock import FileLock
    from mlflow.store.tracking import sqlalchemy_store

    open_untyped: Any = sqlalchemy_store.SqlAlchemyStore
    unfinished = database.with_name(f".{database.name}.new") / "mlflow.db"
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock"):
        if database.exists() and database.stat().st_size > 0:
            return
        shutil.rmtree(unfinished.parent, ignore_errors=True)
        unfinished.parent.mkdir()
        open_untyped(sqlite_url(unfinished), artifacts).engine.dispose()
        if not _on_network(database):
            with closing(sqlite3.connect(unfinished)) as connection:  # before others can open it
                connection.execute("PRAGMA journal_mode=WAL")  # halves the time of concurrent writers
        unfinished.rename(database)
        shutil.rmtree(unfinished.parent, ignore_errors=True)


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
    if VIEW_TAG not in found.tags:  # otherwise the user may have changed it
        client.set_experiment_tag(found.experiment_id, VIEW_TAG, _view())
    return str(found.experiment_id)


# -- The saved view: the columns of MLflow's table of runs, which by default shows no parameter and no metric ----


def _view() -> str:
    """The tag's value, in MLflow's internal format: our columns, newest run first, all runs visible in charts."""
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
