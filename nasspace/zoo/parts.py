"""What the families' definitions share: layers as dictionaries, repeated stages, the usual head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Layers = list[dict[str, Any]]
WIDTH = r"(?P<width>\d+(?:\.\d+)?)"
MAX_POOL = {"block": "max_pool", "kernel": 3, "stride": 2}


@dataclass(frozen=True)
class Family:
    """Networks of one definition: the pattern of their names, whose named groups are its parameters.

    `layers(classes, **parameters)` gives the layers; it refuses parameters that are no network with an
    `InputError`. `members` are the published ones, `options` what `load` takes beside the name, `stem` how many
    layers stand before the first stage (their form for small images: `small_images`).
    """

    name: str
    pattern: str
    layers: Callable[..., Layers]
    members: tuple[str, ...]
    resolution: int = 224
    stem: int = 1
    options: tuple[str, ...] = ()


def repeat(count: int, first: dict[str, Any]) -> Layers:
    """A stage: the stride and other things of the first layer are not those of the others, which keep its width."""
    return [first, *({**first, "stride": 1} for _ in range(count - 1))]


def conv(out: int, kernel: int, stride: int = 1, **options: Any) -> dict[str, Any]:
    """A convolution with batch norm and ReLU unless the options say otherwise."""
    return {"block": "conv", "out": out, "kernel": kernel, "stride": stride, **options}


def head(classes: int, dropout: float = 0.0, bias: bool = True) -> Layers:
    """Global pooling, dropout if there is any, the classifier."""
    drop = [{"block": "dropout", "p": dropout}] if dropout else []
    return [{"block": "global_pool"}, *drop, {"block": "linear", "out": classes, "bias": bias}]


def at_widths(family: str, *widths: float) -> tuple[str, ...]:
    """The names of a family at width multipliers."""
    return tuple(f"{family}_{width}" for width in widths)


def small_images(layers: Layers, stem: int) -> Layers:
    """The form for 32x32 images (`NAME_cifar`): a stem of 3x3 convolutions without stride, padding 1 and no pooling.

    Everything behind the stem is as published, strides too: so a ResNet ends in a 4x4 map and a MobileNet in 2x2, and
    SqueezeNet, whose pools stand between its modules, keeps them (4x4). Well-known tutorial code for CIFAR-100
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
