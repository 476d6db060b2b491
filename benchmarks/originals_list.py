"""Which original each network of the zoo is compared with in `originals.py`."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import torch
from originals import Pair
from torch import Tensor, nn

from nasspace import zoo


def pairs(folder: Path) -> Iterator[Pair]:
    """Every pair; `folder` holds the official code that no package has."""
    yield from _classic()
    yield from _residual()
    yield from _inception()
    yield from _mobile()
    yield from _reparameterized()
    yield from _modern()
    yield from _shuffle(folder)
    yield from _mobilenext(folder)


def version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


def official(path: Path) -> ModuleType:
    """Import a file of official code as a module; imports from its folder work."""
    sys.modules.pop("blocks", None)  # both ShuffleNets have a file of this name
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location(f"official_{path.parent.name}_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


Source = tuple[str, Callable[[], nn.Module]]  # what it is, and how to make it
Edit = Callable[[nn.Module], nn.Module]


def unchanged(network: nn.Module) -> nn.Module:
    return network


def from_timm(name: str, note: str = "", edit: Edit = unchanged) -> Source:
    import timm

    return f"{version('timm')} {name}{note}", lambda: edit(timm.create_model(name))


def from_torchvision(name: str, note: str = "", edit: Edit = unchanged, **options: float) -> Source:
    import torchvision.models as models

    shown = "".join(f" {key}={value}" for key, value in options.items())
    make = getattr(models, name)
    return f"{version('torchvision')} {name}{shown}{note}", lambda: edit(make(weights=None, **options))


def from_pytorchcv(name: str, note: str = "", edit: Edit = unchanged) -> Source:
    from pytorchcv.model_provider import get_model

    return f"{version('pytorchcv')} {name}{note}", lambda: edit(get_model(name))


def _classic() -> Iterator[Pair]:
    yield Pair("alexnet", *from_torchvision("alexnet"), resolution=224)
    note = ", convolutions 2, 4 and 5 in two groups as in Caffe"
    yield Pair("alexnet_grouped", *from_pytorchcv("alexnet", note, _grouped), resolution=227, scale=50.0)
    yield Pair("squeezenet_1.0", *from_torchvision("squeezenet1_0"), resolution=224)
    yield Pair("squeezenet_1.1", *from_torchvision("squeezenet1_1"), resolution=224)
    yield Pair("squeezenet_1.0", *from_pytorchcv("squeezenet_v1_0"), resolution=224)
    yield Pair("squeezenet_1.0_bypass", *from_pytorchcv("squeezeresnet_v1_0"), resolution=224)
    note = ", a 1x1 convolution on the other shortcuts"
    complex_bypass = from_pytorchcv("squeezeresnet_v1_0", note, _complex_bypass)
    yield Pair("squeezenet_1.0_complex_bypass", *complex_bypass, resolution=224)
    yield Pair("xception", *from_timm("legacy_xception"), resolution=128)


def _grouped(network: nn.Module) -> nn.Module:
    """pytorchcv's AlexNet has the paper's widths and norms, but no groups."""
    for part in list(network.modules()):
        conv = getattr(part, "conv", None)
        if isinstance(conv, nn.Conv2d) and conv.in_channels in (96, 384):
            shape = conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding
            part.conv = nn.Conv2d(*shape, groups=2)
    return network


class Bypassed(nn.Module):
    """A fire module of another library with a parallel convolution."""

    def __init__(self, fire: nn.Module):
        super().__init__()
        self.fire = fire
        out = fire.expand1x1.conv.out_channels + fire.expand3x3.conv.out_channels
        self.parallel = nn.Conv2d(fire.squeeze.conv.in_channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fire(x) + self.parallel(x)


def _complex_bypass(network: nn.Module) -> nn.Module:
    for stage in network.features:
        for name, part in stage.named_children():
            if not getattr(part, "residual", True):
                setattr(stage, name, Bypassed(part))
    return network


def _residual() -> Iterator[Pair]:
    for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "resnext101_32x8d"):
        yield Pair(name, *from_torchvision(name))
    yield Pair("resnet50_v1", *from_pytorchcv("resnet50"), resolution=224, late="identity_conv")
    yield Pair("resnet50", *from_pytorchcv("resnet50b"), resolution=224, late="identity_conv")
    yield Pair("se_resnet50", *from_timm("seresnet50"))
    yield Pair("se_resnet50_v1", *from_timm("legacy_seresnet50"), late="downsample")
    note = ", stem 3x3 without stride or pooling"
    small = from_torchvision("resnet18", note, _small_stem, num_classes=100)
    yield Pair("resnet18_cifar", *small, resolution=32)


def _small_stem(network: nn.Module) -> nn.Module:
    network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return network


def _inception() -> Iterator[Pair]:
    bare = {"aux_logits": False, "init_weights": False, "transform_input": False}
    yield Pair("googlenet", *from_torchvision("googlenet", **bare))
    yield Pair("inception_v3", *from_torchvision("inception_v3", **bare), resolution=107)
    for name in ("inception_v4", "inception_resnet_v2"):
        yield Pair(name, *from_timm(name), resolution=107)


def _mobile() -> Iterator[Pair]:
    yield Pair("mobilenet_v1_1.0", *from_timm("mobilenetv1_100"))
    for width, suffix in ((0.75, "w3d4"), (0.5, "wd2"), (0.25, "wd4")):
        original = from_pytorchcv(f"mobilenet_{suffix}", ", ReLU6 for ReLU as in the official code", _relu6)
        yield Pair(f"mobilenet_v1_{width}", *original, resolution=224)
    for width in (1.0, 0.75, 0.5, 0.35, 1.4):
        yield Pair(f"mobilenet_v2_{width}", *from_torchvision("mobilenet_v2", width_mult=width))
    yield Pair("mobilenet_v2_1.4", *from_timm("mobilenetv2_140"))
    for width in ("1_0", "0_75", "0_5", "1_3"):
        yield Pair(f"mnasnet_b1_{width.replace('_', '.')}", *from_torchvision(f"mnasnet{width}"))
    yield Pair("mnasnet_b1_1.0", *from_timm("mnasnet_100"))
    for size in range(5):
        yield Pair(f"efficientnet_lite{size}", *from_timm(f"efficientnet_lite{size}"))
    for width, suffix in ((1.0, "100"), (0.75, "075"), (0.5, "050"), (1.4, "140")):
        yield Pair(f"mnasnet_a1_{width}", *from_timm(f"semnasnet_{suffix}"))
    note = ", no skip around the first separable convolution as in the official code"
    yield Pair("mnasnet_small", *from_timm("mnasnet_small", note, _without_skip))
    for size in ("large", "small"):
        yield Pair(f"mobilenet_v3_{size}_1.0", *from_torchvision(f"mobilenet_v3_{size}"))
        yield Pair(f"mobilenet_v3_{size}_0.75", *from_timm(f"mobilenetv3_{size}_075"))
        for width in (1.25, 0.75, 0.5):
            source = f"{version('torchvision')} mobilenet_v3_{size} width_mult={width}"
            make = functools.partial(_v3_of_torchvision, f"mobilenet_v3_{size}", width)
            yield Pair(f"mobilenet_v3_{size}_{width}_torchvision", source, make)


def _modern() -> Iterator[Pair]:
    for width, suffix in ((0.5, "050"), (1.0, "100"), (1.3, "130")):
        yield Pair(f"ghostnet_{width}", *from_timm(f"ghostnet_{suffix}"))
    for size in ("small", "medium", "large"):
        yield Pair(f"mobilenet_v4_conv_{size}", *from_timm(f"mobilenetv4_conv_{size}"))
    for size in ("t0", "t1", "t2", "s"):
        yield Pair(f"fasternet_{size}", *from_timm(f"fasternet_{size}"))
    for size in range(1, 5):
        yield Pair(f"starnet_s{size}", *from_timm(f"starnet_s{size}"))


def _relu6(network: nn.Module) -> nn.Module:
    for part in list(network.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.ReLU):
                setattr(part, name, nn.ReLU6())
    return network


def _without_skip(network: nn.Module) -> nn.Module:
    network.blocks[0][0].has_skip = False
    return network


def _v3_of_torchvision(name: str, width: float) -> nn.Module:
    from torchvision.models import mobilenetv3

    return mobilenetv3.MobileNetV3(*mobilenetv3._mobilenet_v3_conf(name, width_mult=width))


def _reparameterized() -> Iterator[Pair]:
    for name in zoo.names():
        if zoo.family_of(name) in ("repvgg", "mobileone"):
            yield Pair(name, *from_timm(name))


def _shuffle(folder: Path) -> Iterator[Pair]:
    note = ", the pooled input in front"
    for groups in (1, 2, 3, 4, 8):
        original = from_pytorchcv(f"shufflenet_g{groups}_w1", note, _without_bias)
        yield Pair(f"shufflenet_v1_g{groups}_1.0", *original, resolution=224)
    v1 = official(folder / "ShuffleNetV1" / "network.py").ShuffleNetV1
    for groups, scale in ((3, 0.5), (3, 1.0), (8, 1.0), (3, 1.5), (3, 2.0)):
        make = functools.partial(v1, model_size=f"{scale}x", group=groups)
        source = f"official ShuffleNetV1 {scale}x group={groups}"
        yield Pair(f"shufflenet_v1_g{groups}_{scale}_megvii", source, make, resolution=224)
    v2 = official(folder / "ShuffleNetV2" / "network.py").ShuffleNetV2
    for scale in ("0.5", "1.0", "1.5", "2.0"):
        original = from_torchvision(f"shufflenet_v2_x{scale.replace('.', '_')}")
        yield Pair(f"shufflenet_v2_{scale}_torchvision", *original)
        make = functools.partial(v2, model_size=f"{scale}x")
        yield Pair(f"shufflenet_v2_{scale}_megvii", f"official ShuffleNetV2 {scale}x", make, resolution=224)
        mixed = functools.partial(_official_split, original[1], v2, f"{scale}x")
        source = f"{original[0]}, first unit of the official code"
        yield Pair(f"shufflenet_v2_{scale}", source, mixed)


def _without_bias(network: nn.Module) -> nn.Module:
    network.output.bias = None
    return pooled_first(network)


def pooled_first(network: nn.Module) -> nn.Module:
    """pytorchcv concatenates the pooled input after the branch, the official code before it."""
    from pytorchcv.models.shufflenet import ShuffleUnit

    class PooledFirst(ShuffleUnit):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            pooled = x.shape[1] if self.downsample else 0
            return torch.cat([out[:, out.shape[1] - pooled :], out[:, : out.shape[1] - pooled]], 1)

    for part in network.modules():
        if isinstance(part, ShuffleUnit):
            part.__class__ = PooledFirst
    return network


def shuffled(unit: nn.Module) -> nn.Module:
    """A unit followed by torchvision's channel shuffle."""
    from torchvision.models.shufflenetv2 import channel_shuffle

    class Shuffled(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return channel_shuffle(super().forward(x), 2)

    return Shuffled(unit)


def _official_split(torchvision, megvii, size: str) -> nn.Module:
    """torchvision's network and shuffle; the first unit, the one that is another there, from the official code."""
    network = torchvision()
    network.stage2[0] = shuffled(megvii(model_size=size).features[0])
    network.fc.bias = None
    return network


def _mobilenext(folder: Path) -> Iterator[Pair]:
    network = official(folder / "MobileNeXt" / "mnext.py").MXNet

    def make(width: float, share: int) -> nn.Module:
        made = network(width_mult=width)
        for part in made.features:
            part.identity_div = share
        return made

    for width, share in ((1.0, 1), (1.0, 2), (1.0, 3), (1.0, 6), (1.4, 1), (0.75, 1), (0.5, 2), (0.35, 1)):
        source = f"official MXNet width_mult={width} identity_div={share}"
        options = {} if share == 1 else {"identity": 1 / share}
        yield Pair(f"mobilenext_{width}", source, functools.partial(make, width, share), options=options)
