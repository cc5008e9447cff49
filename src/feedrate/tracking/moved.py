"""An SQLite store that was moved or copied: the artifact locations in it are changed to its new folder.

The store notes its own path in a tag. MLflow has no call that changes a location.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

TAG = "feedrate.database"  # of the experiment with the lowest number: path of the file when it was last opened
_LOCK_TIMEOUT_S = 5.0
_FUTURE = (("experiments", "artifact_location"),)  # of artifacts that are still to come
_PRESENT = (("runs", "artifact_uri"), ("logged_models", "artifact_location"))


def follow(database: Path) -> None:
    """Changes the locations below the store's folder if the file was moved, of artifacts unless they were left behind.

    Args:
        database: absolute path of a store that exists.
    """
    # a file that is locked or read-only is reported where it is used
    with suppress(sqlite3.Error), closing(sqlite3.connect(database, timeout=_LOCK_TIMEOUT_S)) as store, store:
        (noted,) = store.execute("SELECT value FROM experiment_tags WHERE key = ?", (TAG,)).fetchone() or ("",)
        if noted == str(database):
            return
        if noted:
            before, now = Path(noted).parent, database.parent
            left_behind = (before / "artifacts").exists() and not (now / "artifacts").exists()
            old, new = f"{before.as_uri()}/", f"{now.as_uri()}/"
            for table, column in _FUTURE if left_behind else _FUTURE + _PRESENT:
                moved = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"
                store.execute(moved, (new, len(old) + 1, len(old), old))
        store.execute(
            "INSERT OR REPLACE INTO experiment_tags (experiment_id, key, value)"
            " SELECT experiment_id, ?, ? FROM experiments ORDER BY experiment_id LIMIT 1",
            (TAG, str(database)),
        )
