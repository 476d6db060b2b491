"""Architectures: JSON, digest, and errors."""

from __future__ import annotations

import copy
import json
import pickle
import random

import pytest

from nasspace import Architecture, Space, architecture, files
from nasspace.architecture import Layer
from nasspace.errors import InputError

TEXT = """{"nasspace": 1, "name": "small", "input": [3, 64, 64], "classes": 10,
 "layers": [
  {"block": "conv", "out": 24, "kernel": 3, "stride": 2},
  {"block": "max_pool", "kernel": 3, "stride": 2},
  {"block": "shuffle_v2", "out": 48, "stride": 2, "kernel": 5},
  {"block": "shuffle_v2"},
  {"block": "global_pool"},
  {"block": "linear", "out": 10}]}
"""
# Studies record digests: a change of one makes old studies unreadable.
DIGEST = "2da2e32efbc9"


def of(*layers, size=(3, 32, 32), **options) -> Architecture:
    """The layers and a classifier of 10 classes."""
    return Architecture.of([*layers, {"block": "linear", "out": 10}], input=size, **options)


def test_json_round_trip():
    arch = Architecture.from_json(TEXT)
    assert Architecture.from_json(arch.to_json()) == arch
    assert Architecture.from_json(arch.to_json()).layers == arch.layers
    assert arch.to_json() == Architecture.from_json(arch.to_json()).to_json()
    document = json.loads(arch.to_json())
    assert document["layers"][3] == {"block": "shuffle_v2"}
    assert document["layers"][2] == json.loads(TEXT)["layers"][2]
    assert (arch.name, arch.input, arch.classes) == ("small", (3, 64, 64), 10)


def test_the_digest_has_not_changed():
    assert Architecture.from_json(TEXT).digest == DIGEST


def test_the_name_does_not_count_but_input_and_classes_do():
    arch = Architecture.from_json(TEXT)
    other = arch.with_name("other")
    assert other == arch
    assert other.digest == arch.digest
    assert hash(other) == hash(arch)
    assert other.name == "other"
    assert arch.with_resolution(96).digest != arch.digest
    assert arch.with_input(channels=1).digest != arch.digest
    assert of({"block": "conv", "out": 8}) != of({"block": "conv", "out": 8}, size=(3, 32, 33))


@pytest.mark.parametrize("name", ["../x", "/x", "..", "a\0b", "a\x1b[2J", "caf\udce9", "x" * 300], ids=ascii)
def test_a_name_that_cannot_name_a_folder_is_refused(name):
    document = {**json.loads(TEXT), "name": name}
    with pytest.raises(InputError, match=r"a\.json:1: name: the name .*; give"):
        Architecture.from_json(json.dumps(document), "a.json")
    with pytest.raises(InputError, match="name: the name "):
        of({"block": "conv", "out": 8}, name=name)
    arch = Architecture.from_json(TEXT).with_name(name)  # a member of a study whose folder has such a name
    assert Architecture.from_json(arch.to_json()).name == ""


@pytest.mark.parametrize("name", ["a{0}", "run[v2]", "1e3", "猫", "\u0130", "a b"], ids=ascii)
def test_any_other_name_is_read_back(name):
    arch = Architecture.from_json(TEXT).with_name(name)
    assert Architecture.from_json(arch.to_json()).name == name


SPELLINGS = [
    ({"block": "conv", "out": 8}, {"block": "conv", "kernel": 3, "activation": "relu", "stride": 1, "out": 8}),
    ({"block": "conv", "out": 8}, {"block": "conv", "out": 8, "groups": 1, "bias": False, "padding": 1}),
    ({"block": "conv", "out": 8, "norm": "none"}, {"block": "conv", "out": 8, "norm": "none", "bias": True}),
    ({"block": "conv", "out": 8, "groups": 3}, {"block": "conv", "out": 8, "groups": 2}),
    ({"block": "conv", "out": 12}, {"block": "conv"}),
    ({"block": "max_pool", "kernel": 2}, {"block": "max_pool", "kernel": 2, "padding": 0}),
    ({"block": "inverted_residual", "expansion": 3}, {"block": "inverted_residual", "expansion": 3.0}),
    ({"block": "inverted_residual", "expansion": 3}, {"block": "inverted_residual", "hidden": 36}),
    ({"block": "inverted_residual", "out": 8}, {"block": "inverted_residual", "out": 8, "skip": "none"}),
    ({"block": "inverted_residual"}, {"block": "inverted_residual", "se": 0, "se_from": "input"}),
    ({"block": "inverted_residual", "se": 0.25}, {"block": "inverted_residual", "se": 0.26}),
    ({"block": "depthwise_separable"}, {"block": "depthwise_separable", "middle": "relu"}),
    ({"block": "sandglass", "identity": "1/3"}, {"block": "sandglass", "identity": 1 / 3}),
    ({"block": "sandglass", "out": 8, "identity": 0.5}, {"block": "sandglass", "out": 8}),
    ({"block": "sandglass", "stride": 2}, {"block": "sandglass", "stride": 2, "last_depthwise": False}),
    ({"block": "sandglass", "reduction": 8}, {"block": "sandglass", "reduction": 11}),
    ({"block": "shuffle_v1", "groups": 8, "out": 24}, {"block": "shuffle_v1", "groups": 6, "out": 24}),
    ({"block": "shuffle_v1", "groups": 3}, {"block": "shuffle_v1", "first_groups": 3}),
    ({"block": "shuffle_v2", "split": "half"}, {"block": "shuffle_v2"}),
    ({"block": "shuffle_v2", "split": "half", "out": 24}, {"block": "shuffle_v2", "out": 24}),
    ({"block": "fire", "out": 8, "bypass": "simple"}, {"block": "fire", "out": 8}),
    ({"block": "fire", "bypass": "complex"}, {"block": "fire", "bypass": "simple"}),
]


@pytest.mark.parametrize(("one", "other"), SPELLINGS, ids=lambda layer: json.dumps(layer))
def test_two_spellings_of_one_network_have_one_digest(one, other):
    """After a layer of 12 channels."""
    first = {"block": "conv", "out": 12}
    assert of(first, one).digest == of(first, other).digest


def test_networks_that_differ_have_different_digests():
    layers = [
        {"block": "conv"},
        {"block": "conv", "kernel": 5},
        {"block": "conv", "kernel": 5, "padding": 1},
        {"block": "conv", "groups": 2},
        {"block": "conv", "eps": 1e-3},
        {"block": "conv", "activation": "relu6"},
        {"block": "inverted_residual"},
        {"block": "inverted_residual", "se": 0.25},
        {"block": "inverted_residual", "se": 0.25, "se_gate": "hard_sigmoid"},
        {"block": "inverted_residual", "se": 0.25, "se_from": "input"},
        {"block": "sandglass"},
        {"block": "sandglass", "identity": 0.5},
        {"block": "shuffle_v1", "groups": 1},
        {"block": "shuffle_v1", "groups": 2},
        {"block": "identity"},
        {"block": "dropout"},
    ]
    first = {"block": "conv", "out": 24}
    digests = [of(first, layer).digest for layer in layers] + [of(first).digest, of(first, first).digest]
    assert len(set(digests)) == len(layers) + 1  # the last repeats the first


def test_an_architecture_shows_resolved_groups():
    shown = of({"block": "conv", "out": 36}, {"block": "shuffle_v1", "out": 80, "groups": 8}).to_dict()["layers"]
    assert shown[1] == {"block": "shuffle_v1", "out": 80, "groups": 4}
    shown = of({"block": "conv", "out": 32}, {"block": "shuffle_v1"}).to_dict()["layers"]
    assert shown[1] == {"block": "shuffle_v1", "groups": 2}  # the default, 3, divides nothing here


def test_layers_are_values():
    arch = Architecture.from_json(TEXT)
    again = pickle.loads(pickle.dumps(arch))
    assert again == arch
    assert again.layers == arch.layers
    assert copy.deepcopy(arch) == arch
    assert Layer("conv", 8, 1, {"bias": True}) != Layer("conv", 8, 1, {"bias": 1})
    with pytest.raises(TypeError):
        arch.layers[0].options["kernel"] = 5
    with pytest.raises(AttributeError):
        arch.layers[0].out = 5


def test_with_input_keeps_everything_else():
    arch = Architecture.from_json(TEXT)
    other = arch.with_input(channels=1, resolution=96)
    assert other.input == (1, 96, 96)
    assert other.to_dict()["layers"] == arch.to_dict()["layers"]
    assert arch.with_input() is arch
    with pytest.raises(InputError, match="from 1 to 8192"):
        arch.with_resolution(10_000)


def test_a_flatten_hides_the_width_until_a_layer_names_it():
    arch = of({"block": "conv", "out": 8}, {"block": "flatten"}, {"block": "dropout"})
    assert [layer.out for layer in arch.layers] == [8, None, None, 10]
    assert Architecture.from_json(arch.to_json()) == arch


def test_loading_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.write_text(tmp_path / "a.json", TEXT)
    assert architecture.load("a.json") == Architecture.from_json(TEXT)
    files.write_text(tmp_path / "a.json", TEXT.replace('"kernel": 5', '"kernel": 4'))
    with pytest.raises(InputError, match=r"^a\.json:5: layers\[2\]\.kernel: 4 is not allowed: it must be odd"):
        architecture.load("a.json")


BAD = {  # text to replace in TEXT, its replacement, part of the message
    "a block": ('"shuffle_v2", "out"', '"shufle_v2", "out"', "a:5: layers[2].block: 'shufle_v2' is not a block; did"),
    "a block that is a number": ('"global_pool"', "3", "a:7: layers[4]: a layer is an object with the key 'block'"),
    "an option": ('"kernel": 5', '"kernal": 5', "a:5: layers[2].kernal: 'kernal' is not an option of shuffle_v2; did"),
    "a stride": ('"out": 48, "stride"', '"out": 48, "strid"', "'strid' is not an option of shuffle_v2; did you mean"),
    "an even kernel": ('"kernel": 5', '"kernel": 4', "a:5: layers[2].kernel: 4 is not allowed: it must be odd"),
    "a kernel below 1": ('"kernel": 5', '"kernel": -1', "a:5: layers[2].kernel: -1 is not allowed"),
    "a fractional kernel": ('"kernel": 5', '"kernel": 3.5', "a:5: layers[2].kernel: 3.5 is not allowed"),
    "a word for a number": ('"kernel": 5', '"kernel": "five"', "a:5: layers[2].kernel: 'five' is not allowed"),
    "true for a number": ('"kernel": 5', '"kernel": true', "a:5: layers[2].kernel: True is not allowed"),
    "null for a number": ('"kernel": 5', '"kernel": null', "a:5: layers[2].kernel: None is not allowed"),
    "a list for a number": ('"kernel": 5', '"kernel": [3, 5]', "a:5: layers[2].kernel: [3, 5] is not allowed"),
    "a word": ('"kernel": 5', '"split": "halves"', "a:5: layers[2].split: 'halves' is not allowed here; did you mean"),
    "a ratio above 1": ('"kernel": 5', '"se": 1.5', "a:5: layers[2].se: 1.5 is not allowed"),
    "an infinite number": ('"kernel": 5', '"se": 1e999', "a:5: layers[2].se: inf is not allowed"),
    "a huge number": ('"kernel": 5', f'"se": 1{"0" * 400}', "a:5: layers[2].se: 10000000000000000000 is not allowed"),
    "groups below 1": ('"kernel": 3, "stride": 2}', '"groups": 0}', "groups: 0 is not allowed"),
    "a negative width": ('"out": 48', '"out": -48', "a:5: layers[2].out: -48 is not allowed: it must be from 1"),
    "a fractional width": ('"out": 48', '"out": 4.8', "a:5: layers[2].out: 4.8 is not allowed: it must be a whole"),
    "an absurd width": ('"out": 48', '"out": 10000000', "a:5: layers[2].out: 10000000 is not allowed"),
    "no width": ('"out": 48', '"out": null', "a:5: layers[2].out: None is not allowed"),
    "true as a width": ('"out": 48', '"out": true', "a:5: layers[2].out: True is not allowed"),
    "a stride of 0": ('"out": 48, "stride": 2', '"stride": 0', "a:5: layers[2].stride: 0 is not allowed"),
    "a key": ('"classes"', '"clases"', "a:1: clases: 'clases' is not a key of an architecture; did you mean 'classes'"),
    "another version": ('"nasspace": 1', '"nasspace": 2', "a:1: nasspace: 2 is not version 1"),
    "a version that is no number": ('"nasspace": 1', '"nasspace": true', "a:1: nasspace: True is not version 1"),
    "no version": ('"nasspace": 1, ', "", "nasspace: None is not version 1"),
    "an input of two": ("[3, 64, 64]", "[64, 64]", "a:1: input: [64, 64] must be [channels, height, width]"),
    "an input of words": ("[3, 64, 64]", '["3", 64, 64]', "a:1: input[0]: '3' is not allowed"),
    "an input that is a number": ("[3, 64, 64]", "64", "a:1: input: 'input' must be a list"),
    "an absurd input": ("[3, 64, 64]", "[3, 64, 640000]", "a:1: input[2]: 640000 is not allowed"),
    "other classes": ('"classes": 10', '"classes": 9', "a:1: classes: 9 classes, but the last layer's out is 10"),
    "classes that are a word": ('"classes": 10', '"classes": "ten"', "a:1: classes: 'ten' is not allowed"),
    "a name that is a number": ('"name": "small"', '"name": 3', "a:1: name: 3 is not a name"),
    "a last layer without width": (
        '{"block": "linear", "out": 10}',
        '{"block": "flatten"}',
        "the last layer needs 'out'",
    ),
    "no linear at the end": (
        ',\n  {"block": "linear", "out": 10}',
        "",
        "classes: 10 classes, but the last layer's out",
    ),
    "broken JSON": ('"stride": 2}', '"stride": 2', "a:4: not valid JSON"),
    "a key twice": ('"kernel": 5', '"kernel": 5, "kernel": 3', "a:5: duplicate key 'kernel'; keep one"),
    "no layers": (TEXT, '{"nasspace": 1, "input": [3, 64, 64], "layers": []}', "a:1: layers: there are no layers"),
    "layers that are none": (TEXT, '{"nasspace": 1, "input": [3, 64, 64], "layers": 3}', "'layers' must be a list"),
    "a list": (TEXT, "[1, 2]", "a:1: an architecture is an object"),
    "nothing": (TEXT, "", "a:1: not valid JSON"),
}


@pytest.mark.parametrize(("old", "new", "message"), BAD.values(), ids=BAD.keys())
def test_bad_architectures(old, new, message):
    assert old in TEXT
    with pytest.raises(InputError) as caught:
        Architecture.from_json(TEXT.replace(old, new, 1), "a")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_auxiliary_classifiers_have_the_classes_of_the_network():
    auxiliary = {"block": "auxiliary", "size": 2}
    architecture = of({"block": "conv", "out": 8}, auxiliary)
    assert architecture.layers[1].options["classes"] == 10
    assert architecture == of({"block": "conv", "out": 8}, {**auxiliary, "classes": 10})
    assert architecture.with_classes(7).layers[1].options["classes"] == 7
    with pytest.raises(
        InputError, match=r"layers\[1\]\.classes: 5 classes, but the network has 10; leave 'classes' out"
    ):
        of({"block": "conv", "out": 8}, {**auxiliary, "classes": 5})


def mutated(text: str, rng: random.Random) -> str:
    """A text with one to three random changes: characters removed, doubled, replaced, or words inserted."""
    words = ["null", "true", "-1", "0", "1.5", "1e999", "[]", "{}", '"x"', "99999999999", "[[1]]", ",", ":", "\x00"]
    for _ in range(rng.randint(1, 3)):
        i, j = sorted(rng.choices(range(len(text) + 1), k=2))
        j = min(j, i + rng.randint(0, 12))
        text = text[:i] + rng.choice(["", text[i:j] * 2, rng.choice(words), rng.choice(text or "x")]) + text[j:]
    return text


def corrupted(value, rng: random.Random):
    """A JSON value with one part replaced by something else."""
    others = [None, True, -1, 0, 1, 7, 2.5, 1e300, "x", "1/2", [], {}, [3, 5], {"a": 1}, 10**30, ""]
    if isinstance(value, dict | list) and value and rng.random() < 0.85:
        value = copy.copy(value)
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if rng.random() < 0.15:
            del value[key]
        else:
            value[key] = corrupted(value[key], rng)
        return value
    return rng.choice(others)


@pytest.mark.slow
def test_a_corrupted_architecture_is_read_or_refused():
    rng = random.Random(0)
    texts = [TEXT] + [Space.load(name).sample(rng).to_json() for name in ("mixed", "mobile", "shuffle")]
    messages = []
    for i in range(4000):
        text = texts[i % len(texts)]
        text = mutated(text, rng) if i % 2 else json.dumps(corrupted(json.loads(text), rng))
        try:
            arch = Architecture.from_json(text, "a.json")
        except InputError as error:
            messages.append(str(error))
        else:
            assert Architecture.from_json(arch.to_json()) == arch
    assert 0 < len(messages) < 4000
    assert all(message.startswith("a.json") and len(message) < 500 for message in messages)
