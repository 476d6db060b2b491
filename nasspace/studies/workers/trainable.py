"""What runs in the processes of a cluster: the evaluation of candidates, the measuring, the box for outcomes."""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import functools
import os
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nasspace.architecture import Architecture
from nasspace.errors import InputError
from nasspace.studies.driver import scored
from nasspace.studies.evaluate import Outcome
from nasspace.studies.measure import Measured, Measurer
from nasspace.studies.workers.parts import Sent

MEASURED = 1800.0  # seconds for a latency, with all that wait for the same node
GATHERING = 30.0  # seconds in which the workers of a search must have begun to be waited for


class Box:
    """Outcomes on their way to the driver, by trial number: they are too large for Tune's tables of results."""

    def __init__(self) -> None:
        self._outcomes: dict[int, Outcome | Exception] = {}
        self._ready: set[int] = set()

    def put(self, number: int, outcome: Outcome | Exception) -> None:
        self._outcomes[number] = outcome

    def take(self, number: int) -> Outcome | Exception | None:
        """The outcome, which is then forgotten."""
        return self._outcomes.pop(number, None)

    def ready(self, worker: int) -> int:
        """Tell that a worker has begun; returned is how many have."""
        self._ready.add(worker)
        return len(self._ready)


class Station:
    """Measures latencies, one at a time, on the node that it runs on."""

    def __init__(self, sent: Sent) -> None:
        self._measurer: Measurer = sent.measurer()

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


@contextlib.contextmanager
def stopped_after(seconds: float | None, path: str | None) -> Iterator[None]:
    """End this process if the body takes longer: what it is in may be a loop in C that nothing else interrupts.

    The places that its threads are at are written to `path`, if its folder is on this node.
    """
    if seconds is None:
        yield
        return
    here = path is not None and Path(path).parent.is_dir()
    with open(path if here else os.devnull, "w") as file:
        faulthandler.dump_traceback_later(seconds, exit=True, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
    if here:
        Path(path).unlink()


@functools.cache
def evaluation() -> type:
    """The class of Tune's trials, made when first asked for, since Ray is imported late."""
    import ray
    from ray import tune

    class Evaluation(tune.Trainable):
        """One candidate after another in one process: what it imported and loaded serves them all."""

        def setup(self, config: dict[str, Any], sent: list, box: Any, station: Any) -> None:
            self._box = box  # `sent` is a list with one reference, so that Tune does not store what it refers to again
            self._scorer = ray.get(sent[0]).scorer(None if station is None else AtStation(station))
            self._asked = config

        def reset_config(self, config: dict[str, Any]) -> bool:
            self._asked = config
            return True

        def step(self) -> dict[str, Any]:
            """Evaluate; what the evaluator raises travels as the outcome, and only a lost process is tried again."""
            if "workers" in self._asked:
                return self._gathered()
            architecture = Architecture.from_json(self._asked["architecture"])
            try:
                with stopped_after(self._asked.get("timeout"), self._asked.get("trace")):
                    outcome: Outcome | Exception = scored(self._scorer, architecture)
            except ray.exceptions.RayError:
                raise
            except Exception as error:
                outcome = travelling(error)
            ray.get(self._box.put.remote(self._asked["number"], outcome))
            return {"number": self._asked["number"], "done": True}

        def _gathered(self) -> dict[str, Any]:
            """Wait until all workers have begun: Tune gives up one that is beginning when another becomes free."""
            end = time.monotonic() + GATHERING
            while ray.get(self._box.ready.remote(self._asked["number"])) < self._asked["workers"]:
                if time.monotonic() > end:
                    break
                time.sleep(0.05)
            return {"number": self._asked["number"], "done": True}

    return Evaluation
