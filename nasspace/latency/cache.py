"""Cache of measured latencies and reference readings: one SQLite file for each user and machine."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from nasspace.latency.conditions import KEYS, Conditions

_TABLES = (
    f"""CREATE TABLE IF NOT EXISTS latency_2 (
    {", ".join(f"{key} TEXT NOT NULL" for key in KEYS)}, document TEXT NOT NULL, PRIMARY KEY ({", ".join(KEYS)}))""",
    "CREATE TABLE IF NOT EXISTS reference_1 (key TEXT NOT NULL, at REAL NOT NULL, milliseconds REAL NOT NULL)",
    "CREATE INDEX IF NOT EXISTS reference_by_key ON reference_1 (key, at)",
    """CREATE TABLE IF NOT EXISTS ratio_1 (
    key TEXT NOT NULL, network TEXT NOT NULL, at REAL NOT NULL, ratio REAL NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS ratio_by_key ON ratio_1 (key, at)",
)
_WAIT_SECONDS = 10.0
MAX_READINGS = 2_000  # latest readings of the reference network, and ratios to it, that are stored
LARGEST_MEASURED = 1e12  # seconds or milliseconds: 30,000 years
log = logging.getLogger(__name__)


class LatencyCache:
    """A table from `Conditions` to JSON documents of measurements, shared by all processes of a user.

    `path` is a SQLite file; the default is `latency.db` in the folder named by the environment variable
    NASSPACE_CACHE, else in the user's cache folder. A damaged file is renamed and replaced, a location that cannot be
    used is ignored; either logs one warning and raises nothing, since a measurement can always be repeated.
    """

    def __init__(self, path: str | PathLike | None = None) -> None:
        if path is None:
            from nasspace import files  # needs PyYAML, which a device that measures for another computer may lack

            path = files.cache_folder() / "latency.db"
        self.path = Path(path)

    def get(self, conditions: Conditions) -> dict[str, Any] | None:
        """Return the document stored under these conditions, or None; the caller validates it."""
        where = " AND ".join(f"{name} = ?" for name in KEYS)
        rows = self._execute(f"SELECT document FROM latency_2 WHERE {where}", conditions.json_fields())
        with contextlib.suppress(ValueError, IndexError, TypeError, RecursionError):
            document = json.loads(rows[0][0])
            return document if isinstance(document, dict) else None
        return None

    def put(self, conditions: Conditions, document: dict[str, Any]) -> None:
        """Store `document` under these conditions, replacing an older one."""
        marks = ", ".join("?" * (len(KEYS) + 1))
        self._execute(
            f"INSERT OR REPLACE INTO latency_2 VALUES ({marks})", (*conditions.json_fields(), json.dumps(document))
        )

    def readings(self, reference: Conditions) -> list[tuple[float, float]]:
        """Return the latest readings of the reference network as (seconds since 1970, milliseconds)."""
        statement = "SELECT at, milliseconds FROM reference_1 WHERE key = ? ORDER BY at DESC LIMIT ?"
        return [
            row
            for row in self._execute(statement, (reference.json_text(), MAX_READINGS))
            if all(map(is_measurement, row))
        ]

    def add_reading(self, reference: Conditions, milliseconds: float) -> None:
        """Store a reading of the reference network with the current time."""
        self._add("reference_1", reference.json_text(), time.time(), milliseconds)

    def ratios(self, reference: Conditions, runtime: str) -> dict[str, list[tuple[float, float]]]:
        """Return, by network, the latest (seconds since 1970, ratio of its time to the reference's) in a runtime."""
        statement = "SELECT network, at, ratio FROM ratio_1 WHERE key = ? ORDER BY at DESC LIMIT ?"
        found: dict[str, list[tuple[float, float]]] = {}
        for network, *timed in self._execute(statement, (_ratio_key(runtime, reference), MAX_READINGS)):
            if all(map(is_measurement, timed)):
                found.setdefault(network, []).append(tuple(timed))
        return found

    def add_ratio(self, reference: Conditions, measured: Conditions, ratio: float) -> None:
        """Store the ratio of a network's time to the reference's with the current time."""
        self._add("ratio_1", _ratio_key(measured.runtime, reference), measured.json_text(), time.time(), ratio)

    def _add(self, table: str, key: str, *values: Any) -> None:
        """Insert a row and delete those beyond the latest `MAX_READINGS`."""
        marks = ", ".join("?" * (len(values) + 1))
        self._execute(f"INSERT INTO {table} VALUES ({marks})", (key, *values))
        old = f"SELECT at FROM {table} WHERE key = ? ORDER BY at DESC LIMIT 1 OFFSET ?"
        self._execute(f"DELETE FROM {table} WHERE key = ? AND at <= ({old})", (key, key, MAX_READINGS))

    def _execute(self, statement: str, values: tuple) -> list[tuple]:
        """Run one statement in its own transaction; retry once after a damaged file was set aside."""
        for _ in range(2):
            try:
                with self._open() as connection:
                    return connection.execute(statement, values).fetchall()
            except (sqlite3.OperationalError, OSError) as error:  # not writable, disk full, locked for too long
                _warn_once(f"the latency cache {self.path} cannot be used and is ignored: {error}")
                return []
            except sqlite3.DatabaseError as error:  # not a database, or a damaged one
                self._set_aside(error)
        return []

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Open a connection for one statement; none is shared between threads or with a forked process."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(self.path, timeout=_WAIT_SECONDS)) as connection:
            _use_log(connection)
            connection.execute("PRAGMA synchronous=NORMAL")
            with connection:
                for statement in _TABLES:
                    connection.execute(statement)
                yield connection

    def _set_aside(self, error: Exception) -> None:
        """Rename a damaged file, under a lock, unless another process has replaced it meanwhile."""
        import filelock

        renamed = self.path.with_name(f"{self.path.name}.broken")
        with (
            contextlib.suppress(OSError, NotImplementedError),  # no lock available: the next process retries
            filelock.FileLock(self.path.with_name(f"{self.path.name}.lock"), timeout=_WAIT_SECONDS),
        ):
            if not self._is_damaged():
                return
            _warn_once(
                f"the latency cache {self.path} is damaged ({error}); renamed to {renamed.name}, starting a new one"
            )
            for suffix in ("-wal", "-shm"):  # first, or a new file would use them
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            os.replace(self.path, renamed)

    def _is_damaged(self) -> bool:
        """Whether SQLite finds the file damaged."""
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=_WAIT_SECONDS)) as connection:
                return connection.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",)
        except sqlite3.OperationalError:  # locked by a process that uses it
            return False
        except sqlite3.DatabaseError:
            return True


def _use_log(connection: sqlite3.Connection) -> None:
    """Switch to a write-ahead log; SQLite does not wait for other processes that switch a new file at the same time."""
    end = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)


@functools.cache
def _warn_once(message: str) -> None:
    """Log each message once per process."""
    log.warning(message)


def _ratio_key(runtime: str, reference: Conditions) -> str:
    """The key of ratios in `runtime` to this reference."""
    return json.dumps([runtime, reference.json_text()])


def is_measurement(value: Any) -> bool:
    """Whether a value read from a database or JSON text is a positive number in the range of measurements."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < LARGEST_MEASURED
