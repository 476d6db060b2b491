"""Published networks against reference counts, to the last digit."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import nn

from nasspace import Architecture, build, cost, zoo
from nasspace.errors import InputError

RECORDED_FILES = Path(__file__).parents[1] / "recorded"
REFERENCE = RECORDED_FILES / "reference.csv"  # other implementations, and wrong variants (`!`), with their sources
MEASURED = RECORDED_FILES / "counts.csv"  # the originals: torchvision, timm, official code
RECORDED = {  # our counts of networks not measured there: resolution, parameters, multiply-adds
    "mobilenet_v2_1.3": (224, 5_386_792, 509_374_560),
    "mobilenext_0.1": (256, 1_627_316, 36_290_048),
    "se_resnet18": (224, 11_778_592, 1_814_160_384),
    # by this library's rule, since the paper has no widths
    "shufflenet_v1_g1_0.25": (224, 208_908, 13_162_320),
    "shufflenet_v1_g2_0.25": (224, 252_732, 12_638_784),
    "shufflenet_v1_g3_0.25": (224, 305_124, 13_300_656),
    "shufflenet_v1_g4_0.25": (224, 314_004, 12_323_328),
    "shufflenet_v1_g8_0.25": (224, 453_504, 12_426_240),
    "shufflenet_v1_g2_0.5": (224, 608_244, 35_664_000),
    "shufflenet_v1_g4_0.5": (224, 834_984, 40_710_528),
    "shufflenet_v1_g1_1.5": (224, 2_992_032, 308_096_352),
    "shufflenet_v1_g2_1.5": (224, 3_200_112, 293_648_928),
    "shufflenet_v1_g4_1.5": (224, 3_678_712, 295_086_976),
}
CIFAR = {  # 100 classes at 32x32; the multiply-adds of SqueezeNet, MobileNet and ResNet-18 equal the tutorial code's
    "squeezenet_1.0_cifar": (775_204, 53_280_768),
    "squeezenet_1.1_cifar": (773_796, 24_248_320),
    "xception_cifar": (21_011_852, 375_134_464),
    "resnet18_cifar": (11_220_132, 555_468_800),
    "resnext50_32x4d_cifar": (23_177_124, 1_344_151_552),
    "mobilenet_v1_1.0_cifar": (3_309_476, 46_446_592),
    "mobilenet_v2_1.0_cifar": (2_351_972, 24_576_512),
    "shufflenet_v1_g3_1.0_cifar": (1_000_728, 42_676_992),
    "shufflenet_v2_1.0_cifar": (1_357_160, 45_390_208),
}


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", read(MEASURED), ids=lambda row: f"{row['name']}-{row['resolution']}")
def test_counts_of_the_originals(row):
    counted = cost(zoo.load(row["name"], resolution=int(row["resolution"])))
    assert (counted.params, counted.flops) == (int(row["params"]), int(row["flops"]))


def test_readme_gives_the_number_of_networks_that_equal_their_originals():
    readme = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")
    assert f"{len({row['name'] for row in read(MEASURED)})} networks equal the originals" in readme


@pytest.mark.parametrize(("name", "counts"), RECORDED.items(), ids=RECORDED.keys())
def test_recorded_counts(name, counts):
    resolution, params, flops = counts
    counted = cost(zoo.load(name, resolution=resolution))
    assert (counted.params, counted.flops) == (params, flops)


@pytest.mark.parametrize(("name", "counts"), CIFAR.items(), ids=CIFAR.keys())
def test_recorded_counts_for_small_images(name, counts):
    architecture = zoo.load(name)
    counted = cost(architecture)
    assert (architecture.input, architecture.classes) == ((3, 32, 32), 100)
    assert (counted.params, counted.flops) == counts
    assert all(layer.stride == 1 for layer in architecture.layers[:2] if layer.block in ("conv", "max_pool")) or (
        architecture.layers[1].block == "max_pool" and name.startswith("squeezenet")
    )


def test_forms_for_small_images_are_of_many_families():
    assert set(CIFAR) == {name for name in zoo.names() if name.endswith("_cifar")}
    assert cost(zoo.load("mobilenet_v3_small_0.75_cifar", classes=10)).layers[0].out_shape == (16, 32, 32)
    assert zoo.load("shufflenet_v1_g8_0.5_cifar", resolution=64).input == (3, 64, 64)


@pytest.mark.parametrize("row", read(REFERENCE), ids=lambda row: f"{row['name']}-{row['variant']}")
def test_reference_row(row):
    name = row["name"]
    counted = cost(zoo.load(name.lstrip("!"), resolution=int(row["resolution"])))
    equal = (counted.params, counted.flops) == (int(row["params"]), int(row["flops"]))
    assert equal is not name.startswith("!")  # the mark of a wrong variant


@pytest.mark.parametrize("name", zoo.names())
def test_every_network(name):
    arch = zoo.load(name, classes=7)
    assert arch.name == name
    assert arch.classes == arch.layers[-1].out == 7
    assert cost(arch).layers[-1].out_shape[0] == 7
    assert Architecture.from_json(arch.to_json()) == arch


@pytest.mark.parametrize(
    "name", ["squeezenet_1.0_bypass", "mobilenet_v3_small_0.35", "shufflenet_v1_g3_0.5", "alexnet"]
)
def test_networks_run(name):
    network = build(zoo.load(name, classes=7)).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 224, 224)).shape == (1, 7)


@pytest.mark.parametrize(("name", "count"), [("googlenet", 2), ("inception_v3", 1)])
def test_auxiliary_classifiers_are_for_training_only(name, count):
    plain, auxiliary = zoo.load(name, classes=7), zoo.load(f"{name}_auxiliary", classes=7)
    assert cost(auxiliary).flops == cost(plain).flops
    assert cost(auxiliary).params == cost(plain).params
    assert zoo.load(f"{name}_auxiliary", classes=9).with_classes(7) == auxiliary
    layers = [layer for layer in auxiliary.layers if layer.block != "auxiliary"]
    assert (len(auxiliary.layers) - len(layers), tuple(layers)) == (count, plain.layers)
    widths = [layer.out for layer in auxiliary.layers if layer.block == "auxiliary"]
    assert widths == ([512, 528] if name == "googlenet" else [768])


def test_at_another_resolution_and_width():
    assert zoo.load("mobilenet_v2_0.75", resolution=160).input == (3, 160, 160)
    assert cost(zoo.load("mobilenet_v2_0.75", resolution=112)).params == cost(zoo.load("mobilenet_v2_0.75")).params
    assert cost(zoo.load("mobilenet_v2_0.6")).flops < cost(zoo.load("mobilenet_v2_0.75")).flops


@pytest.mark.parametrize("resolution", [192, 224, 256, 288])
def test_alexnet_averages_to_one_size(resolution):
    counted = cost(zoo.load("alexnet", resolution=resolution))
    assert counted.params == 61_100_840
    with torch.no_grad():
        assert build(zoo.load("alexnet", resolution=resolution)).eval()(torch.rand(1, 3, resolution, resolution)).any()


def test_networks_of_one_count_differ():
    digests = [zoo.load(name).digest for name in zoo.names()]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mobilenetv2_1.0", "'mobilenetv2_1.0' is not a published network; did you mean 'mobilenet_v2_1.0'?"),
        ("mobilenet_v2_0", "the width must be above 0 and at most 4"),
        ("mobilenet_v2_400", "the width must be above 0 and at most 4"),
        ("shufflenet_v1_g5_1.0", "is not a published network"),
        ("squeezenet_1.1_bypass", "did you mean 'squeezenet_1.0_bypass'?"),
        ("shufflenet_v2_1x0", "did you mean 'shufflenet_v2_1.0'?"),
        ("", "is not a published network"),
        ("alexnet_cifar", "is not a published network"),
        ("resnet18_v1", "no first 1x1"),
        ("resnext50_0x4d", "above 0"),
        ("shufflenet_v1_g3_0.2", "from 0.25 to 2.0"),
        ("shufflenet_v2_0.75", "0.5, 1.0, 1.5, 2.0"),
        ("mobilenext_1.0_identity_1_0", "identity multiplier must be from 1/64"),
        ("mobilenext_1.0_identity_1_65", "identity multiplier must be from 1/64"),
        ("mobilenet_v2_\uff11.0", "is not a published network"),  # a full-width digit
        (None, "is not the name"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(InputError) as caught:
        zoo.load(name)
    assert message in str(caught.value)


def test_identity_multiplier():
    def identities(*arguments, **options) -> list:
        layers = zoo.load(*arguments, **options).layers
        return [layer.options.get("identity") for layer in layers if layer.block == "sandglass"]

    half = [None, None, None, 0.5, 0.5, None, 0.5, 0.5, None, 0.5, 0.5, 0.5]
    assert identities("mobilenext_1.0", identity=0.5)[:12] == half
    assert identities("mobilenext_1.0", identity="1/2") == identities("mobilenext_1.0_identity_1_2")
    assert zoo.load("mobilenext_1.0", identity=1) == zoo.load("mobilenext_1.0")
    assert zoo.load("mobilenext_1.0", identity=1 / 3) == zoo.load("mobilenext_1.0_identity_1_3")
    for wrong in (0, 1.5, True, 0.001, "half", None.__class__, float("nan")):
        with pytest.raises(InputError, match="identity multiplier"):
            zoo.load("mobilenext_1.0", identity=wrong)
    with pytest.raises(InputError, match="'identity' is not an option of"):
        zoo.load("mobilenet_v2_1.0", identity=0.5)
    with pytest.raises(InputError, match="its name has an identity multiplier of 1/2, the option 1"):
        zoo.load("mobilenext_1.0_identity_1_2", identity=1)
    with pytest.raises(InputError, match="did you mean 'identity'"):
        zoo.load("mobilenext_1.0", identiy=0.5)


OFFICIAL = {  # the official code's rule by hand: channels in, out, stride, depthwise convolutions, shortcut
    "mobilenext_0.12": [(8, 16, 2, 2, 0), (16, 16, 1, 2, 0), (16, 24, 2, 1, 0), (24, 24, 1, 2, 24), (24, 24, 1, 2, 24)],
    "mobilenext_0.05": [(8, 8, 2, 2, 0), (8, 8, 1, 2, 0), (8, 16, 2, 1, 0), (16, 16, 1, 2, 16), (16, 16, 1, 2, 16)]
    + [(16, 16, 1, 2, 16)] * 3,  # the fourth stage has no stride
    "mobilenext_0.13": [(8, 16, 2, 2, 0), (16, 24, 1, 2, 0), (24, 24, 1, 2, 24), (24, 24, 1, 2, 24)],
    "mobilenext_1.0": [(32, 96, 2, 2, 0), (96, 144, 1, 2, 0), (144, 192, 2, 1, 0), (192, 192, 1, 2, 192)],
}


@pytest.mark.parametrize(("name", "expected"), OFFICIAL.items(), ids=OFFICIAL)
def test_stages_as_wide_as_the_previous_one_are_the_official_codes(name, expected):
    found, channels = [], 3
    for layer, block in zip((architecture := zoo.load(name)).layers, build(architecture), strict=True):
        if layer.block == "sandglass":
            kernels = [part.kernel_size[0] for part in block.modules() if isinstance(part, nn.Conv2d)]
            found.append((channels, layer.out, layer.stride, kernels.count(3), block.added))
        channels = layer.out
    assert found[: len(expected)] == expected


def test_scales_are_numbers():
    assert zoo.load("shufflenet_v2_1") == zoo.load("shufflenet_v2_1.0")
    assert zoo.load("shufflenet_v1_g8_.5".replace("_.", "_0.")) == zoo.load("shufflenet_v1_g8_0.50")
    assert cost(zoo.load("shufflenet_v1_g3_0.75")).flops < cost(zoo.load("shufflenet_v1_g3_1.0")).flops


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("scale", [0.25, 0.3, 0.5, 0.75, 1.1, 1.25, 1.5, 1.9, 2.0])
def test_groups_divide_every_width_of_shufflenet_v1(groups, scale):
    units = zoo.load(f"shufflenet_v1_g{groups}_{scale}").layers[2:18]
    assert {layer.options["groups"] for layer in units} == {groups}
    assert units[0].options["first_groups"] == 1


def test_properties_that_counts_do_not_reveal():
    def parts(name: str, kind: type) -> list[nn.Module]:
        return [part for part in build(zoo.load(name)).modules() if isinstance(part, kind)]

    assert {norm.eps for norm in parts("mobilenet_v3_small_1.0", nn.BatchNorm2d)} == {1e-3}
    assert {norm.eps for norm in parts("shufflenet_v2_0.5", nn.BatchNorm2d)} == {1e-5}
    assert len(parts("mobilenet_v3_large_1.0", nn.Hardsigmoid)) == 8
    assert len(parts("mnasnet_a1_1.0", nn.Sigmoid)) == 8
    assert parts("mobilenet_v1_0.25", nn.ReLU) == []
    assert len(parts("mobilenet_v2_0.35", nn.ReLU6)) == 35
    first, *others = zoo.load("shufflenet_v1_g3_1.0").layers[2:18]
    assert first.options["first_groups"] == 1
    assert all("first_groups" not in layer.options for layer in others)


@pytest.mark.parametrize("name", zoo.names())
def test_another_number_of_classes_changes_the_classifier_only(name):
    assert zoo.load(name, classes=10).with_classes(7) == zoo.load(name, classes=7)
