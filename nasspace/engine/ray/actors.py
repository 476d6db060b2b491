"""What runs in the processes of a cluster: the evaluation of candidates, the measuring, the box for outcomes."""

from __future__ import annotations

import asyncio
import copy
import traceback
from collections import defaultdict
from typing import Any

from nasspace.architecture import Architecture
from nasspace.engine.evaluator import Outcome
from nasspace.engine.latency_evaluator import LatencyEvaluator, MeasuredLatency
from nasspace.engine.ray.payload import Sent
from nasspace.engine.timeouts import limits_paused, time_limit
from nasspace.engine.trials import scored
from nasspace.errors import InputError

MEASURED = 1800.0  # seconds for a latency, with all that wait for the same node
NOTHING = -1  # the number in a result that stands for no trial
UNPREPARED = -2  # the number of the outcome that says why a worker could not prepare itself


class Box:
    """Candidates on their way to the workers, by worker, and outcomes on their way back, by trial number.

    Outcomes are too large for Tune's tables of results. The methods are coroutines, so that every worker can wait here.
    """

    def __init__(self) -> None:
        self._sent: list[Any] = []
        self._outcomes: dict[int, Outcome | Exception] = {}
        self._given: defaultdict[int, asyncio.Queue[dict[str, Any] | None]] = defaultdict(asyncio.Queue)
        self._ended = False

    async def keep(self, sent: Sent) -> list[Any]:
        """Store what the workers are sent; the reference to it, in a list, as Ray replaces a bare one by its value."""
        import ray

        self._sent = [ray.put(sent)]
        return self._sent

    async def sent(self) -> list[Any]:
        return self._sent

    async def give(self, worker: int, asked: dict[str, Any]) -> None:
        self._given[worker].put_nowait(asked)

    async def next(self, worker: int) -> dict[str, Any] | None:
        """Wait for the candidate of a worker; None if there will be none."""
        return None if self._ended else await self._given[worker].get()

    async def end(self) -> None:
        """Release the workers that wait."""
        self._ended = True
        for waiting in self._given.values():
            waiting.put_nowait(None)

    async def put(self, number: int, outcome: Outcome | Exception) -> None:
        self._outcomes[number] = outcome

    async def take(self, number: int) -> Outcome | Exception | None:
        """Pop and return the outcome of a trial."""
        return self._outcomes.pop(number, None)


class Station:
    """Measures latencies, one at a time, on the node that it runs on."""

    def __init__(self, sent: Sent) -> None:
        self._measurer: LatencyEvaluator = sent.measurer()

    def machine(self) -> dict[str, Any]:
        """What the node is, as `latency.conditions.machine`."""
        from nasspace.latency.conditions import machine

        return machine()

    def measure(self, architecture: str) -> MeasuredLatency:
        return self._measurer(Architecture.from_json(architecture))


class AtStation:
    """A measurer that sends its candidates to a station."""

    def __init__(self, station: Any) -> None:
        self._station = station

    def __call__(self, architecture: Architecture) -> MeasuredLatency:
        import ray

        try:
            with limits_paused():  # waiting for the node is not the trial's own time
                return ray.get(self._station.measure.remote(architecture.to_json()), timeout=MEASURED)
        except ray.exceptions.RayTaskError as error:  # is a RayError, too, which would count as a lost process
            raise error.cause from None
        except ray.exceptions.GetTimeoutError:
            raise InputError(
                f"the node that measures has not answered for {MEASURED / 60:.0f} minutes; is it lost? Start one with "
                "the resource 'latency', then `nas resume` goes on"
            ) from None


def travelling(error: Exception) -> Exception:
    """The error itself if it can be sent, else what it says; with the place that it comes from."""
    where = "".join(traceback.format_tb(error.__traceback__))
    try:
        copy.copy(error)  # made anew from its arguments, as it will be there
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In a worker:\n{where}")
    return error


def evaluation(box: Any, station: Any) -> type:
    """The class of Tune's trials, each of which is a worker; made when asked for, since Ray is imported late.

    The actors are not `tune.with_parameters`, which would make objects of them that this process owns. Ray ends the
    process that owns an object in a store whose node is stopped, with a line of its log and exit status 1.
    """
    import ray
    from ray import tune

    class Evaluation(tune.Trainable):
        """A worker: evaluates candidates in one process, one a step; what it imported and loaded serves them all."""

        def setup(self, config: dict[str, Any]) -> None:
            (reference,) = ray.get(box.sent.remote())
            self._worker = config["worker"]
            self._has_started = False
            try:
                self._scorer = ray.get(reference).scorer(None if station is None else AtStation(station))
            except ray.exceptions.RayError:
                raise
            except Exception as error:
                ray.get(box.put.remote(UNPREPARED, travelling(error)))
                raise

        def step(self) -> dict[str, Any]:
            """Report that the worker has started, then evaluate what it is given until there is nothing more."""
            if not self._has_started:
                self._has_started = True
                return {"number": NOTHING}
            asked = ray.get(box.next.remote(self._worker))
            if asked is None:
                return {"number": NOTHING, "done": True}
            ray.get(box.put.remote(asked["number"], self._outcome(asked)))
            return {"number": asked["number"]}

        def _outcome(self, asked: dict[str, Any]) -> Outcome | Exception:
            """What the evaluator raises is an outcome, too: only a lost process is tried again."""
            architecture = Architecture.from_json(asked["architecture"])
            try:
                with time_limit(asked.get("timeout"), asked.get("trace")):
                    return scored(self._scorer, architecture)
            except ray.exceptions.RayError:
                raise
            except Exception as error:
                return travelling(error)

    return Evaluation
