"""Weights of other programs for the zoo's networks: checkpoints of torchvision, timm and the papers' official code.

Layers are matched in order, by shape. Shapes alone do not tell which function the weights belong to: torchvision's
ResNet-50 has those of `resnet50_v1`, whose stride is in another convolution. The names of a checkpoint's tensors do:
they say which program wrote it, and `ORIGINS` says which networks of the zoo compute what that program computes
(`benchmarks/originals.py` compares them by value).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nasspace import zoo
from nasspace.architecture import Architecture
from nasspace.counting import cost
from nasspace.errors import InputError
from nasspace.network import build, folds

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of pixels from 0 to 1
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
Normalization = tuple[tuple[float, ...], tuple[float, ...]]
SHOWN = 3  # networks named in a message
VARIANTS = ("", "_megvii", "_torchvision", "_v1", "_bypass", "_complex_bypass")  # of one network, with equal shapes
Report = Callable[[str], None]


@dataclass(frozen=True)
class Origin:
    """A program's naming of layers, and the zoo's networks that compute the function of the weights.

    A checkpoint with all the `layers` (patterns) and none of `absent` is of this origin. Those of the pattern `unused`
    have no part in the network's output: the classifiers that only help in training. `networks` is the pattern of
    the zoo's names, `eps` the epsilon of its batch norms. `orders` are names of parts in the order of this package:
    safetensors files do not keep the original's. `normalization` is that of its images (the library's default; some
    files have another), which have values up to `largest` after it, for a pixel of 1, and their channels in the order
    blue, green, red if `bgr`. `reason` says why other networks of the same shapes are refused, `note` what else a user
    should know.
    """

    name: str
    layers: tuple[str, ...]
    networks: str
    absent: tuple[str, ...] = ()
    unused: str = ""
    eps: float = 1e-5
    orders: tuple[tuple[str, ...], ...] = ()
    normalization: Normalization = IMAGENET
    largest: float = 1.0
    bgr: bool = False
    reason: str = ""
    note: str = ""

    def wrote(self, names: list[str]) -> bool:
        """Whether layers have this origin's names."""

        def occurs(pattern: str) -> bool:
            return any(re.fullmatch(pattern, name) for name in names)

        return all(map(occurs, self.layers)) and not any(map(occurs, self.absent))

    def computes(self, architecture: Architecture) -> bool:
        """Whether a network of the zoo with this origin's function equals `architecture`, but for its channels."""
        for name in dict.fromkeys([architecture.name, *zoo.names()]):
            if re.fullmatch(self.networks, name):
                with contextlib.suppress(InputError):  # the name of no published network
                    own = zoo.load(name, architecture.input[1], architecture.classes)
                    if own.with_input(channels=architecture.input[0]).digest == architecture.digest:
                        return True
        return False


RESNET = (
    ("layer0", "conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc", "last_linear"),
    ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "se", "se_module", "downsample"),
    ("fc1", "fc2"),
)
FEATURES = (("features", "classifier"), ("squeeze", "expand1x1", "expand3x3"), ("fc1", "fc2"))
TIMM = (
    ("conv_stem", "bn1", "blocks", "conv_head", "bn2", "classifier"),
    ("conv", "bn1"),
    ("conv_dw", "bn1", "se", "conv_pw", "bn2"),
    ("conv_pw", "bn1", "conv_dw", "bn2", "se", "conv_pwl", "bn3"),
    ("conv_reduce", "conv_expand"),
)
GHOSTNET = (
    ("conv_stem", "bn1", "blocks", "conv_head", "classifier"),
    ("ghost1", "conv_dw", "bn_dw", "se", "ghost2", "shortcut"),
    ("primary_conv", "cheap_operation"),
    ("conv_reduce", "conv_expand"),
    ("conv", "bn1"),
)
MOBILENET_V4 = (
    ("conv_stem", "bn1", "blocks", "conv_head", "norm_head", "classifier"),
    ("dw_start", "pw_exp", "dw_mid", "pw_proj"),
    ("conv_exp", "bn1", "conv_pwl", "bn2"),
    ("conv", "bn1"),
    ("conv", "bn"),
)
FASTERNET = (
    ("patch_embed", "stages", "conv_head", "classifier"),
    ("downsample", "blocks"),
    ("spatial_mixing", "mlp"),
    ("proj", "norm"),
    ("reduction", "norm"),
)
STARNET = (("stem", "stages", "norm", "head"), ("dwconv", "f1", "f2", "g", "dwconv2"), ("conv", "bn"))
XCEPTION = (
    ("conv1", "bn1", "conv2", "bn2", *(f"block{i}" for i in range(1, 13)), "conv3", "bn3", "conv4", "bn4", "fc"),
    ("skip", "skipbn", "rep"),
    ("conv1", "pointwise"),
)
MEGVII = (
    ("first_conv", "features", "conv_last", "classifier"),
    ("branch_proj", "branch_main", "branch_main_1", "branch_main_2"),
)
SHUFFLENET = (("conv1", "stage2", "stage3", "stage4", "conv5", "fc"), ("branch1", "branch2"))
MNASNET = (("layers", "classifier"),)
LITE = (
    ("_conv_stem", "_bn0", "_blocks", "_conv_head", "_bn1", "_fc"),
    ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"),
)
GOOGLENET = (
    ("conv1", "conv2", "conv3", *(f"inception{i}{unit}" for i in (3, 4, 5) for unit in "abcde"), "fc"),
    ("conv", "bn"),
)
INCEPTION_V3 = (
    (
        *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
        *(f"Mixed_{i}{unit}" for i in (5, 6, 7) for unit in "abcde"),
        "fc",
    ),
    (
        *("branch1x1", "branch3x3", "branch5x5_1", "branch5x5_2", "branch7x7_1", "branch7x7_2", "branch7x7_3"),
        *("branch3x3_1", "branch3x3_2", "branch3x3_2a", "branch3x3_2b"),
        *("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3", "branch3x3dbl_3a", "branch3x3dbl_3b"),
        *(f"branch7x7dbl_{i}" for i in range(1, 6)),
        *(f"branch7x7x3_{i}" for i in range(1, 5)),
        "branch_pool",
    ),
    ("conv", "bn"),
)
INCEPTION_V4 = (
    ("features", "last_linear"),
    (
        *("branch0", "branch1", "branch1_0", "branch1_1a", "branch1_1b"),
        *("branch2", "branch2_0", "branch2_1", "branch2_2", "branch2_3a", "branch2_3b", "branch3"),
    ),
    ("conv", "bn"),
)
INCEPTION_RESNET = (
    (
        *("conv2d_1a", "conv2d_2a", "conv2d_2b", "conv2d_3b", "conv2d_4a", "mixed_5b", "repeat", "mixed_6a"),
        *("repeat_1", "mixed_7a", "repeat_2", "block8", "conv2d_7b", "classif"),
    ),
    ("branch0", "branch1", "branch2", "branch3", "conv2d"),
    ("conv", "bn"),
)
BYOB = (
    ("stem", "stages", "head"),
    ("identity", "conv_kxk", "conv_1x1", "conv_scale", "attn"),
    ("conv", "bn"),
    ("fc1", "fc2"),
)
REPVGG = (
    ("stage0", "stage1", "stage2", "stage3", "stage4", "linear"),
    ("rbr_identity", "rbr_dense", "rbr_1x1"),
    ("conv", "bn"),
)
WIDTH = r"\d+(\.\d+)?"
ORIGINS = (  # the first that fits; more specific names come first
    Origin(
        "the legacy SE-ResNet of timm",
        (r"layer0\.conv1", r"layer1\.0\.se_module\.fc1"),
        "se_resnet50_v1",
        orders=RESNET,
    ),
    Origin("timm's SE-ResNet", (r"layer1\.0\.conv1", r"layer1\.0\.se\.fc1"), "se_resnet50", orders=RESNET),
    Origin(
        "torchvision's or timm's ResNet",
        (r"layer1\.0\.conv1", r"layer4\.0\.conv1", "fc"),
        r"(resnet\d+|resnext\d+_\d+x\d+d)(_cifar)?",
        orders=RESNET,
        reason="in `_v1` the stride of a bottleneck is in the first 1x1 convolution, there in the 3x3 convolution",
    ),
    Origin(
        "torchvision's SqueezeNet",
        (r"features\.3\.squeeze", r"features\.3\.expand1x1", r"classifier\.1"),
        r"squeezenet_1\.[01]",
        orders=FEATURES,
        reason="there no module has a bypass",
    ),
    Origin("torchvision's AlexNet", (r"features\.10", r"classifier\.4", r"classifier\.6"), "alexnet", orders=FEATURES),
    Origin(
        "timm's legacy Xception",
        (r"block1\.rep\.0\.conv1", r"conv3\.pointwise", "fc"),
        "xception",
        orders=XCEPTION,
        normalization=HALVES,
    ),
    Origin(
        "torchvision's GoogLeNet",
        (r"inception3a\.branch1\.conv", r"inception5b\.branch4\.1\.conv"),
        "googlenet(_cifar)?",
        unused=r"aux[12]\..*",
        eps=1e-3,
        orders=GOOGLENET,
        normalization=HALVES,
    ),
    Origin(
        "torchvision's or timm's Inception v3",
        (r"Conv2d_1a_3x3\.conv", r"Mixed_7c\.branch_pool\.conv"),
        "inception_v3(_cifar)?",
        unused=r"AuxLogits\..*",
        eps=1e-3,
        orders=INCEPTION_V3,
        normalization=HALVES,
    ),
    Origin(
        "timm's Inception v4",
        (r"features\.3\.conv\.conv", r"features\.21\.branch2_3b\.conv", "last_linear"),
        "inception_v4",
        eps=1e-3,
        orders=INCEPTION_V4,
        normalization=HALVES,
    ),
    Origin(
        "timm's Inception-ResNet v2",
        (r"conv2d_1a\.conv", r"repeat_2\.8\.conv2d", "classif"),
        "inception_resnet_v2",
        eps=1e-3,
        orders=INCEPTION_RESNET,
        normalization=HALVES,
    ),
    Origin(
        "torchvision's MobileNetV2",
        (r"features\.1\.conv\.0\.0", r"features\.18\.0", r"classifier\.1"),
        f"mobilenet_v2_{WIDTH}",
        orders=FEATURES,
    ),
    Origin(
        "torchvision's MobileNetV3",
        (r"features\.1\.block\.0\.0", r"classifier\.0", r"classifier\.3"),
        rf"mobilenet_v3_(large|small)_(1\.0|{WIDTH}_torchvision)",
        orders=FEATURES,
        eps=1e-3,
    ),
    Origin(
        "torchvision's MnasNet", (r"layers\.8\.0\.layers\.0", r"classifier\.1"), f"mnasnet_b1_{WIDTH}", orders=MNASNET
    ),
    Origin(
        "timm's MobileNetV1",
        ("conv_stem", r"blocks\.0\.0\.conv_pw", r"blocks\.1\.0\.conv_pw", "classifier"),
        f"mobilenet_v1_{WIDTH}",
        absent=(r"blocks\.1\.0\.bn3",),
        orders=TIMM,
        normalization=HALVES,
    ),
    Origin(
        "timm's GhostNet",
        ("conv_stem", r"blocks\.0\.0\.ghost1\.primary_conv\.0", r"blocks\.9\.0\.conv", "classifier"),
        f"ghostnet_{WIDTH}",
        absent=(r"blocks\..*\.short_conv\.0",),
        orders=GHOSTNET,
    ),
    Origin(
        "timm's MobileNetV4",
        ("conv_stem", r"blocks\.2\.0\.pw_exp\.conv", "norm_head", "classifier"),
        "mobilenet_v4_conv_(small|medium|large)",
        orders=MOBILENET_V4,
        note="some of timm's weights of it are for images with a mean and a deviation of 0.5",
    ),
    Origin(
        "timm's MobileNet, MnasNet or EfficientNet-Lite",
        ("conv_stem", r"blocks\.0\.0\.conv_(dw|pw)", "classifier"),
        rf"mobilenet_v2_{WIDTH}|mnasnet_(a1|b1)_{WIDTH}|mobilenet_v3_(large|small)_{WIDTH}|efficientnet_lite\d",
        orders=TIMM,
        reason="timm adds the input around the first separable convolution of MnasNet's small network",
        note="timm's `tf_` networks have these names too, but other padding and epsilon: their outputs differ here",
    ),
    Origin(
        "timm's FasterNet",
        (r"patch_embed\.proj", r"stages\.0\.blocks\.0\.spatial_mixing\.partial_conv3", "conv_head", "classifier"),
        "fasternet_(t0|t1|t2|s)",
        orders=FASTERNET,
    ),
    Origin(
        "timm's StarNet",
        (r"stem\.0\.conv", r"stages\.0\.1\.dwconv2\.conv", "norm", "head"),
        "starnet_s[1-4]",
        orders=STARNET,
    ),
    Origin(
        "torchvision's ShuffleNetV2",
        (r"conv1\.0", r"stage2\.0\.branch1\.0", r"conv5\.0", "fc"),
        f"shufflenet_v2_{WIDTH}_torchvision",
        orders=SHUFFLENET,
        reason="its first unit and its order of channels are torchvision's own",
    ),
    Origin(
        "the official ShuffleNetV2",
        (r"first_conv\.0", r"features\.0\.branch_main\.0", r"features\.0\.branch_proj\.0"),
        f"shufflenet_v2_{WIDTH}_megvii",
        orders=MEGVII,
        normalization=PLAIN,
        largest=255.0,
        bgr=True,
        reason="the official code splits channels by parity, the paper in halves",
    ),
    Origin(
        "the official ShuffleNetV1",
        (r"first_conv\.0", r"features\.0\.branch_main_1\.0", r"features\.0\.branch_main_2\.0"),
        rf"shufflenet_v1_g\d+_{WIDTH}_megvii",
        orders=MEGVII,
        normalization=PLAIN,
        largest=255.0,
        bgr=True,
        reason="the official code shuffles channels after the depthwise convolution, the paper before it",
    ),
    Origin(
        "the official MobileNeXt",
        (r"features\.1\.conv\.0", r"features\.1\.conv\.3", r"classifier\.1"),
        rf"mobilenext_{WIDTH}(_identity_1_\d+)?",
        orders=FEATURES,
        note="the file does not record its identity tensor multiplier; the network's is used",
    ),
    Origin("timm's RepVGG", (r"stem\.conv_kxk\.conv", r"stages\.0\.0\.conv_1x1\.bn"), r"repvgg_.+", orders=BYOB),
    Origin(
        "timm's MobileOne", (r"stem\.conv_kxk\.0\.conv", r"stages\.0\.0\.conv_scale\.bn"), r"mobileone_.+", orders=BYOB
    ),
    Origin("the official RepVGG", (r"stage0\.rbr_dense\.conv", r"stage4\.0\.rbr_1x1\.bn"), r"repvgg_.+", orders=REPVGG),
    Origin(
        "efficientnet_lite_pytorch",
        ("_conv_stem", r"_blocks\.0\._depthwise_conv", "_fc"),
        r"efficientnet_lite\d",
        eps=1e-3,
        orders=LITE,
        normalization=HALVES,
        note="its padding is TensorFlow's, equal to ours at resolutions of 32 n + 1 such as 65 and 225 only",
    ),
)


def is_own(state: Mapping[str, Tensor], network: nn.Module) -> bool:
    """Whether weights have the names of this package: most of the network's."""
    names = network.state_dict().keys()
    return 2 * len(names & state.keys()) > len(names)


def converted(
    state: Mapping[str, Tensor], network: nn.Module, architecture: Architecture, place: str, report: Report
) -> tuple[dict[str, Tensor], Normalization | None]:
    """Weights of another program under the names of `network`, so that it computes the same function.

    Returned with the mean and standard deviation, for pixels from 0 to 1, that its images had; None if unknown. Layers
    are matched in order. The weights of batch norms are scaled where the epsilon differs, those of the first layer
    where images had another range or order of channels. The last layer may have other classes, the first one other
    channels (`fitted`). `report` receives where the weights come from. Raises `InputError`, which names the file and
    what to do, if `network` computes another function or has other shapes.
    """
    layers = _layers(state)
    origin = next((each for each in ORIGINS if each.wrote(list(layers))), None)
    if origin and not origin.computes(architecture):
        raise InputError(f"{place}: {_refusal(origin, layers, architecture)}")
    try:
        matched = list(_matched(_in_our_order(layers, origin), _layers(network.state_dict()), place, origin))
    except InputError as error:
        names = list(_fitting(origin, layers, architecture.name)) if origin else []
        raise InputError(f"{error}; they are those of {', '.join(names[:SHOWN])}" if names else str(error)) from None
    result = {name: tensor for theirs, ours in matched for name, tensor in _renamed(theirs, ours).items()}
    if origin is None:
        report(
            f"{place}: unknown layer names; its {len(matched)} layers were matched in order, by shape. "
            "Activations, strides or the order of channels may differ: compare the accuracy before training"
        )
        return result, None
    report(f"{place}: weights of {origin.name}, {len(matched)} layers")
    if origin.note:
        report(f"{place}: {origin.note}")
    if changed := _scale_for_epsilon(network, result, origin.eps):
        report(
            f"{place}: batch norm has an epsilon of {origin.eps:g} there, {changed:g} here; its weights were scaled, "
            "so that outputs are equal"
        )
    first = next(iter(result))
    result[first] = origin.largest * (result[first].flip(1) if origin.bgr else result[first])
    return result, for_channels(origin.normalization, architecture.input[0])


def for_channels(normalization: Normalization, channels: int) -> Normalization:
    """A normalization for images of `channels`: gray ones get the means of one for color, and the reverse."""
    if channels == len(normalization[0]):
        return normalization
    mean, std = ((sum(values) / len(values),) * channels for values in normalization)
    return mean, std


def networks_of(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the published networks that another program's weights can belong to; none if its names are not known."""
    layers = _layers(state)
    origin = next((each for each in ORIGINS if each.wrote(list(layers))), None)
    return list(_fitting(origin, layers, "")) if origin else []


def fitted(
    state: Mapping[str, Tensor], network: nn.Module, place: str, report: Report
) -> tuple[dict[str, Tensor], bool]:
    """Weights for a network of other classes or channels, and whether the last layer's were taken.

    A last layer of other classes gets its initial weights, also in auxiliary classifiers. A first convolution of three
    channels (or each branch of a first block) is summed for gray images, and one of a single channel divided among
    three: the outputs for equal normalized channels stay equal.
    """
    fitting, initial = dict(state), network.state_dict()
    parts = [name for name, part in network.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    if not parts:
        return fitting, True
    last = f"{parts[-1]}.weight"
    head = [name for name in initial if name.startswith(parts[-1].partition(".")[0] + ".")]
    is_new = any(name in state and state[name].shape != initial[name].shape for name in head)
    if is_new:
        count = len(state[last]) if last in state and state[last].dim() else None
        needed = len(initial[last])
        what = "another shape" if count in (None, needed) else f"{count} classes, not {needed}"
        report(f"{place}: the last layer has {what}: it starts from new weights")
        fitting |= {name: initial[name] for name in head}
        fitting |= {name: own for name, own in _auxiliary(network) if name in state and own.shape != state[name].shape}
    first = [f"{name}.weight" for name in parts if _block(name) == _block(parts[0])]
    found = ((name, _with_channels(state[name], initial[name].shape)) for name in first if name in state)
    adapted = {name: weight for name, weight in found if weight is not None}
    for name in list(adapted)[:1]:
        report(f"{place}: the first layer is adapted from {_images(state[name])} to {_images(adapted[name])} images")
    return fitting | adapted, not is_new


def _block(name: str) -> str:
    """The block that a module or tensor belongs to."""
    return name.partition(".")[0]


def _auxiliary(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights of auxiliary classifiers (`nasspace.blocks`) by name."""
    for name, part in network.named_modules():
        if hasattr(part, "loss_weight"):
            yield from part.state_dict(prefix=f"{name}.").items()


def _layers(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each layer, in the order of the state dictionary; counts of batches are left out."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        layer, _, name = key.rpartition(".")
        if name != "num_batches_tracked":
            layers.setdefault(layer, {})[name] = tensor
    return layers


def _in_our_order(layers: dict[str, dict[str, Tensor]], origin: Origin | None) -> dict[str, dict[str, Tensor]]:
    """Layers in the order of this package, whatever their order in the file; as they are without an origin."""
    if origin is None:
        return layers
    tree: dict[str, Any] = {}
    for name in layers:
        if not re.fullmatch(origin.unused, name):
            node = tree
            for part in name.split("."):
                node = node.setdefault(part, {})
    return {name: layers[name] for name in _sorted(tree, origin.orders, "") if name in layers}


def _sorted(tree: Mapping[str, Any], orders: Sequence[Sequence[str]], before: str) -> Iterator[str]:
    """The names in a tree of parts, each part's children by number, or by the first order that names them all."""
    names = list(tree)
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    elif (order := next((order for order in orders if set(names) <= set(order)), None)) is not None:
        names.sort(key=list(order).index)
    for name in names:
        yield before + name
        yield from _sorted(tree[name], orders, f"{before}{name}.")


def _matched(
    theirs: dict[str, dict[str, Tensor]], ours: dict[str, dict[str, Tensor]], place: str, origin: Origin | None
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Pairs of layers in order, ours with full names; raises `InputError` where kinds or shapes differ."""
    of = f"weights of {origin.name}" if origin else "unknown layer names, so that layers are matched in order"
    if origin is None and list(theirs) == sorted(theirs):
        of += " (alphabetical in this file; a .pth file keeps the order of the network)"
    first = _block(next(iter(ours), ""))
    for i, ((name, given), (own, needed)) in enumerate(zip(theirs.items(), ours.items(), strict=False)):
        ends = i in (0, len(ours) - 1) or (_block(own) == first and _is_adaptable(given, needed))  # by `fitted`
        if given.keys() != needed.keys() or not (ends or _same_shapes(given, needed)):
            raise InputError(
                f"{place}: {of}; layer {i + 1}, '{name}', has {_shown(given)}, but the network's layer '{own}' has "
                f"{_shown(needed)}: these are weights of another network"
            )
        yield given, {f"{own}.{key}": value for key, value in needed.items()}
    if len(theirs) != len(ours):
        raise InputError(
            f"{place}: {of}; {len(theirs)} layers with weights, but the network has {len(ours)}: these are weights of "
            "another network"
        )


def _is_adaptable(given: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> bool:
    """Whether the weights of a layer that takes the images can be adapted to gray or color ones."""
    if not (given.keys() == needed.keys() and "weight" in given):
        return False
    return _with_channels(given["weight"], needed["weight"].shape) is not None


def _same_shapes(given: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> bool:
    """Whether tensors have equal shapes; a 1x1 convolution and a linear layer are the same."""
    return all(given[key].squeeze().shape == needed[key].squeeze().shape for key in needed)


def _shown(layer: Mapping[str, Tensor]) -> str:
    """The shapes of a layer's tensors as text."""
    return ", ".join(f"{name} {'x'.join(map(str, tensor.shape))}" for name, tensor in layer.items())


def _renamed(given: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a layer under our names, and in our shapes where they have as many values."""
    result = {}
    for name, own in needed.items():
        tensor = given[name.rpartition(".")[2]]
        result[name] = tensor.reshape(own.shape) if tensor.numel() == own.numel() else _with_dimensions(tensor, own)
        if name.endswith(".running_mean"):
            result[name.replace("running_mean", "num_batches_tracked")] = torch.zeros((), dtype=torch.long)
    return result


def _with_dimensions(tensor: Tensor, own: Tensor) -> Tensor:
    """A classifier as the network has it: a linear layer's matrix, or a 1x1 convolution's four dimensions."""
    if tensor.dim() == 4 and own.dim() == 2 and tensor.shape[2:] == (1, 1):
        return tensor.flatten(1)
    return tensor[..., None, None] if tensor.dim() == 2 and own.dim() == 4 else tensor


def _scale_for_epsilon(network: nn.Module, state: dict[str, Tensor], eps: float) -> float | None:
    """Scale the weights of batch norms with another epsilon, so that in evaluation they compute the same.

    w / sqrt(v + e) stays equal. Returns the network's epsilon where it differs.
    """
    changed = None
    for name, part in network.named_modules():
        if isinstance(part, nn.BatchNorm2d) and part.eps != eps:
            variance = state[f"{name}.running_var"].double()
            factor = ((variance + part.eps) / (variance + eps)).sqrt()
            state[f"{name}.weight"] = (state[f"{name}.weight"] * factor).to(state[f"{name}.weight"].dtype)
            changed = part.eps
    return changed


def _images(weight: Tensor) -> str:
    """The kind of images that a first convolution takes."""
    return "gray" if weight.shape[1] == 1 else "color"


def _with_channels(weight: Tensor, shape: torch.Size) -> Tensor | None:
    """Weights of a first convolution for gray instead of color images, or the reverse; None for other shapes."""
    if weight.dim() != 4 or (weight.shape[0], *weight.shape[2:]) != (shape[0], *shape[2:]):
        return None
    if (weight.shape[1], shape[1]) == (3, 1):
        return weight.sum(1, keepdim=True)
    return weight.expand(-1, 3, -1, -1) / 3 if (weight.shape[1], shape[1]) == (1, 3) else None


def _refusal(origin: Origin, layers: dict[str, dict[str, Tensor]], architecture: Architecture) -> str:
    """Why weights of an origin are not the architecture's, and which published networks they fit."""
    fitting = list(_fitting(origin, layers, architecture.name))
    name = architecture.name or "this network"
    reason = f" ({origin.reason})" if origin.reason and fitting else ""
    if not fitting:
        return (
            f"weights of {origin.name}, but {name} is another network, and no published network of that "
            "program has these shapes"
        )
    known = ", ".join(fitting[:SHOWN]) + (", ..." if len(fitting) > SHOWN else "")
    refused = f"weights of {origin.name}, whose function {name} does not compute{reason}"
    return f"{refused}; they are those of {known}"


def _fitting(origin: Origin, layers: dict[str, dict[str, Tensor]], requested: str) -> Iterator[str]:
    """The networks of an origin that have the shapes of these layers: published ones and variants of `requested`."""
    given = list(_in_our_order(layers, origin).values())
    head, stem = given[-1].get("weight"), given[0].get("weight")
    if head is None or stem is None or stem.dim() != 4:
        return
    count = sum(tensor.numel() for layer in given for key, tensor in layer.items() if not key.startswith("running"))
    base = re.sub("|".join(f"{variant}$" for variant in VARIANTS[1:]), "", requested)
    names = [*zoo.names(), *(name + variant for name in (base, *zoo.names()) for variant in VARIANTS)]
    for name in dict.fromkeys(names):
        if not re.fullmatch(origin.networks, name):
            continue
        try:
            architecture = zoo.load(name, classes=len(head)).with_input(channels=stem.shape[1])
        except InputError:
            continue  # not every network has every variant
        if not folds(architecture) and cost(architecture).params != count:  # else it counts the folded network
            continue
        own = list(_layers(build(architecture).state_dict()).values())
        pairs = zip(given, own, strict=False)
        if len(own) == len(given) and all(
            one.keys() == other.keys() and _same_shapes(one, other) for one, other in pairs
        ):
            yield name
