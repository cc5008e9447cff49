"""Where runs are recorded, where artifacts lie, and the links to look at them.

Text only: nothing is opened or contacted here, and mlflow is not imported.
"""

from __future__ import annotations

import os
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
    """A tracking store."""

    uri: str  # for MLflow, absolute where it is a file; may hold a password, so it is never shown
    database: Path | None  # the SQLite file, None for a server
    artifacts: str | None  # URI of the folder for new experiments' artifacts, None to leave it to the server

    @property
    def is_server(self) -> bool:
        return self.uri.startswith(("http://", "https://"))

    @property
    def shown(self) -> str:
        """The file's path, relative to the repository for one in it, or the URI without its password."""
        return shown_path(self.database) if self.database else without_secrets(self.uri)

    @property
    def page(self) -> str:
        """Root of the pages that show this store, without a final slash: for a file those of `make ui`."""
        if not self.is_server:
            return f"http://{UI_HOST}:{os.environ.get('PORT') or UI_PORT}"
        parts = urlsplit(self.uri)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")


def read_address(uri: str, artifacts: str | None = None) -> Address:
    """The store that `tracking.uri` (a file, a server, or another database that MLflow knows) and `artifacts` name.

    Relative paths count from the repository root. Artifacts lie beside the file, or where the server decides.
    """
    uri = uri.strip()
    path = uri.removeprefix("sqlite:///")
    database = resolve_path(path)
    if path in ("", ":memory:") or path.startswith(("sqlite:", "file:")) or database.is_dir():
        raise UserError(
            f"tracking.uri={uri}: runs are kept in one SQLite file (a path or sqlite:///PATH) or on a server, not in a"
            " folder; for example tracking.uri=outputs/mlflow.db, or tracking=none"
        )
    if _SCHEME.match(path):
        # a folder of this machine means nothing to a server: only a URI is passed on
        return Address(uri.rstrip("/"), None, artifacts if artifacts and _SCHEME.match(artifacts) else None)
    folder = artifacts or f"{database.parent}/artifacts"
    if not _SCHEME.match(folder):
        folder = resolve_path(folder).as_uri()
    return Address(sqlite_url(database), database, folder)


def sqlite_url(path: Path) -> str:
    """The URL of an SQLite file, escaped: SQLAlchemy decodes %XX and options after `?`, and Optuna formats braces."""
    escaped = str(path).translate({ord(character): quote(character) for character in "%?{}"})
    # with a driver where it matters: below sqlite:/// MLflow makes the folder of the escaped path
    return f"{'sqlite' if escaped == str(path) else 'sqlite+pysqlite'}:///{escaped}"


def experiment_link(page: str, experiment_id: str) -> str:
    """Link to the table of runs in our view; without `workflowType` MLflow opens another page, without runs."""
    return f"{page}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={VIEW_KEY}"


def run_link(page: str, experiment_id: str, run_id: str) -> str:
    """Link to the page of a run."""
    return f"{page}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"
