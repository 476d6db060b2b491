"""The search on Ray Tune: its searcher asks the driver for candidates and tells it outcomes."""

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

from nasspace.errors import InputError, NasspaceError
from nasspace.latency import remote
from nasspace.studies import evaluate, places
from nasspace.studies.driver import Candidate, Driver
from nasspace.studies.recipe import Recipe
from nasspace.studies.rows import is_same_machine, machine_text
from nasspace.studies.workers import cluster, trainable
from nasspace.studies.workers.box import Box
from nasspace.studies.workers.parts import Sent, packed
from nasspace.studies.workers.watch import Lost, Watch

STATION = 120.0  # seconds in which a node that measures must be free
STILLBORN = 5  # workers in a row that may end before they have started


class Asking:
    """Gives the driver's candidates to the workers, and their outcomes to the driver.

    A trial of Tune is a worker for as long as it lives, not a candidate: when one becomes free while another starts,
    Tune with `reuse_actors` gives the free one the other's trial and stops the one that starts, so that a worker that
    was lost is not replaced while the others have work.
    """

    def __init__(self, driver: Driver, box: Any, workers: int, connection: cluster.Connection) -> None:
        self.driver = driver
        self.box = box
        self._folder = connection.folder  # for the tracebacks of trials that are stopped
        self._watch = connection.watch
        self._timeout = driver.task.recipe.trial_timeout
        self._since: dict[int, float] = {}
        self._size = workers
        self._numbers = itertools.count()
        self._workers: dict[str, int] = {}  # by Tune's trial, those that are starting and those that have started
        self._idle: list[str] = []
        self._busy: dict[str, Candidate] = {}
        self._stillborn = 0  # workers in a row that ended before they had started
        self._ahead: Candidate | None = None
        self._lost: list[Candidate] = []
        self._losses: Counter[int] = Counter()
        self.error: BaseException | None = None

    def suggest(self, trial_id: str, finished: str) -> Any:
        """The next worker; None if there are enough, `finished` when the search is over. Asked ten times a second."""
        if not self.over:
            with self._errors_kept():
                self._give()
        if self.over:
            return finished
        if len(self._workers) >= self._size or not self._watch.answers():
            return None  # Ray does not come back from a request for a worker if the cluster is gone
        self._workers[trial_id] = next(self._numbers)
        return {"worker": self._workers[trial_id]}

    def stepped(self, trial_id: str) -> None:
        """A worker has started, or has evaluated its candidate."""
        if self.error:
            return
        with self._errors_kept():
            self._stillborn = 0
            candidate = self._busy.pop(trial_id, None)
            if candidate is not None:
                self._tell(candidate)
            self._idle.append(trial_id)
            self._give()

    def ended(self, trial_id: str) -> None:
        """A worker has ended, most likely with its process: `suggest` replaces it, its candidate is started again."""
        if self.error:
            return
        with self._errors_kept():
            self._workers.pop(trial_id, None)
            candidate = self._busy.pop(trial_id, None)
            if candidate is not None:
                self._tell(candidate)
            elif trial_id in self._idle:
                self._idle.remove(trial_id)
            elif not self.over:
                self._stillborn += 1
                why = self._taken(trainable.UNPREPARED)
                if isinstance(why, Exception):
                    raise why
                if self._stillborn > STILLBORN:
                    raise NasspaceError(
                        f"{self._stillborn} workers in a row ended before they had started; is there memory for "
                        f"{self._size} (1 GB each)? Give fewer --workers; what is finished is kept"
                    )

    @contextlib.contextmanager
    def _errors_kept(self) -> Iterator[None]:
        """Keep what is raised for after Tune's end; Tune would swallow some of it, and print the rest."""
        import ray

        try:
            yield
        except ray.exceptions.RayError as error:  # of our own actor: Tune's end would wait for others of the cluster's
            raise Lost(str(error)) from error
        except Lost:
            raise
        except BaseException as error:
            self.error = error
        if self.over:
            self.box.end.remote()

    def _give(self) -> None:
        """A candidate for every idle worker; with several workers one ahead, so that none waits for a proposal."""
        while self._idle and (candidate := self._next()) is not None:
            trial_id = self._idle.pop(0)
            self.driver.started(candidate)
            self._busy[trial_id] = candidate
            self._since[candidate.number] = time.monotonic()
            asked = {"number": candidate.number, "architecture": candidate.architecture.to_json()}
            if self._timeout is not None:
                asked |= {"timeout": self._timeout, "trace": str(self._trace(candidate))}
            self.box.give.remote(self._workers[trial_id], asked)
        if self._size > 1 and len(self._busy) >= self._size and self._ahead is None:
            self._ahead = self.driver.ask()

    def _next(self) -> Candidate | None:
        if self._lost:
            return self._lost.pop()
        candidate, self._ahead = self._ahead or self.driver.ask(), None
        return candidate

    def _trace(self, candidate: Candidate) -> Path:
        return self._folder / f"trial-{candidate.number}.txt"

    def _timed_out(self, candidate: Candidate) -> evaluate.Outcome | None:
        """The failure of a trial that was stopped at the timeout; None where its worker was lost for another reason."""
        if self._timeout is None:
            return None
        try:
            trace = self._trace(candidate).read_text(errors="backslashreplace")
            stopped = bool(trace)
        except OSError:  # on another node
            trace = ""
            stopped = time.monotonic() - self._since[candidate.number] >= self._timeout
        if not stopped:
            return None
        return evaluate.Outcome({}, failure=f"it took more than {self._timeout:g} s (--trial-timeout)", traceback=trace)

    def _tell(self, candidate: Candidate) -> None:
        """Record the outcome of a trial; one that was lost with its process is started again, a few times."""
        outcome = self._taken(candidate.number)
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is None:
            outcome = self._timed_out(candidate)
        if outcome is None:
            self._losses[candidate.number] += 1
            times = self._losses[candidate.number]
            if times <= self.driver.task.recipe.retries:
                self._lost.append(candidate)
                self.driver.report("note", text=f"trial {candidate.number}: its process died; it is started again")
                return
            outcome = evaluate.Outcome({}, failure=f"its process died {times} times (such as by a signal)")
        self.driver.tell(candidate, outcome)

    def _taken(self, number: int) -> Any:
        """The outcome of a trial, or the exception that it ended with; None if there is none."""
        from ray import cloudpickle

        found = self._watch.got(self.box.take.remote(number))
        return None if found is None else cloudpickle.loads(found)

    def check(self) -> None:
        """Raise `Lost` if the cluster is gone."""
        self._watch.check()

    @property
    def over(self) -> bool:
        """Whether Tune has nothing more to do."""
        if self.error is None:
            try:
                return self.driver.finished
            except BaseException as error:
                self.error = error
        return True


def run(driver: Driver, fresh_latency: bool) -> None:
    """Evaluate the driver's candidates on Ray, several at a time; returns when the search has come to its end."""
    if driver.finished:
        return
    recipe = driver.task.recipe
    sent = Sent.of(driver.task, fresh_latency)
    size = sum(array.nbytes for pair in sent.arrays.values() for array in pair)
    go_on = f"nas resume {places.shown(driver.study.folder)}"
    with cluster.connected(recipe, size, go_on) as connection:
        asking = _tuned(driver, sent, recipe, connection)
        if asking.error:
            raise asking.error


def _tuned(driver: Driver, sent: Sent, recipe: Recipe, connection: cluster.Connection) -> Asking:
    import ray
    from ray import tune

    if sent.function is not None:
        cluster.by_value({"function": sent.function.function, **sent.function.known})
    cluster.by_value(sent.blocks)
    nodes = cluster.nodes()
    cluster.check(nodes, recipe)
    box = ray.remote(Box).options(num_cpus=0, **cluster.on_this_node()).remote()
    (reference,) = connection.watch.got(box.keep.remote(packed(sent)))  # owned by the box: see `trainable.evaluation`
    station = _station(driver, reference, recipe, nodes, connection.watch)
    resources, room = _resources(recipe, nodes)
    workers = min(recipe.workers, room)
    if workers < recipe.workers:
        driver.report("note", text=f"{workers} of {recipe.workers} workers find place on the cluster as it is")
    evaluation = trainable.evaluation(box, station)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a lost trial is no error here
    pending = {"TUNE_MAX_PENDING_TRIALS_PG": str(workers)}  # all of them begin at once
    with cluster.environment_with(pending):
        asking = Asking(driver, box, workers, connection)
        tune.Tuner(
            tune.with_resources(evaluation, resources),
            tune_config=tune.TuneConfig(search_alg=_searcher(asking), num_samples=-1, reuse_actors=False),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(connection.folder / "tune"),
                stop=_stopper(asking),
                failure_config=tune.FailureConfig(max_failures=0),  # `Asking` replaces them
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        ).fit()
    return asking


def _station(driver: Driver, sent: Any, recipe: Recipe, nodes: cluster.Nodes, watch: Watch) -> Any:
    """Where latencies are taken: None, by the workers themselves in turn, or an actor that does one at a time.

    On nodes that carry the resource `latency`; a device behind SSH is asked from the driver's node.
    """
    import ray

    if driver.task.data is None or not evaluate.measures(recipe):
        return None
    if recipe.latency_device != remote.LOCAL:
        return ray.remote(trainable.Station).options(num_cpus=0, **cluster.on_this_node()).remote(sent)
    if not nodes.measuring:
        return None
    options = {"num_cpus": 0, "resources": {cluster.LATENCY: 1}, "max_restarts": -1, "max_task_retries": recipe.retries}
    station = ray.remote(trainable.Station).options(**options).remote(sent)
    note = functools.partial(driver.report, "note")
    asked = station.machine.remote()
    machine = cluster.awaited(asked, STATION, "to begin", lambda text: note(text=text), watch)
    expected = driver.study.latency_machine()
    if expected is not None and not is_same_machine(machine, expected):
        raise InputError(
            f"{driver.study.folder}: the node that carries '{cluster.LATENCY}' is another machine "
            f"({machine_text(machine)}) than the study's latencies were measured on ({machine_text(expected)}); search "
            "again under another --study name"
        )
    return station


def _resources(recipe: Recipe, nodes: cluster.Nodes) -> tuple[Any, int]:
    """What one worker takes, a core and a share of a GPU, and how many of them find place now.

    On nodes that do not measure, where there are others that have it.
    """
    from ray import tune

    gpus = recipe.gpus if recipe.gpus is not None else float(recipe.device.startswith("cuda"))
    bundle = {"CPU": 1.0, **({"GPU": gpus} if gpus else {})}
    if nodes.measuring and (room := cluster.room(nodes.others, bundle)):
        elsewhere = {"ray.io/node-id": f"!in({','.join(nodes.measuring)})"}
        return tune.PlacementGroupFactory([bundle], bundle_label_selector=[elsewhere]), room
    room = cluster.room((*nodes.others, *nodes.measuring), bundle)
    if not room:
        wanted = " and ".join(f"{amount:g} {name}" for name, amount in bundle.items())
        raise InputError(f"no node of the Ray cluster has {wanted} for a worker; add one, or ask for less (--gpus)")
    return tune.PlacementGroupFactory([bundle]), room


def _searcher(asking: Asking) -> Any:
    """Tune's view of what asks: it keeps no state, since the study does."""
    from ray.tune.search import Searcher

    class StudySearcher(Searcher):
        def suggest(self, trial_id: str) -> Any:
            return asking.suggest(trial_id, Searcher.FINISHED)

        def on_trial_result(self, trial_id: str, result: Any) -> None:
            asking.stepped(trial_id)

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            asking.ended(trial_id)

        def save_to_dir(self, *_: Any, **__: Any) -> None:
            pass

        def __deepcopy__(self, _: Any) -> StudySearcher:
            return self

        def __reduce__(self) -> Any:
            return dict, ()  # Tune writes it down for its own resuming, which is not ours

    return StudySearcher(metric="number", mode="max")


def _stopper(asking: Asking) -> Any:
    """Tune's view of the end of a search."""
    from ray import tune

    class Over(tune.Stopper):
        def __call__(self, trial_id: str, result: Any) -> bool:
            return False

        def stop_all(self) -> bool:
            asking.check()
            return asking.over

        def __deepcopy__(self, _: Any) -> Over:
            return self

        def __reduce__(self) -> Any:
            return dict, ()

    return Over()
