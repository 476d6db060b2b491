"""The time limit of a trial: it ends the process, and excludes pauses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nasspace.engine import machine_lock, timeouts

WORKING = """
import sys, time
from nasspace.engine.timeouts import time_limit
with time_limit(0.5, sys.argv[1]):
    while True: pass
"""


def test_the_limit_ends_the_process_and_writes_its_stack(tmp_path):
    path = tmp_path / "trace.txt"
    done = subprocess.run([sys.executable, "-c", WORKING, str(path)], check=False, timeout=120)
    assert done.returncode == 1
    assert "line 5" in path.read_text()


class Clock:
    """A clock that the test advances, and the recorded calls of faulthandler."""

    def __init__(self, monkeypatch):
        self.now, self.calls = 100.0, []
        monkeypatch.setattr(timeouts, "time", SimpleNamespace(monotonic=lambda: self.now))
        later = SimpleNamespace(
            dump_traceback_later=lambda seconds, **_: self.calls.append(seconds),
            cancel_dump_traceback_later=lambda: self.calls.append(None),
        )
        monkeypatch.setattr(timeouts, "faulthandler", later)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_pauses_do_not_count(clock, tmp_path):
    path = tmp_path / "trace.txt"
    with timeouts.time_limit(10.0, str(path)):
        clock.now += 4
        with timeouts.limits_paused():
            clock.now += 1000
        clock.now += 5
        with timeouts.limits_paused():
            clock.now += 1000
    assert clock.calls == [10.0, None, 6.0, None, 1.0, None]
    assert not path.exists()


def test_a_limit_that_is_used_up_in_a_pause_still_ends_the_process(clock):
    with timeouts.time_limit(10.0, None):
        clock.now += 11  # it fires immediately
        with timeouts.limits_paused():
            pass
    assert clock.calls == [10.0, None, timeouts.SHORTEST, None]


def test_without_a_limit_faulthandler_is_not_used(clock):
    with timeouts.time_limit(None, None), timeouts.limits_paused():
        clock.now += 1000
    assert clock.calls == []


@pytest.mark.parametrize("lock", [machine_lock.measurement_lock, machine_lock.TrainingLock])
def test_waiting_for_a_lock_does_not_count(lock, clock, monkeypatch, tmp_path):
    """The limit is paused while the lock is taken; a free lock pauses nothing."""
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setenv(machine_lock.FOLDER, str(tmp_path))
    real, taken = fcntl.flock, True

    def flock(descriptor, how):
        nonlocal taken
        if taken and how & fcntl.LOCK_NB:
            raise BlockingIOError
        if taken:  # the one that waits: it is free after a quarter of an hour
            assert clock.calls[-1] is None
            clock.now, taken = clock.now + 900, False
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with timeouts.time_limit(10.0, None), lock():
        clock.now += 3
    assert clock.calls == [10.0, None, 10.0, None]
    assert Path(tmp_path / "machine.lock").is_file()
