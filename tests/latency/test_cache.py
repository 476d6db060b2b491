"""The cache: storing, sharing between processes, and damaged or unusable files that must not raise."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from nasspace.latency import cache
from nasspace.latency.cache import LatencyCache
from nasspace.latency.conditions import KEYS, Conditions, machine

KEY = Conditions(
    digest="0123456789ab",
    runtime="onnxruntime",
    device="cpu",
    threads=1,
    batch_size=1,
    input=(3, 32, 32),
    versions={"onnxruntime": "1.0", "torch": "2.0"},
    machine={"processor": "abacus", "cores": 2},
)
DOCUMENT = {"median_ms": 1.25, "samples_ms": [1.0, 1.25, 1.5]}
WRITER = """
import sys
from nasspace.latency.cache import LatencyCache
from nasspace.latency.conditions import Conditions
sys.stdin.readline()
for i in range(25):
    key = Conditions(f"{name}-{{i}}", "onnxruntime", "cpu", 1, 1, (), {{}}, {{}})
    LatencyCache({path!r}).put(key, {{"median_ms": i}})
"""


def test_a_stored_document_is_read_and_replaced(tmp_path):
    cache = LatencyCache(tmp_path / "new" / "latency.db")
    turned = replace(KEY, versions=dict(reversed(KEY.versions.items())))
    assert cache.get(KEY) is None
    cache.put(KEY, DOCUMENT)
    assert cache.get(KEY) == LatencyCache(cache.path).get(turned) == DOCUMENT
    cache.put(KEY, {"median_ms": 2})
    assert cache.get(KEY) == {"median_ms": 2}


@pytest.mark.parametrize("part", KEYS)
def test_other_conditions_are_another_entry(part, tmp_path):
    cache = LatencyCache(tmp_path / "latency.db")
    cache.put(KEY, DOCUMENT)
    assert cache.get(replace(KEY, **{part: {"other": 1}})) is None


def test_the_environment_is_read_when_the_cache_is_created(tmp_path, monkeypatch):
    monkeypatch.setenv("NASSPACE_CACHE", str(tmp_path / "mine"))
    LatencyCache().put(KEY, DOCUMENT)
    assert (tmp_path / "mine" / "latency.db").is_file()
    monkeypatch.delenv("NASSPACE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert LatencyCache().path.name == "latency.db"
    assert "nasspace" in str(LatencyCache().path)


def test_several_processes_write_a_new_file_concurrently(tmp_path):
    path = tmp_path / "latency.db"
    writers = []
    for name in "abc":
        code = WRITER.format(path=str(path), name=name)
        writers.append(subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE))
    for writer in writers:
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    assert [writer.communicate()[1] for writer in writers] == [b""] * 3
    keys = [Conditions(f"{n}-{i}", "onnxruntime", "cpu", 1, 1, (), {}, {}) for n in "abc" for i in range(25)]
    found = [LatencyCache(path).get(key) for key in keys]
    assert found == [{"median_ms": i} for _ in "abc" for i in range(25)]


@pytest.mark.parametrize("content", [b"this is not a database, but it is long enough" * 30, os.urandom(5000)])
def test_a_damaged_file_is_renamed_with_one_warning(content, tmp_path, caplog):
    path = tmp_path / "latency.db"
    path.write_bytes(content)
    assert LatencyCache(path).get(KEY) is None
    LatencyCache(path).put(KEY, DOCUMENT)
    assert LatencyCache(path).get(KEY) == DOCUMENT
    assert (tmp_path / "latency.db.broken").read_bytes() == content
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "damaged" in caplog.text


def test_concurrent_processes_rename_a_damaged_file_once(tmp_path, monkeypatch):
    """All find the damage before the first one renames the file; what each stores afterwards stays."""
    path, met = tmp_path / "latency.db", threading.Barrier(4)
    path.write_bytes(b"this is not a database, but it is long enough" * 30)
    set_aside = LatencyCache._set_aside

    def together(cache, error):
        met.wait(60)
        set_aside(cache, error)

    monkeypatch.setattr(LatencyCache, "_set_aside", together)
    keys = [replace(KEY, digest=str(i)) for i in range(4)]
    threads = [threading.Thread(target=LatencyCache(path).put, args=(key, DOCUMENT)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [LatencyCache(path).get(key) for key in keys] == [DOCUMENT] * 4
    assert (tmp_path / "latency.db.broken").read_bytes().startswith(b"this is not")


def test_a_new_file_that_others_use_is_switched_to_a_log_once_they_let_it(tmp_path, monkeypatch):
    path = tmp_path / "latency.db"
    with (
        contextlib.closing(sqlite3.connect(path)) as other,
        contextlib.closing(sqlite3.connect(path, timeout=0)) as own,
    ):
        other.executescript("CREATE TABLE t (x); BEGIN; SELECT * FROM t")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            own.execute("PRAGMA journal_mode=WAL")
        clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: other.rollback())
        monkeypatch.setattr(cache, "time", clock)
        cache._use_log(own)
        assert own.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_an_intact_file_is_not_renamed(tmp_path, caplog):
    cache = LatencyCache(tmp_path / "latency.db")
    cache.put(KEY, DOCUMENT)
    cache._set_aside(sqlite3.DatabaseError("met a moment ago, in the file that was here"))
    assert cache.get(KEY) == DOCUMENT
    assert not (tmp_path / "latency.db.broken").exists()
    assert not caplog.records


def test_a_damaged_page_raises_nothing(tmp_path):
    path = tmp_path / "latency.db"
    for i in range(60):
        LatencyCache(path).put(replace(KEY, digest=str(i)), {"samples_ms": list(range(150))})
    content = bytearray(path.read_bytes())
    content[4096 : len(content) // 2] = os.urandom(len(content) // 2 - 4096)
    path.write_bytes(content)
    for i in range(60):
        LatencyCache(path).get(replace(KEY, digest=str(i)))
    LatencyCache(path).put(KEY, DOCUMENT)
    assert LatencyCache(path).get(KEY) == DOCUMENT


@pytest.mark.parametrize("document", ["", "nonsense", "[1, 2]", "null"])
def test_an_invalid_document_is_a_miss(document, tmp_path):
    cache = LatencyCache(tmp_path / "latency.db")
    cache.put(KEY, DOCUMENT)
    connection = sqlite3.connect(cache.path)
    with connection:
        connection.execute("UPDATE latency_2 SET document = ?", (document,))
    connection.close()
    assert cache.get(KEY) is None


def test_an_unusable_location_is_ignored_with_one_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "latency.db",) * 3:
        LatencyCache(path).put(KEY, DOCUMENT)
        assert LatencyCache(path).get(KEY) is None
    assert len(caplog.records) == 1
    assert "\n" not in caplog.records[0].getMessage()
    (tmp_path / "folder.db").mkdir()
    assert LatencyCache(tmp_path / "folder.db").get(KEY) is None


def test_the_machine_is_described():
    found = machine()
    assert set(found) == {"processor", "cores", "system", "memory_gib"}
    assert found["cores"] == os.cpu_count()
    assert json.loads(json.dumps(found)) == found
    if Path("/proc/cpuinfo").exists():
        assert found["processor"]


def test_without_a_home_directory_there_is_a_warning_and_no_cache(monkeypatch, caplog):
    import platformdirs

    def refused(*_):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.delenv("NASSPACE_CACHE")
    monkeypatch.setattr(platformdirs, "user_cache_dir", refused)
    cache = LatencyCache()
    cache.put(KEY, DOCUMENT)
    assert cache.get(KEY) is None
    assert "cannot be used and is ignored" in caplog.text
