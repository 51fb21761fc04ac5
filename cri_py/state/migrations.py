"""The database's layout, step by step. ``PRAGMA user_version`` counts the steps that a file has seen."""

from __future__ import annotations

import sqlite3
from typing import Final

from cri_py.errors import Internal

STEPS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE records (
        kind TEXT NOT NULL,
        key TEXT NOT NULL,
        version INTEGER NOT NULL,
        body BLOB NOT NULL,
        verbatim BLOB NOT NULL,
        PRIMARY KEY (kind, key)
    ) WITHOUT ROWID
    """,
)


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Bring the file to the newest layout. Raises Internal for a file of a newer cri_py."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(STEPS):
        raise Internal(
            f"the database {path} has layout {version}, this version knows up to {len(STEPS)}",
            hint="install the cri_py that wrote it, or move the file away to start empty",
        )
    for number, step in enumerate(STEPS[version:], version + 1):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(step)
        connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
