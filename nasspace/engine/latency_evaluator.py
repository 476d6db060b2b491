"""A candidate's latency: measured on this machine in turn with trainings, or over SSH; and what each layer takes."""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nasspace.architecture import Architecture
from nasspace.engine import machine_lock
from nasspace.errors import InputError
from nasspace.studies.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy

    from nasspace.data.loading import DataSet
    from nasspace.latency.benchmark import Latency
    from nasspace.latency.cache import LatencyCache

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """A latency, the name of the machine that took it, and milliseconds of each layer where the runtime tells."""

    latency: Latency
    host: str
    layers_ms: Sequence[float] | None = None


class Measurer:
    """Measures candidates as a recipe says; the model is built with the seed of its training."""

    def __init__(
        self, recipe: Recipe, data: DataSet | None, *, fresh: bool = False, cache: LatencyCache | None = None
    ) -> None:
        self.recipe = recipe
        self.data = data
        self.fresh = fresh
        self.cache = cache
        self._remote: Any = None

    def __call__(self, architecture: Architecture) -> Measured:
        from nasspace.latency import remote
        from nasspace.network import build

        model = build(architecture, seed=seed_of(self.recipe.seed, architecture))
        latency = self._latency(architecture, model)
        local = self.recipe.latency_device == remote.LOCAL
        host = platform.node() if local else self.recipe.latency_device
        return Measured(latency, host, self._layers(architecture, model, latency) if local else None)

    def _latency(self, architecture: Architecture, model: Any) -> Latency:
        from nasspace.latency import benchmark, remote, runtimes

        recipe, runtime = self.recipe, runtimes.get(self.recipe.runtime)
        asked = {"runtime": recipe.runtime, "threads": recipe.threads, "batch_size": recipe.batch_size}
        asked |= {"fresh": self.fresh, "cache": self.cache}
        asked["model"] = (
            runtimes.Calibrated(model, images_for(architecture, self.data)) if runtime.calibrated else model
        )
        if recipe.latency_device == remote.LOCAL:
            device = recipe.device if runtime.accelerated else "cpu"
            return benchmark.measure_latency(architecture, device=device, alone=machine_lock.measuring, **asked)
        if self._remote is None:  # one connection for all candidates; it ends with the measurer
            self._remote = remote.Remote(recipe.latency_device)
        return self._remote.measure_latency(architecture, **asked)

    def _layers(self, architecture: Architecture, model: Any, latency: Latency) -> list[float] | None:
        """What each layer takes, where the runtime tells: the sampler learns from it what other networks will take."""
        from nasspace.latency import layerwise
        from nasspace.latency.cache import LatencyCache

        if self.recipe.runtime != layerwise.RUNTIME:
            return None
        cache = LatencyCache() if self.cache is None else self.cache
        asked = {"fresh": self.fresh, "cache": cache, "alone": machine_lock.measuring}
        try:
            return layerwise.layers_ms(architecture, model, latency, **asked)
        except (LookupError, ValueError, RuntimeError, InputError) as error:  # the sampler does without
            log.warning("the profile of %s cannot be read: %s", architecture.digest, error)
            return None


def images_for(
    architecture: Architecture, data: DataSet, *, split: str = "train", count: int | None = None
) -> numpy.ndarray:
    """Some images of a split, spread over it, as the network is fed; of training for the ranges of an int8 runtime."""
    from nasspace.data.images import resized
    from nasspace.latency.quantization import IMAGES
    from nasspace.training.trainer import normalized

    pixels, count = getattr(data, split).pixels, count or IMAGES
    chosen = resized(pixels[:: max(1, len(pixels) // count)][:count], architecture.input[1])
    return normalized(chosen, data).contiguous().numpy()


def seed_of(seed: int, architecture: Architecture) -> int:
    """A candidate's own seed, whenever in the search it is tried: 32 bits from the study's seed and the digest."""
    return (int(architecture.digest, 16) ^ (seed * 0x9E3779B1)) & 0xFFFFFFFF
