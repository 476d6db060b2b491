"""Several processes in one study: who works on what, and what becomes of the work of one that died."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace.studies.storage import BEAT
from nasspace.studies.study import Study

if TYPE_CHECKING:
    import optuna

PROCESS = "process"  # attribute of a trial: whose it is
LOOK = 5.0  # seconds between two looks for the trials of processes that died


class Presence:
    """That this process lives, told to the others of a shared storage; for a study of one's own it does nothing.

    A process that ended on this machine is known at once by its number; one on another machine when it has given no
    sign of life for a minute. What it worked on is then asked again, by whoever finds it first.
    """

    def __init__(self, study: Study):
        self.study = study
        self._mine: dict[int, int] = {}  # trial number: its id in the storage
        self._ended = threading.Event()
        self._looked = 0.0
        self._thread = threading.Thread(target=self._beat, name="nasspace-signs-of-life", daemon=True)

    def __enter__(self) -> Presence:
        if self.study.is_shared:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def begin(self, trial: optuna.Trial) -> None:
        """A trial is this process's own."""
        if self.study.is_shared:
            trial.set_user_attr(PROCESS, identity())
            self.study.sign_of_life(trial._trial_id)
            self._mine[trial.number] = trial._trial_id

    def end(self, number: int) -> None:
        """A trial is told."""
        self._mine.pop(number, None)

    def others(self) -> list[optuna.trial.FrozenTrial]:
        """What other processes are at work on; first, what the dead ones left behind is asked again."""
        if not self.study.is_shared:
            return []
        running = [trial for trial in self.study.frozen("RUNNING") if trial.number not in self._mine]
        if time.monotonic() - self._looked < LOOK:
            return running
        self._looked = time.monotonic()
        for trial in running:
            if is_dead(trial.user_attrs.get(PROCESS)):
                self.study.lost(trial)
        self.study.give_up_stale()
        return [trial for trial in self.study.frozen("RUNNING") if trial.number not in self._mine]

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            for trial_id in list(self._mine.values()):
                with contextlib.suppress(Exception):  # the next question of the search meets the same trouble, and says
                    self.study.sign_of_life(trial_id)


def identity() -> dict[str, Any]:
    """Which process this is, so that others on the machine can tell whether it lives."""
    return {"host": platform.node(), "space": _space(), "pid": os.getpid(), "began": _began(os.getpid())}


def is_dead(process: Mapping[str, Any] | None) -> bool:
    """Whether a process of this machine is known to have ended; False for one elsewhere."""
    if not process or (process["host"], process["space"]) != (platform.node(), _space()):
        return False
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return _began(process["pid"]) != process["began"]  # another one has its number now


def _space() -> str:
    """Where process numbers count: since which start of the machine, in which container."""
    with contextlib.suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _began(pid: int) -> str:
    """When a process began, in ticks since the machine did; empty where that is not told."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""
