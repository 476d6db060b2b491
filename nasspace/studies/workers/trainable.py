"""What runs in the processes of a cluster: the evaluation of candidates and the measuring."""

from __future__ import annotations

import copy
import traceback
from typing import Any

from nasspace.architecture import Architecture
from nasspace.errors import InputError
from nasspace.studies.driver import scored
from nasspace.studies.evaluate import Outcome
from nasspace.studies.measure import Measured, Measurer
from nasspace.studies.timeouts import paused, stopped_after
from nasspace.studies.workers.parts import Arrays, unpacked

MEASURED = 1800.0  # seconds for a latency, with all that wait for the same node
NOTHING = -1  # the number in a result that stands for no trial
UNPREPARED = -2  # the number of the outcome that says why a worker could not prepare itself


class Station:
    """Measures latencies, one at a time, on the node that it runs on."""

    def __init__(self, sent: tuple[bytes, Arrays]) -> None:
        self._measurer: Measurer = unpacked(sent).measurer()

    def machine(self) -> dict[str, Any]:
        """What the node is, as `latency.cache.machine`."""
        from nasspace.latency.cache import machine

        return machine()

    def measure(self, architecture: str) -> Measured:
        return self._measurer(Architecture.from_json(architecture))


class AtStation:
    """A measurer that sends its candidates to a station."""

    def __init__(self, station: Any) -> None:
        self._station = station

    def __call__(self, architecture: Architecture) -> Measured:
        import ray

        try:
            with paused():  # waiting for the node is not the trial's own time
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
    from ray import cloudpickle, tune

    class Evaluation(tune.Trainable):
        """A worker: evaluates candidates in one process, one a step; what it imported and loaded serves them all."""

        def setup(self, config: dict[str, Any]) -> None:
            (reference,) = ray.get(box.sent.remote())
            self._worker = config["worker"]
            self._has_started = False
            try:
                self._scorer = unpacked(ray.get(reference)).scorer(None if station is None else AtStation(station))
            except ray.exceptions.RayError:
                raise
            except Exception as error:
                ray.get(box.put.remote(UNPREPARED, cloudpickle.dumps(travelling(error))))
                raise

        def step(self) -> dict[str, Any]:
            """Report that the worker has started, then evaluate what it is given until there is nothing more."""
            if not self._has_started:
                self._has_started = True
                return {"number": NOTHING}
            asked = ray.get(box.next.remote(self._worker))
            if asked is None:
                return {"number": NOTHING, "done": True}
            ray.get(box.put.remote(asked["number"], cloudpickle.dumps(self._outcome(asked))))
            return {"number": asked["number"]}

        def _outcome(self, asked: dict[str, Any]) -> Outcome | Exception:
            """What the evaluator raises is an outcome, too: only a lost process is tried again."""
            architecture = Architecture.from_json(asked["architecture"])
            try:
                with stopped_after(asked.get("timeout"), asked.get("trace")):
                    return scored(self._scorer, architecture)
            except ray.exceptions.RayError:
                raise
            except Exception as error:
                return travelling(error)

    return Evaluation
