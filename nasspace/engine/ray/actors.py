"""Processes of a Ray cluster: the trainable that evaluates candidates, and the actor that measures latencies."""

from __future__ import annotations

import copy
import traceback
from typing import Any

from nasspace.architecture import Architecture
from nasspace.engine.evaluator import Outcome, evaluate
from nasspace.engine.latency_evaluator import LatencyEvaluator, MeasuredLatency
from nasspace.engine.ray.payload import Parts, deserialized
from nasspace.engine.timeouts import limits_paused, time_limit
from nasspace.errors import InputError

LATENCY_TIMEOUT = 1800.0  # seconds for one latency, including the wait for other measurements on the node
NO_TRIAL = -1  # the number in the result of a step without a candidate
SETUP_FAILED = -2  # the number under which a worker stores the error of its setup


class LatencyActor:
    """Actor that measures latencies, one at a time, on its node."""

    def __init__(self, payload: Parts) -> None:
        self._evaluator: LatencyEvaluator = deserialized(payload).latency_evaluator()

    def machine(self) -> dict[str, Any]:
        """The node's machine, as `latency.conditions.machine` describes it."""
        from nasspace.latency.conditions import machine

        return machine()

    def measure(self, architecture: str) -> MeasuredLatency:
        """Measure an architecture, given as JSON."""
        return self._evaluator(Architecture.from_json(architecture))


class RemoteLatencyEvaluator:
    """A latency evaluator that calls the latency actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __call__(self, architecture: Architecture) -> MeasuredLatency:
        """Measure an architecture on the actor's node; raises what the measurement raises."""
        import ray

        try:
            with limits_paused():  # waiting for the node does not count for the trial's timeout
                return ray.get(self._actor.measure.remote(architecture.to_json()), timeout=LATENCY_TIMEOUT)
        except ray.exceptions.RayTaskError as error:  # is a RayError, too, which would count as a dead process
            raise error.cause from None
        except ray.exceptions.GetTimeoutError:
            raise InputError(
                f"the node that measures has not answered for {LATENCY_TIMEOUT / 60:.0f} minutes; if it is gone, start "
                "one with the resource 'latency', then run `nas resume`"
            ) from None


def serializable(error: Exception) -> Exception:
    """The error itself if it can be serialized, else a `RuntimeError` with its text; with its traceback as a note."""
    trace = "".join(traceback.format_tb(error.__traceback__))
    try:
        copy.copy(error)  # makes the error from its arguments, as deserialization does
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In a worker:\n{trace}")
    return error


def worker_class(mailbox: Any, latency_actor: Any) -> type:
    """The trainable class of the workers; a function because Ray is imported late.

    The actors are in a closure, not in `tune.with_parameters`, which would make them objects owned by this process.
    If the node of an object store is stopped, Ray ends the process that owns objects in it, with a line in its log and
    exit status 1.
    """
    import ray
    from ray import cloudpickle, tune

    class Worker(tune.Trainable):
        """Evaluates candidates in one process, one per step; imports and data are loaded once for all of them."""

        def setup(self, config: dict[str, Any]) -> None:
            (reference,) = ray.get(mailbox.payload.remote())
            self._worker = config["worker"]
            self._has_started = False
            try:
                measure = None if latency_actor is None else RemoteLatencyEvaluator(latency_actor)
                self._evaluator = deserialized(ray.get(reference)).evaluator(measure)
            except ray.exceptions.RayError:
                raise
            except Exception as error:
                ray.get(mailbox.put_outcome.remote(SETUP_FAILED, cloudpickle.dumps(serializable(error))))
                raise

        def step(self) -> dict[str, Any]:
            """Report the start of the worker first; then evaluate a candidate per step, until there are none."""
            if not self._has_started:
                self._has_started = True
                return {"number": NO_TRIAL}
            candidate = ray.get(mailbox.receive.remote(self._worker))
            if candidate is None:
                return {"number": NO_TRIAL, "done": True}
            outcome = cloudpickle.dumps(self._evaluate(candidate))
            ray.get(mailbox.put_outcome.remote(candidate["number"], outcome))
            return {"number": candidate["number"]}

        def _evaluate(self, candidate: dict[str, Any]) -> Outcome | Exception:
            """Evaluate; an exception becomes an outcome, since only the death of a process is retried."""
            architecture = Architecture.from_json(candidate["architecture"])
            try:
                with time_limit(candidate.get("timeout"), candidate.get("trace")):
                    return evaluate(self._evaluator, architecture, candidate.get("bounds"))
            except ray.exceptions.RayError:
                raise
            except Exception as error:
                return serializable(error)

    return Worker
