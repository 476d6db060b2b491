"""The reference network: measured beside every other, so that the machine's speed at the time cancels.

What it took in earlier sittings on this machine is remembered, and says what the machine's usual speed is.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace.latency import runtimes
from nasspace.latency.cache import LatencyCache, machine

if TYPE_CHECKING:
    from nasspace.architecture import Architecture

LAYERS = [  # of each kind of work that the block library has, at the size of a mobile network
    {"block": "conv", "out": 16, "stride": 2},
    {"block": "inverted_residual", "out": 32, "stride": 2, "expansion": 3, "se": 0.25},
    {"block": "shuffle_v2", "out": 96, "stride": 2, "kernel": 5},
    {"block": "shuffle_v2", "out": 96},
    {"block": "shuffle_v1", "out": 192, "stride": 2, "groups": 4},
    {"block": "sandglass", "out": 192, "reduction": 4},
    {"block": "inverted_residual", "out": 192, "expansion": 3},
    {"block": "fire", "out": 384, "stride": 2},
    {"block": "conv", "out": 512, "kernel": 1},
    {"block": "global_pool"},
    {"block": "linear", "out": 10},
]


@dataclass(frozen=True)
class Reference:
    """The reference network in a runtime, and its medians in earlier sittings there, in milliseconds."""

    network: Any
    earlier: Sequence[float] = ()


def architecture() -> Architecture:
    """The network: one of every kind of block, 3x224x224, about as fast as the networks that are searched for."""
    from nasspace.architecture import Architecture

    return Architecture.of(LAYERS, input=(3, 224, 224), name="reference")


def reference_for(threads: int, device: str, cache: LatencyCache) -> Reference:
    """The reference for a measurement with so many threads on a device: in ONNX Runtime on the CPU, else in PyTorch."""
    return Reference(network(threads, device), earlier(threads, device, cache))


def network(threads: int, device: str) -> Any:
    """The reference network, loaded once in a process in what runs it on a device."""
    return _network(_runtime(device), threads, device)


def earlier(threads: int, device: str, cache: LatencyCache) -> list[float]:
    """What the reference took in earlier sittings, in milliseconds."""
    return cache.earlier(_key(_runtime(device), threads, device))


def write(folder: Path) -> Path:
    """The reference network as an ONNX file in a folder."""
    from nasspace.latency.convert import to_onnx
    from nasspace.network import build

    return to_onnx(build(architecture()), architecture().input, folder / "reference.onnx")


def remember(rounds_ms: Sequence[float], threads: int, device: str, cache: LatencyCache) -> None:
    """Keep the median of one undisturbed sitting."""
    if not rounds_ms:
        return
    cache.remember(_key(_runtime(device), threads, device), statistics.median(rounds_ms))


def _runtime(device: str) -> str:
    return "onnxruntime" if device == "cpu" else "eager"


def _key(runtime: str, threads: int, device: str) -> dict[str, Any]:
    return {
        "digest": architecture().digest,
        "runtime": runtime,
        "device": runtimes.device_label(device),
        "threads": threads,
        "batch_size": 1,
        "input": list(architecture().input),
        "versions": runtimes.versions(runtime),
        "machine": machine(),
    }


@functools.cache
def _network(runtime: str, threads: int, device: str) -> Any:
    """The reference network loaded in a runtime, once in a process."""
    from nasspace.network import build

    reference = architecture()
    return runtimes.get(runtime)(threads, 1, device).load(build(reference), reference.input)
