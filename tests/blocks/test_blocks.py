"""Every registered block at every combination of widths and strides, and properties that counts do not reveal."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import random
import re
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nasspace import Architecture, Space, blocks, build, cost
from nasspace.blocks import layers, registry
from nasspace.documents import Document
from nasspace.errors import InputError
from nasspace.network import fold, make_block

SIDE = 8
INS, OUTS, STRIDES = (1, 5, 8, 16, 24), (1, 6, 16, 24, 37), (1, 2)
SHAPES = list(itertools.product(INS, OUTS, STRIDES))
VALUES = [1, 2, 5, 8, 0.0, 0.05, 1 / 3, 2.5, True, False, None]
ENDS = {"global_pool", "flatten", "dropout", "linear"}  # without a map to stride over
FREE = {"padding", "ceil", "size"}  # options that change the size of the map
EVERY = blocks.known()


def options_of(name: str) -> list[dict]:
    """No option, then each option alone with every value of VALUES and every literal that its type allows."""
    block = blocks.get(name)
    found = [{}]
    for option, adapter in block.types.items():
        if option == "classes" and block.classifies:
            continue  # `Architecture.of` sets it
        schema = json.dumps(adapter.json_schema())
        words = [word for word in schema.replace("[", '"').split('"') if word.isidentifier()]
        for value in [*VALUES, *dict.fromkeys(words)]:
            try:
                options = blocks.validated(name, {option: value}, Document({}), ())
            except InputError:
                continue
            if options not in found and options != {option: block.defaults[option]}:
                found.append(options)
    return found


def architecture_of(name: str, options: dict, width: int, out: int, stride: int) -> Architecture:
    layer = {"block": name, "out": out, "stride": stride, **options}
    return Architecture.of([layer], input=(width, SIDE, SIDE))


def shapes(module: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in module.parameters()]


def check(name: str, options: dict, width: int, out: int, stride: int, by_hooks) -> None:
    """Check that it builds, runs, has the right shape and counts, and that resolving its options changes nothing."""
    arch = architecture_of(name, options, width, out, stride)
    block, layer = blocks.get(name), arch.layers[0]
    flattens = getattr(block.cls, "flattens", False)
    channels = width * SIDE * SIDE if flattens else width
    with torch.device("meta"):  # without values
        raw = block.cls(channels, out, stride, **options, **({"classes": out} if block.classifies else {}))
    module = make_block(layer, channels)
    assert shapes(raw) == shapes(module), "resolving changed the network"
    assert all(min(shape) > 0 for shape in shapes(module))
    assert Architecture.from_json(arch.to_json()).layers == arch.layers, "resolving is not idempotent"
    image = torch.randn(1, width, SIDE, SIDE)
    expected = by_hooks(module, image)
    with torch.no_grad():
        result = module(image)
    assert result.shape[:2] == (1, out)
    side = -(-SIDE // stride)
    if name not in ENDS and not FREE & options.keys() and options.get("kernel", 3) % 2:
        assert result.shape[2:] == (side, side)
    counted = cost(arch)
    assert (counted.flops, counted.params, counted.memory_access) == expected
    assert counted.layers[0].out_shape == tuple(result.shape[1:])


@pytest.mark.parametrize("name", EVERY)
def test_every_block_takes_every_width_and_stride(name, by_hooks):
    for shape in SHAPES:
        check(name, {}, *shape, by_hooks)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_every_option_at_many_widths_and_strides(name, by_hooks):
    """Each option at a sixth of the shapes; which of them changes from option to option."""
    for number, options in enumerate(options_of(name)):
        for shape in SHAPES[number % 6 :: 6]:
            check(name, options, *shape, by_hooks)


@pytest.mark.parametrize("name", EVERY)
def test_defaults_written_out_are_the_same_network(name):
    for width, out, stride in [(16, 16, 1), (16, 24, 1), (16, 24, 2), (24, 5, 2)]:
        plain = architecture_of(name, {}, width, out, stride)
        defaults = {o: d for o, d in blocks.get(name).defaults.items() if d is not None and o != "classes"}
        assert architecture_of(name, defaults, width, out, stride) == plain


@pytest.mark.parametrize("name", EVERY)
def test_options_that_change_the_network_change_the_digest(name):
    for width, out, stride in [(16, 16, 1), (16, 24, 2)]:
        found = {}
        for options in options_of(name):
            arch = architecture_of(name, options, width, out, stride)
            channels = width * SIDE * SIDE if name == "flatten" else width
            text = str(make_block(arch.layers[0], channels)) + str(shapes(make_block(arch.layers[0], channels)))
            assert found.setdefault(arch.digest, text) == text


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"flatten"}))
def test_counts_are_fvcores(name):
    for width, out, stride in [(16, 16, 1), (16, 24, 2)]:
        arch = architecture_of(name, {}, width, out, stride)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
            from fvcore.nn import FlopCountAnalysis

            analysis = FlopCountAnalysis(fold(build(arch).eval()), torch.zeros(1, width, SIDE, SIDE))
            counts = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
        assert cost(arch).flops == counts["conv"] + counts["linear"]


@pytest.mark.parametrize("name", EVERY)
def test_every_block_trains(name):
    arch = architecture_of(name, {}, 16, 24, 2)
    network = build(arch).train()
    network(torch.randn(4, 16, SIDE, SIDE)).square().sum().backward()
    apart = {id(p) for part in network.modules() if hasattr(part, "loss_weight") for p in part.parameters()}
    assert all(parameter.grad is not None or id(parameter) in apart for parameter in network.parameters())


@pytest.mark.parametrize("name", EVERY)
def test_every_block_has_a_formula(name):
    formula = blocks.get(name).formula
    assert formula.endswith(".")
    assert len(formula) > 20


def test_every_block_is_in_the_documentation():
    text = Path(__file__).parents[2].joinpath("docs", "spaces.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", text, re.MULTILINE))))
    assert set(EVERY) - ENDS <= listed


# Properties that counts do not reveal


def quiet(module: nn.Module) -> nn.Module:
    """The module in evaluation mode with the last batch norm of its branch at zero, so the branch returns zeros."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    nn.init.zeros_(norms[-1].weight)
    return module.eval()


def block(name: str, width: int, out: int, stride: int = 1, **options) -> nn.Module:
    return blocks.get(name).cls(width, out, stride, **options)


IMAGE = torch.rand(2, 12, SIDE, SIDE) + 0.1


FOLDED = [
    *(("repvgg", 12, {}), ("repvgg", 12, {"groups": 4}), ("repvgg", 18, {"groups": 3, "kernel": 5})),
    *(("mobileone", 12, {"branches": 3, "se": 0.25}), ("mobileone", 20, {"kernel": 1})),
]


@torch.no_grad()
@pytest.mark.parametrize(("name", "out", "options"), FOLDED)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_folded_block_computes_the_same_without_branches(name, out, options, stride):
    module, rng = block(name, 12, out, stride, **options).eval(), torch.Generator().manual_seed(0)
    for norm in [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]:
        for values in (norm.weight, norm.running_var):
            values.uniform_(0.5, 2, generator=rng)
        for values in (norm.bias, norm.running_mean):
            values.normal_(generator=rng)
    expected, folded = module(IMAGE), fold(module)
    torch.testing.assert_close(folded(IMAGE), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    convolutions = [part for part in folded if isinstance(part, nn.Conv2d)]
    assert len(convolutions) == {"repvgg": 1, "mobileone": 2}[name]
    assert not [part for part in folded.modules() if isinstance(part, nn.BatchNorm2d)]


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6])
def test_channel_shuffle_is_pytorchs(groups):
    expected = IMAGE if groups == 1 else nn.ChannelShuffle(groups)(IMAGE)
    assert torch.equal(layers.channel_shuffle(IMAGE, groups), expected)


def test_a_channel_shuffle_stays_at_four_dimensions():
    """Delegates of phones run no tensors of five."""
    seen = []

    class Dimensions(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            seen.extend([result.dim()] if isinstance(result, torch.Tensor) else [])
            return result

    with Dimensions():
        layers.channel_shuffle(IMAGE, 3)
    assert set(seen) == {4}


def test_the_inverted_residual_adds_its_input_to_a_linear_projection():
    assert torch.equal(quiet(block("inverted_residual", 12, 12))(IMAGE), IMAGE)
    assert not quiet(block("inverted_residual", 12, 12, skip="none"))(IMAGE).any()
    assert not quiet(block("inverted_residual", 12, 12, 2))(IMAGE).any()
    pooled = F.avg_pool2d(IMAGE, 3, 2, 1)
    assert torch.equal(quiet(block("inverted_residual", 12, 12, 2, skip="pool"))(IMAGE), pooled)
    assert (block("inverted_residual", 12, 16).eval()(IMAGE) < 0).any()


@torch.no_grad()
def test_a_bottleneck_may_have_an_activation():
    unit = block("inverted_residual", 12, 16, linear=False).eval()
    assert float(unit(IMAGE).min()) == 0
    assert isinstance(unit.residual[-1][-1], nn.ReLU6)


@torch.no_grad()
def test_a_chain_of_expanded_residuals_is_one_of_inverted_residuals_but_for_the_shortcut():
    """Expand, depthwise | project, expand, depthwise | project: cut at the wide or at the narrow maps."""
    expand = {"block": "conv", "kernel": 1, "out": 48, "activation": "relu6"}
    wide = [expand, {**expand, "kernel": 3, "groups": 48}]
    unit = {"block": "expanded_residual", "out": 48, "expansion": 6, "skip": "none"}
    end = {"block": "conv", "kernel": 1, "out": 8, "activation": "none"}
    cut_wide = build(Architecture.of([*wide, unit, end], input=(8, SIDE, SIDE))).eval()
    narrow = {"block": "inverted_residual", "out": 8, "expansion": 6, "skip": "none"}
    cut_narrow = build(Architecture.of([narrow, narrow], input=(8, SIDE, SIDE))).eval()
    given, taken = (list(network.state_dict().values()) for network in (cut_narrow, cut_wide))
    for source, target in zip(given, taken, strict=True):
        target.copy_(source)
    image = torch.randn(1, 8, SIDE, SIDE)
    assert torch.allclose(cut_wide(image), cut_narrow(image), atol=1e-6)
    assert block("expanded_residual", 8, 8).shortcut is not None


def test_expansion_1_has_no_first_convolution():
    kernels = [p.shape[2] for p in block("inverted_residual", 12, 24, expansion=1).parameters() if p.dim() == 4]
    assert kernels == [3, 1]


@pytest.mark.parametrize(("se_from", "squeezed"), [("input", 3), ("expanded", 24)])
def test_squeeze_and_excitation_has_the_width_of_the_papers(se_from, squeezed):
    module = block("inverted_residual", 12, 12, expansion=8, se=0.25, se_from=se_from, se_gate="hard_sigmoid")
    found = next(part for part in module.modules() if isinstance(part, layers.SqueezeExcite))
    assert found.reduce.out_channels == squeezed
    assert isinstance(found.gate, nn.Hardsigmoid)


@pytest.mark.parametrize(("share", "added"), [(1.0, 12), (0.5, 6), (1 / 3, 4), (1 / 6, 2), (0.01, 0)])
def test_sandglass_adds_a_share_of_its_input(share, added):
    out = quiet(block("sandglass", 12, 12, identity=share))(IMAGE)
    assert torch.equal(out[:, :added], IMAGE[:, :added])
    assert not out[:, added:].any()


def test_shuffle_v2_passes_half_of_its_input_and_shuffles():
    out = block("shuffle_v2", 12, 12).eval()(IMAGE)
    assert torch.equal(out[:, 0::2], IMAGE[:, :6])
    assert (out >= 0).all()
    with_se = block("shuffle_v2", 12, 12, se=0.5).eval()(IMAGE)
    assert torch.equal(with_se[:, 0::2], IMAGE[:, :6])


def test_shuffle_v2_splits_as_paper_or_in_halves():
    assert [block("shuffle_v2", 24, 116, 2, split=s).branch[-1][0].out_channels for s in ("paper", "half")] == [92, 58]


def test_shuffle_v1_puts_the_pooled_input_first():
    out = block("shuffle_v1", 12, 36, 2).eval()(IMAGE)
    assert torch.equal(out[:, :12], F.avg_pool2d(IMAGE, 3, 2, 1))
    assert torch.equal(quiet(block("shuffle_v1", 12, 12))(IMAGE), IMAGE)


def test_only_the_first_convolution_of_shuffle_v1_takes_first_groups():
    convolutions = [m for m in block("shuffle_v1", 24, 240, 2, first_groups=1).modules() if isinstance(m, nn.Conv2d)]
    assert [m.groups for m in convolutions] == [1, 60, 3]


def test_fire_has_its_1x1_part_first_and_adds_its_bypass():
    module = block("fire", 12, 12, expand_3x3=0.25, bypass="simple").eval()
    nn.init.zeros_(module.expand[1][0].weight)
    nn.init.constant_(module.expand[1][0].bias, -1.0)
    out = module(IMAGE)
    assert torch.equal(out[:, 9:], IMAGE[:, 9:])
    assert (out[:, :9] >= IMAGE[:, :9]).all()
    assert isinstance(block("fire", 12, 16, bypass="complex").bypass, nn.Conv2d)
    assert block("fire", 12, 16, bypass="simple").bypass is None


@pytest.mark.parametrize("bypass", ["none", "simple", "complex"])
def test_fire_has_biases_or_batch_norms(bypass):
    """A bias before a batch norm does nothing; for the bypass that is the next layer's norm."""
    for norm, biased in (("none", True), ("bn", False)):
        module = block("fire", 12, 16, bypass=bypass, norm=norm)
        convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
        assert len(convolutions) == 3 + (bypass == "complex")
        assert {part.bias is not None for part in convolutions} == {biased}


@pytest.mark.parametrize("side", [1, 5, 6, 7, 13])
def test_averaging_to_a_size_is_pytorchs(side):
    image = torch.rand(2, 3, side, side + 2)
    pooled = block("avg_pool", 3, 3, 2, size=6)(image)
    assert torch.allclose(pooled, F.adaptive_avg_pool2d(image, 6), atol=1e-6)


def test_xception_activates_before_convolutions_and_not_after_the_sum():
    module = quiet(block("xception", 12, 12))
    assert torch.equal(module(IMAGE), IMAGE)
    kinds = [type(part).__name__ for part in block("xception", 12, 24, 2, repeats=2).residual]
    separable = ["Conv2d", "Conv2d", "BatchNorm2d"]
    assert kinds == ["ReLU", *separable, "ReLU", *separable, "MaxPool2d"]
    first = block("xception", 12, 24, 2, repeats=2, first_relu=False, middle="elu", pool="avg")
    kinds = [type(part).__name__ for part in first.residual]
    assert kinds == ["Conv2d", "ELU", *separable[1:], "ReLU", "Conv2d", "ELU", *separable[1:], "AvgPool2d"]
    assert (first.eval()(IMAGE) < 0).any()


def test_xception_grows_first_or_last_and_strides_by_pooling_or_in_its_last_depthwise():
    def outs(**options) -> list[int]:
        return [
            part.out_channels for part in block("xception", 12, 20, 2, **options).residual if hasattr(part, "groups")
        ]

    assert outs(repeats=3) == [12, 20, 20, 20, 20, 20]
    assert outs(repeats=3, grow="last") == [12, 12, 12, 12, 12, 20]
    convolutions = [p for p in block("xception", 12, 20, 2, pool="none").residual if isinstance(p, nn.Conv2d)]
    assert [part.stride[0] for part in convolutions] == [1, 1, 1, 1, 2, 1]
    assert block("xception", 12, 20, 2, skip=False).shortcut is None


@pytest.mark.parametrize("name", ["basic", "bottleneck"])
def test_residual_units_activate_the_sum(name):
    assert torch.equal(quiet(block(name, 12, 12))(IMAGE), IMAGE.relu())
    projected = quiet(block(name, 12, 16, 2))
    assert torch.allclose(projected(IMAGE), projected.residual(IMAGE).relu())  # the shortcut's norm is the last


def test_bottleneck_widths_and_stride_are_those_of_resnext_and_of_both_resnets():
    def convolutions(**options) -> list[tuple]:
        parts = block("bottleneck", 64, 256, 2, **options).residual.modules()
        return [(p.out_channels, p.kernel_size[0], p.stride[0], p.groups) for p in parts if isinstance(p, nn.Conv2d)]

    assert convolutions() == [(64, 1, 1, 1), (64, 3, 2, 1), (256, 1, 1, 1)]
    assert convolutions(stride_at="1x1") == [(64, 1, 2, 1), (64, 3, 1, 1), (256, 1, 1, 1)]
    assert convolutions(groups=32, base_width=4) == [(128, 1, 1, 1), (128, 3, 2, 32), (256, 1, 1, 1)]
    assert convolutions(se=1 / 16)[3:] == [(16, 1, 1, 1), (256, 1, 1, 1)]
    too_wide = Architecture.of([{"block": "bottleneck", "out": 4096, "groups": 1024}], input=(8, 8, 8))
    with pytest.raises(InputError, match="above 65536"):
        cost(too_wide)


def convolutions_of(module: nn.Module) -> list[tuple[int, ...]]:
    """Width, kernel, stride, groups of each convolution in order."""
    found = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    return [(part.out_channels, part.kernel_size[0], part.stride[0], part.groups) for part in found]


def test_a_ghost_module_computes_a_part_of_its_channels_from_the_others():
    module = block("ghost_bottleneck", 12, 12, hidden=14, ratio=3).eval()
    first, last = module.residual
    assert convolutions_of(first) == [(5, 1, 1, 1), (10, 3, 1, 5)]  # 15 channels, of which 14 are kept
    out = first(IMAGE)
    assert torch.equal(out[:, :5], first.primary(IMAGE))
    assert torch.equal(out[:, 5:], first.cheap(out[:, :5])[:, :9])
    assert (last(out) < 0).any(), "the second module is linear"
    for name, part in last.named_parameters():
        if name.endswith("1.weight"):  # of the batch norms
            nn.init.zeros_(part)
    assert torch.equal(module(IMAGE), IMAGE)


def test_a_ghost_bottleneck_strides_in_depthwise_convolutions():
    module = block("ghost_bottleneck", 12, 20, 2, kernel=5, hidden=24, se=0.25)
    assert convolutions_of(module.residual[1]) == [(24, 5, 2, 24)]
    assert convolutions_of(module.shortcut) == [(12, 5, 2, 12), (20, 1, 1, 1)]
    assert module.residual[2].reduce.out_channels == 8  # a multiple of 4
    assert convolutions_of(block("ghost_bottleneck", 12, 20, ratio=1))[:2] == [(72, 1, 1, 1), (20, 1, 1, 1)]


@pytest.mark.parametrize(
    ("kernels", "stride", "expected"),
    [
        ((5, 3), 2, [(12, 5, 1, 12), (48, 1, 1, 1), (48, 3, 2, 48), (12, 1, 1, 1)]),
        ((5, 0), 2, [(12, 5, 2, 12), (48, 1, 1, 1), (12, 1, 1, 1)]),
        ((0, 5), 2, [(48, 1, 1, 1), (48, 5, 2, 48), (12, 1, 1, 1)]),
        ((0, 0), 1, [(48, 1, 1, 1), (12, 1, 1, 1)]),
        ((0, 0), 2, [(48, 1, 1, 1), (48, 3, 2, 48), (12, 1, 1, 1)]),
    ],
)
def test_the_universal_bottleneck_is_four_blocks(kernels, stride, expected):
    first, second = kernels
    module = block("universal_inverted_bottleneck", 12, 12, stride, first_kernel=first, kernel=second)
    assert convolutions_of(module) == expected
    assert sum(isinstance(part, nn.ReLU) for part in module.modules()) == len(expected) - 1 - bool(first)
    assert torch.equal(quiet(module)(IMAGE), IMAGE) if stride == 1 else module.shortcut is None


def test_the_fused_bottleneck_expands_by_its_kernel():
    assert convolutions_of(block("fused_inverted_bottleneck", 12, 20, 2)) == [(48, 3, 2, 1), (20, 1, 1, 1)]
    assert torch.equal(quiet(block("fused_inverted_bottleneck", 12, 12))(IMAGE), IMAGE)


def test_fasternet_convolves_a_part_of_its_channels():
    module = block("fasternet", 12, 12).eval()
    assert convolutions_of(module) == [(3, 3, 1, 1), (24, 1, 1, 1), (12, 1, 1, 1)]
    inputs = []
    module.pointwise.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    module(IMAGE)
    assert torch.equal(inputs[0][:, 3:], IMAGE[:, 3:])
    nn.init.zeros_(module.pointwise[-1].weight)
    assert torch.equal(module(IMAGE), IMAGE)
    assert convolutions_of(block("fasternet", 12, 20, 4))[0] == (20, 4, 4, 1)


@pytest.mark.parametrize(("side", "expected"), [(9, 4), (8, 4), (1, 1)])
def test_patches_are_whole_and_at_least_one(side, expected):
    assert block("fasternet", 12, 20, 2).eval()(torch.rand(1, 12, side, side)).shape == (1, 20, expected, expected)


def test_starnet_multiplies_its_branches():
    module = block("starnet", 12, 12).eval()
    assert convolutions_of(module) == [(12, 7, 1, 12), (48, 1, 1, 1), (48, 1, 1, 1), (12, 1, 1, 1), (12, 7, 1, 12)]
    out = module.depthwise(IMAGE)
    product = F.relu6(module.first[0](out)) * module.second(out)
    assert torch.equal(module(IMAGE), IMAGE + module.last(module.project(product)))
    assert convolutions_of(block("starnet", 12, 20, 2))[0] == (20, 3, 2, 1)


def test_official_order_of_channels_is_the_inverse():
    numbered = torch.arange(12.0)[None, :, None, None]
    assert layers.channel_shuffle(numbered, 3).flatten().tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert layers.channel_shuffle(numbered, 4).flatten().tolist() == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]
    official = block("shuffle_v1", 48, 48, groups=3, shuffle="megvii")
    assert (official.shuffle_before, official.shuffle_after) == (1, 4)
    without = block("shuffle_v1", 48, 48, groups=3, shuffle="none")
    assert (without.shuffle_before, without.shuffle_after) == (1, 1)
    paper = block("shuffle_v1", 48, 48, groups=3)
    assert (paper.shuffle_before, paper.shuffle_after) == (3, 1)
    passed = block("shuffle_v2", 12, 12, shuffle="megvii").eval()(IMAGE)
    assert torch.equal(passed[:, :6], IMAGE[:, 0::2])


@pytest.mark.parametrize("name", ["conv", "depthwise_separable"])
def test_skips_and_squeeze_of_mnasnets_space(name):
    plain = block(name, 12, 12, activation="none").eval()
    for skip, added in (("identity", IMAGE), ("pool", F.avg_pool2d(IMAGE, 3, 1, 1))):
        module = block(name, 12, 12, activation="none", skip=skip).eval()
        module.load_state_dict(plain.state_dict())
        assert torch.allclose(module(IMAGE), plain(IMAGE) + added, atol=1e-6)
        assert (block(name, 12, 12, 2, skip=skip).shortcut is None) == (skip == "identity")
        assert block(name, 12, 16, skip=skip).shortcut is None
    squeezed = [p.out_channels for p in block(name, 12, 16, se=0.25).modules() if isinstance(p, nn.Conv2d)]
    assert 3 in squeezed


def test_a_skip_may_be_true_or_false():
    def skip(value) -> object:
        return (
            Architecture.of([{"block": "depthwise_separable", "skip": value}], input=(8, 8, 8))
            .layers[0]
            .options["skip"]
        )

    assert [skip(True), skip(False), skip("pool")] == ["identity", "none", "pool"]


def test_lrn_is_alexnets():
    x = IMAGE[:, :3]
    expected = x / (2 + 1e-4 / 5 * (x**2).sum(1, keepdim=True)) ** 0.75
    assert torch.allclose(block("lrn", 3, 3)(x), expected)


def test_activations_and_epsilon_are_where_the_options_put_them():
    module = block("depthwise_separable", 12, 16, activation="none", middle="relu6", eps=1e-3)
    assert [type(m) for m in module.modules() if type(m).__name__.startswith("ReLU")] == [nn.ReLU6]
    assert {m.eps for m in module.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
    assert isinstance(block("conv", 3, 8, activation="hard_swish").layers[-1], nn.Hardswish)
    assert block("conv", 3, 8, norm="none").layers[0].bias is not None
    assert block("conv", 3, 8).layers[0].bias is None


def test_linear_averages_a_map():
    module = block("linear", 12, 5)
    assert torch.allclose(module(IMAGE), module(IMAGE.mean((2, 3))), atol=1e-6)


# Users' own blocks


class Plain(nn.Module):
    """1x1 -> kxk, with functions and without nasspace."""

    def __init__(self, in_channels, out_channels, stride=1, size=3, gain=1.0, act=nn.ReLU, note=None):
        super().__init__()
        self.stride, self.size, self.gain, self.act = stride, size, gain, act()
        self.point = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.square = nn.Parameter(torch.randn(out_channels, out_channels, size, size))

    def forward(self, x):
        x = F.conv2d(x, self.point)
        return self.gain * self.act(F.conv2d(x, self.square, stride=self.stride, padding=self.size // 2))


class Required(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int, *, width: int, mode: str = "a"):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, width, 1, stride), nn.Conv2d(width, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Dependent(nn.Module):
    """Its constructor and its forward need real numbers, which the meta device does not have."""

    def __init__(self, in_channels, out_channels, stride=1):
        super().__init__()
        self.rates = [rate.item() for rate in torch.rand(3)]
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, 1)

    def forward(self, x):
        return self.conv(x[x.abs().sum((1, 2, 3)) >= 0]) if x.sum().item() < 1e9 else x


@pytest.fixture
def mine(own_blocks):
    for name, cls in {"my_plain": Plain, "my_required": Required, "my_dependent": Dependent}.items():
        blocks.register(name, cls)


def test_a_users_block_is_counted(mine):
    arch = Architecture.of([{"block": "my_plain", "out": 10, "stride": 2, "size": 5}], input=(4, 9, 9))
    counted = cost(arch)
    assert counted.flops == 9 * 9 * 4 * 10 + 5 * 5 * 25 * 10 * 10
    assert counted.params == 4 * 10 + 25 * 10 * 10
    assert counted.memory_access == (81 * 4 + 40 + 81 * 10) + (81 * 10 + 2500 + 25 * 10)
    assert counted.layers[0].out_shape == (10, 5, 5)


def test_a_block_without_a_meta_form_is_counted(mine):
    state = torch.get_rng_state()
    arch = Architecture.of([{"block": "my_dependent", "out": 10}], input=(4, 9, 9))
    assert cost(arch).flops == 81 * 9 * 4 * 10
    assert torch.equal(torch.get_rng_state(), state)


def test_a_users_block_in_a_space_and_in_json(mine):
    text = """
input: [3, 16, 16]
stages:
  - depth: [1, 2]
    out: [8, 16]
    each:
      block:
        - my_plain: {size: [1, 3], gain: [0.5, 1]}
        - my_required: {width: [4, 8], mode: [a, b]}
        - my_dependent
"""
    space = Space.from_text(text, "mine.yaml")
    rng = random.Random(0)
    for _ in range(30):
        arch = space.sample(rng)
        assert Architecture.from_json(arch.to_json()) == arch
        assert cost(arch).flops > 0
        assert build(arch).eval()(torch.randn(2, 3, 16, 16)).shape == (2, 10)


def test_a_default_that_is_not_a_plain_value_has_a_stable_digest(mine):
    arch = Architecture.of([{"block": "my_plain", "out": 10}])
    assert arch.digest == "e109f2b4c4b6"


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"block": "my_required"}, "my_required needs the option 'width'"),
        ({"block": "my_required", "width": "x"}, "width: 'x' is not allowed"),
        ({"block": "my_required", "widht": 3}, "'widht' is not an option of my_required; did you mean 'width'?"),
        ({"block": "my_plain", "size": 2.5}, "size: 2.5 is not allowed"),
        ({"block": "my_plain", "note": [1, 2]}, "[1, 2] is not allowed: an option is a number, a word, true or false"),
        ({"block": "my_plan"}, "did you mean 'my_plain'?"),
    ],
)
def test_a_users_block_refuses(mine, layer, message):
    with pytest.raises(InputError) as caught:
        Architecture.of([{"out": 10, **layer}])
    assert message in str(caught.value)


def test_a_constructor_that_fails_names_the_layer(own_blocks):
    class Picky(Plain):
        def __init__(self, in_channels, out_channels, stride=1):
            assert in_channels == 7
            super().__init__(in_channels, out_channels, stride)

    class Silent(Plain):
        def forward(self, x):
            raise ValueError

    class Narrow(Plain):
        def forward(self, x):
            return super().forward(x)[:, :3]

    class Pair(Plain):
        def forward(self, x):
            return x, x

    for cls, message in [(Picky, "cannot be built with 3"), (Silent, "ValueError"), (Narrow, "3x"), (Pair, "tuple")]:
        blocks.register(cls.__name__.lower(), cls)
        arch = Architecture.of([{"block": cls.__name__.lower(), "out": 10}], input=(3, 8, 8))
        with pytest.raises(InputError, match=message) as caught:
            cost(arch)
        assert "layers[0]" in str(caught.value)
    with pytest.raises(InputError, match=r"layers\[0\] \(picky\)"):
        build(Architecture.of([{"block": "picky", "out": 10}], input=(3, 8, 8)))


class Reserved(Plain):
    def __init__(self, in_channels, out_channels, stride=1, out=3):
        super().__init__(in_channels, out_channels, stride)


class Settled(Plain):
    @staticmethod
    def settle(in_channels, out_channels, stride, options):
        return {}


def test_registering(own_blocks):
    assert blocks.register("my_plain", Plain) is Plain
    assert blocks.register("my_plain", Plain) is Plain
    assert "my_plain" in blocks.known()
    for name, cls, message in [
        ("my_plain", Required, "registered already"),
        ("conv", Plain, "registered already"),
        ("other", nn.Conv2d, "must begin with"),
        ("other", 3, "is not a class of nn.Module"),
        ("other", Reserved, "an option cannot be called 'out'"),
        ("other", Settled, r"Settled\.settle is no longer called; write it as resolve\("),
    ]:
        with pytest.raises(InputError, match=message):
            blocks.register(name, cls)


def test_unreadable_annotations_do_not_matter(own_blocks):
    class Annotated(Plain):
        def __init__(self, in_channels, out_channels, stride=1, size: "torch.nowhere" = 3, other: nn.Module = None):  # noqa
            super().__init__(in_channels, out_channels, stride, size)

    blocks.register("annotated", Annotated)
    arch = Architecture.of([{"block": "annotated", "out": 10, "size": 1}], input=(3, 8, 8))
    assert cost(arch).flops == 64 * 3 * 10 + 64 * 10 * 10


class Point:
    """An entry point of another package."""

    def __init__(self, name: str, cls: object):
        self.name, self.value, self.cls = name, f"package:{name}", cls

    def load(self):
        if isinstance(self.cls, Exception):
            raise self.cls
        return self.cls


@pytest.fixture
def entry_points(own_blocks, monkeypatch):
    points = [Point("far_plain", Plain), Point("far_broken", ImportError("no such thing")), Point("far_none", 3)]
    known = {registry.ENTRY_POINTS: points}
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: known[group])
    registry._entry_points.cache_clear()
    yield
    registry._entry_points.cache_clear()


def test_blocks_by_entry_point(entry_points):
    assert "far_plain" in blocks.known()
    assert cost(Architecture.of([{"block": "far_plain", "out": 10}], input=(3, 8, 8))).flops > 0
    with pytest.raises(InputError, match="'far_broken' of package:far_broken fails to load: no such thing"):
        blocks.get("far_broken")
    with pytest.raises(InputError, match="is not a class of nn"):
        blocks.get("far_none")
    with pytest.raises(InputError, match="did you mean 'far_plain'"):
        blocks.get("far_plan")
