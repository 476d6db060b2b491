"""Checkpoints of torchvision, timm and official code: loaded into the zoo's networks, they give the originals' outputs.

`recorded/checkpoints.json` has one network for each naming and family: the layers in the order of the original's state
dictionary, and its output with weights from a formula (`benchmarks/record_checkpoints.py`).
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nasspace import Architecture, InputError, build, zoo
from nasspace.exporting.weights import read_weights, unwrapped
from nasspace.training import pretrained

sys.path.insert(0, str(Path(__file__).parents[1]))
import test_values as values

FILE = Path(__file__).parents[1] / "recorded" / "checkpoints.json"
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def described(state: dict[str, Tensor]) -> list[str]:
    """A line for each layer of a state dictionary: name, shape of the weights, `+` for a bias, `norm`."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        layer, _, name = key.rpartition(".")
        layers.setdefault(layer, {})[name] = tensor
    lines = []
    for name, tensors in layers.items():
        shape = "x".join(map(str, tensors["weight"].shape))
        kind = " norm" if tuple(tensors) == NORM else " +" if "bias" in tensors else ""
        lines.append(f"{name} {shape}{kind}")
    assert list(tensors_of(lines)) == list(state)
    return lines


def tensors_of(lines: list[str]) -> dict[str, tuple[int, ...]]:
    """The names and shapes of all tensors in the order of the state dictionary."""
    shapes: dict[str, tuple[int, ...]] = {}
    for line in lines:
        name, size, *kind = line.split()
        shape = tuple(map(int, size.split("x")))
        shapes[f"{name}.weight"] = shape
        if kind == ["norm"]:
            shapes |= {f"{name}.{key}": () if key == NORM[-1] else shape for key in NORM[1:]}
        elif kind:
            shapes[f"{name}.bias"] = shape[:1]
    return shapes


def formula(lines: list[str]) -> dict[str, Tensor]:
    """Weights by the place of each tensor, float64, of which signals keep their scale through the layers."""
    state = {}
    for place, (name, shape) in enumerate(tensors_of(lines).items()):
        numbers = values.numbers(shape, place) if shape else torch.ones((), dtype=torch.long)
        if name.endswith("running_var"):
            numbers = 0.55 + 0.45 * numbers
        elif name.endswith(("bias", "running_mean")):
            numbers = 0.2 * numbers
        elif len(shape) > 1:
            numbers = numbers * math.sqrt(6 / math.prod(shape[1:]))
        elif shape:
            numbers = 0.75 + 0.25 * numbers
        state[name] = numbers
    return state


def write(records: list[dict[str, Any]]) -> None:
    """Write the records, a line each."""
    lines = ",\n".join(json.dumps(record) for record in records)
    FILE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{len(records)} in {FILE}")


RECORDS = {f"{record['name']}-{record['source'].split()[0]}": record for record in values.read(FILE)}
LARGE = ("alexnet", "xception", "inception", "resnet50", "resnext50", "se_resnet50")
OTHER_FUNCTIONS = {  # record: a network of equal shapes and another function, and what the message says
    "resnet50-torchvision": ("resnet50_v1", "stride of a bottleneck .* those of resnet50$"),
    "se_resnet50-timm": ("se_resnet50_v1", "those of se_resnet50$"),
    "se_resnet50_v1-timm": ("se_resnet50", "those of se_resnet50_v1$"),
    "squeezenet_1.0-torchvision": ("squeezenet_1.0_bypass", "no module has a bypass.* those of squeezenet_1.0$"),
    "mnasnet_small-timm": ("mnasnet_small", "but mnasnet_small is another network"),
    "shufflenet_v1_g3_0.5_megvii-official": ("shufflenet_v1_g3_0.5", "those of shufflenet_v1_g3_0.5_megvii$"),
    "shufflenet_v2_0.5_megvii-official": ("shufflenet_v2_0.5", "by parity.* those of shufflenet_v2_0.5_megvii$"),
    "shufflenet_v2_0.5_torchvision-torchvision": (
        "shufflenet_v2_0.5_megvii",
        "those of shufflenet_v2_0.5_torchvision$",
    ),
}


def loaded(state: dict[str, Tensor], architecture: Architecture) -> tuple[torch.nn.Module, list[str]]:
    """The network with a checkpoint's weights in float64, and what was reported."""
    network, lines = build(architecture), []
    found, _ = pretrained.converted(state, network, architecture, "x.pth", lines.append)
    found, _ = pretrained.fitted(found, network, "x.pth", lines.append)
    network.double().load_state_dict(found)
    return network.eval(), lines


def marked(name: str) -> Any:
    """A test parameter, marked slow for large networks."""
    return pytest.param(name, marks=[pytest.mark.slow] if name.startswith(LARGE) else [])


def test_auxiliary_classifiers_of_other_classes_start_from_new_weights():
    layers = [{"block": "auxiliary", "classes": 5, "size": 2, "hidden": 8}, {"block": "linear", "out": 5}]
    five = Architecture.of(layers, input=(3, 8, 8))
    network, state = build(five.with_classes(4)), build(five, seed=1).state_dict()
    fitting, is_whole = pretrained.fitted(state, network, "x.pth", lambda line: None)
    network.load_state_dict(fitting)
    assert not is_whole
    assert torch.equal(network[0].classifier[3].weight, state["0.classifier.3.weight"])


@torch.no_grad()
@pytest.mark.parametrize("name", [marked(name) for name in RECORDS if name != "mnasnet_small-timm"])
def test_the_output_is_the_originals(name):
    record = RECORDS[name]
    network, lines = loaded(formula(record["layers"]), zoo.load(record["name"], resolution=record["resolution"]))
    image = values.numbers((1, 3, record["resolution"], record["resolution"]), 0)
    if name.startswith("shufflenet") and name.endswith("official"):  # blue, green, red, from 0 to 255
        image = image.flip(1) / 255
    assert values.disagreement(values.summary(network(image)), record) < values.TOLERANCE
    assert f"{len(record['layers'])} layers" in lines[0]
    assert "unknown layer names" not in lines[0]


def test_classifiers_that_only_help_in_training_are_left_out():
    layers = RECORDS["googlenet-torchvision"]["layers"]
    auxiliary = ["aux1.conv.conv 128x512x1x1", "aux1.conv.bn 128 norm", "aux1.fc1 1024x2048 +", "aux2.fc2 1000x1024 +"]
    state = formula([*layers[:-1], *auxiliary, layers[-1]])  # the order of torchvision's file
    network, lines = loaded(state, zoo.load("googlenet", resolution=64))
    assert f"{len(layers)} layers" in lines[0]
    assert torch.equal(network[-1].linear.weight, state["fc.weight"])


@pytest.mark.parametrize("name", [marked(name) for name in OTHER_FUNCTIONS])
def test_weights_of_another_function_are_refused(name):
    other, message = OTHER_FUNCTIONS[name]
    with pytest.raises(InputError, match=f"^x.pth: weights of .*{message}"):
        loaded(formula(RECORDS[name]["layers"]), zoo.load(other))


@pytest.mark.parametrize("name", [name for name in RECORDS if name != "mnasnet_small-timm"])
def test_the_order_of_a_file_does_not_matter(name):
    """Safetensors files have their tensors in alphabetical order."""
    layers = pretrained._layers(dict.fromkeys(tensors_of(RECORDS[name]["layers"])))
    origin = next(each for each in pretrained.ORIGINS if each.wrote(list(layers)))
    expected = list(pretrained._in_our_order(layers, origin))
    assert list(pretrained._in_our_order(dict(sorted(layers.items())), origin)) == expected
    if not name.startswith(("shufflenet_v2_0.5_megvii", "fasternet")):  # whose layers are registered in another order
        assert expected == list(layers)


def test_every_naming_is_recorded():
    written = [pretrained._layers(formula(record["layers"])) for record in RECORDS.values()]
    found = {next(each.name for each in pretrained.ORIGINS if each.wrote(list(layers))) for layers in written}
    assert {origin.name for origin in pretrained.ORIGINS} - found == {
        "efficientnet_lite_pytorch",
        "the official RepVGG",
    }


def test_weights_of_another_width_are_refused():
    state = formula(RECORDS["mobilenet_v2_0.35-torchvision"]["layers"])
    with pytest.raises(InputError, match=r"'features.0.1', has weight 16, .* has weight 32, .* another network"):
        loaded(state, zoo.load("mobilenet_v2_1.0"))
    with pytest.raises(InputError, match=r"whose function mnasnet_b1_0.5 does not compute; .* of mobilenet_v2_0.35$"):
        loaded(state, zoo.load("mnasnet_b1_0.5"))
    with pytest.raises(InputError, match="; 106 layers with weights, but the network has 105: "):
        loaded({**state, "extra.weight": torch.ones(3)}, zoo.load("mobilenet_v2_0.35"))


@torch.no_grad()
def test_names_of_no_known_program_are_matched_in_order_and_said():
    record = RECORDS["mobilenet_v2_0.35-torchvision"]
    state = {f"a{name}": tensor for name, tensor in formula(record["layers"]).items()}
    network, lines = loaded(state, zoo.load(record["name"], resolution=64))
    assert values.disagreement(values.summary(network(values.numbers((1, 3, 64, 64), 0))), record) < values.TOLERANCE
    assert "unknown layer names; its 105 layers were matched in order" in lines[0]


@torch.no_grad()
@pytest.mark.parametrize("name", ["mobilenet_v2_0.35-torchvision", "repvgg_a0-timm"])  # the second with branches
def test_the_first_layer_is_adapted_to_gray_images_and_back(name):
    record = RECORDS[name]
    state, color = formula(record["layers"]), zoo.load(record["name"], resolution=64)
    gray = values.numbers((1, 1, 64, 64), 0)
    expected = loaded(state, color)[0](gray.expand(-1, 3, -1, -1))
    network, lines = loaded(state, color.with_input(channels=1))
    torch.testing.assert_close(network(gray), expected)
    assert lines[-1] == "x.pth: the first layer is adapted from color to gray images"
    of_color = {key: tensor for key, tensor in state.items() if tensor.dim() == 4 and tensor.shape[1] == 3}
    summed = {**state, **{key: tensor.sum(1, keepdim=True) for key, tensor in of_color.items()}}
    network, lines = loaded(summed, color)
    torch.testing.assert_close(network(gray.expand(-1, 3, -1, -1)), expected)
    assert lines[-1] == "x.pth: the first layer is adapted from gray to color images"


def test_a_last_layer_of_other_classes_is_new():
    state = formula(RECORDS["mobilenet_v2_0.35-torchvision"]["layers"])
    architecture = zoo.load("mobilenet_v2_0.35", classes=7)
    network, lines = loaded(state, architecture)
    for found, initial in zip(network[-1].parameters(), build(architecture)[-1].parameters(), strict=True):
        torch.testing.assert_close(found, initial.double())
    assert lines[-1] == "x.pth: the last layer has 1000 classes, not 7: it starts from new weights"


def test_weights_of_official_code_belong_to_its_networks():
    for name in ("shufflenet_v1_g3_0.5_megvii", "shufflenet_v2_0.5_megvii"):
        assert pretrained.networks_of(formula(RECORDS[f"{name}-official"]["layers"])) == [name]


def test_keys_that_are_not_names_are_refused(tmp_path):
    for content in ({0: torch.ones(1)}, {"model": {0: torch.ones(1)}}, {"a": 3}, {}, [1]):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(InputError, match="holds no state dictionary"):
            read_weights(tmp_path / "w.pth")


def test_weights_inside_a_checkpoint_are_found():
    state = {"a.weight": torch.ones(1)}
    wrapped = {"epoch": 3, "model": {"state_dict": {f"module.{name}": value for name, value in state.items()}}}
    assert unwrapped(wrapped) == state
    assert unwrapped({"_orig_mod.a.weight": state["a.weight"]}) == state
    assert unwrapped(state) == state
