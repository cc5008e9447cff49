"""Where runs are recorded, where artifacts lie, and the links to look at them.

Text only: nothing is opened or contacted here, and mlflow is not imported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from feedrate.config import resolve_path, shown_path
from feedrate.errors import UserError
from feedrate.system.secrets import without_secrets

UI_HOST = "127.0.0.1"
UI_PORT = 5000
VIEW_KEY = "feedrate"  # of the saved view, see store.py

_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Address:
    """A tracking store.

    Attributes:
        uri: for MLflow, absolute where it is a file. May hold a password: never shown.
        database: the SQLite file, None for a server.
        artifacts: URI of the folder for new experiments' artifacts, None to leave it to the server.
    """

    uri: str
    database: Path | None
    artifacts: str | None

    @property
    def is_server(self) -> bool:
        """Whether the store is reached over HTTP."""
        return self.uri.startswith(("http://", "https://"))

    @property
    def shown(self) -> str:
        """The file's path, or the URI without its password."""
        return str(self.database) if self.database else without_secrets(self.uri)

    @property
    def name(self) -> str:
        """As `shown`, but relative to the repository's root for a file in it, since the repository may be moved."""
        return shown_path(self.database) if self.database else self.shown

    @property
    def page(self) -> str:
        """Root of the pages that show this store, without a final slash: for a file those of a running `make ui`."""
        if self.database is not None:
            notice = ui_address_file(self.database)
            return (notice.read_text().strip() if notice.is_file() else "") or f"http://{UI_HOST}:{UI_PORT}"
        if not self.is_server:
            return f"http://{UI_HOST}:{UI_PORT}"
        parts = urlsplit(self.uri)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")


def read_address(uri: str, artifacts: str | None = None) -> Address:
    """The store that `tracking.uri` and `tracking.artifacts` name.

    Args:
        uri: a path (an SQLite file), `sqlite:///PATH`, `http(s)://HOST:PORT`, or another database that MLflow
            knows. Relative paths count from the repository root.
        artifacts: a folder or a URI. None: beside the SQLite file. A server decides itself, unless it is a URI.

    Raises:
        UserError: the address cannot be a store.
    """
    uri = uri.strip()
    example = "for example tracking.uri=outputs/mlflow.db"
    path = uri.removeprefix("sqlite:///")
    if not uri:
        raise UserError("tracking.uri is empty: give a file such as outputs/mlflow.db, or use tracking=none")
    if uri.startswith("sqlite:") and path in (uri, "", ":memory:"):
        raise UserError(f"tracking.uri={uri}: an SQLite address is a path or sqlite:///PATH of a file; {example}")
    if uri.startswith("file:"):
        raise UserError(
            f"tracking.uri={uri}: runs are kept in an SQLite file or on a server, not in a folder; {example}"
        )
    if _SCHEME.match(path):
        # a folder of this machine means nothing to a server: only a URI is passed on
        return Address(uri.rstrip("/"), None, artifacts if artifacts and _SCHEME.match(artifacts) else None)
    database = resolve_path(path)
    if database.is_dir():
        raise UserError(f"tracking.uri={uri}: {database} is a folder, and runs are kept in one SQLite file; {example}")
    folder = artifacts or f"{database.parent}/artifacts"
    if not _SCHEME.match(folder):
        folder = resolve_path(folder).as_uri()
    return Address(sqlite_url(database), database, folder)


def sqlite_url(path: Path) -> str:
    """The URL of an SQLite file, for SQLAlchemy, which decodes %XX and options after `?`, and Optuna, which fills
    in what stands in braces.
    """
    escaped = str(path).translate({ord(character): quote(character) for character in "%?{}"})
    # with a driver where it matters: below sqlite:/// MLflow makes the folder of the escaped path
    return f"{'sqlite' if escaped == str(path) else 'sqlite+pysqlite'}:///{escaped}"


def experiment_link(page: str, experiment_id: str, view: str | None = None) -> str:
    """Link to the table of runs; without `workflowType` MLflow opens another page, without runs."""
    link = f"{page}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    return f"{link}&viewStateShareKey={quote(view)}" if view else link


def run_link(page: str, experiment_id: str, run_id: str) -> str:
    """Link to one run's page."""
    return f"{page}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def ui_address_file(database: Path) -> Path:
    """File in which a running `make ui` leaves its address, so that links printed by runs lead to it."""
    return database.with_name(database.name + ".ui")
