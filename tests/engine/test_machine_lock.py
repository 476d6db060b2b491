"""Measurements exclude trainings, trainings share the machine, and locks end with their process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from nasspace.engine import machine_lock
from nasspace.engine.machine_lock import FOLDER, TrainingLock, measurement_lock
from nasspace.errors import InputError

pytest.importorskip("fcntl")
SOON = 60.0  # seconds: a test that waits longer has failed


@pytest.fixture(autouse=True)
def _separate_machine(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))


@pytest.fixture
def blocked(monkeypatch) -> threading.Event:
    """An event that is set when a thread starts to wait for a lock."""
    event, real = threading.Event(), machine_lock._reports

    def reporting(*arguments):
        event.set()
        return real(*arguments)

    monkeypatch.setattr(machine_lock, "_reports", reporting)
    return event


def in_a_thread(function) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def test_a_measurement_runs_between_two_epochs_of_a_training(blocked):
    order = []

    def measured():
        with measurement_lock():
            order.append("measured")

    with TrainingLock() as lock:
        order.append("first pass")
        waiting = in_a_thread(measured)
        assert blocked.wait(SOON)
        order.append("first pass ends")
        lock.yield_to_measurements()
        order.append("second pass")
    waiting.join(SOON)
    assert order == ["first pass", "first pass ends", "measured", "second pass"]


def test_trainings_share_the_machine(blocked):
    with TrainingLock() as one, TrainingLock() as other:
        one.yield_to_measurements()
        other.yield_to_measurements()
    assert not blocked.is_set()


def test_a_training_waits_for_a_measurement(blocked):
    order = []

    def trained():
        with TrainingLock():
            order.append("trained")

    with measurement_lock():
        waiting = in_a_thread(trained)
        assert blocked.wait(SOON)
        order.append("measured")
    waiting.join(SOON)
    assert order == ["measured", "trained"]


def held_by_another_process(what: str = "measurement_lock()") -> subprocess.Popen:
    """Start a process that holds a lock until its standard input ends."""
    code = f"from nasspace.engine.machine_lock import *\nwith {what}:\n    print('locked', flush=True)\n    input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_lock_ends_with_its_process(tmp_path):
    with held_by_another_process() as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert list(tmp_path.glob("machine.*.*")), "its note is still there"
    assert machine_lock._holders(tmp_path, "machine") == []
    assert not list(tmp_path.glob("machine.*.*"))
    with measurement_lock():
        assert machine_lock._holders(tmp_path, "machine") == [(os.getpid(), machine_lock.MEASURING)]
    assert not list(tmp_path.glob("*.*.*"))


@pytest.mark.parametrize(
    ("what", "purpose"), [("measurement_lock()", machine_lock.MEASURING), ("TrainingLock()", machine_lock.TRAINING)]
)
def test_the_holder_of_the_lock_is_reported_soon(what, purpose, monkeypatch):
    reported = threading.Event()
    messages: list[str] = []

    def warn(text: str) -> None:
        messages.append(text)
        reported.set()

    monkeypatch.setattr(machine_lock, "log", SimpleNamespace(warning=warn))
    monkeypatch.setattr(machine_lock, "REPORT_AFTER", 0.01)
    with held_by_another_process(what) as process:

        def wait() -> None:
            with measurement_lock():
                pass

        waiting = in_a_thread(wait)
        assert reported.wait(SOON)
        process.communicate("\n")
    waiting.join(SOON)
    assert not waiting.is_alive()
    assert f"waiting for process {process.pid} ({purpose})" in messages[0]
    assert "latency" in messages[0]


def test_a_short_wait_is_not_reported(blocked, caplog):
    with measurement_lock():
        waiting = in_a_thread(lambda: TrainingLock().__enter__().__exit__())
        assert blocked.wait(SOON)
    waiting.join(SOON)
    assert caplog.text == ""
    assert 1 < machine_lock.REPORT_AFTER <= 10


def test_the_report_is_repeated(monkeypatch, tmp_path):
    several = threading.Semaphore(0)
    monkeypatch.setattr(machine_lock, "log", SimpleNamespace(warning=lambda _: several.release()))
    monkeypatch.setattr(machine_lock, "REPORT_AFTER", 0.01)
    monkeypatch.setattr(machine_lock, "REPORT_EVERY", 0.01)
    with machine_lock._reports(tmp_path, "machine", machine_lock.MEASURING):
        for _ in range(3):
            assert several.acquire(timeout=SOON)


def test_the_folder_is_private(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    with measurement_lock():
        (folder,) = tmp_path.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert all(path.stat().st_mode & 0o77 == 0 for path in folder.glob("*.lock"))


@pytest.mark.parametrize("named", [True, False])
def test_a_folder_that_others_may_write_to_is_refused(named, tmp_path, monkeypatch):
    folder = tmp_path / f"nasspace-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    if named:
        monkeypatch.setenv(FOLDER, str(folder))
    else:
        monkeypatch.delenv(FOLDER)
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    with pytest.raises(InputError, match=rf"others may write to it; run: chmod 700 {folder}"), measurement_lock():
        pass


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(InputError, match=rf"belongs to another user .*{FOLDER}"), measurement_lock():
        pass


@pytest.mark.parametrize("kind", ["link to a folder", "file"])
def test_anything_but_a_folder_is_refused(kind, tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    place = tmp_path / f"nasspace-{os.getuid()}"
    (tmp_path / "elsewhere").mkdir()
    place.touch() if kind == "file" else place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=rf"{place}: .*{FOLDER}"), measurement_lock():
        pass
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_link_instead_of_a_lock_file_is_refused(tmp_path):
    (tmp_path / "target").touch()
    (tmp_path / "gate.lock").symlink_to(tmp_path / "target")
    with pytest.raises(InputError, match=r"gate\.lock: cannot be opened"), measurement_lock():
        pass
