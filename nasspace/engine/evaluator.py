"""One candidate to its objectives: cost, then latency, then accuracy; stops at the first broken limit."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nasspace.architecture import Architecture
from nasspace.counting import cost
from nasspace.engine import machine_lock
from nasspace.engine.latency_evaluator import LatencyEvaluator, MeasuredLatency, candidate_seed
from nasspace.errors import InputError
from nasspace.studies.recipe import OBJECTIVES, Recipe, short

if TYPE_CHECKING:
    from nasspace.data.loading import DataSet

COUNTS: dict[str, Callable[[Architecture], float]] = {
    "flops": lambda architecture: cost(architecture).flops,
    "params": lambda architecture: cost(architecture).params,
    "memory_access": lambda architecture: cost(architecture).memory_access,
}
UNIT = {"latency": "ms", "flops": "million multiply-adds", "params": "million parameters"}


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate: its figures (latency in ms), and the limit that it broke, if it did.

    Without an `accuracy` among the values it was rejected and never trained. `failure` says why its evaluation failed,
    `traceback` where.
    """

    values: Mapping[str, float]
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Any] | None = None
    failure: str = ""
    traceback: str = ""


def broken(values: Mapping[str, float], limits: Mapping[str, float]) -> str:
    """The first limit that the values break, in words; '' for none."""
    for name, limit in limits.items():
        if name in values and values[name] > limit:
            return f"{name} {shown(name, values[name])} is over the limit of {shown(name, limit)}"
    return ""


def shown(name: str, value: float) -> str:
    """A figure with its unit."""
    return f"{value:.4g} ms" if name == "latency" else f"{value / 1e6:.4g} {UNIT[name]}"


class Trained:
    """The evaluator of a search: counts, measures and trains a candidate, as its recipe says.

    `measure` takes latencies; it measures on this machine if not given. `on_epoch` is called behind each pass over the
    data with its number, the number of passes, and the loss.
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
        self.measure = measure or LatencyEvaluator(recipe, data)
        self.on_epoch = on_epoch or (lambda *_: None)
        self.known = COUNTS
        self._small: DataSet | None = None  # the data at the fidelity's resolution

    def __call__(self, architecture: Architecture) -> Outcome:
        """Stop at the first broken limit: what is over it is never trained."""
        values = {name: float(count(architecture)) for name, count in COUNTS.items()}
        if reason := broken(values, self.limits):
            return Outcome(values, reason)
        details: dict[str, Any] = {}
        if measures(self.recipe):
            measured = self.measure(architecture)
            latency = measured.latency
            values["latency"] = latency.median_ms
            details |= {"latency_interval": latency.to_json(), "latency_host": measured.host}
            # The upper end of the interval decides: a network is inside when it is so with 95 % confidence.
            if reason := broken({"latency": latency.high_ms}, self.limits):
                reason = reason.replace("latency", "latency, at the upper end of its interval,", 1)
            if measured.layers_ms:
                details["layers_ms"] = list(measured.layers_ms)
            if reason:
                return Outcome(values, reason, details)
        if "accuracy" not in self.recipe.objectives:
            return Outcome(values, "", details)
        return self._trained(architecture, values, details)

    def _trained(self, architecture: Architecture, values: dict, details: dict) -> Outcome:
        from nasspace.data.images import prepared
        from nasspace.engine.last_rung import fidelity_of
        from nasspace.network import build
        from nasspace.training.trainer import train

        seed = candidate_seed(self.recipe.seed, architecture)
        model = build(architecture, seed=seed)
        with machine_lock.TrainingLock() as turn:

            def passed(epoch: int, epochs: int, loss: float) -> None:
                turn.yield_to_measurements()
                self.on_epoch(epoch, epochs, loss)

            fidelity, training, device = (
                fidelity_of(self.recipe, architecture),
                self.recipe.training,
                self.recipe.device,
            )
            if self._small is None or self._small.resolution != fidelity.resolution:
                self._small = prepared(self.data, fidelity.resolution)
            trained = train(model, self._small, fidelity, training, seed=seed, device=device, on_epoch=passed)
        if trained.diverged:  # what is left has an accuracy by chance
            return Outcome(
                {}, failure=f"the training diverged: the loss of epoch {len(trained.losses)} is not a number"
            )
        values["accuracy"] = trained.accuracy
        details["training"] = {"seconds": trained.seconds, "losses": list(trained.losses)}
        weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        return Outcome(values, "", details, weights)


def measures(recipe: Recipe) -> bool:
    """Whether a search takes latencies."""
    return "latency" in recipe.objectives or recipe.limits.latency is not None


class FromFunction:
    """An evaluator made of a person's own function of an architecture, in place of counting and training."""

    def __init__(
        self,
        function: Callable[[Architecture], Mapping[str, float]],
        known: Mapping[str, Callable[[Architecture], float]] | None,
        objectives: tuple[str, ...],
        limits: Mapping[str, float],
    ):
        self.function = function
        self.known = dict(known or {})
        self.objectives = objectives
        self.limits = dict(limits)
        unknown = set(self.known) - set(OBJECTIVES)
        if unknown:
            raise InputError(f"known: '{unknown.pop()}' is not one of {', '.join(OBJECTIVES)}")

    def __call__(self, architecture: Architecture) -> Outcome:
        """The function's figures, completed by the known ones; what is no number is refused."""
        returned = self.function(architecture)
        if not isinstance(returned, Mapping):
            raise InputError(
                f"the evaluator returned {short(returned)}; it must return a dictionary such as {{'accuracy': .9}}"
            )
        values = {name: _number(name, value) for name, value in returned.items() if name in OBJECTIVES}
        for name, function in self.known.items():
            values.setdefault(name, _number(name, function(architecture)))
        with contextlib.suppress(InputError):  # a table's architecture need not be one that runs
            for name, function in COUNTS.items():
                values.setdefault(name, function(architecture))
        reason = broken(values, self.limits)
        missing = [name for name in (*self.objectives, *self.limits) if name not in values]
        if missing and not reason:
            gave = short(list(returned)) if returned else "nothing"
            raise InputError(f"the evaluator returned no '{missing[0]}'; it gave: {gave}")
        return Outcome(values, reason)


def _number(name: str, value: Any) -> float:
    """A figure of an evaluator's; a word or a truth value is not taken for one."""
    number = math.nan
    if not isinstance(value, str | bytes | bytearray | bool):
        with contextlib.suppress(TypeError, ValueError, OverflowError, RuntimeError):  # the last: a tensor of several
            number = float(value)
    if not math.isfinite(number):
        raise InputError(f"the evaluator's '{name}' is {short(value)}, not a finite number")
    if name == "accuracy" and not 0 <= number <= 1:
        raise InputError(f"the evaluator's 'accuracy' is {short(value)}; it must be a fraction, from 0 to 1")
    if number < 0:
        raise InputError(f"the evaluator's '{name}' is {short(value)}; it must be 0 or more")
    return number
