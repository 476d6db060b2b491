"""One candidate to its objectives: cost, then latency, then accuracy; stops at the first broken limit."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace.architecture import Architecture
from nasspace.counting import cost
from nasspace.errors import InputError
from nasspace.studies.recipe import OBJECTIVES, Recipe

if TYPE_CHECKING:
    import numpy

    from nasspace.accuracy.data import DataSet
    from nasspace.latency.cache import LatencyCache

log = logging.getLogger(__name__)
COUNTS: dict[str, Callable[[Architecture], float]] = {
    "flops": lambda architecture: cost(architecture).flops,
    "params": lambda architecture: cost(architecture).params,
    "memory_access": lambda architecture: cost(architecture).memory_access,
}
UNIT = {"latency": "ms", "flops": "million multiply-adds", "params": "million parameters"}


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate: its figures (latency in ms), and the limit that it broke, if it did.

    Without an `accuracy` among the values it was rejected and never trained.
    """

    values: Mapping[str, float]
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, Any] | None = None


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
    """The evaluator of a search: counts, measures and trains a candidate, as its recipe says."""

    def __init__(
        self,
        recipe: Recipe,
        data: DataSet,
        *,
        fresh_latency: bool = False,
        cache: LatencyCache | None = None,
        on_epoch: Callable[[int, int, float], None] | None = None,
    ):
        self.recipe = recipe
        self.data = data
        self.limits = recipe.limits.given()
        self.fresh_latency = fresh_latency
        self.cache = cache
        self.on_epoch = on_epoch
        self.known = COUNTS
        self._remote: Any = None

    def __call__(self, architecture: Architecture) -> Outcome:
        """Stop at the first broken limit: what is over it is never trained."""
        from nasspace.network import build

        values = {name: float(count(architecture)) for name, count in COUNTS.items()}
        if reason := broken(values, self.limits):
            return Outcome(values, reason)
        model = build(architecture, seed=seed_of(self.recipe.seed, architecture))
        details: dict[str, Any] = {}
        if self._measures():
            latency = self._latency(architecture, model)
            values["latency"] = latency.median_ms
            details["latency_interval"] = latency.to_json()
            # The upper end of the interval decides: a network is inside when it is so with 95 % confidence.
            if reason := broken({"latency": latency.high_ms}, self.limits):
                reason = reason.replace("latency", "latency, at the upper end of its interval,", 1)
            if layers := self._layers(architecture, model, latency):
                details["layers_ms"] = layers
            if reason:
                return Outcome(values, reason, details)
        if "accuracy" not in self.recipe.objectives:
            return Outcome(values, "", details)
        return self._trained(architecture, model, values, details)

    def _measures(self) -> bool:
        return "latency" in self.recipe.objectives or "latency" in self.limits

    def _latency(self, architecture: Architecture, model: Any) -> Any:
        from nasspace.latency import meter, remote, runtimes

        recipe, runtime = self.recipe, runtimes.get(self.recipe.runtime)
        asked = {"runtime": recipe.runtime, "threads": recipe.threads, "batch_size": recipe.batch_size}
        asked |= {"fresh": self.fresh_latency, "cache": self.cache}
        asked["model"] = (
            runtimes.Calibrated(model, images_for(architecture, self.data)) if runtime.calibrated else model
        )
        if recipe.latency_device == remote.LOCAL:
            return meter.measure_latency(architecture, device=recipe.device if runtime.accelerated else "cpu", **asked)
        if self._remote is None:  # one connection for all candidates; it ends with the evaluator
            self._remote = remote.Remote(recipe.latency_device)
        return self._remote.measure_latency(architecture, **asked)

    def _layers(self, architecture: Architecture, model: Any, latency: Any) -> list[float] | None:
        """What each layer takes, where the runtime tells: the sampler learns from it what other networks will take."""
        from nasspace.latency import layerwise, remote
        from nasspace.latency.cache import LatencyCache

        if self.recipe.runtime != layerwise.RUNTIME or self.recipe.latency_device != remote.LOCAL:
            return None
        cache = LatencyCache() if self.cache is None else self.cache
        try:
            return layerwise.layers_ms(architecture, model, latency, fresh=self.fresh_latency, cache=cache)
        except (LookupError, ValueError, RuntimeError, InputError) as error:  # the sampler does without
            log.warning("the profile of %s cannot be read: %s", architecture.digest, error)
            return None

    def _trained(self, architecture: Architecture, model: Any, values: dict, details: dict) -> Outcome:
        from nasspace.accuracy.training import train

        trained = train(
            model,
            self.data,
            self.recipe.fidelity,
            self.recipe.training,
            seed=seed_of(self.recipe.seed, architecture),
            device=self.recipe.device,
            on_epoch=self.on_epoch,
        )
        values["accuracy"] = trained.accuracy
        details["training"] = {"seconds": trained.seconds, "losses": list(trained.losses), "diverged": trained.diverged}
        weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        return Outcome(values, "", details, weights)


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
                f"the evaluator returned {returned!r}; it must return a dictionary such as {{'accuracy': .9}}"
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
            raise InputError(f"the evaluator returned no '{missing[0]}'; it gave: {', '.join(returned) or 'nothing'}")
        return Outcome(values, reason)


def images_for(
    architecture: Architecture, data: DataSet, *, split: str = "train", count: int | None = None
) -> numpy.ndarray:
    """Some images of a split, spread over it, as the network is fed; of training for the ranges of an int8 runtime."""
    from nasspace.accuracy.images import resized
    from nasspace.accuracy.training import normalised
    from nasspace.latency.calibration import IMAGES

    pixels, count = getattr(data, split).pixels, count or IMAGES
    chosen = resized(pixels[:: max(1, len(pixels) // count)][:count], architecture.input[1])
    return normalised(chosen, data).contiguous().numpy()


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"the evaluator's '{name}' is {value!r}, not a finite number")
    if name == "accuracy" and not 0 <= number <= 1:
        raise InputError(f"the evaluator's 'accuracy' is {value!r}; it must be a fraction, from 0 to 1")
    return number


def seed_of(seed: int, architecture: Architecture) -> int:
    """A candidate's own seed, whenever in the search it is tried: 32 bits from the study's seed and the digest."""
    return (int(architecture.digest, 16) ^ (seed * 0x9E3779B1)) & 0xFFFFFFFF


def save_weights(path: Path, weights: Mapping[str, Any]) -> None:
    """A state dict as safetensors, moved into place whole."""
    from safetensors.torch import save_file

    from nasspace import files

    with files.replacing(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, temporary)
