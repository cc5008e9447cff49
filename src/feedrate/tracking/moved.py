"""An SQLite store that was moved or copied: the absolute artifact locations in it are changed to its new folder.

The store notes its own path in a tag. MLflow has no call that changes a location.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

TAG = "feedrate.database"  # of the experiment with the lowest number: path of the file when it was last opened
_LOCK_TIMEOUT_S = 5.0
_LOCATIONS = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))


def follow(database: Path) -> None:
    """Changes the locations below the store's folder if the file was moved; one that cannot be changed stays.

    Args:
        database: absolute path of a store that exists.
    """
    # a file that is locked or read-only is reported where it is used
    with suppress(sqlite3.Error), closing(sqlite3.connect(database, timeout=_LOCK_TIMEOUT_S)) as store:
        if _noted(store) == str(database):
            return
        store.execute("BEGIN IMMEDIATE")
        with store:
            old = _noted(store)
            if old and old != str(database):
                _change(store, Path(old).parent, database.parent)
            store.execute(
                "INSERT OR REPLACE INTO experiment_tags (experiment_id, key, value)"
                " SELECT experiment_id, ?, ? FROM experiments ORDER BY experiment_id LIMIT 1",
                (TAG, str(database)),
            )


def _noted(store: sqlite3.Connection) -> str:
    found = store.execute("SELECT value FROM experiment_tags WHERE key = ? ORDER BY experiment_id", (TAG,)).fetchone()
    return str(found[0]) if found else ""


def _change(store: sqlite3.Connection, old: Path, new: Path) -> None:
    for table, column in _LOCATIONS:
        rows = store.execute(f"SELECT DISTINCT {column} FROM {table} WHERE {column} IS NOT NULL").fetchall()
        changes = [(_moved(location, old, new, table == "experiments"), location) for (location,) in rows]
        store.executemany(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", changes)


def _moved(location: str, old: Path, new: Path, future: bool) -> str:
    """A location after a move from `old` to `new`; files that were left behind keep theirs.

    Args:
        future: for artifacts that are still to come, which always follow the store.
    """
    is_url = location.startswith("file:")
    path = Path(unquote(urlsplit(location).path) if is_url else location)
    if not path.is_relative_to(old):
        return location
    found = new / path.relative_to(old)
    if path.exists() and not found.exists() and not future:
        return location
    return found.as_uri() if is_url else str(found)
