"""Runtimes: classes with `load`, `run` and `outputs` that run a network.

A runtime has a `name`, the `libraries` whose versions are part of a measurement's conditions, `uses_accelerator` (it
runs on the training's device), `needs_calibration` (it needs images) and `tolerance`, the largest difference of its
outputs from PyTorch's, relative to the largest output. A class that is added to `RUNTIMES` can be measured and searched
with, and is covered by the tests. Another package adds its own by an entry point of the group `nasspace.runtimes`
(docs/plugins.md).
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Iterable
from typing import Any

from nasspace.errors import InputError, NasspaceError, nearest
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
    "ENTRY_POINTS",
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
    "known",
    "library_versions",
    "module_of",
    "random_batch",
    "time_round",
    "versions",
    "warm_up",
]
RUNTIMES = {runtime.name: runtime for runtime in (OnnxRuntime, OnnxRuntimeInt8, Eager, TorchScript, Compiled, Ncnn)}
ENTRY_POINTS = "nasspace.runtimes"
ATTRIBUTES = ("libraries", "uses_accelerator", "needs_calibration", "load", "run", "outputs")


@functools.cache
def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    """Runtimes of other installed packages, by name; those of nasspace take precedence."""
    points = {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    return {name: points[name] for name in sorted(points.keys() - RUNTIMES.keys())}


def known() -> list[str]:
    """Names of all runtimes: those of nasspace, then those of other installed packages."""
    return [*RUNTIMES, *_entry_points()]


def get(name: str) -> type[Any]:
    """Return the class of a runtime; `InputError` with the nearest name if there is none, or if it cannot be loaded."""
    if name in RUNTIMES:
        return RUNTIMES[name]
    if name not in _entry_points():
        raise InputError(f"'{name}' is not a runtime{nearest(name, known())}")
    point = _entry_points()[name]
    try:
        runtime = point.load()
    except NasspaceError:
        raise
    except Exception as error:
        raise InputError(f"runtime '{name}' of {point.value} fails to load: {error}") from error
    if not isinstance(runtime, type) or getattr(runtime, "name", None) != name:
        raise InputError(f"runtime '{name}': {point.value} is not a class with name = '{name}'")
    if missing := [attribute for attribute in ATTRIBUTES if not hasattr(runtime, attribute)]:
        raise InputError(f"runtime '{name}': {point.value} has no {missing[0]}; see docs/plugins.md")
    return runtime


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
