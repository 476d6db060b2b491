"""Measured latencies, remembered for this user on this machine in one SQLite file, with what is known of its speed."""

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
MAX_READINGS = 2_000  # readings of the reference network, and ratios to it: the latest
LARGEST_MEASURED = 1e12  # seconds or milliseconds: 30,000 years
log = logging.getLogger(__name__)


class LatencyCache:
    """A table from the circumstances of a measurement to its JSON document, shared by every process of a user.

    `path` is a SQLite file; without one, `latency.db` in the folder that the environment variable NASSPACE_CACHE
    names, else in the user's cache folder. A broken file is set aside, a place that cannot be used is ignored; either
    is one warning in the log, and never an error: a measurement can always be made again.
    """

    def __init__(self, path: str | PathLike | None = None) -> None:
        self.path = Path(path) if path is not None else _default_path()

    def get(self, conditions: Conditions) -> dict[str, Any] | None:
        """The document kept under these conditions, or None; the caller checks what is in it."""
        where = " AND ".join(f"{name} = ?" for name in KEYS)
        rows = self._do(f"SELECT document FROM latency_2 WHERE {where}", conditions.json_fields())
        with contextlib.suppress(ValueError, IndexError, TypeError, RecursionError):
            document = json.loads(rows[0][0])
            return document if isinstance(document, dict) else None
        return None

    def put(self, conditions: Conditions, document: dict[str, Any]) -> None:
        """Keep `document` under these conditions, in place of an older one."""
        marks = ", ".join("?" * (len(KEYS) + 1))
        self._do(
            f"INSERT OR REPLACE INTO latency_2 VALUES ({marks})", (*conditions.json_fields(), json.dumps(document))
        )

    def readings(self, reference: Conditions) -> list[tuple[float, float]]:
        """Times, in seconds since 1970, and milliseconds of the reference network then; the latest `KEPT`."""
        statement = "SELECT at, milliseconds FROM reference_1 WHERE key = ? ORDER BY at DESC LIMIT ?"
        return [
            row for row in self._do(statement, (reference.json_text(), MAX_READINGS)) if all(map(is_measurement, row))
        ]

    def add_reading(self, reference: Conditions, milliseconds: float) -> None:
        """Keep what the reference network takes now."""
        self._add("reference_1", reference.json_text(), time.time(), milliseconds)

    def ratios(self, reference: Conditions, runtime: str) -> dict[str, list[tuple[float, float]]]:
        """For each network in a runtime: when it was measured and its time over the reference's; the latest `KEPT`."""
        statement = "SELECT network, at, ratio FROM ratio_1 WHERE key = ? ORDER BY at DESC LIMIT ?"
        found: dict[str, list[tuple[float, float]]] = {}
        for network, *timed in self._do(statement, (_ratio_key(runtime, reference), MAX_READINGS)):
            if all(map(is_measurement, timed)):
                found.setdefault(network, []).append(tuple(timed))
        return found

    def add_ratio(self, reference: Conditions, measured: Conditions, ratio: float) -> None:
        """Keep what a network takes now over what the reference takes."""
        self._add("ratio_1", _ratio_key(measured.runtime, reference), measured.json_text(), time.time(), ratio)

    def _add(self, table: str, key: str, *values: Any) -> None:
        marks = ", ".join("?" * (len(values) + 1))
        self._do(f"INSERT INTO {table} VALUES ({marks})", (key, *values))
        old = f"SELECT at FROM {table} WHERE key = ? ORDER BY at DESC LIMIT 1 OFFSET ?"
        self._do(f"DELETE FROM {table} WHERE key = ? AND at <= ({old})", (key, key, MAX_READINGS))

    def _do(self, statement: str, values: tuple) -> list[tuple]:
        """One statement in a transaction of its own; tried again once where a broken file was set aside."""
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
        """A connection for one statement: nothing is shared between threads or with a forked process."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(self.path, timeout=_WAIT_SECONDS)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            with connection:
                for statement in _TABLES:
                    connection.execute(statement)
                yield connection

    def _set_aside(self, error: Exception) -> None:
        """Move a damaged file away, under a lock, if it still is damaged: another process may have replaced it."""
        import filelock

        broken = self.path.with_name(f"{self.path.name}.broken")
        with (
            contextlib.suppress(OSError, NotImplementedError),  # no lock to be had: the next one that meets it tries
            filelock.FileLock(self.path.with_name(f"{self.path.name}.lock"), timeout=_WAIT_SECONDS),
        ):
            if not self._is_damaged():
                return
            _warn_once(
                f"the latency cache {self.path} is damaged ({error}); it is now {broken.name}, and a new one begins"
            )
            for suffix in ("-wal", "-shm"):  # first, or a new file would take them for its own
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            os.replace(self.path, broken)

    def _is_damaged(self) -> bool:
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=_WAIT_SECONDS)) as connection:
                return connection.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",)
        except sqlite3.OperationalError:  # locked by one that uses it
            return False
        except sqlite3.DatabaseError:
            return True


@functools.cache
def _warn_once(message: str) -> None:
    """The same trouble is told once, however many measurements meet it."""
    log.warning(message)


def _default_path() -> Path:
    folder = os.environ.get("NASSPACE_CACHE")
    if not folder:
        import platformdirs

        try:
            folder = platformdirs.user_cache_dir("nasspace")
        except RuntimeError:  # a user without a home
            folder = os.path.join(os.devnull, "no-home")  # where nothing can be made: ignored, with a warning
    return Path(folder) / "latency.db"


def _ratio_key(runtime: str, reference: Conditions) -> str:
    return json.dumps([runtime, reference.json_text()])


def is_measurement(value: Any) -> bool:
    """Whether a value is a number above 0 that can have been measured: a database or a JSON text may hold anything."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < LARGEST_MEASURED
