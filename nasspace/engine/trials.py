"""What drives a search: it asks for candidates and tells their outcomes, wherever they are evaluated."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace import failures
from nasspace.architecture import Architecture
from nasspace.engine import evaluator
from nasspace.engine.problem import Task
from nasspace.engine.proposals import Candidates, is_taken
from nasspace.errors import InputError
from nasspace.studies import storage
from nasspace.studies import study as records
from nasspace.studies.heartbeat import Heartbeat
from nasspace.studies.study import Study
from nasspace.studies.trial_table import is_same_machine, machine_text

if TYPE_CHECKING:
    import optuna

HOPELESS = 12  # rejected with none inside the limits: the search ends
EXHAUSTED = 60  # rejected in a row after some were inside: the search ends with what it has
FAILURES = 5  # candidates in a row whose training fails
CRASH = "Fatal Python error"  # how faulthandler begins a trace
KEPT_LAYERS = 4  # fronts, each without the ones before it, whose weights are kept
Report = Callable[..., None]


@dataclass(frozen=True)
class Candidate:
    """An architecture to be evaluated as a trial, and when it was asked."""

    trial: optuna.Trial
    architecture: Architecture
    began: float

    @property
    def number(self) -> int:
        return self.trial.number


class Driver:
    """Asks for candidates and tells what became of them, for one process; several may be under way at once."""

    def __init__(self, study: Study, task: Task, report: Report):
        self.study = study
        self.task = task
        self.report = report
        self.under_way: dict[int, Candidate] = {}
        self.heartbeat = Heartbeat(study)
        self._reserved = 0.0
        self.out_of_time = False
        self._stopped = False
        if task.recipe.time_budget and study.is_searched:  # a process that was killed after the search's own end
            self._stopped = True
        self._candidates = Candidates(study, task.space, task.recipe.sampler, task.scorer.known, task.recipe.seed)

    def __enter__(self) -> Driver:
        self.heartbeat.__enter__()
        return self

    def __exit__(self, *ended: object) -> None:
        self.heartbeat.__exit__(*ended)

    def reserve(self, seconds: float) -> None:
        """Keep this much of the time budget, half of it at most, for the last rung and the exports."""
        self._reserved = min(seconds, (self.task.recipe.time_budget or 0.0) / 2)

    def ask(self) -> Candidate | None:
        """The next candidate; None if there is none at present: for good if `finished`."""
        if self._stopped or self._enough():
            return None
        candidate = self._next()
        if candidate is None:
            idle = not self.under_way and not self.heartbeat.others() and not self.study.frozen("WAITING")
            if self._candidates.exhausted and idle:
                self._stop(f"no new network within the limits is left; {self.study.evaluated} evaluated")
            return None
        self.study.record_early_end("")
        if self.study.record.user_attrs.get(records.FINISHED):
            self.study.record.set_user_attr(records.FINISHED, False)
            self.study.record.set_user_attr(records.SEARCHED, False)
        self.under_way[candidate.number] = candidate
        return candidate

    def _next(self) -> Candidate | None:
        """The sampler's next candidate; one that crashed its process too often is a failed trial."""
        while found := self._candidates.next(self.under_way, self.heartbeat.begin, self._most):
            candidate = Candidate(*found, time.monotonic())
            trace = self._trace(candidate)
            crashes = trace.read_text(errors="backslashreplace") if trace.is_file() else ""
            times = crashes.count(CRASH)
            if times <= self.task.recipe.retries:
                return candidate
            failure = f"it crashed its process {times} times (such as by a segmentation fault)"
            self._failed(candidate, evaluator.Outcome({}, failure=failure, traceback=crashes))
            trace.unlink(missing_ok=True)
        return None

    @contextlib.contextmanager
    def attempting(self, candidate: Candidate) -> Iterator[None]:
        """An evaluation in this process; a crash in it leaves a trace, so that `nas resume` does not try it for ever.

        A process that was killed or interrupted leaves none: that was not the candidate's fault.
        """
        trace, enabled = self._trace(candidate), faulthandler.is_enabled()
        with contextlib.suppress(OSError):  # a crash is then not counted
            trace.parent.mkdir(exist_ok=True)
        with open(trace if trace.parent.is_dir() else os.devnull, "a") as file:
            faulthandler.enable(file)
            try:
                yield
            finally:
                faulthandler.disable()
                if enabled:
                    with contextlib.suppress(ValueError, OSError, AttributeError):  # stderr need not be a file
                        faulthandler.enable()
                trace.unlink(missing_ok=True)

    def _trace(self, candidate: Candidate) -> Path:
        return self.study.folder / "checkpoints" / f"{candidate.architecture.digest}-crash.txt"

    def started(self, candidate: Candidate) -> None:
        """Report that its evaluation starts."""
        self.report("trial", number=candidate.number, architecture=candidate.architecture)

    @property
    def finished(self) -> bool:
        """Whether nothing is under way, here or in other processes, and no candidate will come."""
        if self.under_way:
            return False
        return self._stopped or (self._reached() and not self.heartbeat.others())

    def tell(self, candidate: Candidate, outcome: evaluator.Outcome) -> None:
        """Write an outcome into the record; the last write is the one that makes the trial finished."""
        study, trial = self.study, candidate.trial
        if outcome.failure:
            return self._failed(candidate, outcome)
        self._check_machine(candidate, outcome)
        if outcome.weights is not None:
            study.search_weights.keep(trial.number, outcome.weights)
        kept = False
        with storage.unless_finished():
            self._write(candidate, outcome)
            whole = all(name in outcome.values for name in study.objectives)
            if whole and ("accuracy" in study.objectives or not outcome.reason):
                kept = study.finish_trial(trial, "COMPLETE", [outcome.values[name] for name in study.objectives])
            else:
                kept = study.finish_trial(trial, "PRUNED")
        self._ended(candidate)
        if not kept:
            text = f"trial {trial.number} was thought lost and is asked again by another process"
            self.report("left", number=trial.number, text=text)
            return None
        self._keep_front_weights()
        self.report("outcome", number=trial.number, outcome=outcome, architecture=candidate.architecture)
        return None

    def _write(self, candidate: Candidate, outcome: evaluator.Outcome) -> None:
        trial, limits = candidate.trial, self.study.limits
        for key, value in {"values": dict(outcome.values), "reason": outcome.reason, **outcome.details}.items():
            trial.set_user_attr(key, value)
        trial.set_user_attr("seconds", round(time.monotonic() - candidate.began, 3))
        told = self.study.record.get_trials(deepcopy=False)[trial.number].constraints
        for name, limit in limits.items():
            if name in outcome.values and name not in told:
                high = outcome.details.get("latency_interval", {}).get("high_ms") if name == "latency" else None
                trial.set_constraint(name, (high or outcome.values[name]) / limit - 1)

    def _failed(self, candidate: Candidate, outcome: evaluator.Outcome) -> None:
        """Record a candidate whose block or training failed, with its traceback; many in a row end the search."""
        failure = outcome.failure
        with storage.unless_finished():
            candidate.trial.set_user_attr("traceback", outcome.traceback)
            candidate.trial.set_user_attr("reason", f"failed: {failure}"[:500])
            self.study.finish_trial(candidate.trial, "FAIL")
        self._ended(candidate)
        self.report("left", number=candidate.number, text=f"trial {candidate.number} failed: {failure}")
        ended = self.study.frozen("COMPLETE", "PRUNED", "FAIL")
        failed = [trial.state.name == "FAIL" for trial in ended if is_taken(trial)][-FAILURES:]
        if len(failed) == FAILURES and all(failed):
            raise InputError(
                f"{FAILURES} candidates in a row could not be evaluated; the last one: {failure} (`nas show "
                f"{self.study.name}:{candidate.number}` has its traceback)"
            )

    def _ended(self, candidate: Candidate) -> None:
        self.under_way.pop(candidate.number, None)
        self.heartbeat.end(candidate.number)

    def _check_machine(self, candidate: Candidate, outcome: evaluator.Outcome) -> None:
        """One machine's latencies in a study: those of another would stand in one front with them."""
        measured = outcome.details.get("latency_interval", {}).get("machine")
        expected = self.study.latency_machine()
        if measured and expected and not is_same_machine(measured, expected):
            raise InputError(
                f"{self.study.folder}: trial {candidate.number}'s latency was measured on another machine "
                f"({machine_text(measured)}) than the study's; go on where it was started, or search again under "
                "another --study name"
            )

    @property
    def _most(self) -> int | None:
        """How many trials may be evaluated or ahead of a new one, where other processes ask at the same time."""
        return self.task.recipe.trials if self.study.is_shared else None

    def _reached(self) -> bool:
        return self.study.evaluated >= self.task.recipe.trials or self._hopeless() > 0

    def _enough(self) -> bool:
        """Whether nothing more is to be asked at present."""
        deadline = self.study.deadline
        if deadline is not None and time.monotonic() > deadline - self._reserved:
            kept = f" ({self._reserved:.0f} s are kept for the last rung and the exports)" if self._reserved else ""
            self.out_of_time = True
            self._stop(f"the time for the search is used up{kept}; {self.study.evaluated} evaluated")
            return True
        under_way = len(self.under_way) + len(self.heartbeat.others())
        if self.study.evaluated + under_way >= self.task.recipe.trials:
            return True
        if in_a_row := self._hopeless():
            self._stop(f"the last {in_a_row} networks were all over a limit; {self.study.evaluated} evaluated")
            return True
        return False

    def _stop(self, why: str) -> None:
        """End the search before its trials are used up, and record why, unless time alone was to end it."""
        self._stopped = True
        if self.task.recipe.is_bounded or not self.out_of_time:
            self.study.record_early_end(why)
        self.report("note", text=f"the search ends: {why}")

    def _keep_front_weights(self) -> None:
        """The weights of networks that are unlikely to be trained further go; if one is, it is trained again."""
        self.study.search_weights.drop(self.study.beyond_layers(KEPT_LAYERS))

    def _hopeless(self) -> int:
        """How many were rejected in a row, where the limits look out of reach; else 0."""
        ended = self.study.frozen("COMPLETE", "PRUNED")
        inside = any(self.study.over_limit(trial) <= 0 for trial in ended if trial.state.name == "COMPLETE")
        in_a_row = 0
        for trial in reversed(ended):
            if trial.state.name == "COMPLETE":
                break
            in_a_row += 1
        return in_a_row if in_a_row >= (EXHAUSTED if inside else HOPELESS) else 0


def scored(scorer: Any, architecture: Architecture) -> evaluator.Outcome:
    """The outcome of a candidate; one whose block or training raised says so, and the search goes on."""
    try:
        return scorer(architecture)
    except Exception as error:
        if isinstance(scorer, evaluator.FromFunction) or not failures.is_of_candidate(error):
            raise
        failed = failures.failed(error)
        return evaluator.Outcome({}, failure=str(failed), traceback=failed.traceback)
