"""An SQLite store that was moved or copied: its artifact locations, which are absolute, follow the file.

Where the file lies is noted in the store itself. MLflow has no call that changes a location.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

TAG = "feedrate.database"  # of the experiment with the lowest number: path of the file that it was last opened as
_LOCK_WAIT_S = 5.0
_LOCATIONS = (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"))


def follow(database: Path) -> None:
    """Changes the locations if the file lies elsewhere than it did; a file that cannot be changed stays as it is.

    Args:
        database: absolute; a store that exists.
    """
    # one that is locked or read-only is reported where it is used
    with suppress(sqlite3.Error), closing(sqlite3.connect(database, timeout=_LOCK_WAIT_S)) as store:
        if _noted(store) == str(database):
            return
        store.execute("BEGIN IMMEDIATE")
        with store:
            old = _noted(store) or _guessed(store, database)
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


def _guessed(store: sqlite3.Connection, database: Path) -> str:
    """Where the file of a store without a note lay, if it was moved or copied with the artifacts beside it.

    MLflow's own first experiment has a folder in them, which is named after its number.
    """
    found = store.execute("SELECT artifact_location FROM experiments ORDER BY experiment_id").fetchone()
    path = _path(str(found[0])) if found else None
    if path is None:
        return ""
    beside = path.parent.with_name(database.name)
    return str(beside) if beside.exists() or not path.parent.exists() else ""


def _change(store: sqlite3.Connection, old: Path, new: Path) -> None:
    """Changes the locations of a store whose file lay in the folder `old` and now lies in `new`."""
    for table, column in _LOCATIONS:
        rows = store.execute(f"SELECT DISTINCT {column} FROM {table} WHERE {column} IS NOT NULL").fetchall()
        changes = [(_moved(location, old, new, table == "experiments"), location) for (location,) in rows]
        store.executemany(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", changes)


def _moved(location: str, old: Path, new: Path, future: bool) -> str:
    """A location as it is now.

    Args:
        future: for files that are still to come: it follows the store, whether or not its files have.
    """
    path = _path(location)
    if path is None:
        return location
    was, now = old, new  # the store's folder, or one above it that was moved, such as the repository
    while not path.is_relative_to(was) and was.name and was.name == now.name:
        was, now = was.parent, now.parent
    if not path.is_relative_to(was):
        return location
    found = now / path.relative_to(was)
    if not found.exists() and path.exists() and not (future and was == old):
        return location
    return found.as_uri() if location.startswith("file:") else str(found)


def _path(location: str) -> Path | None:
    """A location of this machine as a path, None for any other."""
    if location.startswith("file:"):
        return Path(unquote(urlsplit(location).path))
    return Path(location) if location.startswith("/") else None
