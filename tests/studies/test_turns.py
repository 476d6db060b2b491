"""Measuring and training never at the same time, trainings beside each other, and no lock that outlives its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from nasspace.studies import turns
from nasspace.studies.turns import FOLDER, Training, measuring

pytest.importorskip("fcntl")


@pytest.fixture(autouse=True)
def _a_machine_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))


def measured(times: list[float], begun: threading.Event) -> None:
    begun.set()
    with measuring():
        times.append(time.monotonic())


def test_a_measurement_goes_between_two_passes_of_a_training():
    times, begun = [], threading.Event()
    with Training() as turn:
        waiting = threading.Thread(target=measured, args=(times, begun))
        waiting.start()
        begun.wait()
        time.sleep(0.05)
        assert times == [], "it waits for the pass to end"
        turn.make_way()
        assert len(times) == 1, "the next pass is behind it"
    waiting.join()


def test_trainings_run_beside_each_other():
    with Training() as one, Training() as other:
        one.make_way()
        other.make_way()


def test_a_training_waits_for_a_measurement():
    entered = []
    with measuring():
        thread = threading.Thread(target=lambda: entered.append(Training().__enter__()))
        thread.start()
        time.sleep(0.05)
        assert entered == []
    thread.join(timeout=5)
    entered[0].__exit__()


def test_a_lock_goes_with_its_process(tmp_path):
    code = (
        "from nasspace.studies.turns import measuring\nwith measuring():\n    print('has it', flush=True)\n    input()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "has it\n"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with measuring():
        pass


def test_long_waiting_is_told(monkeypatch, caplog):
    monkeypatch.setattr(turns, "LONG", 0.02)
    with measuring():
        thread = threading.Thread(target=lambda: Training().__enter__().__exit__())
        thread.start()
        time.sleep(0.1)
    thread.join()
    assert "waiting for other nasspace processes" in caplog.text
