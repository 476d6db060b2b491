"""Parts of the families' definitions: layers as dictionaries, repeated stages, the usual head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nasspace.errors import InputError

Layers = list[dict[str, Any]]
WIDTH = r"(?P<width>\d+(?:\.\d+)?)"
MAX_WIDTH_MULTIPLIER = 4.0
MAX_POOL = {"block": "max_pool", "kernel": 3, "stride": 2}


@dataclass(frozen=True)
class Family:
    """Networks of one definition: the pattern of their names, whose named groups are its parameters.

    `layers(classes, **parameters)` returns the layers, or raises an `InputError` for parameters of no network.
    `members` are the published networks, `initialization` is their papers' scheme (`nasspace.initialization`),
    `options` are further keywords of `zoo.load`, and `stem` is the number of layers before the first stage, which
    `small_images` replaces.
    """

    name: str
    pattern: str
    layers: Callable[..., Layers]
    members: tuple[str, ...]
    initialization: str
    resolution: int = 224
    stem: int = 1
    options: tuple[str, ...] = ()


def repeat(count: int, first: dict[str, Any]) -> Layers:
    """A stage of `count` layers, of which only the first has the stride."""
    return [first, *({**first, "stride": 1} for _ in range(count - 1))]


def conv(out: int, kernel: int, stride: int = 1, **options: Any) -> dict[str, Any]:
    """A convolution, by default with batch norm and ReLU."""
    return {"block": "conv", "out": out, "kernel": kernel, "stride": stride, **options}


def head(classes: int, dropout: float = 0.0, bias: bool = True) -> Layers:
    """Global pooling, dropout if it is above 0, the classifier."""
    drop = [{"block": "dropout", "p": dropout}] if dropout else []
    return [{"block": "global_pool"}, *drop, {"block": "linear", "out": classes, "bias": bias}]


def at_widths(family: str, *widths: float) -> tuple[str, ...]:
    """Names of a family's networks at width multipliers."""
    return tuple(f"{family}_{width}" for width in widths)


def at_any_width(layers: Callable[..., Layers]) -> Callable[..., Layers]:
    """Parse and check the width multiplier, which is text in a name, before calling `layers`."""

    def checked(classes: int, width: str, **parameters: Any) -> Layers:
        """Call `layers` with the width as a number."""
        if not 0 < float(width) <= MAX_WIDTH_MULTIPLIER:
            raise InputError(f"the width must be above 0 and at most {MAX_WIDTH_MULTIPLIER:g}")
        return layers(classes, width=float(width), **parameters)

    return checked


def small_images(layers: Layers, stem: int) -> Layers:
    """The form for 32x32 images (`NAME_cifar`): a stem of 3x3 convolutions without stride, padding 1 and no pooling.

    Everything after the stem is as published, including strides: a ResNet ends in a 4x4 map, a MobileNet in 2x2, and
    SqueezeNet keeps the pools between its modules (4x4). Well-known tutorial code for CIFAR-100
    (weiaicunzai/pytorch-cifar100) deviates: SqueezeNet with batch norm, simple bypass, 2x2 pools and without dropout;
    MobileNet with biases before batch norm; MobileNetV2 with a 1x1 stem of padding 1 (34x34 maps), no stride in stage
    6, an expansion at t = 1, and biases; ShuffleNet with a grouped first convolution, 567 channels for 576 without
    groups, and biases; ShuffleNetV2 without ReLU in the stem, with the input's width inside the down unit, equal
    halves, and biases; Xception without stride in the third entry module and with biases on the shortcuts; ResNeXt-50
    with other widths (14.8M parameters). Its ResNet-18 is this one.
    """
    convs = [layer for layer in layers[:stem] if layer["block"] == "conv"]
    small = [{**layer, "kernel": 3, "stride": 1} for layer in convs]
    for layer in small:
        layer.pop("padding", None)
    return [*small, *layers[stem:]]
