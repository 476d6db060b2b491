"""`Conditions`, everything a measured latency depends on (the key of the cache), and a description of the machine."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace.latency import runtimes

if TYPE_CHECKING:
    from torch import nn

    from nasspace.architecture import Architecture, Layer

_STATE = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training", "_is_full_backward_hook"}
_KNOWN = ("torch.nn.", "nasspace.")  # classes whose code is identified by the versions in the key


@dataclass(frozen=True)
class Conditions:
    """What was measured, how, and where; measurements under equal conditions are one entry of the cache.

    `digest` identifies the network or whatever else was measured (see `network_digest`); `input` is (C, H, W);
    `versions` are those of the runtime's libraries, `machine` is the result of `machine()` on the device.
    """

    digest: str
    runtime: str
    device: str
    threads: int
    batch_size: int
    input: tuple[int, ...]
    versions: Mapping[str, str]
    machine: Mapping[str, Any]

    @classmethod
    def on_this_machine(
        cls,
        digest: str,
        runtime: str,
        *,
        device: str = "cpu",
        threads: int = 1,
        batch_size: int = 1,
        input: tuple[int, ...] = (),
    ) -> Conditions:
        """Return conditions on this machine with the installed versions; `InputError` for an unknown runtime."""
        versions, label = runtimes.versions(runtime), runtimes.device_label(device)
        return cls(digest, runtime, label, threads, batch_size, tuple(input), versions, machine())

    def json_fields(self) -> tuple[str, ...]:
        """Return each field as JSON text, in the order of `KEYS`."""
        return tuple(json.dumps(getattr(self, key), sort_keys=True) for key in KEYS)

    def json_text(self) -> str:
        """Return all fields as one JSON text."""
        return json.dumps({key: getattr(self, key) for key in KEYS}, sort_keys=True)


KEYS = tuple(field.name for field in fields(Conditions))


def network_digest(architecture: Architecture, model: nn.Module | None = None) -> str | None:
    """Identify a network by its structure: the architecture's digest if `model` was built from it.

    The values of weights do not matter. Another network made of modules of PyTorch and nasspace is identified by its
    modules, their settings and the shapes of their weights. None if these do not determine what runs: a class or
    function from elsewhere, a hook, a replaced `forward`.
    """
    if model is None or _is_built_from(architecture, model):
        return architecture.digest
    structure = ModuleStructure.of(model)
    if not structure.is_known:
        return None
    return f"network {hashlib.sha256(structure.text.encode()).hexdigest()[:24]}"


def _is_built_from(architecture: Architecture, model: nn.Module) -> bool:
    """Whether `model` has the structure that `build` gives the architecture; compared block by block."""
    from nasspace.counting import cost
    from nasspace.network import Network

    layers = architecture.layers
    if type(model) is not Network or len(model) != len(layers) or not ModuleStructure.of(model, deep=False).is_plain:
        return False
    counted = cost(architecture).layers
    pairs = zip(model, layers, counted, strict=True)
    structures = ((ModuleStructure.of(block), _built_structure(layer, one.in_shape)) for block, layer, one in pairs)
    return all(actual.is_plain and actual == built for actual, built in structures)


@functools.lru_cache(maxsize=4096)
def _built_structure(layer: Layer, in_shape: tuple[int, ...]) -> ModuleStructure:
    """Return the structure of the block that `build` makes for a layer."""
    import torch

    from nasspace import blocks
    from nasspace.network import make_block

    channels = math.prod(in_shape) if blocks.get(layer.block).flattens else in_shape[0]
    with torch.random.fork_rng(devices=[]):
        return ModuleStructure.of(make_block(layer, channels))


@dataclass(frozen=True)
class ModuleStructure:
    """A module without the values of its weights: `text` describes it and all its submodules.

    `is_plain` means that its classes and settings alone determine what it computes (no hook, no `forward` set on an
    instance); `is_known` means that in addition all classes are PyTorch's or nasspace's. Two plain structures with
    equal text run the same graph in this process.
    """

    text: str
    is_plain: bool
    is_known: bool

    @classmethod
    def of(cls, module: nn.Module, *, deep: bool = True) -> ModuleStructure:
        """Describe a module; `deep=False` leaves out its submodules."""
        kind = type(module)
        name = f"{kind.__module__}.{kind.__qualname__}"
        known = name.startswith(_KNOWN) and not name.startswith("torch.nn.utils.")
        if name.startswith("torch.jit."):  # compiled: its class does not determine its code
            return cls(f"{name} {id(module)}", False, False)
        own = {key: value for key, value in vars(module).items() if key not in _STATE and "_hooks" not in key}
        settings, complete = _describe(own)
        weights = [*module._parameters.items(), *module._buffers.items()]
        shapes = {key: None if one is None else (tuple(one.shape), str(one.dtype)) for key, one in weights}
        parts = {key: None if part is None else cls.of(part) for key, part in module._modules.items()} if deep else {}
        texts = {key: None if part is None else part.text for key, part in parts.items()}
        text = repr((name if known else f"{name} {id(kind)}", settings, shapes, texts))
        found = [part for part in parts.values() if part is not None]
        plain = complete and not (module._forward_hooks or module._forward_pre_hooks)
        plain = plain and all(part.is_plain for part in found)
        return cls(text, plain, plain and known and all(part.is_known for part in found))


def _describe(value: Any) -> tuple[str, bool]:
    """Return a setting as text, and whether the text describes it completely."""
    import torch

    if value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.Size):
        return repr(value), True
    if isinstance(value, torch.Tensor):
        return repr((tuple(value.shape), str(value.dtype))), True
    if isinstance(value, list | tuple):
        parts = [_describe(part) for part in value]
        return repr([type(value).__name__, *(text for text, _ in parts)]), all(complete for _, complete in parts)
    if isinstance(value, Mapping):
        parts = [(str(key), *_describe(part)) for key, part in value.items()]
        return repr(sorted((key, text) for key, text, _ in parts)), all(complete for *_, complete in parts)
    return repr(type(value)), False


@functools.cache
def machine() -> dict[str, Any]:
    """Describe this machine: processor, cores, system, memory in GiB."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
        "memory_gib": _memory_gib(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model", "Hardware"):
                return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def _memory_gib() -> int | None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    return None
