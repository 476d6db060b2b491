"""The ask-and-tell interface of a search, for evaluation in this process or on Ray."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nasspace.architecture import Architecture
from nasspace.engine import dashboard, duration, promotion
from nasspace.engine.evaluator import Outcome
from nasspace.engine.problem import Problem
from nasspace.engine.proposals import Proposals, is_taken
from nasspace.errors import InputError
from nasspace.formatting import times
from nasspace.samplers.observation import Bounds
from nasspace.studies import paths, storage
from nasspace.studies import study as records
from nasspace.studies.heartbeat import Heartbeat
from nasspace.studies.study import Study
from nasspace.studies.trial_table import is_same_machine, machine_text

if TYPE_CHECKING:
    import optuna

MAX_REJECTED_AT_START = 12  # consecutive rejections that end a search without a feasible trial
MAX_REJECTED = 60  # consecutive rejections that end a search with feasible trials
MAX_FAILURES = 5  # consecutive failures that end a search with an error
CRASH = "Fatal Python error"  # the first words of a trace that faulthandler writes
KEPT_LAYERS = 4  # nondominated layers whose weights are kept
EVALUATED_BEFORE_DROP = 8  # evaluated networks after which weights are dropped again
Report = Callable[..., None]


@dataclass(frozen=True)
class Candidate:
    """An architecture to be evaluated as a trial; `asked_at` is in seconds of `time.monotonic()`.

    `bounds` are the largest values with which it is trained; None: the limits.
    """

    trial: optuna.Trial
    architecture: Architecture
    asked_at: float
    bounds: Bounds | None = None

    @property
    def number(self) -> int:
        """The number of the trial."""
        return self.trial.number


class TrialManager:
    """Asks for candidates and tells their outcomes for one process, which may run several at a time."""

    def __init__(self, study: Study, problem: Problem, report: Report):
        self.study = study
        self.problem = problem
        self.report = report
        self.running: dict[int, Candidate] = {}
        self.heartbeat = Heartbeat(study)
        self.out_of_time = False
        self._reserved = self._most_reserved = 0.0  # seconds of the time budget for the last rung and the exports
        self._stopped = bool(problem.recipe.time_budget and study.is_searched)  # resumed after the end of the search
        recipe = problem.recipe
        self._proposals = Proposals(
            study, problem.space, recipe.sampler, problem.evaluator.known, recipe.seed, recipe.sampler_options
        )

    def __enter__(self) -> TrialManager:
        self.heartbeat.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.heartbeat.__exit__(*error)

    def reserve_time(self, seconds: float) -> None:
        """Reserve time for the last rung and the exports, at most half of what the budget leaves at the start."""
        if self.study.deadline is not None:
            self._most_reserved = max(0.0, self.study.deadline - time.monotonic()) / 2
        self._reserved = min(seconds, self._most_reserved)

    def ask(self) -> Candidate | None:
        """The next candidate; None if there is none at present, and for good if `is_finished`."""
        if self._stopped or self._has_enough():
            return None
        candidate = self._next_candidate()
        if candidate is None:
            idle = not self.running and not self.heartbeat.others() and not self.study.frozen("WAITING")
            if self._proposals.exhausted and idle:
                self._stop(f"{self._proposals.end()}; {self.study.evaluated} evaluated")
            return None
        self.study.record_early_end("")
        if self.study.record.user_attrs.get(records.FINISHED):
            self.study.record.set_user_attr(records.FINISHED, False)
            self.study.record.set_user_attr(records.SEARCHED, False)
        self.running[candidate.number] = candidate
        return candidate

    def _next_candidate(self) -> Candidate | None:
        """The next proposal; a network that has crashed its process too often becomes a failed trial."""
        while proposal := self._proposals.next(self.running, self.heartbeat.begin, self._max_trials):
            candidate = Candidate(*proposal, time.monotonic(), self._proposals.bounds())
            path = self._crash_file(candidate)
            traces = path.read_text(errors="backslashreplace") if path.is_file() else ""
            crashes = traces.count(CRASH)
            if crashes <= self.problem.recipe.retries:
                return candidate
            failure = f"it crashed its process {times(crashes)} (such as by a segmentation fault)"
            self._tell_failure(candidate, Outcome({}, failure=failure, traceback=traces))
            path.unlink(missing_ok=True)
        return None

    def report_start(self, candidate: Candidate) -> None:
        """Report that the evaluation of a candidate starts."""
        self.report("trial", number=candidate.number, architecture=candidate.architecture)

    @contextlib.contextmanager
    def recording_crashes(self, candidate: Candidate) -> Iterator[None]:
        """Write a trace if the body crashes this process, so that `nas resume` does not retry the candidate forever.

        A process that is killed or interrupted leaves no trace: that is not the candidate's fault.
        """
        path, was_enabled = self._crash_file(candidate), faulthandler.is_enabled()
        with contextlib.suppress(OSError):  # without the folder, a crash is not counted
            path.parent.mkdir(exist_ok=True)
        with open(path if path.parent.is_dir() else os.devnull, "a") as file:
            faulthandler.enable(file)
            try:
                yield
            finally:
                faulthandler.disable()
                if was_enabled:
                    with contextlib.suppress(ValueError, OSError, AttributeError):  # stderr need not be a file
                        faulthandler.enable()
                path.unlink(missing_ok=True)

    def _crash_file(self, candidate: Candidate) -> Path:
        return self.study.folder / "checkpoints" / f"{candidate.architecture.digest}-crash.txt"

    @property
    def is_finished(self) -> bool:
        """Whether no candidate is running, here or in other processes, and none will follow."""
        if self.running:
            return False
        return self._stopped or (self._is_complete() and not self.heartbeat.others())

    def tell(self, candidate: Candidate, outcome: Outcome) -> None:
        """Record an outcome; the trial's state is written last."""
        study, trial = self.study, candidate.trial
        if outcome.failure:
            return self._tell_failure(candidate, outcome)
        self._check_machine(candidate, outcome)
        if outcome.weights is not None:
            study.search_weights.keep(trial.number, outcome.weights)
        recorded = False
        with storage.unless_finished():
            self._write_attributes(candidate, outcome)
            has_all = all(name in outcome.values for name in study.objectives)
            is_complete = has_all and ("accuracy" in study.objectives or not outcome.reason)
            if is_complete:
                recorded = study.finish_trial(trial, "COMPLETE", [outcome.values[name] for name in study.objectives])
            else:
                recorded = study.finish_trial(trial, "PRUNED")
        self._release(candidate)
        if not recorded:
            text = f"trial {trial.number} was taken over by another process, since this one sent no heartbeat"
            self.report("left", number=trial.number, text=text)
            return None
        if study.settings["data"]:  # each takes seconds; a table has thousands of networks, and `update` writes notes
            dashboard.describe_trial(study, trial.number, candidate.architecture)
        if is_complete and study.evaluated % EVALUATED_BEFORE_DROP == 0:
            self._drop_weights()
        self.report("outcome", number=trial.number, outcome=outcome, architecture=candidate.architecture)
        return None

    def _write_attributes(self, candidate: Candidate, outcome: Outcome) -> None:
        trial = candidate.trial
        readable = dashboard.attributes(self.study, candidate.architecture, outcome.values, outcome.details)
        recorded = {"values": dict(outcome.values), "reason": outcome.reason, **outcome.details}
        for key, value in {**recorded, **readable}.items():
            trial.set_user_attr(key, value)
        trial.set_user_attr("seconds", round(time.monotonic() - candidate.asked_at, 3))
        if epochs := len(outcome.details.get("training", {}).get("losses", ())):
            storage.report(self.study.record, trial, outcome.values["accuracy"], epochs)
        constraints = self.study.record.get_trials(deepcopy=False)[trial.number].constraints
        for name, limit in self.study.limits.items():
            if name in outcome.values and name not in constraints:
                high = outcome.details.get("latency_interval", {}).get("high_ms") if name == "latency" else None
                trial.set_constraint(name, (high or outcome.values[name]) / limit - 1)

    def _tell_failure(self, candidate: Candidate, outcome: Outcome) -> None:
        """Record a failed candidate with its traceback; raises `InputError` after `MAX_FAILURES` in a row."""
        with storage.unless_finished():
            candidate.trial.set_user_attr("traceback", outcome.traceback)
            candidate.trial.set_user_attr("reason", f"failed: {outcome.failure}"[:500])
            self.study.finish_trial(candidate.trial, "FAIL")
        self._release(candidate)
        self.report("left", number=candidate.number, text=f"trial {candidate.number} failed: {outcome.failure}")
        finished = self.study.frozen("COMPLETE", "PRUNED", "FAIL")
        failed = [trial.state.name == "FAIL" for trial in finished if is_taken(trial)][-MAX_FAILURES:]
        if len(failed) == MAX_FAILURES and all(failed):
            raise InputError(
                f"{MAX_FAILURES} candidates in a row could not be evaluated; the last one: {outcome.failure} "
                f"(`nas show {paths.as_argument(self.study.folder, candidate.number)}` has its traceback)"
            )

    def _release(self, candidate: Candidate) -> None:
        """Remove a finished trial from those that this process runs."""
        self.running.pop(candidate.number, None)
        self.heartbeat.end(candidate.number)

    def _check_machine(self, candidate: Candidate, outcome: Outcome) -> None:
        """Refuse a latency from another machine: the front would compare latencies of different machines."""
        measured = outcome.details.get("latency_interval", {}).get("machine")
        expected = self.study.latency_machine()
        if measured and expected and not is_same_machine(measured, expected):
            raise InputError(
                f"{self.study.folder}: trial {candidate.number}'s latency was measured on another machine "
                f"({machine_text(measured)}) than the study's; continue it on that machine, or search again under "
                "another --study name"
            )

    @property
    def _max_trials(self) -> int | None:
        """The number of trials for `Proposals.next`, which must check it if other processes ask at the same time."""
        return self.problem.recipe.trials if self.study.is_shared else None

    def _is_complete(self) -> bool:
        return self.study.evaluated >= self.problem.recipe.trials or self._rejected_in_a_row() > 0

    def _has_enough(self) -> bool:
        """Whether no candidate is needed at present; stops the search if time is up or too many were rejected."""
        deadline = self.study.deadline
        if deadline is not None and time.monotonic() > deadline - (reserved := self._reserved_seconds()):
            kept = f" ({reserved:.0f} s are kept for the last rung and the exports)" if reserved else ""
            self.out_of_time = True
            self._stop(f"the time for the search is used up{kept}; {self.study.evaluated} evaluated")
            return True
        running = len(self.running) + len(self.heartbeat.others())
        if self.study.evaluated + running >= self.problem.recipe.trials:
            return True
        if rejected := self._rejected_in_a_row():
            self._stop(f"the last {rejected} networks were all over a limit; {self.study.evaluated} evaluated")
            return True
        return False

    def _reserved_seconds(self) -> float:
        """The reserved time, at least that of one export, which takes longer on a busy machine; half of all at most."""
        if not self._reserved or not self.study.evaluated:
            return self._reserved
        return max(self._reserved, min(duration.EXPORTED * duration.slowdown(self.study), self._most_reserved))

    def _stop(self, why: str) -> None:
        """Stop the search early and record why, except at the end of an unbounded search's time budget."""
        self._stopped = True
        if self.problem.recipe.is_bounded or not self.out_of_time:
            self.study.record_early_end(why)
        self.report("note", text=f"the search ends: {why}")

    def _drop_weights(self) -> None:
        """Drop the weights of networks outside the first layers that no rung would take if the search ended now.

        If one is promoted later, it is trained from scratch: not where networks start from given weights. With shared
        weights there are none to drop.
        """
        if self.study.has_last_rung and self.problem.recipe.supernet is None and self.problem.donor is None:
            kept = promotion.kept_weights(self.study, self.problem.recipe)
            self.study.search_weights.drop(self.study.beyond_layers(KEPT_LAYERS) - kept)

    def _rejected_in_a_row(self) -> int:
        """The number of trailing rejected trials if it reaches the limit that ends a search, else 0."""
        if self._proposals.accepts_rejections:
            return 0
        finished = self.study.frozen("COMPLETE", "PRUNED")
        feasible = any(self.study.over_limit(trial) <= 0 for trial in finished if trial.state.name == "COMPLETE")
        rejected = 0
        for trial in reversed(finished):
            if trial.state.name == "COMPLETE":
                break
            rejected += 1
        return rejected if rejected >= (MAX_REJECTED if feasible else MAX_REJECTED_AT_START) else 0
