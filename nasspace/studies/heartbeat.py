"""Several processes in one study: which process works on which trial, and what happens to the trials of dead ones.

Optuna's own heartbeat (`fail_stale_trials` with its retry callback) is not used, only its table in the database: it
waits for a minute where the process number shows at once that a process died, fails the trials of every process after
an outage of the database, and overlooks a trial whose process died before its first heartbeat.
"""

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

PROCESS = "process"  # trial attribute: the process that works on it
INTERVAL = 5.0  # seconds between two checks for trials of dead processes
DOUBT = 2.0 * BEAT  # seconds to wait for a stale process: after an outage of the database all processes are stale
_active_searches: set[str] = set()  # the searches of this process


class Heartbeat:
    """Show the other processes of a shared storage that this one is alive; does nothing for an unshared study.

    A dead process on this machine is detected at once by its number, one on another machine when it has sent no
    heartbeat for a minute. The first process to notice queues its trials again.
    """

    def __init__(self, study: Study):
        self.study = study
        self._own_trials: dict[int, int] = {}  # trial number to its id in the storage
        self._ended = threading.Event()
        self._search = uuid.uuid4().hex
        self._last_check = -math.inf
        self._stale_since: dict[int, float] = {}  # trial number to the time when this process first saw it stale
        self._thread = threading.Thread(target=self._beat, name="nasspace-heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        """Start the thread that sends heartbeats."""
        _active_searches.add(self._search)
        if self.study.is_shared:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the thread; after an interruption, requeue this process's trials, so that none waits for them."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(Exception), storage.without_retries():
            for trial in self.study.frozen("RUNNING") if self._own_trials else ():
                if trial.number in self._own_trials:
                    self.study.requeue(trial)
        _active_searches.discard(self._search)

    def begin(self, trial: optuna.Trial) -> None:
        """Mark a trial as this process's own."""
        if self.study.is_shared:
            from nasspace.optuna_adapter import trial_id

            storage.record_heartbeat(self.study.record, trial_id(trial))
            trial.set_user_attr(PROCESS, identity(self._search))  # last: a trial with a process has a heartbeat
            self._own_trials[trial.number] = trial_id(trial)

    def end(self, number: int) -> None:
        """Send no more heartbeats for a trial that finished."""
        self._own_trials.pop(number, None)

    def others(self) -> list[optuna.trial.FrozenTrial]:
        """The running trials of other processes, after the trials of dead ones were queued again."""
        if not self.study.is_shared:
            return []
        running = self._running()
        if time.monotonic() - self._last_check < INTERVAL:
            return running
        self._last_check = time.monotonic()
        for trial in self._abandoned(running):
            self.study.requeue(trial)
        return self._running()

    def _running(self) -> list[optuna.trial.FrozenTrial]:
        """The running trials of other processes; own trials that finished are dropped."""
        running = self.study.frozen("RUNNING")
        numbers = {trial.number for trial in running}
        self._own_trials = {number: key for number, key in self._own_trials.items() if number in numbers}
        return [trial for trial in running if trial.number not in self._own_trials]

    def _abandoned(self, running: list[optuna.trial.FrozenTrial]) -> list[optuna.trial.FrozenTrial]:
        """The running trials whose process is dead, is stale, or died before it marked the trial as its own."""
        from nasspace.optuna_adapter import trial_id

        now, stale_ids = time.monotonic(), storage.stale_trials(self.study.record)
        stale = {t.number for t in running if trial_id(t) in stale_ids or not t.user_attrs.get(PROCESS)}
        self._stale_since = {number: self._stale_since.get(number, now) for number in stale}
        abandoned = []
        for trial in running:
            process = trial.user_attrs.get(PROCESS)
            waited = now - self._stale_since.get(trial.number, now)
            if is_dead(process) or waited > (DOUBT if process else GRACE):
                abandoned.append(trial)
        return abandoned

    def _beat(self) -> None:
        """Send a heartbeat for each own trial, until the search ends."""
        while not self._ended.wait(BEAT):
            for trial_id in list(self._own_trials.values()):
                # The search meets the same errors and reports them.
                with contextlib.suppress(Exception), storage.without_retries():
                    storage.record_heartbeat(self.study.record, trial_id)


def identity(search: str) -> dict[str, Any]:
    """Identify this process and one of its searches, so that others on the machine can tell whether it is alive."""
    return {
        "host": platform.node(),
        "space": _pid_namespace(),
        "pid": os.getpid(),
        "began": _start_time(os.getpid()),
        "search": search,
    }


def is_dead(process: Mapping[str, Any] | None) -> bool:
    """Whether a process of this machine is known to have ended; False for processes of other machines."""
    if not process or (process["host"], process["space"]) != (platform.node(), _pid_namespace()):
        return False
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # a process of another user
    start = _start_time(process["pid"])
    if process["pid"] == os.getpid() and start == process["began"]:
        return process["search"] not in _active_searches  # this process, after an error or an interruption
    return bool(start) and start != process["began"]  # another process has its number now


def _pid_namespace() -> str:
    """The boot of the machine and the container in which process numbers are unique; empty if unavailable."""
    with contextlib.suppress(OSError):
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _start_time(pid: int) -> str:
    """When a process started, in clock ticks since boot; 'ended' for a zombie, empty if unavailable."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "ended" if fields[0] in "ZX" else fields[19]
    return ""
