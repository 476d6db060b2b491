"""What each layer of a network takes, measured once in the same circumstances as its latency and remembered."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from nasspace.latency import runtimes
from nasspace.latency.cache import LatencyCache, machine

if TYPE_CHECKING:
    from torch import nn

    from nasspace.architecture import Architecture
    from nasspace.latency.meter import Latency

RUNTIME = "onnxruntime"  # the one that tells
SECONDS = 0.2


def layers_ms(
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
    key = {
        "digest": architecture.digest,
        "runtime": f"{RUNTIME}, layer by layer",
        "device": latency.device,
        "threads": latency.threads,
        "batch_size": latency.batch_size,
        "input": list(latency.input),
        "versions": runtimes.versions(RUNTIME),
        "machine": machine(),
    }
    known = None if fresh else cache.get(key)
    if known and len(known.get("layers_ms", ())) == len(architecture.layers):
        return known["layers_ms"]
    with alone():
        found = _profiled(architecture, model, latency)
    cache.put(key, {"layers_ms": found})
    return found


def _profiled(architecture: Architecture, model: nn.Module, latency: Latency) -> list[float]:
    from nasspace.latency.convert import to_onnx
    from nasspace.latency.guidelines import profile

    count = len(architecture.layers)
    with tempfile.TemporaryDirectory(prefix="nasspace-") as folder:
        path = to_onnx(model, latency.input, Path(folder) / "network.onnx", batch_size=latency.batch_size)
        taken = profile.take(path, count, latency.median_ms, threads=latency.threads, seconds=SECONDS)
    return [round(taken.of_layer(i), 5) for i in range(count)]
