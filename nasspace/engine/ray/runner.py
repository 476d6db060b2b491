"""The search on Ray Tune: a searcher starts workers, gives them candidates, and tells their outcomes."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nasspace.engine.evaluator import Outcome, needs_latency
from nasspace.engine.ray import actors, cluster
from nasspace.engine.ray.mailbox import Mailbox
from nasspace.engine.ray.payload import Payload, serialized
from nasspace.engine.ray.watch import ClusterLost, ClusterMonitor
from nasspace.engine.trials import Candidate, TrialManager
from nasspace.errors import InputError, NasspaceError
from nasspace.formatting import times
from nasspace.latency import remote
from nasspace.studies import paths
from nasspace.studies.recipe import Recipe
from nasspace.studies.trial_table import is_same_machine, machine_text

NODE_TIMEOUT = 120.0  # seconds to wait for a node that measures
MAX_FAILED_STARTS = 5  # workers in a row that may die before they have started


class Dispatcher:
    """Gives candidates of the trial manager to the workers, and tells it their outcomes.

    A trial of Tune is a worker for all its life, not a candidate. With a Tune trial per candidate and `reuse_actors`,
    Tune gives the next trial to an idle worker and stops the worker that starts for it, so that a dead worker is not
    replaced while the others have work.
    """

    def __init__(self, manager: TrialManager, mailbox: Any, workers: int, connection: cluster.Connection) -> None:
        self.manager = manager
        self.mailbox = mailbox
        self.error: BaseException | None = None
        self._folder = connection.folder  # for the tracebacks of trials that are stopped
        self._monitor = connection.monitor
        self._timeout = manager.problem.recipe.trial_timeout
        self._size = workers
        self._worker_numbers = itertools.count()
        self._workers: dict[str, int] = {}  # number of each worker, starting or started, by Tune's trial
        self._idle: list[str] = []
        self._busy: dict[str, Candidate] = {}
        self._started_at: dict[int, float] = {}
        self._failed_starts = 0  # in a row
        self._prefetched: Candidate | None = None
        self._requeued: list[Candidate] = []
        self._deaths: Counter[int] = Counter()  # of the processes of a trial

    def suggest(self, trial_id: str, finished: str) -> Any:
        """The configuration of a new worker; None if there are enough, `finished` at the end of the search.

        Tune calls this ten times a second.
        """
        if not self.is_over:
            with self._keeping_errors():
                self._dispatch()
        if self.is_over:
            return finished
        if len(self._workers) >= self._size or not self._monitor.answers():
            return None  # Ray does not return from a request for a worker if the cluster is dead
        self._workers[trial_id] = next(self._worker_numbers)
        return {"worker": self._workers[trial_id]}

    def on_result(self, trial_id: str) -> None:
        """Handle a worker that has started, or has evaluated its candidate."""
        if self.error:
            return
        with self._keeping_errors():
            self._failed_starts = 0
            candidate = self._busy.pop(trial_id, None)
            if candidate is not None:
                self._tell(candidate)
            self._idle.append(trial_id)
            self._dispatch()

    def on_complete(self, trial_id: str) -> None:
        """Handle a worker that has ended, mostly because its process died; `suggest` replaces it."""
        if self.error:
            return
        with self._keeping_errors():
            self._workers.pop(trial_id, None)
            candidate = self._busy.pop(trial_id, None)
            if candidate is not None:
                self._tell(candidate)
            elif trial_id in self._idle:
                self._idle.remove(trial_id)
            elif not self.is_over:
                self._count_failed_start()

    def _count_failed_start(self) -> None:
        self._failed_starts += 1
        error = self._pop_outcome(actors.SETUP_FAILED)
        if isinstance(error, Exception):
            raise error
        if self._failed_starts > MAX_FAILED_STARTS:
            raise NasspaceError(
                f"{self._failed_starts} workers in a row ended before they had started; is there memory for "
                f"{self._size} (1 GB each)? Give fewer --workers; what is finished is kept"
            )

    @contextlib.contextmanager
    def _keeping_errors(self) -> Iterator[None]:
        """Keep errors until Tune has ended: it would swallow some of them, and print the others."""
        import ray

        try:
            yield
        except ray.exceptions.RayError as error:  # of our own actor: Tune would wait for the cluster's other actors
            raise ClusterLost(str(error)) from error
        except ClusterLost:
            raise
        except BaseException as error:
            self.error = error
        if self.is_over:
            self.mailbox.close.remote()

    def _dispatch(self) -> None:
        """Send a candidate to every idle worker; with several, prefetch one, so that none waits for a proposal."""
        while self._idle and (candidate := self._next_candidate()) is not None:
            trial_id = self._idle.pop(0)
            self.manager.report_start(candidate)
            self._busy[trial_id] = candidate
            self._started_at[candidate.number] = time.monotonic()
            message: dict[str, Any] = {"number": candidate.number, "bounds": candidate.bounds}
            message["architecture"] = candidate.architecture.to_json()
            if self._timeout is not None:
                message |= {"timeout": self._timeout, "trace": str(self._trace_file(candidate))}
            self.mailbox.send.remote(self._workers[trial_id], message)
        if self._size > 1 and len(self._busy) >= self._size and self._prefetched is None:
            self._prefetched = self.manager.ask()

    def _next_candidate(self) -> Candidate | None:
        if self._requeued:
            return self._requeued.pop()
        candidate, self._prefetched = self._prefetched or self.manager.ask(), None
        return candidate

    def _tell(self, candidate: Candidate) -> None:
        """Tell the outcome of a candidate; requeue it, a few times, if its process died."""
        outcome = self._pop_outcome(candidate.number)
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is None:
            outcome = self._timeout_outcome(candidate)
        if outcome is None:
            self._deaths[candidate.number] += 1
            deaths = self._deaths[candidate.number]
            if deaths <= self.manager.problem.recipe.retries:
                self._requeued.append(candidate)
                self.manager.report("note", text=f"trial {candidate.number}: its process died; it is restarted")
                return
            outcome = Outcome({}, failure=f"its process died {times(deaths)} (such as by a signal)")
        self.manager.tell(candidate, outcome)

    def _pop_outcome(self, number: int) -> Any:
        """The outcome of a trial, or the exception that it ended with; None if there is none."""
        from ray import cloudpickle

        outcome = self._monitor.get(self.mailbox.pop_outcome.remote(number))
        return None if outcome is None else cloudpickle.loads(outcome)

    def _timeout_outcome(self, candidate: Candidate) -> Outcome | None:
        """The failure of a trial that was stopped at its timeout; None if its process died for another reason."""
        if self._timeout is None:
            return None
        try:
            trace = self._trace_file(candidate).read_text(errors="backslashreplace")
            timed_out = bool(trace)
        except OSError:  # on another node
            trace = ""
            timed_out = time.monotonic() - self._started_at[candidate.number] >= self._timeout
        if not timed_out:
            return None
        return Outcome({}, failure=f"it took more than {self._timeout:g} s (--trial-timeout)", traceback=trace)

    def _trace_file(self, candidate: Candidate) -> Path:
        return self._folder / f"trial-{candidate.number}.txt"

    def check_cluster(self) -> None:
        """Raise `ClusterLost` if the cluster is dead."""
        self._monitor.check()

    @property
    def is_over(self) -> bool:
        """Whether the search has finished, or failed."""
        if self.error is None:
            try:
                return self.manager.is_finished
            except BaseException as error:
                self.error = error
        return True


def run(manager: TrialManager, fresh_latency: bool) -> None:
    """Evaluate the manager's candidates on Ray, several at a time, until the search is finished."""
    if manager.is_finished:
        return
    recipe = manager.problem.recipe
    payload = Payload.from_problem(manager.problem, fresh_latency)
    resume_command = f"nas resume {paths.as_argument(manager.study.folder)}"
    with cluster.connect(recipe, payload.nbytes, resume_command) as connection:
        dispatcher = _run_tuner(manager, payload, recipe, connection)
        if dispatcher.error:
            raise dispatcher.error


def _run_tuner(manager: TrialManager, payload: Payload, recipe: Recipe, connection: cluster.Connection) -> Dispatcher:
    """Start the actors and run Tune to its end."""
    import ray
    from ray import tune

    if payload.function is not None:
        cluster.pickle_by_value({"function": payload.function.function, **payload.function.known_functions})
    cluster.pickle_by_value(payload.blocks)
    nodes = cluster.nodes()
    cluster.check_nodes(nodes, recipe)
    mailbox: Any = ray.remote(Mailbox).options(num_cpus=0, **cluster.on_driver_node()).remote()
    # The payload is owned by the mailbox: see `actors.worker_class`.
    (reference,) = connection.monitor.get(mailbox.store_payload.remote(serialized(payload)))
    latency_actor = _start_latency_actor(manager, reference, recipe, nodes, connection.monitor)
    placement = cluster.worker_placement(recipe, nodes)
    selector = [placement.labels] if placement.labels else None
    resources = tune.PlacementGroupFactory([placement.bundle], bundle_label_selector=selector)
    workers = min(recipe.workers, placement.capacity)
    if workers < recipe.workers:
        manager.report("note", text=f"only {workers} of {recipe.workers} workers fit on the cluster")
    worker = actors.worker_class(mailbox, latency_actor)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a dead worker is no error here
    all_at_once = {"TUNE_MAX_PENDING_TRIALS_PG": str(workers)}
    with cluster.environment_with(all_at_once):
        dispatcher = Dispatcher(manager, mailbox, workers, connection)
        tune.Tuner(
            tune.with_resources(worker, resources),
            tune_config=tune.TuneConfig(search_alg=_searcher(dispatcher), num_samples=-1, reuse_actors=False),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(connection.folder / "tune"),
                stop=_stopper(dispatcher),
                failure_config=tune.FailureConfig(max_failures=0),  # the dispatcher replaces dead workers
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        ).fit()
    return dispatcher


def _start_latency_actor(
    manager: TrialManager, payload: Any, recipe: Recipe, nodes: cluster.Nodes, monitor: ClusterMonitor
) -> Any:
    """Start the actor that measures latencies: on a node with the resource `latency`, or here for a device over SSH.

    None if the workers measure themselves, in turn. Raises `InputError` for a node that is not the study's machine.
    """
    import ray

    if manager.problem.data is None or not needs_latency(recipe):
        return None
    if recipe.latency_device != remote.LOCAL:
        return ray.remote(actors.LatencyActor).options(num_cpus=0, **cluster.on_driver_node()).remote(payload)
    if not nodes.measuring:
        return None
    options = {"num_cpus": 0, "resources": {cluster.LATENCY: 1}, "max_restarts": -1, "max_task_retries": recipe.retries}
    actor: Any = ray.remote(actors.LatencyActor).options(**options).remote(payload)
    note = functools.partial(manager.report, "note")
    result = actor.machine.remote()
    machine = cluster.wait_for_node(result, NODE_TIMEOUT, "to start the search", lambda text: note(text=text), monitor)
    expected = manager.study.latency_machine()
    if expected is not None and not is_same_machine(machine, expected):
        raise InputError(
            f"{manager.study.folder}: the node that carries '{cluster.LATENCY}' is another machine "
            f"({machine_text(machine)}) than the study's latencies were measured on ({machine_text(expected)}); search "
            "again under another --study name"
        )
    return actor


def _searcher(dispatcher: Dispatcher) -> Any:
    """Tune's searcher. It keeps no state, since the study does."""
    from ray.tune.search import Searcher

    class StudySearcher(Searcher):
        def suggest(self, trial_id: str) -> Any:
            return dispatcher.suggest(trial_id, Searcher.FINISHED)

        def on_trial_result(self, trial_id: str, result: Any) -> None:
            dispatcher.on_result(trial_id)

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            dispatcher.on_complete(trial_id)

        def save_to_dir(self, *_: Any, **__: Any) -> None:
            pass

        def __deepcopy__(self, _: Any) -> StudySearcher:
            return self

        def __reduce__(self) -> Any:
            return dict, ()  # Tune stores its searcher to resume, which the study does here

    return StudySearcher(metric="number", mode="max")


def _stopper(dispatcher: Dispatcher) -> Any:
    """Tune's stopper: ends all workers at the end of the search."""
    from ray import tune

    class SearchStopper(tune.Stopper):
        def __call__(self, trial_id: str, result: Any) -> bool:
            return False

        def stop_all(self) -> bool:
            dispatcher.check_cluster()
            return dispatcher.is_over

        def __deepcopy__(self, _: Any) -> SearchStopper:
            return self

        def __reduce__(self) -> Any:
            return dict, ()

    return SearchStopper()
