"""The search on Ray Tune: its searcher asks the driver for candidates and tells it outcomes."""

from __future__ import annotations

import contextlib
import functools
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nasspace.errors import InputError
from nasspace.latency import remote
from nasspace.studies import evaluate
from nasspace.studies.driver import Candidate, Driver
from nasspace.studies.recipe import Recipe
from nasspace.studies.rows import is_same_machine, machine_text
from nasspace.studies.workers import cluster, trainable
from nasspace.studies.workers.parts import Sent

STATION = 120.0  # seconds in which a node that measures must be free


class Asking:
    """What Tune asks for trials: as many at once as there are workers, from the driver."""

    def __init__(self, driver: Driver, box: Any, workers: int, folder: Path) -> None:
        self.driver = driver
        self.box = box
        self._folder = folder  # for the tracebacks of trials that are stopped
        self._timeout = driver.task.recipe.trial_timeout
        self._since: dict[int, float] = {}
        self._begin = iter(range(workers))
        self._workers = workers
        self._next: Candidate | None = None
        self._lost: list[Candidate] = []
        self._losses: Counter[int] = Counter()
        self.error: BaseException | None = None
        self._asked: dict[str, Candidate] = {}

    def suggest(self, trial_id: str, finished: str) -> Any:
        """The next trial; None for none at present, `finished` when there will be none."""
        if self.error:
            return finished
        for worker in self._begin:
            return {"number": worker, "workers": self._workers}
        try:
            if self._next is None:
                self._next = self._lost.pop() if self._lost else self.driver.ask() if self._room() else None
            if self._next is None:
                return finished if self.driver.finished else None
            if len(self._asked) >= self._workers:
                return None
            candidate, self._next = self._next, None
            self.driver.started(candidate)
        except BaseException as error:
            self.error = error
            return finished
        self._asked[trial_id] = candidate
        self._since[candidate.number] = time.monotonic()
        asked = {"number": candidate.number, "architecture": candidate.architecture.to_json()}
        if self._timeout is not None:
            asked |= {"timeout": self._timeout, "trace": str(self._trace(candidate))}
        return asked

    def _trace(self, candidate: Candidate) -> Path:
        return self._folder / f"trial-{candidate.number}.txt"

    def _timed_out(self, candidate: Candidate) -> evaluate.Outcome | None:
        """The failure of a trial that was stopped at the timeout; None where its worker was lost for another reason."""
        if self._timeout is None:
            return None
        try:
            trace = self._trace(candidate).read_text(errors="backslashreplace")
        except OSError:  # on another node
            trace = ""
        if not trace and time.monotonic() - self._since[candidate.number] < self._timeout:
            return None
        return evaluate.Outcome({}, failure=f"it took more than {self._timeout:g} s (--trial-timeout)", traceback=trace)

    def _room(self) -> bool:
        """Whether to ask; beside several workers one ahead, so that none waits for a proposal to be computed."""
        return len(self._asked) < self._workers + (self._workers > 1)

    def complete(self, trial_id: str) -> None:
        """A trial has ended: evaluated, or lost with its process; then it is begun again, but not for ever."""
        import ray

        candidate = self._asked.pop(trial_id, None)
        if candidate is None or self.error:
            return
        try:
            outcome = ray.get(self.box.take.remote(candidate.number))
            if isinstance(outcome, Exception):
                raise outcome
            if outcome is None:
                outcome = self._timed_out(candidate)
            if outcome is None:
                self._losses[candidate.number] += 1
                if self._losses[candidate.number] <= self.driver.task.recipe.retries:
                    self._lost.append(candidate)
                    self.driver.report("note", text=f"trial {candidate.number}: its process died; it is started again")
                    return
                times = self._losses[candidate.number]
                outcome = evaluate.Outcome({}, failure=f"its process died {times} times (such as by a signal)")
            self.driver.tell(candidate, outcome)
        except BaseException as error:
            self.error = error

    @property
    def over(self) -> bool:
        """Whether Tune has nothing more to do."""
        return self.error is not None or self.driver.finished


def run(driver: Driver, fresh_latency: bool) -> None:
    """Evaluate the driver's candidates on Ray, several at a time; returns when the search has come to its end."""
    if driver.finished:
        return
    recipe = driver.task.recipe
    sent = Sent.of(driver.task, fresh_latency)
    size = sum(array.nbytes for pair in sent.arrays.values() for array in pair)
    with cluster.connected(recipe, size), _lost_clusters():
        asking = _tuned(driver, sent, recipe)
        if asking.error:
            raise asking.error


@contextlib.contextmanager
def _lost_clusters() -> Iterator[None]:
    """What Ray raises when the cluster goes, as one message."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"the Ray cluster was lost ({said}); start it again, then `nas resume` goes on") from error


def _tuned(driver: Driver, sent: Sent, recipe: Recipe) -> Asking:
    import ray
    from ray import tune

    if sent.function is not None:
        cluster.by_value({"function": sent.function.function, **sent.function.known})
    cluster.by_value(sent.blocks)
    nodes = cluster.nodes()
    cluster.check(nodes, recipe)
    reference = ray.put(sent)
    box = ray.remote(trainable.Box).options(num_cpus=0, **cluster.on_this_node()).remote()
    station = _station(driver, reference, recipe, nodes)
    resources, room = _resources(recipe, nodes)
    workers = min(recipe.workers, room)
    if workers < recipe.workers:
        driver.report("note", text=f"{workers} of {recipe.workers} workers find place on the cluster as it is")
    parameters = {"sent": [reference], "box": box, "station": station}
    evaluation = tune.with_parameters(trainable.evaluation(), **parameters)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a lost trial is no error here
    pending = {"TUNE_MAX_PENDING_TRIALS_PG": str(workers)}  # all of them begin at once
    with tempfile.TemporaryDirectory(prefix="nasspace-") as folder, cluster.environment_with(pending):
        asking = Asking(driver, box, workers, Path(folder).resolve())
        tune.Tuner(
            tune.with_resources(evaluation, resources),
            tune_config=tune.TuneConfig(search_alg=_searcher(asking), num_samples=-1, reuse_actors=True),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(Path(folder).resolve()),
                stop=_stopper(asking),
                failure_config=tune.FailureConfig(max_failures=0),  # `Asking` begins them again: Tune not always would
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        ).fit()
    return asking


def _station(driver: Driver, sent: Any, recipe: Recipe, nodes: cluster.Nodes) -> Any:
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
    machine = cluster.awaited(asked, STATION, "to begin", lambda text: note(text=text))
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

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            asking.complete(trial_id)

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
            return asking.over

        def __deepcopy__(self, _: Any) -> Over:
            return self

        def __reduce__(self) -> Any:
            return dict, ()

    return Over()
