"""Runtimes: classes with `load`, `run` and `outputs` that run a network.

A runtime has a `name`, the `libraries` whose versions are part of a measurement's conditions, `uses_accelerator` (it
runs on the training's device), `needs_calibration` (it needs images) and `tolerance`, the largest difference of its
outputs from PyTorch's, relative to the largest output. A class that is added to `RUNTIMES` can be measured and searched
with, and is covered by the tests.
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
    """Return the class of a runtime; `InputError` with the nearest name if there is none."""
    if name not in RUNTIMES:
        raise InputError(f"'{name}' is not a runtime{nearest(name, RUNTIMES)}")
    return RUNTIMES[name]


def versions(runtime: str) -> dict[str, str]:
    """Return the versions of a runtime's libraries and of nasspace, without importing them."""
    return library_versions(get(runtime).libraries)


def library_versions(libraries: Iterable[str]) -> dict[str, str]:
    """Return the installed version of each library and of nasspace, "unknown" without metadata.

    A checkout on PYTHONPATH or a vendor's build of torch may have no metadata.
    """
    return {library: _version(library) for library in (*libraries, "nasspace")}


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
