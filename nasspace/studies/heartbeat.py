"""Several processes in one study: who works on what, and what becomes of the work of one that died."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace.studies import storage
from nasspace.studies.storage import BEAT, GRACE
from nasspace.studies.study import Study

if TYPE_CHECKING:
    import optuna

PROCESS = "process"  # attribute of a trial: whose it is
LOOK = 5.0  # seconds between two looks for the trials of processes that died
DOUBT = 2.0 * BEAT  # seconds that a silent process is waited for: the database may have been gone, for all of them
_searching: set[str] = set()  # the searches of this process


class Presence:
    """That this process lives, told to the others of a shared storage; for a study of one's own it does nothing.

    A process that ended on this machine is known at once by its number; one on another machine when it has given no
    sign of life for a minute. What it worked on is then asked again, by whoever finds it first.
    """

    def __init__(self, study: Study):
        self.study = study
        self._mine: dict[int, int] = {}  # trial number: its id in the storage
        self._ended = threading.Event()
        self._search = uuid.uuid4().hex
        self._looked = -math.inf
        self._silent: dict[int, float] = {}  # trial number: since when it is seen here without a sign of life
        self._thread = threading.Thread(target=self._beat, name="nasspace-signs-of-life", daemon=True)

    def __enter__(self) -> Presence:
        _searching.add(self._search)
        if self.study.is_shared:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(Exception), storage.at_once():
            for trial in self.study.frozen("RUNNING") if self._mine else ():
                if trial.number in self._mine:  # interrupted: the others need not wait until it is missed
                    self.study.lost(trial)
        _searching.discard(self._search)

    def begin(self, trial: optuna.Trial) -> None:
        """A trial is this process's own."""
        if self.study.is_shared:
            from nasspace.optuna_adapter import trial_id

            storage.sign_of_life(self.study.record, trial_id(trial))
            trial.set_user_attr(
                PROCESS, identity(self._search)
            )  # last: a trial that says whose it is has a sign of life, too
            self._mine[trial.number] = trial_id(trial)

    def end(self, number: int) -> None:
        """A trial is told."""
        self._mine.pop(number, None)

    def others(self) -> list[optuna.trial.FrozenTrial]:
        """What other processes are at work on; first, what the dead ones left behind is asked again."""
        if not self.study.is_shared:
            return []
        running = self._running()
        if time.monotonic() - self._looked < LOOK:
            return running
        self._looked = time.monotonic()
        for trial in self._lost(running):
            self.study.lost(trial)
        return self._running()

    def _running(self) -> list[optuna.trial.FrozenTrial]:
        """The trials of other processes; of this one's those that are finished are forgotten."""
        running = self.study.frozen("RUNNING")
        numbers = {trial.number for trial in running}
        self._mine = {number: trial_id for number, trial_id in self._mine.items() if number in numbers}
        return [trial for trial in running if trial.number not in self._mine]

    def _lost(self, running: list[optuna.trial.FrozenTrial]) -> list[optuna.trial.FrozenTrial]:
        """Of the running trials those whose processes are dead, or silent, or died before they said who they were."""
        from nasspace.optuna_adapter import trial_id

        now, silent = time.monotonic(), storage.silent(self.study.record)
        doubted = {trial.number for trial in running if trial_id(trial) in silent or not trial.user_attrs.get(PROCESS)}
        self._silent = {number: self._silent.get(number, now) for number in doubted}
        lost = []
        for trial in running:
            process = trial.user_attrs.get(PROCESS)
            waited = now - self._silent.get(trial.number, now)
            if is_dead(process) or waited > (DOUBT if process else GRACE):
                lost.append(trial)
        return lost

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            for trial_id in list(self._mine.values()):
                with (
                    contextlib.suppress(Exception),
                    storage.at_once(),
                ):  # the search meets the same trouble, and says so
                    storage.sign_of_life(self.study.record, trial_id)


def identity(search: str) -> dict[str, Any]:
    """Which process and which of its searches this is, so that others on the machine can tell whether it lives."""
    return {
        "host": platform.node(),
        "space": _space(),
        "pid": os.getpid(),
        "began": _began(os.getpid()),
        "search": search,
    }


def is_dead(process: Mapping[str, Any] | None) -> bool:
    """Whether a process of this machine is known to have ended; False for one elsewhere."""
    if not process or (process["host"], process["space"]) != (platform.node(), _space()):
        return False
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # another user's
    began = _began(process["pid"])
    if process["pid"] == os.getpid() and began == process["began"]:
        return process["search"] not in _searching  # this process, after an error or an interruption
    return bool(began) and began != process["began"]  # another one has its number now


def _space() -> str:
    """Where process numbers count: since which start of the machine, in which container."""
    with contextlib.suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _began(pid: int) -> str:
    """When a process began, in ticks since the machine did; empty where that is not told."""
    with contextlib.suppress(OSError, IndexError):
        told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "ended" if told[0] in "ZX" else told[19]  # killed, and its parent has not taken notice
    return ""
