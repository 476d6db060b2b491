"""The reference network: measured beside every other, so that the machine's speed at the time cancels.

What it took on this machine is remembered, and says what the machine's usual speed is and how far it wanders.
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
    """The reference network in a runtime, and what is known of the machine."""

    network: Any
    history: History = NO_HISTORY


def reference_architecture() -> Architecture:
    """The network: one of every kind of block, 3x224x224, about as fast as the networks that are searched for."""
    from nasspace.architecture import Architecture

    return Architecture.of(LAYERS, input=(3, 224, 224), name="reference")


def load_reference(threads: int, device: str, cache: LatencyCache, runtime: str = "onnxruntime") -> Reference:
    """The reference for a measurement in `runtime`: it runs in ONNX Runtime on the CPU, else in PyTorch."""
    return Reference(
        reference_network(threads, device), machine_history(reference_conditions(threads, device), runtime, cache)
    )


def reference_network(threads: int, device: str) -> Any:
    """The reference network, loaded once in a process in what runs it on a device."""
    return _load_network(_runtime_for(device), threads, device)


def machine_history(reference: Conditions, runtime: str, cache: LatencyCache) -> History:
    """What is known of the machine on which the reference runs so, for measurements in `runtime`."""
    networks = cache.ratios(reference, runtime).values()
    repeats = (
        tuple(statistics.median(v for _, v in sitting) for sitting in split_sessions(timed)) for timed in networks
    )
    return History(tuple(cache.readings(reference)), tuple(one for one in repeats if len(one) > 1))


def write_reference(folder: Path) -> Path:
    """The reference network as an ONNX file in a folder."""
    from nasspace.latency.convert import to_onnx
    from nasspace.network import build

    return to_onnx(build(reference_architecture()), reference_architecture().input, folder / "reference.onnx")


def record_rounds(rounds_ms: Sequence[float], threads: int, device: str, cache: LatencyCache) -> None:
    """Keep the reference's median over the rounds of one undisturbed measurement."""
    if rounds_ms:
        cache.add_reading(reference_conditions(threads, device), statistics.median(rounds_ms))


def reference_conditions(threads: int, device: str) -> Conditions:
    """Those in which the reference network runs beside others on a device of this machine."""
    known = reference_architecture()
    return Conditions.on_this_machine(
        known.digest, _runtime_for(device), device=device, threads=threads, input=known.input
    )


def _runtime_for(device: str) -> str:
    return "onnxruntime" if device == "cpu" else "eager"


@functools.cache
def _load_network(runtime: str, threads: int, device: str) -> Any:
    """The reference network loaded in a runtime, once in a process."""
    from nasspace.network import build

    reference = reference_architecture()
    return runtimes.get(runtime)(threads, 1, device).load(build(reference), reference.input)
