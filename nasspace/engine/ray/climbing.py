"""Rungs on a Ray cluster: several networks are trained further at a time, each as a task on any node that trains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace import files, temporary
from nasspace.architecture import Architecture
from nasspace.engine import rungs
from nasspace.engine.ray import actors, cluster
from nasspace.engine.ray.mailbox import Mailbox
from nasspace.engine.ray.payload import Parts, Payload, deserialized, serialized
from nasspace.engine.ray.watch import ClusterMonitor
from nasspace.formatting import times
from nasspace.studies.recipe import Recipe
from nasspace.training.settings import Fidelity

if TYPE_CHECKING:
    from nasspace.data.images import DataSet

SLICE = 1.0  # seconds between two checks of the cluster
NODE_DEATHS = 3  # deaths of a node that are not the fault of the network that it trained


@dataclass(frozen=True)
class Job:
    """One training of `rungs.climb`: a trial's number, its architecture as JSON, and its start.

    `weights` are the content of a safetensors file, None to repeat the trainings before. `checkpoints` are the files of
    a training that was stopped, by name.
    """

    number: int
    architecture: str
    weights: bytes | None
    steps: tuple[Fidelity, ...]
    done: int
    checkpoints: Mapping[str, bytes]


def climb(
    numbers: Sequence[int],
    job_of: Callable[[int], Job],
    recipe: Recipe,
    data: DataSet,
    *,
    checkpoints: Path,
    resume_command: str,
    is_over: Callable[[], bool],
    on_epoch: Callable[[dict[int, tuple[int, int]]], None] = lambda _: None,
    on_note: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[int, rungs.Climbed | rungs.Diverged]]:
    """Train networks on the cluster; yields each trial's number with its result, as they end.

    `job_of` is called when a trial's training starts, since a job holds weights and checkpoints. `data` has the
    resolution of all their architectures. Once `is_over`, no further training starts; those that run are finished,
    but one whose process dies then is left for `nas resume`.

    A training whose process or node dies continues on any node from its last checkpoint. If its process dies more often
    than the recipe's `retries`, or its node more than `NODE_DEATHS` times, it has failed. This process writes the
    checkpoints to the folder `checkpoints`, so that they also survive its own end. `on_epoch` gets the epochs done and
    to do by trial, `on_note` sentences for the user.
    """
    payload = Payload.from_data(recipe, data)
    with cluster.connect(recipe, payload.nbytes, resume_command) as connection:
        import ray
        from ray import cloudpickle

        monitor = connection.monitor
        cluster.pickle_by_value(payload.blocks)
        placement = cluster.worker_placement(recipe, cluster.nodes())
        workers = min(recipe.workers, placement.capacity)
        mailbox: Any = ray.remote(Mailbox).options(num_cpus=0, **cluster.on_driver_node()).remote()
        # Payload and results are owned by the mailbox or a worker, not by this process: see `actors.worker_class`.
        (reference,) = monitor.get(mailbox.store_payload.remote(serialized(payload)))
        # Retries are counted here: Ray's own are endless where a process was killed for lack of memory.
        task = ray.remote(_climb).options(**placement.options, max_retries=0)
        waiting, running = list(numbers), {}
        deaths: defaultdict[int, list[Exception]] = defaultdict(list)
        told: dict[int, tuple[int, int]] = {}
        while running or (waiting and not is_over()):
            while waiting and len(running) < workers and not is_over():
                job = job_of(waiting.pop(0))
                running[task.remote([reference], [mailbox], job)] = job.number
            if not running:  # time was used up in the meantime
                break
            monitor.check()
            ready, _ = ray.wait(list(running), num_returns=1, timeout=SLICE)
            at_work = set(running.values())
            unsaved, epochs, notes = monitor.get(mailbox.news.remote())
            files.write_together(
                {checkpoints / name: content for number, name, content in unsaved if number in at_work}
            )
            for text in notes:
                on_note(text)
            epochs = {number: each for number, each in epochs.items() if number in at_work}
            if epochs and epochs != told:
                on_epoch(epochs)
                told = epochs
            for one in ready:
                number, death = running.pop(one), _death(one, monitor)
                found = monitor.get(mailbox.pop_outcome.remote(number))
                if death and found is None:
                    deaths[number].append(death)
                    if reason := _reason_to_give_up(deaths[number], recipe.retries):
                        monitor.get(mailbox.drop_checkpoints.remote(number))
                        yield number, rungs.Diverged(reason)
                    else:
                        on_note(f"trial {number}: its process or node died; it continues from its last checkpoint")
                        waiting.insert(0, number)
                    continue
                outcome = cloudpickle.loads(found)
                if isinstance(outcome, Exception) and not isinstance(outcome, rungs.Diverged):
                    raise outcome
                yield number, outcome


def _death(task: Any, monitor: ClusterMonitor) -> Exception | None:
    """How a task's process died; None if it did not. If the cluster is gone, too, that is raised."""
    import ray

    kinds = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError)
    try:
        ray.get(task)
    except kinds as error:
        if monitor.is_lost or not monitor.answers():
            raise
        return error
    return None


def _reason_to_give_up(deaths: Sequence[Exception], retries: int) -> str:
    """Why a training is given up after these deaths; empty if it is tried again.

    One that Ray killed for lack of memory may succeed at another time, so that the search ends with an error.
    """
    import ray

    processes = [death for death in deaths if not isinstance(death, ray.exceptions.NodeDiedError)]
    if len(processes) > retries:
        if isinstance(processes[-1], ray.exceptions.OutOfMemoryError):
            raise rungs.stopped(f"Ray killed its process {times(len(processes))}, as the node had no memory left")
        return f"its process died {times(len(processes))} (such as by a signal)"
    nodes = len(deaths) - len(processes)
    return f"{nodes} nodes died while they trained it" if nodes > NODE_DEATHS else ""


def _climb(payload: list[Any], mailbox: list[Any], job: Job) -> None:
    """Train one network in a worker, and send epochs, checkpoints and result to the mailbox; references are in lists.

    A process that died before left checkpoints there.
    """
    import ray
    from ray import cloudpickle
    from safetensors.torch import load

    outcome: Any
    try:
        parts: Parts = ray.get(payload[0])
        recipe, data = deserialized(parts).training()
        weights = None if job.weights is None else load(job.weights)
        left = {**job.checkpoints, **ray.get(mailbox[0].checkpoints.remote(job.number))}

        def keep(path: Path) -> None:
            ray.get(mailbox[0].put_checkpoint.remote(job.number, path.name, path.read_bytes()))  # one after the other

        def tell_unfit(reason: str) -> None:
            mailbox[0].put_note.remote(f"trial {job.number}: {rungs.UNFIT.format(reason=reason)}")

        with temporary.private() as folder:
            for name, content in left.items():
                (folder / name).write_bytes(content)
            outcome = rungs.climb(
                Architecture.from_json(job.architecture),
                recipe,
                data,
                weights,
                steps=job.steps,
                done=job.done,
                checkpoints=folder,
                device=recipe.device,
                on_epoch=lambda epoch, epochs, _: mailbox[0].put_epoch.remote(job.number, epoch, epochs),
                on_checkpoint=keep,
                on_unfit=tell_unfit,
            )
    except ray.exceptions.RayError:
        raise
    except rungs.Diverged as error:
        outcome = error
    except Exception as error:
        outcome = actors.serializable(error)
    ray.get(mailbox[0].put_outcome.remote(job.number, cloudpickle.dumps(outcome)))
