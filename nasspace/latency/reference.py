"""The reference network: measured in turn with every other network, so that the machine's current speed cancels.

Its times on this machine are stored in the cache; they show the machine's usual speed and how much it varies.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace.latency import runtimes
from nasspace.latency.cache import LatencyCache
from nasspace.latency.conditions import Conditions
from nasspace.latency.statistics import NO_HISTORY, History, split_sessions

if TYPE_CHECKING:
    from nasspace.architecture import Architecture

LAYERS = [  # one of each kind of block, at the size of a mobile network
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
    """The reference network loaded in a runtime, and the history of the machine."""

    network: Any
    history: History = NO_HISTORY


def reference_architecture() -> Architecture:
    """Return the reference network: one block of each kind, 3x224x224, about as fast as typical searched networks."""
    from nasspace.architecture import Architecture

    return Architecture.of(LAYERS, input=(3, 224, 224), name="reference")


def load_reference(threads: int, device: str, cache: LatencyCache, runtime: str = "onnxruntime") -> Reference:
    """Load the reference for a measurement in `runtime`: in ONNX Runtime on the CPU, in PyTorch elsewhere."""
    return Reference(
        reference_network(threads, device), machine_history(reference_conditions(threads, device), runtime, cache)
    )


def reference_network(threads: int, device: str) -> Any:
    """Return the reference network in the runtime that runs it on a device, loaded once per process."""
    return _load_network(_runtime_for(device), threads, device)


def machine_history(reference: Conditions, runtime: str, cache: LatencyCache) -> History:
    """Read the machine's history from the cache, for measurements in `runtime` next to this reference."""
    networks = cache.ratios(reference, runtime).values()
    repeats = (
        tuple(statistics.median(v for _, v in session) for session in split_sessions(timed)) for timed in networks
    )
    return History(tuple(cache.readings(reference)), tuple(one for one in repeats if len(one) > 1))


def write_reference(folder: Path) -> Path:
    """Write the reference network as an ONNX file into a folder."""
    from nasspace.latency.convert import to_onnx
    from nasspace.network import build

    return to_onnx(build(reference_architecture()), reference_architecture().input, folder / "reference.onnx")


def record_rounds(rounds_ms: Sequence[float], threads: int, device: str, cache: LatencyCache) -> None:
    """Store the median of the reference's rounds in one undisturbed measurement."""
    if rounds_ms:
        cache.add_reading(reference_conditions(threads, device), statistics.median(rounds_ms))


def reference_conditions(threads: int, device: str) -> Conditions:
    """Return the conditions under which the reference network runs on a device of this machine."""
    architecture = reference_architecture()
    return Conditions.on_this_machine(
        architecture.digest, _runtime_for(device), device=device, threads=threads, input=architecture.input
    )


def _runtime_for(device: str) -> str:
    return "onnxruntime" if device == "cpu" else "eager"


@functools.cache
def _load_network(runtime: str, threads: int, device: str) -> Any:
    """Load the reference network in a runtime, once per process."""
    from nasspace.network import build

    reference = reference_architecture()
    return runtimes.get(runtime)(threads, 1, device).load(build(reference), reference.input)
