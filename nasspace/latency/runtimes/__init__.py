"""Ways to run a network, each a class with `load`, `run` and `outputs`; and to time a round of runs.

A runtime says its `name`, the `libraries` whose versions are part of a measurement, whether it is `accelerated` (runs
on the device of the training) and `calibrated` (on images), and by its `tolerance` how far its outputs may be from
PyTorch's. One that is added to `RUNTIMES` is measured, searched with and tested like these.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from typing import Any

from nasspace.errors import InputError, nearest
from nasspace.latency.runtimes.common import CalibratedModel, Shape, check_outputs, module_of, random_batch
from nasspace.latency.runtimes.ncnn import Ncnn
from nasspace.latency.runtimes.ort import OnnxRuntime, OnnxRuntimeInt8, check_optimized
from nasspace.latency.runtimes.pytorch import Compiled, Eager, TorchScript, device_label
from nasspace.latency.runtimes.timing import (
    CLOCKS,
    CONTENTION_RATIO,
    ROUND_SECONDS,
    WARM_UP_SECONDS,
    Clocks,
    Round,
    time_round,
    warm_up,
)

__all__ = [
    "CLOCKS",
    "CONTENTION_RATIO",
    "ROUND_SECONDS",
    "RUNTIMES",
    "WARM_UP_SECONDS",
    "CalibratedModel",
    "Clocks",
    "Compiled",
    "Eager",
    "Ncnn",
    "OnnxRuntime",
    "OnnxRuntimeInt8",
    "Round",
    "Shape",
    "TorchScript",
    "check_optimized",
    "check_outputs",
    "device_label",
    "get",
    "library_versions",
    "module_of",
    "random_batch",
    "time_round",
    "versions",
    "warm_up",
]
RUNTIMES = {runtime.name: runtime for runtime in (OnnxRuntime, OnnxRuntimeInt8, Eager, TorchScript, Compiled, Ncnn)}


def get(name: str) -> type[Any]:
    """The class of a runtime; an `InputError` names the nearest where there is none."""
    if name not in RUNTIMES:
        raise InputError(f"'{name}' is not a runtime{nearest(name, RUNTIMES)}")
    return RUNTIMES[name]


def versions(runtime: str) -> dict[str, str]:
    """The versions of the libraries behind a runtime, and ours, without importing them."""
    return library_versions(get(runtime).libraries)


def library_versions(libraries: Iterable[str]) -> dict[str, str]:
    """The installed version of each, and of nasspace; "unknown" for one that was not installed by pip.

    A checkout on PYTHONPATH and a vendor's build of torch need not have metadata.
    """
    return {library: _version(library) for library in (*libraries, "nasspace")}


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
