"""The published networks against reference counts, to the last digit."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import nn

from nasspace import Architecture, build, cost, zoo
from nasspace.errors import InputError

REFERENCE = Path(__file__).parents[1] / ".." / "shared" / "reference" / "reference.csv"
RECORDED = {  # name: resolution, parameters, multiply-adds
    "alexnet": (224, 61_100_840, 714_188_480),
    "alexnet_grouped": (227, 60_965_224, 724_406_816),
    "squeezenet_1.0": (224, 1_248_424, 818_924_576),
    "squeezenet_1.1": (227, 1_235_496, 387_747_520),
    "squeezenet_1.0_complex_bypass": (224, 1_589_672, 1_165_298_720),
    "mobilenet_v1_0.25": (128, 470_072, 13_570_048),
    "mobilenet_v2_1.0": (224, 3_504_872, 300_774_272),
    "mobilenet_v2_1.3": (224, 5_386_792, 509_374_560),
    "mnasnet_a1_1.0": (224, 3_887_038, 311_579_072),
    "mnasnet_b1_1.0": (224, 4_383_312, 314_415_872),
    "mnasnet_small": (224, 2_030_264, 68_339_184),
    "mobilenet_v3_large_1.0": (224, 5_483_032, 216_589_760),
    "mobilenet_v3_small_1.25": (224, 3_645_960, 91_241_184),
    "mobilenet_v3_large_0.75_torchvision": (224, 3_377_576, 140_033_816),
    "shufflenet_v1_g3_1.0": (224, 1_864_728, 137_460_672),
    "shufflenet_v1_g8_0.5": (224, 1_010_448, 40_469_760),
    "shufflenet_v2_1.0": (224, 2_278_760, 145_814_296),
    "shufflenet_v2_2.0_torchvision": (224, 7_393_996, 583_253_464),
    "mobilenext_1.0": (224, 3_535_416, 311_342_592),
    "mobilenext_1.4": (224, 6_126_168, 588_319_256),
}


def rows() -> list[dict[str, str]]:
    """The reference's rows of networks that are here; a name with `!` marks a common mistake."""
    if not REFERENCE.is_file():
        return []
    with REFERENCE.open(encoding="utf-8", newline="") as file:
        known = set(zoo.names())
        return [row for row in csv.DictReader(file) if row["zoo_name"].lstrip("!") in known]


@pytest.mark.parametrize(("name", "counts"), RECORDED.items(), ids=RECORDED.keys())
def test_recorded_counts(name, counts):
    resolution, params, flops = counts
    counted = cost(zoo.load(name, resolution=resolution))
    assert (counted.params, counted.flops) == (params, flops)


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the reference counts do not lie beside the checkout")
def test_every_reference_row():
    found = rows()
    assert len(found) >= 90
    for row in found:
        name = row["zoo_name"]
        counted = cost(zoo.load(name.lstrip("!"), resolution=int(row["input_size"])))
        if name.startswith("!"):
            assert (counted.params, counted.flops) != (int(row["params"]), int(row["macs"])), name
        else:
            assert (counted.params, counted.flops) == (int(row["zoo_params"]), int(row["macs"])), name


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


def test_at_another_resolution_and_width():
    assert zoo.load("mobilenet_v2_0.75", resolution=160).input == (3, 160, 160)
    assert cost(zoo.load("mobilenet_v2_0.75", resolution=112)).params == cost(zoo.load("mobilenet_v2_0.75")).params
    assert cost(zoo.load("mobilenet_v2_0.6")).flops < cost(zoo.load("mobilenet_v2_0.75")).flops


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
    ],
)
def test_names_that_are_none(name, message):
    with pytest.raises(InputError) as caught:
        zoo.load(name)
    assert message in str(caught.value)


def test_what_counts_do_not_show():
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
