"""Published networks as `Architecture`s, equal to the originals to the last parameter and multiply-add.

A name is its family and its parameters: `mobilenet_v2_0.75`, `shufflenet_v1_g3_1.0`, and with `_cifar` the form for
32x32 images. Where a paper and its official code differ, the zoo follows the code, since the published counts are the
code's.
"""

from __future__ import annotations

import re
from typing import Any

from nasspace.architecture import Architecture
from nasspace.errors import InputError, nearest
from nasspace.zoo import classic, inception, mobile, modern, reparameterized, shuffle
from nasspace.zoo.figures import Published, published
from nasspace.zoo.parts import Family, small_images

__all__ = ["Published", "family_of", "initialization_of", "load", "names", "published", "published_of"]

FAMILIES = [
    *classic.FAMILIES,
    *inception.FAMILIES,
    *mobile.FAMILIES,
    *shuffle.FAMILIES,
    *modern.FAMILIES,
    *reparameterized.FAMILIES,
]
CIFAR = "_cifar"
CIFAR_MEMBERS = (
    "squeezenet_1.0",
    "squeezenet_1.1",
    "xception",
    "resnet18",
    "resnext50_32x4d",
    "mobilenet_v1_1.0",
    "mobilenet_v2_1.0",
    "shufflenet_v1_g3_1.0",
    "shufflenet_v2_1.0",
)


def names() -> list[str]:
    """Names of the published networks and of well-known forms for CIFAR; `load` takes other parameters, too."""
    return [name for family in FAMILIES for name in family.members] + [name + CIFAR for name in CIFAR_MEMBERS]


def load(name: str, resolution: int | None = None, classes: int | None = None, **options: Any) -> Architecture:
    """Load a published network by name.

    `resolution` is by default that of the network's published training, mostly 224, and `classes` 1000; with `_cifar`
    they are 32 and 100. `options` are those of a family: MobileNeXt takes `identity`, the identity tensor multiplier
    (1, 1/2, '1/3'). An unknown name raises `InputError` with the nearest known one.
    """
    family, parameters = _parsed(name)
    small = name.endswith(CIFAR)
    for option in options:
        if option not in family.options:
            raise InputError(f"'{option}' is not an option of '{name}'{nearest(option, family.options)}")
    classes = (100 if small else 1000) if classes is None else classes
    side = (32 if small else family.resolution) if resolution is None else resolution
    try:
        layers = family.layers(classes, **parameters, **options)
    except InputError as error:
        raise InputError(f"'{name}': {error}") from None
    layers = small_images(layers, family.stem) if small else layers
    return Architecture.of(layers, input=(3, side, side), classes=classes, name=name)


def published_of(architecture: Architecture) -> tuple[Published, ...]:
    """Published figures of an architecture at its resolution; none if it only has the name of a published network."""
    try:
        original = load(architecture.name, architecture.input[1])
    except InputError:
        return ()
    return published(architecture.name, architecture.input[1]) if original == architecture else ()


def family_of(name: str) -> str:
    """Name of a published network's family: `mobilenet_v2` for `mobilenet_v2_0.75_cifar`."""
    return _parsed(name)[0].name


def initialization_of(name: str) -> str:
    """The initialization scheme of a published network's paper, for `build(..., initialization=)`."""
    return _parsed(name)[0].initialization


def _parsed(name: str) -> tuple[Family, dict[str, Any]]:
    """Parse a name into its family and parameters; an unknown name raises `InputError`."""
    if not isinstance(name, str):
        raise InputError(f"{name!r} is not the name of a published network")
    for family in FAMILIES:
        match = re.fullmatch(family.pattern, name.removesuffix(CIFAR), re.ASCII)
        if match and (family.stem or not name.endswith(CIFAR)):
            return family, match.groupdict()
    raise InputError(f"'{name}' is not a published network{nearest(name, names())}")
