"""Training-free scores of one network: find the architecture and the data, draw a minibatch, compute."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nasspace.architecture import Architecture
from nasspace.counting import cost
from nasspace.data.images import DataSet, resized
from nasspace.data.loading import load_data
from nasspace.engine import arch_reference, data_origin
from nasspace.engine.arch_reference import ResolvedArch
from nasspace.engine.devices import check_device
from nasspace.errors import InputError
from nasspace.exporting.export import LARGEST_SEED
from nasspace.training import trainer
from nasspace.training.proxies import SCORES, Minibatch, check_names, scores

IMAGES = 32  # of a minibatch: at 224 pixels the gradients of MobileNetV2 then take 3 GB
LEAST_IMAGES = 4


@dataclass(frozen=True)
class Scores:
    """The JSON document `score`: scores by name, and the CPU seconds of each.

    A score may be -inf or NaN, null in the document. `data` is None where only counts were computed.
    """

    name: str
    digest: str
    resolution: int
    scores: dict[str, float]
    seconds: dict[str, float]
    data: str | None
    images: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        finite = {name: value if math.isfinite(value) else None for name, value in self.scores.items()}
        return {**vars(self), "scores": finite}


def score(
    arch: str | os.PathLike | Architecture,
    *,
    data: str | DataSet | None = None,
    data_dir: str | Path | None = None,
    resolution: int | None = None,
    names: Iterable[str] | None = None,
    images: int = IMAGES,
    seed: int = 0,
    device: str = "cpu",
    skip_broken: bool = False,
) -> Scores:
    """Compute training-free scores of a network, by `names` (all if not given) from `nasspace.training.proxies`.

    `arch` is an `Architecture`, the name of a published network, the path of an architecture JSON, or `STUDY:ID`, and
    is scored as it is: at its own resolution unless another is given, and with its own classes. Weights are initial,
    by the package's own scheme and `seed`, whatever the network was trained to. The minibatch is of `images` training
    images of `data`, drawn with `seed` and resized to the network's input; gray images are repeated for a network that
    takes colors. `data` is by default that of the study, else digits, and is not loaded if only counts are named. One
    thread computes, so that the same arguments give the same scores on the CPU of one machine. Raises `InputError` for
    arguments that do not fit together.
    """
    chosen = check_names(SCORES if names is None else names)
    _check("seed", seed, 0)
    _check("images", images, LEAST_IMAGES)
    check_device(device)
    source = ResolvedArch(arch) if isinstance(arch, Architecture) else arch_reference.resolve_arch(str(arch))
    architecture = source.architecture if resolution is None else source.architecture.with_resolution(resolution)
    cost(architecture)  # raises if a layer does not run at this resolution
    minibatch, loaded = None, None
    if any(SCORES[name].needs != "counts" for name in chosen):
        loaded = data if isinstance(data, DataSet) else _load(source, architecture, data, data_dir, skip_broken)
        minibatch = draw(loaded, architecture, images, seed)
    found, seconds = {}, {}
    with trainer.threads(1):
        for name in chosen:
            start = time.process_time()
            found |= scores(architecture, minibatch, names=[name], seed=seed, device=device)
            seconds[name] = time.process_time() - start
    return Scores(
        architecture.name,
        architecture.digest,
        architecture.input[1],
        found,
        seconds,
        loaded.name if loaded else None,
        len(minibatch.images) if minibatch else 0,
        seed,
    )


def draw(data: DataSet, architecture: Architecture, images: int, seed: int) -> Minibatch:
    """Draw training images with `seed`, fewer if there are not so many, resized and normalized for the network."""
    channels, rows, columns = architecture.input
    if rows != columns:
        raise InputError(f"the network's input of {rows}x{columns} is not square; give a --resolution")
    if len(data.classes) > architecture.classes:
        raise InputError(
            f"{data.name} has {len(data.classes)} classes, the network {architecture.classes}; name other --data"
        )
    if channels != data.channels and data.channels != 1:
        raise InputError(f"{data.name} has {data.channels} channels, the network takes {channels}; name other --data")
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    chosen = data.train.at(order[:images])
    pixels = trainer.normalized(resized(chosen.pixels, rows), data)
    return Minibatch(pixels.expand(-1, channels, -1, -1), chosen.labels)


def _check(name: str, value: Any, least: int) -> None:
    """Refuse what is not a whole number of `least` or more."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST_SEED:
        raise InputError(f"{name}: {value!r} is not a whole number from {least} to {LARGEST_SEED}")


def _load(
    source: ResolvedArch, architecture: Architecture, data: str | None, data_dir: str | Path | None, skip_broken: bool
) -> DataSet:
    """Load the named data, else the study's, else digits; images larger than the network's input at that size."""
    side = min(architecture.input[1:])
    options: dict[str, Any] = {"data_dir": data_dir, "skip_broken": skip_broken}
    if data is None and source.study:
        origin = data_origin.of_study(source.study)
        if origin is None:
            raise InputError(f"{source.study.folder}: this study was searched without images; name some with --data")
        recipe = source.study.settings["recipe"]
        data = origin.name
        options["data_dir"] = data_dir or recipe.get("data_dir")
        options["skip_broken"] = skip_broken or recipe.get("skip_broken", False)
        options |= {"seed": origin.seed, "held_out": origin.held_out}
    return load_data(data or "digits", resolution=lambda native: min(native, side), **options)
