"""Time of each layer of a network, measured under the same conditions as its latency and cached."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace import temporary
from nasspace.latency.cache import LatencyCache, is_measurement
from nasspace.latency.conditions import Conditions, network_digest

if TYPE_CHECKING:
    from torch import nn

    from nasspace.architecture import Architecture
    from nasspace.latency.benchmark import Latency

RUNTIME = "onnxruntime"  # the only runtime with a profile by layer
SECONDS = 0.2


def measure_layers(
    architecture: Architecture,
    model: nn.Module,
    latency: Latency,
    *,
    fresh: bool = False,
    cache: LatencyCache,
    alone: Callable[[], AbstractContextManager] = contextlib.nullcontext,
) -> list[float]:
    """Return milliseconds of each layer of a network whose latency was measured in ONNX Runtime.

    Together with the time between operators they add up to the latency. `alone` returns a context manager that locks
    the machine for the measurement.
    """
    key = _conditions(architecture, model, latency)
    known = cache.get(key) if key and not fresh else None
    if known and _are_layer_times(known.get("layers_ms"), len(architecture.layers)):
        return known["layers_ms"]
    with alone():
        found = _profile_layers(architecture, model, latency)
    if key:
        cache.put(key, {"layers_ms": found})
    return found


def _conditions(architecture: Architecture, model: nn.Module, latency: Latency) -> Conditions | None:
    """Return the latency's conditions, marked as by layer; None if the network has no digest."""
    digest = network_digest(architecture, model)
    if digest is None:
        return None
    settings = {"device": latency.device, "threads": latency.threads, "batch_size": latency.batch_size}
    found = Conditions.on_this_machine(digest, RUNTIME, **settings, input=latency.input)
    return replace(found, runtime=f"{RUNTIME}, layer by layer")


def _are_layer_times(values: Any, count: int) -> bool:
    """Whether a value from the cache holds the milliseconds of `count` layers."""
    whole = isinstance(values, list) and len(values) == count
    return whole and all(is_measurement(value) or (value == 0 and not isinstance(value, bool)) for value in values)


def _profile_layers(architecture: Architecture, model: nn.Module, latency: Latency) -> list[float]:
    """Profile the network in ONNX Runtime."""
    from nasspace.latency import profile
    from nasspace.latency.convert import to_onnx

    count = len(architecture.layers)
    with temporary.private() as folder:
        path = to_onnx(model, latency.input, Path(folder) / "network.onnx", batch_size=latency.batch_size)
        profiled = profile.profile_onnx(path, count, latency.median_ms, threads=latency.threads, seconds=SECONDS)
    return [round(profiled.of_layer(i), 5) for i in range(count)]
