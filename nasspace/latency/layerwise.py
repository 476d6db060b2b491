"""What each layer of a network takes, measured once in the same circumstances as its latency and remembered."""

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

RUNTIME = "onnxruntime"  # the one that tells
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
    """Milliseconds of each layer of a network whose latency was measured in ONNX Runtime; they and a rest add up.

    Within `alone()` nothing else is to keep the machine busy.
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
    """The latency's conditions, layer by layer; None where the network is not known by its structure."""
    digest = network_digest(architecture, model)
    if digest is None:
        return None
    asked = {"device": latency.device, "threads": latency.threads, "batch_size": latency.batch_size}
    found = Conditions.on_this_machine(digest, RUNTIME, **asked, input=latency.input)
    return replace(found, runtime=f"{RUNTIME}, layer by layer")


def _are_layer_times(values: Any, count: int) -> bool:
    """Whether these are the milliseconds of so many layers; the cache may hold anything."""
    whole = isinstance(values, list) and len(values) == count
    return whole and all(is_measurement(value) or (value == 0 and not isinstance(value, bool)) for value in values)


def _profile_layers(architecture: Architecture, model: nn.Module, latency: Latency) -> list[float]:
    from nasspace.latency import profile
    from nasspace.latency.convert import to_onnx

    count = len(architecture.layers)
    with temporary.private() as folder:
        path = to_onnx(model, latency.input, Path(folder) / "network.onnx", batch_size=latency.batch_size)
        taken = profile.profile_onnx(path, count, latency.median_ms, threads=latency.threads, seconds=SECONDS)
    return [round(taken.of_layer(i), 5) for i in range(count)]
