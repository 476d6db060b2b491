"""The time limit of a trial: what ends the process, and what does not count."""

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
    while True:
        pass
"""


def test_work_that_takes_longer_ends_the_process_and_leaves_its_place(tmp_path):
    path = tmp_path / "trace.txt"
    done = subprocess.run([sys.executable, "-c", WORKING, str(path)], check=False, timeout=120)
    assert done.returncode == 1
    assert "line 5" in path.read_text()


class Clock:
    """Time as the test moves it, and what faulthandler is asked."""

    def __init__(self, monkeypatch):
        self.now, self.asked = 100.0, []
        monkeypatch.setattr(timeouts, "time", SimpleNamespace(monotonic=lambda: self.now))
        later = SimpleNamespace(
            dump_traceback_later=lambda seconds, **_: self.asked.append(seconds),
            cancel_dump_traceback_later=lambda: self.asked.append(None),
        )
        monkeypatch.setattr(timeouts, "faulthandler", later)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_what_is_within_pauses_does_not_count(clock, tmp_path):
    path = tmp_path / "trace.txt"
    with timeouts.time_limit(10.0, str(path)):
        clock.now += 4
        with timeouts.limits_paused():
            clock.now += 1000
        clock.now += 5
        with timeouts.limits_paused():
            clock.now += 1000
    assert clock.asked == [10.0, None, 6.0, None, 1.0, None]
    assert not path.exists()


def test_a_limit_that_is_used_up_in_a_pause_still_ends_the_process(clock):
    with timeouts.time_limit(10.0, None):
        clock.now += 11  # it fires in a moment
        with timeouts.limits_paused():
            pass
    assert clock.asked == [10.0, None, timeouts.SHORTEST, None]


def test_without_a_limit_nothing_is_asked(clock):
    with timeouts.time_limit(None, None), timeouts.limits_paused():
        clock.now += 1000
    assert clock.asked == []


@pytest.mark.parametrize("turn", [machine_lock.measurement_lock, machine_lock.TrainingLock])
def test_waiting_for_a_turn_does_not_count(turn, clock, monkeypatch, tmp_path):
    """Where the lock is taken, the limit stands still until it is free; where it is free, nothing is paused."""
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setenv(machine_lock.FOLDER, str(tmp_path))
    real, taken = fcntl.flock, True

    def flock(descriptor, how):
        nonlocal taken
        if taken and how & fcntl.LOCK_NB:
            raise BlockingIOError
        if taken:  # the one that waits: it is free after a quarter of an hour
            assert clock.asked[-1] is None
            clock.now, taken = clock.now + 900, False
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with timeouts.time_limit(10.0, None), turn():
        clock.now += 3
    assert clock.asked == [10.0, None, 10.0, None]
    assert Path(tmp_path / "machine.lock").is_file()
