"""Latency of a candidate and of its layers: measured on this machine while no training runs, or over SSH."""

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
    from collections.abc import Mapping, Sequence

    import numpy
    from torch import nn

    from nasspace.data.loading import DataSet
    from nasspace.latency.benchmark import Latency
    from nasspace.latency.cache import LatencyCache

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MeasuredLatency:
    """A latency, the host that measured it, and milliseconds of each layer if the runtime provides them."""

    latency: Latency
    host: str
    layers_ms: Sequence[float] | None = None


class LatencyEvaluator:
    """Measures candidates with the recipe's settings; networks are built with the seed of their training."""

    def __init__(
        self, recipe: Recipe, data: DataSet | None, *, fresh: bool = False, cache: LatencyCache | None = None
    ) -> None:
        self.recipe = recipe
        self.data = data
        self.fresh = fresh
        self.cache = cache
        self._remote: Any = None

    def __call__(self, architecture: Architecture) -> MeasuredLatency:
        """Measure a candidate."""
        from nasspace.latency import remote
        from nasspace.network import build

        model = build(architecture, seed=candidate_seed(self.recipe.seed, architecture))
        latency = self._latency(architecture, model)
        local = self.recipe.latency_device == remote.LOCAL
        host = platform.node() if local else self.recipe.latency_device
        return MeasuredLatency(latency, host, self._layers(architecture, model, latency) if local else None)

    def _latency(self, architecture: Architecture, model: Any) -> Latency:
        """Measure a network with the recipe's runtime, threads, batch size and device."""
        from nasspace.latency import benchmark, remote, runtimes

        recipe, runtime = self.recipe, runtimes.get(self.recipe.runtime)
        settings = {"runtime": recipe.runtime, "threads": recipe.threads, "batch_size": recipe.batch_size}
        settings |= {"fresh": self.fresh, "cache": self.cache}
        settings["model"] = with_calibration(architecture, model, recipe.runtime, self.data)
        if recipe.latency_device == remote.LOCAL:
            device = recipe.device if runtime.uses_accelerator else "cpu"
            return benchmark.measure_latency(
                architecture, device=device, alone=machine_lock.measurement_lock, **settings
            )
        if self._remote is None:  # one connection for all candidates, closed with the evaluator
            self._remote = remote.RemoteDevice(recipe.latency_device)
        return self._remote.measure_latency(architecture, **settings)

    def _layers(self, architecture: Architecture, model: Any, latency: Latency) -> list[float] | None:
        """Measure each layer if the runtime allows it; the sampler predicts latencies from these times."""
        from nasspace.latency import layerwise
        from nasspace.latency.cache import LatencyCache

        if self.recipe.runtime != layerwise.RUNTIME:
            return None
        cache = LatencyCache() if self.cache is None else self.cache
        settings = {"fresh": self.fresh, "cache": cache, "alone": machine_lock.measurement_lock}
        try:
            return layerwise.measure_layers(architecture, model, latency, **settings)
        except (LookupError, ValueError, RuntimeError, InputError) as error:  # the sampler works without them
            log.warning("the profile of %s cannot be read: %s", architecture.digest, error)
            return None


def measured_in_turn(
    networks: Mapping[str, tuple[Architecture, nn.Module]], recipe: Recipe, data: DataSet | None
) -> dict[str, list[Latency]]:
    """Measure trained networks in turn on this machine, with the recipe's runtime, threads, batch size and device.

    Returns the measurements of several loads of each.
    """
    from nasspace.latency import benchmark, runtimes

    loaded = {
        name: (with_calibration(architecture, model, recipe.runtime, data), architecture.input)
        for name, (architecture, model) in networks.items()
    }
    device = recipe.device if runtimes.get(recipe.runtime).uses_accelerator else "cpu"
    settings = (recipe.runtime, recipe.threads, recipe.batch_size)
    return benchmark.measure_in_turn(loaded, *settings, device=device, alone=machine_lock.measurement_lock)


def with_calibration(architecture: Architecture, model: Any, runtime: str, data: DataSet | None) -> Any:
    """Return the model, with images of the training split for a runtime that needs them."""
    from nasspace.latency import runtimes

    if not runtimes.get(runtime).needs_calibration:
        return model
    return runtimes.CalibratedModel(model, calibration_images(architecture, data))


def calibration_images(architecture: Architecture, data: DataSet) -> numpy.ndarray:
    """Return preprocessed images spread over the training split, which calibrate int8 runtimes."""
    from nasspace.data.images import spread
    from nasspace.latency.quantization import IMAGES
    from nasspace.training.trainer import network_inputs

    pixels = data.train.pixels
    return network_inputs(pixels[spread(len(pixels), IMAGES)], data, architecture.input[1])


def candidate_seed(seed: int, architecture: Architecture) -> int:
    """Return a candidate's seed (32 bits) from the study's seed and the digest, independent of the order of trials."""
    return (int(architecture.digest, 16) ^ (seed * 0x9E3779B1)) & 0xFFFFFFFF
