"""Evaluators: from an architecture to its objectives (cost, latency, accuracy), up to the first violated limit."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from nasspace import failures
from nasspace.architecture import Architecture
from nasspace.counting import Cost, cost
from nasspace.engine import machine_lock
from nasspace.engine.int8_accuracy import with_int8_accuracy
from nasspace.engine.latency_evaluator import LatencyEvaluator, MeasuredLatency, candidate_seed
from nasspace.errors import InputError
from nasspace.samplers.observation import Bounds
from nasspace.studies.objectives import COUNTED, OBJECTIVES
from nasspace.studies.recipe import Recipe, short
from nasspace.studies.schema import ACTIVATIONS

if TYPE_CHECKING:
    from nasspace.data.loading import DataSet
    from nasspace.network import Network
    from nasspace.training.trainer import Epoch

INT8_RUNTIMES = ("onnxruntime-int8",)  # networks that ship in int8, which changes the memory that they take


def counts(runtime: str = "onnxruntime") -> dict[str, Callable[[Architecture], float]]:
    """The functions of an architecture that count the objectives known before training, for the network that ships."""
    names = {name: name for name in COUNTED}
    if runtime in INT8_RUNTIMES:
        names |= {name: f"{name}_int8" for name in ("peak_memory", "flash")}
    return {name: partial(_count, attribute) for name, attribute in names.items()}


_latest: tuple[Architecture, Cost] | None = None  # a sampler asks for all counts of a network in a row


def _count(attribute: str, architecture: Architecture) -> float:
    global _latest
    latest = _latest  # threads may replace it
    if latest is None or latest[0] is not architecture:
        _latest = latest = (architecture, cost(architecture))
    return getattr(latest[1], attribute)


@dataclass(frozen=True)
class Outcome:
    """The result of one evaluation: values by objective (latency in ms), and the violated limit, if any.

    Without `accuracy` among the values the candidate was rejected before training. `failure` is why the evaluation
    failed, `traceback` is where.
    """

    values: Mapping[str, float]
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Any] | None = None
    failure: str = ""
    traceback: str = ""


def evaluate(evaluator: Callable[..., Outcome], architecture: Architecture, bounds: Bounds | None = None) -> Outcome:
    """Evaluate a candidate; an exception raised by its block or training becomes a failed outcome.

    `bounds` replace the limits at which its evaluation stops.

    Other exceptions propagate: errors of the machine, of nasspace, or of the user's function.
    """
    try:
        return evaluator(architecture) if bounds is None else evaluator(architecture, bounds)
    except Exception as error:
        if isinstance(evaluator, FunctionEvaluator) or not failures.is_candidate_fault(error):
            raise
        failed = failures.candidate_failure(error)
        return Outcome({}, failure=str(failed), traceback=failed.traceback)


def violated_limit(values: Mapping[str, float], limits: Mapping[str, float], what: str = "the limit") -> str:
    """Describe the first limit that the values exceed; empty if there is none."""
    for name, limit in limits.items():
        if name in values and values[name] > limit:
            describe = OBJECTIVES[name].describe
            return f"{name} {describe(values[name])} is over {what} of {describe(limit)}"
    return ""


def outside_budget(values: Mapping[str, float], budget: Mapping[str, tuple[float, float]]) -> str:
    """Describe the first value that is outside of a budget; empty if there is none."""
    for name, (low, high) in budget.items():
        if name in values and not low <= values[name] <= high:
            describe = OBJECTIVES[name].describe
            return f"{name} {describe(values[name])} is not within {describe(low)} to {describe(high)}"
    return ""


def needs_latency(recipe: Recipe) -> bool:
    """Whether a search measures latencies."""
    return "latency" in (*recipe.objectives, *recipe.budget) or recipe.limits.latency is not None


class TrainingEvaluator:
    """Counts, measures and trains a candidate as the recipe says.

    `measure` returns the latency of an architecture; by default it is measured on this machine. `on_epoch` is called
    after each epoch with its number, the number of epochs, and the loss.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: DataSet,
        *,
        measure: Callable[[Architecture], MeasuredLatency] | None = None,
        on_epoch: Callable[[int, int, float], None] | None = None,
    ):
        self.recipe = recipe
        self.data = data
        self.limits = recipe.limits.given()
        self.budget = recipe.budget
        self.measure = measure or LatencyEvaluator(recipe, data)
        self.on_epoch = on_epoch or (lambda *_: None)
        self.known = counts(recipe.runtime)
        self._resized: DataSet | None = None  # the data at the resolution of the latest training

    def __call__(self, architecture: Architecture, bounds: Bounds | None = None) -> Outcome:
        """Evaluate in order of cost, and stop at the first violated limit, so that the candidate is not trained.

        With `bounds`, it stops at these instead, and the reason of a trained candidate is the violated limit.
        """
        values = {name: float(count(architecture)) for name, count in self.known.items()}
        reason = violated_limit(values, self.limits)
        if violated_limit(values, self.limits if bounds is None else bounds.values):
            return Outcome(values, reason)
        details: dict[str, Any] = {ACTIVATIONS: int(_count("activations", architecture))}
        if needs_latency(self.recipe):
            measured = self.measure(architecture)
            latency = measured.latency
            values["latency"] = latency.median_ms
            details |= {"latency_interval": latency.to_json(), "latency_host": measured.host}
            if measured.layers_ms:
                details["layers_ms"] = list(measured.layers_ms)
            reason = reason or self._over_latency_limit(latency)
            reason = reason or outside_budget({"latency": latency.median_ms}, self.budget)
            if bounds is None and reason:
                return Outcome(values, reason, details)
            if bounds and (over := violated_limit({"latency": latency.median_ms}, bounds.values, bounds.name)):
                return Outcome(values, over, details)
        if "accuracy" not in self.recipe.objectives:
            return Outcome(values, reason, details)
        return self._find_accuracy(architecture, values, details, reason)

    def _over_latency_limit(self, latency: Any) -> str:
        """Why a latency is over its limit; empty if it is not, with 95 % confidence: the interval's end decides."""
        reason = violated_limit({"latency": latency.high_ms}, self.limits)
        return reason.replace("latency", "latency, at the upper end of its interval,", 1)

    def _initial(self, architecture: Architecture, seed: int) -> Network:
        """The network before its training."""
        from nasspace.network import build

        return build(architecture, seed=seed)

    def _find_accuracy(self, architecture: Architecture, values: dict, details: dict, reason: str) -> Outcome:
        """Train at the search's fidelity and add the accuracy to the values."""
        from nasspace.engine.rungs import fidelity_of
        from nasspace.training.trainer import train

        seed, fidelity = candidate_seed(self.recipe.seed, architecture), fidelity_of(self.recipe, architecture)
        model = self._initial(architecture, seed)
        with machine_lock.TrainingLock() as lock:

            def after_epoch(epoch: Epoch) -> None:
                lock.yield_to_measurements()
                self.on_epoch(epoch.number, epoch.epochs, epoch.loss)

            trained = train(
                model,
                self.resized(fidelity.resolution),
                fidelity,
                self.recipe.training,
                seed=seed,
                device=self.recipe.device,
                on_epoch=after_epoch,
            )
            trained = with_int8_accuracy(trained, model, self.data, fidelity.resolution, self.recipe)
        if trained.diverged:  # the accuracy is then random
            return Outcome(
                {}, failure=f"the training diverged: the loss of epoch {len(trained.losses)} is not a number"
            )
        values["accuracy"] = trained.accuracy
        details["training"] = {
            "seconds": trained.seconds,
            "losses": list(trained.losses),
            "log_loss": trained.log_loss if math.isfinite(trained.log_loss) else None,
        }
        weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        return Outcome(values, reason, details, weights)

    def resized(self, resolution: int) -> DataSet:
        """The data at a resolution, which is kept for the next candidate."""
        from nasspace.data.images import prepared

        if self._resized is None or self._resized.resolution != resolution:
            self._resized = prepared(self.data, resolution)
        return self._resized


class FunctionEvaluator:
    """Evaluates with the user's function of an architecture, instead of counting, measuring and training.

    `known_functions` are the user's functions of known objectives, `known` the same with their values checked.
    """

    def __init__(
        self,
        function: Callable[[Architecture], Mapping[str, float]],
        known: Mapping[str, Callable[[Architecture], float]] | None,
        objectives: tuple[str, ...],
        limits: Mapping[str, float],
        budget: Mapping[str, tuple[float, float]] | None = None,
    ):
        self.function = function
        self.known_functions = dict(known or {})
        self.known = {name: partial(_known_value, name, each) for name, each in self.known_functions.items()}
        self.objectives = objectives
        self.limits = dict(limits)
        self.budget = dict(budget or {})
        unknown = set(self.known) - set(OBJECTIVES)
        if unknown:
            raise InputError(f"known: {short(unknown.pop())} is not one of {', '.join(OBJECTIVES)}")

    def __call__(self, architecture: Architecture, bounds: Bounds | None = None) -> Outcome:
        """Return the function's values, completed by the known and counted ones; refuse values that are not numbers.

        The function is called for every candidate, whatever the `bounds`.
        """
        returned = self.function(architecture)
        if not isinstance(returned, Mapping):
            raise InputError(
                f"the evaluator returned {short(returned)}; it must return a dictionary such as {{'accuracy': .9}}"
            )
        values = {name: _number(name, value) for name, value in returned.items() if name in OBJECTIVES}
        for name, function in self.known.items():
            if name not in values:
                values[name] = function(architecture)
        with contextlib.suppress(InputError):  # an architecture of a benchmark table may not be runnable
            for name, count in counts().items():
                if name not in values:
                    values[name] = count(architecture)
        reason = violated_limit(values, self.limits)
        missing = [name for name in (*self.objectives, *self.limits) if name not in values]
        if missing and not reason:
            names = short(list(returned)) if returned else "nothing"
            raise InputError(f"the evaluator returned no '{missing[0]}'; it returned: {names}")
        if outside := outside_budget(values, self.budget):
            return Outcome({name: value for name, value in values.items() if name != "accuracy"}, outside)
        return Outcome(values, reason)


def _known_value(name: str, function: Callable[[Architecture], Any], architecture: Architecture) -> float:
    """The value of a known objective; an `InputError` if the user's function returns no number."""
    return _number(name, function(architecture), "known:")


def _number(name: str, value: Any, source: str = "the evaluator's") -> float:
    """Convert a value that the function `source` of the user returned; strings and Booleans are refused."""
    number = math.nan
    if not isinstance(value, str | bytes | bytearray | bool):
        with contextlib.suppress(TypeError, ValueError, OverflowError, RuntimeError):  # the last: a tensor of several
            number = float(value)
    if not math.isfinite(number):
        raise InputError(f"{source} '{name}' is {short(value)}, not a finite number")
    if name == "accuracy" and not 0 <= number <= 1:
        raise InputError(f"{source} 'accuracy' is {short(value)}; it must be a fraction, from 0 to 1")
    if number < 0:
        raise InputError(f"{source} '{name}' is {short(value)}; it must be 0 or more")
    return number
