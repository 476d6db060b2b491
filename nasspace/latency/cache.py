"""Measured latencies, remembered for this user on this machine in one SQLite file; and what this machine is."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import platform
import sqlite3
import statistics
import time
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

KEYS = ("digest", "runtime", "device", "threads", "batch_size", "input", "versions", "machine")
_TABLE = f"""CREATE TABLE IF NOT EXISTS latency_1 (
    {", ".join(f"{key} TEXT NOT NULL" for key in KEYS)}, document TEXT NOT NULL, PRIMARY KEY ({", ".join(KEYS)}))"""
_SITTINGS = (
    """CREATE TABLE IF NOT EXISTS reference_1 (key TEXT NOT NULL, at REAL NOT NULL, milliseconds REAL NOT NULL)"""
)
_WAIT_SECONDS = 10.0
QUARTER = 900.0  # seconds: what was measured within them is one sitting, since a machine keeps its speed for a while
REMEMBERED = 50  # sittings, the latest
KEPT = 2_000  # measurements of the reference in them
log = logging.getLogger(__name__)


class LatencyCache:
    """A table from the circumstances of a measurement to its JSON document, shared by every process of a user.

    `path` is a SQLite file; without one, `latency.db` in the folder that the environment variable NASSPACE_CACHE
    names, else in the user's cache folder. A broken file is set aside, a place that cannot be used is ignored; either
    is one warning in the log, and never an error: a measurement can always be made again.
    """

    def __init__(self, path: str | PathLike | None = None) -> None:
        self.path = Path(path) if path is not None else _default_path()

    def get(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The document kept under `key` (a value for each of `KEYS`), or None."""
        where = " AND ".join(f"{name} = ?" for name in KEYS)
        rows = self._do(f"SELECT document FROM latency_1 WHERE {where}", _values(key))
        with contextlib.suppress(ValueError, IndexError, TypeError):
            document = json.loads(rows[0][0])
            return document if isinstance(document, dict) else None
        return None

    def put(self, key: dict[str, Any], document: dict[str, Any]) -> None:
        """Keep `document` under `key`, in place of an older one."""
        marks = ", ".join("?" * (len(KEYS) + 1))
        self._do(f"INSERT OR REPLACE INTO latency_1 VALUES ({marks})", (*_values(key), json.dumps(document)))

    def earlier(self, key: dict[str, Any]) -> list[float]:
        """What the reference network took in the latest sittings under `key`, in milliseconds: their means.

        The present sitting does not count, so that the usual speed stays while a study goes on; but where there is no
        other, its first measurement does.
        """
        statement = "SELECT at, milliseconds FROM reference_1 WHERE key = ? ORDER BY at DESC LIMIT ?"
        sittings: dict[int, list[float]] = {}
        for at, milliseconds in self._do(statement, (json.dumps(key, sort_keys=True), KEPT)):
            sittings.setdefault(int(at // QUARTER), []).append(milliseconds)
        present = sittings.pop(int(time.time() // QUARTER), [])
        earlier = [statistics.mean(values) for values in sittings.values()]
        return earlier[:REMEMBERED] or present[-1:]

    def remember(self, key: dict[str, Any], milliseconds: float) -> None:
        """Keep what the reference network took in a sitting."""
        name, statement = json.dumps(key, sort_keys=True), "INSERT INTO reference_1 VALUES (?, ?, ?)"
        self._do(statement, (name, time.time(), milliseconds))
        old = "SELECT at FROM reference_1 WHERE key = ? ORDER BY at DESC LIMIT 1 OFFSET ?"
        self._do(f"DELETE FROM reference_1 WHERE key = ? AND at <= ({old})", (name, name, KEPT))

    def _do(self, statement: str, values: tuple) -> list[tuple]:
        """One statement in a transaction of its own; tried again once where a broken file was set aside."""
        for _ in range(2):
            try:
                with self._open() as connection:
                    return connection.execute(statement, values).fetchall()
            except (sqlite3.OperationalError, OSError) as error:  # not writable, disk full, locked for too long
                _warn(f"the latency cache {self.path} cannot be used and is ignored: {error}")
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
                connection.execute(_TABLE)
                connection.execute(_SITTINGS)
                connection.execute("CREATE INDEX IF NOT EXISTS reference_by_key ON reference_1 (key, at)")
                yield connection

    def _set_aside(self, error: Exception) -> None:
        broken = self.path.with_name(f"{self.path.name}.broken")
        _warn(f"the latency cache {self.path} is damaged ({error}); it is now {broken.name}, and a new one begins")
        with contextlib.suppress(OSError):
            os.replace(self.path, broken)
            for suffix in ("-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)


@functools.cache
def _warn(message: str) -> None:
    """The same trouble is told once, however many measurements meet it."""
    log.warning(message)


def _default_path() -> Path:
    folder = os.environ.get("NASSPACE_CACHE")
    if not folder:
        import platformdirs

        folder = platformdirs.user_cache_dir("nasspace")
    return Path(folder) / "latency.db"


def _values(key: dict[str, Any]) -> tuple[str, ...]:
    return tuple(json.dumps(key[name], sort_keys=True) for name in KEYS)


@functools.cache
def machine() -> dict[str, Any]:
    """What is measured on: processor, cores, system, memory in GiB."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
        "memory_gib": _memory_gib(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model", "Hardware"):
                return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def _memory_gib() -> int | None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    return None
