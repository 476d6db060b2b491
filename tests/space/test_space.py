"""Spaces: sizes and choices against brute force, neighbors, widths, errors of the grammar."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from nasspace import Space, cost, files, zoo
from nasspace.errors import InputError
from nasspace.space.bounds import reachable

STORIES = Path(__file__).parents[2] / "reports" / "published" / "stories" / "spaces"
SHIPPED = ["fire", "inception", "mixed", "mnasnet", "mobile", "resnext", "sandglass", "shuffle", "spos", "xception"]
SMALL = {
    "choices in the stage": """
input: [3, 32, 32]
stages:
  - {depth: [1, 2], out: [8, 12, 16], stride: [1, 2], block: conv, kernel: [1, 3]}
""",
    "choices for each layer": """
input: [3, 32, 32]
stages:
  - depth: [1, 3]
    each: {out: [8, 16], block: conv, kernel: [3, 5]}
""",
    "choices in choices": """
input: [3, 32, 32]
width: [0.5, 1]
resolution: [32, 64]
stem:
  - {block: [conv: {kernel: [3, 5]}, depthwise_separable], out: 8}
stages:
  - depth: [1, 2]
    out: [8, 16]
    each:
      block:
        - shuffle_v1: {groups: [1, 2]}
        - {inverted_residual: {expansion: [1, 2, 3], se: [0, 0.25]}}
        - identity
  - {depth: 2, out: 16, block: [fire: {squeeze: [0.25, 0.5]}, sandglass: {reduction: [2, 4], identity: [0.5, 1]}]}
""",
    "one block more than once": """
input: [3, 32, 32]
stages:
  - {depth: 2, out: 8, each: {block: [conv: {kernel: 1}, conv: {kernel: [3, 5]}, conv]}}
head:
  - {block: conv, out: [8, 16], kernel: 1}
""",
    "no choice": "input: [3, 32, 32]\nstages: [{depth: [2], out: [8], block: [conv]}]",
}


def of(text: str, **task) -> Space:
    return Space.from_text(text, "s.yaml", **task)


def sequences(space: Space) -> list[dict]:
    """Every complete sequence of choices by brute force: extend each by every option of its next choice."""
    done, open_ends = [], [{}]
    while open_ends:
        choices = open_ends.pop()
        missing = []

        def choose(name, options, choices=choices, missing=missing):
            if name not in choices:
                missing.append((name, options))
                return options[0]
            return choices[name]

        space.architecture(choose)
        if missing:
            name, options = missing[0]
            open_ends += [{**choices, name: option} for option in options]
        else:
            done.append(choices)
    return done


@pytest.mark.parametrize("text", SMALL.values(), ids=SMALL.keys())
def test_size_enumeration_and_choices_are_those_of_brute_force(text):
    space = of(text)
    found = sequences(space)
    assert len({tuple(sorted(choices.items())) for choices in found}) == len(found) == space.size
    digests = [architecture.digest for architecture in space.enumerate()]
    assert len(digests) == len(set(digests))
    assert set(digests) == {space.replay(choices).digest for choices in found}
    reached: dict[str, set] = {}
    for choices in found:
        for name, option in choices.items():
            reached.setdefault(name, set()).add(option)
    assert {name: set(options) for name, options in space.options.items()} == reached


def test_sizes_by_hand():
    assert [of(text).size for text in SMALL.values()] == [
        2 * 3 * 2 * 2,
        4 + 4**3,
        2 * 2 * (2 + 1) * 2 * (9 + 9**2) * (2 + 4),
        (1 + 2 + 1) ** 2 * 2,
        1,
    ]


def test_enumeration_yields_a_network_once():
    """`groups` that do not divide, an identity tensor multiplier without an identity: two sequences, one network."""
    space = of("input: [3, 32, 32]\nstages: [{out: [8, 12], block: shuffle_v1, groups: [1, 3, 5], stride: 2}]")
    assert space.size == 6
    assert len(list(space.enumerate())) == 1 + 2  # 3 channels in: 3 groups are possible only with 12 out
    space = of("input: [3, 32, 32]\nstages: [{out: 8, depth: [1, 2], block: sandglass, identity: [0.5, 1]}]")
    assert space.size == 4
    assert len(list(space.enumerate())) == 3


def test_names_and_order_of_the_choices():
    text = """
name: demo
input: [3, 224, 224]
resolution: [160, 224]
width: [0.5, 1.0]
stem:
  - {block: conv, out: [16, 24], kernel: 3, stride: 2}
stages:
  - depth: [2, 3, 4]
    out: [48, 80]
    stride: 2
    each:
      block:
        - shuffle_v2: {kernel: [3, 5, 7]}
        - shuffle_v1: {groups: [1, 2, 3, 4, 8], kernel: 3}
  - {out: [96], stride: 2, kernel: [3, 5], block: [shuffle_v2: {se: [0, 0.25]}, conv, conv: {groups: [1, 2]}]}
head:
  - {block: conv, out: [512, 1024], kernel: 1}
"""
    space = of(text)
    calls = []

    def choose(name, options):
        calls.append((name, options))
        return options[-1]

    arch = space.architecture(choose)
    groups = (1, 2, 3, 4, 8)
    assert calls == [
        ("resolution", (160, 224)),
        ("width", (0.5, 1.0)),
        ("stem.0.out", (16, 24)),
        ("stages.0.depth", (2, 3, 4)),
        ("stages.0.out", (48, 80)),
        *(
            choice
            for i in range(4)
            for choice in [(f"stages.0.{i}.block", (0, 1)), (f"stages.0.{i}.shuffle_v1.groups", groups)]
        ),
        ("stages.1.kernel", (3, 5)),
        ("stages.1.block", (0, 1, 2)),
        ("stages.1.conv.2.groups", (1, 2)),
        ("head.0.out", (512, 1024)),
    ]
    assert dict(calls) == {name: space.options[name] for name in dict(calls)}
    assert arch.choices["stages.0.3.shuffle_v1.groups"] == 8
    assert {name for name in space.options if name.startswith("stages.1")} == {
        "stages.1.kernel",
        "stages.1.block",
        "stages.1.shuffle_v2.se",
        "stages.1.conv.2.groups",
    }
    assert space.name == "demo"


def test_choices_are_in_the_order_of_the_file_with_depth_before_its_layers():
    space = of(
        "stages: [{each: {block: conv, kernel: [1, 3]}, out: [8, 16], depth: [1, 2]}]\nwidth: [1, 2]\ninput: [3, 8, 8]"
    )
    assert list(space.options) == ["stages.0.depth", "stages.0.0.kernel", "stages.0.1.kernel", "stages.0.out", "width"]


def test_options_that_are_plain_serve_as_categories():
    for name in SHIPPED:
        for options in Space.load(name).options.values():
            assert all(isinstance(option, bool | int | float | str) for option in options)
            assert len(set(options)) == len(options) > 1


def test_an_anchor_repeats_its_choices():
    space = Space.load("mixed")
    assert (
        space.options["stages.0.inverted_residual.expansion"] == space.options["stages.3.inverted_residual.expansion"]
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_spaces(name):
    rng = random.Random(0)
    for task in ({}, {"resolution": 32, "channels": 1}, {"resolution": 96, "classes": 1000}):
        space = Space.load(name, **task)
        assert space.name == name
        assert space.description.endswith(".")
        assert space.size > 1e6
        for _ in range(20):
            arch = space.sample(rng)
            side = task.get("resolution", 224)
            assert arch.input == (task.get("channels", 3), side, side)
            assert arch.classes == arch.layers[-1].out == task.get("classes", 10)
            assert [layer.block for layer in arch.layers].count("linear") == 1
            assert all(layer.out % 4 == 0 for layer in arch.layers[:-1])
            assert cost(arch).flops > 0


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_spaces_are_mobile(name):
    space = Space.load(name)
    flops = sorted(cost(space.sample(random.Random(seed))).flops for seed in range(100))
    heavier = {"mnasnet": (400e6, 1e9), "resnext": (340e6, 700e6)}  # plain convolutions are among their choices
    middle, most = heavier.get(name, (340e6, 500e6))
    assert flops[5] > 8e6
    assert flops[50] < middle
    assert flops[-1] < most


def test_spos_is_the_papers():
    space = Space.load("spos", classes=1000)
    assert space.size == 4**20
    assert len(files.find("spaces", "spos").read_text().splitlines()) <= 25
    all_3x3 = space.architecture(lambda name, options: 0)
    assert [layer.out for layer in all_3x3.layers[1:21]] == [64] * 4 + [160] * 4 + [320] * 8 + [640] * 4
    blocks = [space.architecture(lambda name, options, i=i: i).layers[5] for i in range(4)]
    assert [(layer.block, layer.options.get("kernel")) for layer in blocks] == [
        ("shuffle_v2", 3),
        ("shuffle_v2", 5),
        ("shuffle_v2", 7),
        ("shuffle_v2_xception", None),
    ]
    assert 2.8e8 < cost(all_3x3).flops < 3.3e8  # the paper's limit is 330 million


def test_mnasnet_is_the_papers():
    space = Space.load("mnasnet", classes=1000)
    designs = 4 * 2 * 2 * 3  # operations (the bottleneck counts twice), kernels, squeeze-and-excitation, skips
    assert space.size == (designs * 3 * 3) ** 5 * (designs * 3 * 2) ** 2
    taken = {"block": 3, "kernel": 3, "se": 0, "skip": "identity", "out": 1}
    depths = (1, 2, 3, 4, 3, 3, 1)  # MobileNetV2's, table 2

    def mobilenet_v2(name, options):
        key = name.split(".")[-1]
        if key == "depth":
            return depths[int(name.split(".")[1])]
        return options[taken[key]] if key in ("block", "out") else taken[key]

    layers = space.architecture(mobilenet_v2).layers[1:18]
    original = zoo.load("mobilenet_v2_1.0").layers[1:18]
    assert [(layer.out, layer.stride) for layer in layers] == [(layer.out, layer.stride) for layer in original]


@pytest.mark.parametrize("name", SHIPPED)
def test_replay(name):
    space = Space.load(name)
    for seed in range(20):
        arch = space.sample(random.Random(seed))
        assert space.sample(random.Random(seed)).choices == arch.choices
        assert space.replay(arch.choices).digest == arch.digest
        assert space.replay(dict(reversed(arch.choices.items()))).choices == arch.choices
        assert list(arch.choices) == [name for name in space.options if name in arch.choices]


@pytest.mark.parametrize("name", SHIPPED)
def test_neighbors_differ_in_one_choice(name):
    space = Space.load(name)
    arch = space.sample(random.Random(1))
    neighbors = list(space.neighbors(arch))
    digests = [neighbor.digest for neighbor in neighbors]
    assert len(set(digests)) == len(digests)
    assert arch.digest not in digests
    for neighbor in neighbors:
        shared = arch.choices.keys() & neighbor.choices.keys()
        changed = [choice for choice in shared if arch.choices[choice] != neighbor.choices[choice]]
        assert len(changed) == 1
        only_one_has = arch.choices.keys() ^ neighbor.choices.keys()
        assert not only_one_has or changed[0].endswith((".depth", ".block"))
    assert len(neighbors) <= sum(len(space.options[choice]) - 1 for choice in arch.choices)


def test_all_neighbors_are_returned():
    space = of(SMALL["choices in choices"])
    arch = space.sample(random.Random(0))
    every = {other.digest for other in space.enumerate()}
    found = {neighbor.digest for neighbor in space.neighbors(arch)}
    assert found <= every
    for choices in sequences(space):
        if choices.keys() == arch.choices.keys() and sum(choices[c] != arch.choices[c] for c in choices) == 1:
            assert space.replay(choices).digest in found | {arch.digest}


def test_a_new_layer_copies_the_previous_one():
    space = of("input: [3, 8, 8]\nstages: [{depth: [1, 2, 3], out: 8, each: {block: conv, kernel: [1, 3, 5]}}]")
    arch = space.replay({"stages.0.depth": 2, "stages.0.0.kernel": 1, "stages.0.1.kernel": 5})
    deeper = next(n for n in space.neighbors(arch) if n.choices["stages.0.depth"] == 3)
    assert deeper.choices["stages.0.2.kernel"] == 5


def test_only_architectures_of_a_space_have_neighbors():
    space = of(SMALL["no choice"])
    arch = next(space.enumerate())
    assert list(space.neighbors(arch)) == []
    foreign = type(arch).from_json(arch.to_json())
    with pytest.raises(InputError, match="not created by a space"):
        list(space.neighbors(foreign))


def test_auxiliary_classifiers_have_the_classes_of_the_data():
    space = of("input: [1, 8, 8]\nstages: [{depth: 1, out: 8, block: conv}, {block: [auxiliary, identity]}]", classes=7)
    for network in space.enumerate():
        assert {layer.options.get("classes", 7) for layer in network.layers} == {7}
        assert space.choices_of(type(network).from_json(network.to_json())) == network.choices


def test_an_unknown_option_is_refused():
    space = of(SMALL["choices in the stage"])
    with pytest.raises(InputError, match=r"stages\.0\.depth: 7 is not one of \[1, 2\]"):
        space.architecture(lambda name, options: 7)


def test_widths_are_multiplied_and_rounded_but_not_in_the_head():
    text = """
input: [3, 64, 64]
width: {width}
divisor: {divisor}
stem: [{{block: conv, out: 24}}]
stages: [{{out: {out}, block: conv}}]
head: [{{block: conv, out: 30}}]
"""
    cases = [
        (1.0, 4, 64, 24, 64),
        (0.5, 4, 116, 12, 60),
        (0.35, 8, 24, 8, 8),
        (0.75, 8, 24, 24, 24),
        (1, 4, 30, 24, 32),
    ]
    for width, divisor, out, stem, settled in cases:
        arch = next(of(text.format(width=width, divisor=divisor, out=out)).enumerate())
        assert [layer.out for layer in arch.layers] == [stem, settled, 30, 30, 30, 10]
        assert settled >= 0.9 * width * out


def test_strides_of_the_stem_at_small_inputs():
    text = "input: [3, 224, 224]\nstem: [{block: conv, out: 8, stride: 2}]\nstages: [{out: 8, block: conv, stride: 2}]"
    for resolution, strides in [(64, [2, 2]), (63, [2, 2]), (28, [2, 2]), (26, [1, 2]), (None, [2, 2])]:
        arch = next(of(text, resolution=resolution).enumerate())
        assert [layer.stride for layer in arch.layers[:2]] == strides
    searched = of(text + "\nresolution: [16, 64]")
    assert [[layer.stride for layer in arch.layers[:2]] for arch in searched.enumerate()] == [[1, 2], [2, 2]]
    few = of(text + "\nresolution: [16, 32, 64]", resolution=(16, 32))
    assert [arch.input for arch in few.enumerate()] == [(3, 16, 16), (3, 32, 32)]
    assert {arch.input for arch in of(text + "\nresolution: [32, 64]", resolution=96).enumerate()} == {(3, 96, 96)}


def test_the_last_stride_of_the_stem_goes_first():
    text = """
input: [3, 224, 224]
stem: [{block: conv, out: 8, stride: [1, 2]}, {block: max_pool, kernel: 3, stride: 2}]
stages: [{out: 8, block: conv, stride: 2}]
"""
    strides = {
        32: [[1, 2], [2, 1]],  # 32 pixels: 16 after either
        28: [[1, 2], [2, 1]],
        26: [[1, 1], [1, 1]],
        64: [[1, 2], [2, 2]],
    }
    for resolution, expected in strides.items():
        space = of(text, resolution=resolution)
        stems = [[layer.stride for layer in arch.layers[:2]] for arch in space.enumerate()]
        assert stems == [each for i, each in enumerate(expected) if each not in expected[:i]]
        counts = [cost(arch).flops for arch in space.enumerate()]
        assert reachable(space).flops == (min(counts), max(counts))


@pytest.mark.parametrize(
    ("head", "blocks"),
    [
        ("", "global_pool dropout linear"),
        ("head: []", "global_pool dropout linear"),
        ("head: [{block: conv, out: 8}]", "conv global_pool dropout linear"),
        ("head: [{block: global_pool}]", "global_pool dropout linear"),
        ("head: [{block: dropout, p: 0.0}]", "global_pool dropout linear"),
        ("head: [{block: global_pool}, {block: dropout}, {block: linear}]", "global_pool dropout linear"),
        ("head: [{block: linear, bias: false}]", "global_pool dropout linear"),
        ("head: [{block: flatten}]", "flatten dropout linear"),
        (
            "head: [{block: global_pool}, {block: linear, out: 64, activation: relu}, {block: dropout}]",
            "global_pool linear dropout linear",
        ),
        ("head: [{block: linear, out: 64}, {block: linear}]", "global_pool linear dropout linear"),
    ],
)
def test_the_head_is_completed(head, blocks):
    arch = next(of(f"input: [3, 8, 8]\nstages: [{{out: 8, block: conv}}]\n{head}").enumerate())
    assert [layer.block for layer in arch.layers[1:]] == blocks.split()
    assert arch.layers[-1].out == 10
    assert cost(arch).layers[-1].out_shape == (10,)


def test_a_list_of_one_is_no_choice():
    assert of(SMALL["no choice"]).options == {}
    assert len(list(of(SMALL["no choice"]).enumerate())) == 1


def test_a_space_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.write_text(tmp_path / "spaces" / "mine.yaml", SMALL["no choice"])
    assert Space.load("mine").name == "mine"
    assert Space.load("spaces/mine.yaml").size == 1
    with pytest.raises(InputError, match="'mien' is not a space; did you mean 'mine'"):
        Space.load("mien")
    files.write_text(tmp_path / "spaces" / "mine.yaml", SMALL["no choice"].replace("conv", "cnov"))
    with pytest.raises(InputError, match=r"^spaces/mine\.yaml:2: stages\[0\]\.block\[0\]: 'cnov' is not a block; did"):
        Space.load("mine")


GOOD = """
input: [3, 64, 64]
width: [0.5, 1]
stem:
  - {block: conv, out: 16, stride: 2}
stages:
  - depth: [1, 2]
    out: [16, 32]
    stride: 2
    each:
      block:
        - shuffle_v2: {kernel: [3, 5]}
        - shuffle_v1: {groups: [1, 2]}
  - {out: 64, block: fire, squeeze: [0.25, 0.5]}
head:
  - {block: conv, out: 64, kernel: 1}
"""
BAD = {  # text to replace in GOOD, its replacement, part of the message
    "a block": (
        "- shuffle_v2",
        "- shufle_v2",
        "s.yaml:12: stages[0].each.block[0]: 'shufle_v2' is not a block; did you",
    ),
    "a block in the stem": ("block: conv, out: 16", "block: cnov, out: 16", "s.yaml:5: stem[0].block: 'cnov' is not"),
    "a block without name": ("block: fire", "block: 3", "s.yaml:14: stages[1].block: 3 is not the name of a block"),
    "an option": ("groups:", "gropus:", "'gropus' is not an option of shuffle_v1; did you mean 'groups'?"),
    "an option of the stage": (
        "squeeze:",
        "sqeeze:",
        "s.yaml:14: stages[1].sqeeze: 'sqeeze' is not an option of fire; did",
    ),
    "a key": ("stages:", "stage:", "s.yaml:6: stage: 'stage' is not a key of a space; did you mean 'stages'?"),
    "an even kernel": ("[3, 5]", "[3, 4]", "s.yaml:12: stages[0].each.block[0].shuffle_v2.kernel[1]: 4 is not allowed"),
    "a kernel below 1": ("[3, 5]", "[3, 0]", "s.yaml:12: stages[0].each.block[0].shuffle_v2.kernel[1]: 0 is not"),
    "groups below 1": (
        "groups: [1, 2]",
        "groups: [0, 2]",
        "s.yaml:13: stages[0].each.block[1].shuffle_v1.groups[0]: 0",
    ),
    "negative groups": ("groups: [1, 2]", "groups: -2", "s.yaml:13: stages[0].each.block[1].shuffle_v1.groups: -2 is"),
    "a negative width": ("[16, 32]", "[16, -32]", "s.yaml:8: stages[0].out[1]: -32 is not allowed: it must be from 1"),
    "a fractional width": (
        "[16, 32]",
        "[16, 3.2]",
        "s.yaml:8: stages[0].out[1]: 3.2 is not allowed: it must be a whole",
    ),
    "an absurd width": ("[16, 32]", "[16, 3200000]", "s.yaml:8: stages[0].out[1]: 3200000 is not allowed"),
    "a width of 0": ("out: 64, block", "out: 0, block", "s.yaml:14: stages[1].out: 0 is not allowed"),
    "a word as width": ("[16, 32]", "[16, wide]", "s.yaml:8: stages[0].out[1]: 'wide' is not allowed"),
    "yes as width": ("[16, 32]", "[16, yes]", "s.yaml:8: stages[0].out[1]: True is not allowed"),
    "no width": ("[16, 32]", "[16, null]", "s.yaml:8: stages[0].out[1]: None is not allowed"),
    "wide times wide": ("[0.5, 1]", "[0.5, 16]", None),
    "too wide together": ("out: [16, 32]", "out: 60000", None),
    "an empty choice": ("[16, 32]", "[]", "s.yaml:8: stages[0].out: an empty list leaves no choice; give at least one"),
    "an empty choice of blocks": ("block: fire", "block: []", "s.yaml:14: stages[1].block: an empty list leaves no"),
    "an option twice": ("[16, 32]", "[16, 16]", "s.yaml:8: stages[0].out[1]: the option 16 is in this list twice"),
    "equal options": ("[0.25, 0.5]", "[0.5, 1/2]", "s.yaml:14: stages[1].squeeze[1]: the option '1/2' is in this"),
    "a block twice": ("block: fire", "block: [conv, conv]", "s.yaml:14: stages[1].block[1]: the block conv is in"),
    "a list in a list": ("[16, 32]", "[16, [32, 48]]", "s.yaml:8: stages[0].out[1]: [32, 48] is not allowed here"),
    "a list of blocks in a list": ("block: fire", "block: [[fire]]", "s.yaml:14: stages[1].block[0]: ['fire'] is not"),
    "a mapping as option": ("[16, 32]", "{a: 1}", "s.yaml:8: stages[0].out: {'a': 1} is not allowed here"),
    "two blocks in one": ("- shuffle_v2: {", "- conv:\n          shuffle_v2: {", "is written 'name: {option: value}'"),
    "options that are none": (
        "shuffle_v2: {kernel: [3, 5]}",
        "shuffle_v2: 3",
        "block[0].shuffle_v2: 3 must be a mapping",
    ),
    "no block": (", block: fire, squeeze: [0.25, 0.5]", "", "s.yaml:14: stages[1]: a stage needs 'block', directly or"),
    "a block in both": ("each:", "block: conv\n    each:", "s.yaml:12: stages[0].each.block: 'block' is set twice"),
    "a width in both": ("each:", "each:\n      out: 8", "s.yaml:11: stages[0].each.out: 'out' is set twice"),
    "a depth in each": ("each:", "each:\n      depth: 8", "s.yaml:11: stages[0].each.depth: 'depth' is set twice"),
    "a stride in each": (
        "    stride: 2\n    each:",
        "    each:\n      stride: 1",
        "'stride' belongs to the stage, not under",
    ),
    "an option in both": ("{block: conv, out: 16", "{block: {conv: {kernel: 3}}, kernel: 5, out: 16", "is set twice"),
    "a depth of 0": ("depth: [1, 2]", "depth: [0, 2]", "s.yaml:7: stages[0].depth[0]: 0 is not allowed"),
    "an absurd depth": ("depth: [1, 2]", "depth: 100000", "s.yaml:7: stages[0].depth: 100000 is not allowed"),
    "a depth in the head": (
        "kernel: 1}",
        "kernel: 1, depth: 2}",
        "s.yaml:16: head[0].depth: 'depth' belongs to a stage",
    ),
    "a stride of 0": ("    stride: 2", "    stride: 0", "s.yaml:9: stages[0].stride: 0 is not allowed"),
    "a width multiplier of 0": (
        "[0.5, 1]",
        "[0, 1]",
        "s.yaml:3: width[0]: 0 is not allowed: a width multiplier must be",
    ),
    "a multiplier that is a word": ("[0.5, 1]", "half", "s.yaml:3: width: 'half' is not allowed"),
    "a multiplier that is infinite": ("[0.5, 1]", ".inf", "s.yaml:3: width: inf is not allowed"),
    "a multiplier that is no number": ("[0.5, 1]", ".nan", "s.yaml:3: width: nan is not allowed"),
    "an input of two": ("[3, 64, 64]", "[64, 64]", "s.yaml:2: input: [64, 64] must be [channels, height, width]"),
    "an input that is a choice": ("[3, 64, 64]", "[3, [32, 64], 64]", "s.yaml:2: input[1]: [32, 64] is not allowed"),
    "an input that is a number": ("[3, 64, 64]", "64", "s.yaml:2: input: 64 must be [channels, height, width]"),
    "no input": ("input: [3, 64, 64]\n", "", "a space needs 'input'"),
    "no stages": (GOOD[GOOD.index("stages") :], "", "a space needs 'stages'"),
    "stages that are empty": (GOOD[GOOD.index("stages") :], "stages: []", "stages: a space needs at least one stage"),
    "stages that are none": (GOOD[GOOD.index("stages") :], "stages: 3", "s.yaml:6: stages: must be a list"),
    "a stage that is none": (
        GOOD[GOOD.index("stages") :],
        "stages: [conv]",
        "s.yaml:6: stages[0]: 'conv' must be a mapping",
    ),
    "a stem that is none": ("stem:\n  - {block: conv, out: 16, stride: 2}", "stem: conv", "'stem' must be a list"),
    "each that is none": (
        GOOD[GOOD.index("each") :],
        "each: conv",
        "s.yaml:10: stages[0].each: 'conv' must be a mapping",
    ),
    "a layer without block": ("{block: conv, out: 64", "{out: 64", "s.yaml:16: head[0]: a layer needs 'block'"),
    "another classifier": ("{block: conv, out: 64", "{block: linear, out: 64", "'kernel' is not an option of linear"),
    "other classes": ("{block: conv, out: 64, kernel: 1}", "{block: linear, out: 64}", "leave out 'out'"),
    "other classes of an auxiliary classifier": (
        "block: fire, squeeze: [0.25, 0.5]",
        "block: [auxiliary: {classes: [10, 5]}]",
        "s.yaml:14: stages[1]: auxiliary has the 10 classes of the data; leave out 'classes'",
    ),
    "a name that is not a string": ("width:", "name: 3\nwidth:", "s.yaml:3: name: 3 is not a string"),
    "a divisor of 0": ("width:", "divisor: 0\nwidth:", "s.yaml:3: divisor: 0 is not allowed"),
    "a resolution of 0": ("width:", "resolution: [0, 32]\nwidth:", "s.yaml:3: resolution[0]: 0 is not allowed"),
    "a key twice": ("stem:", "input: [1, 8, 8]\nstem:", "s.yaml:4: duplicate key 'input'; keep one"),
    "a tag that would run code": (
        "[16, 32]",
        "!!python/name:os.system",
        "s.yaml:8: the tag !!python/name:os.system is",
    ),
    "broken": ("[16, 32]", "[16, 32", "s.yaml:9: not valid YAML"),
    "a list": (GOOD, "[1, 2]", "s.yaml:1: a space is a mapping with 'input' and 'stages'"),
    "a word": (GOOD, "shuffle", "s.yaml:1: a space is a mapping"),
    "nothing": (GOOD, "", "s.yaml:1: the file is empty"),
}


@pytest.mark.parametrize(("old", "new", "message"), BAD.values(), ids=BAD.keys())
def test_bad_spaces(old, new, message):
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    if message is None:
        assert of(text).size > 1
        return
    with pytest.raises(InputError) as caught:
        of(text)
    assert message in str(caught.value)
    assert re.match(r"s\.yaml:\d+: ", str(caught.value))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"classes": 1}, "classes: 1 is not allowed"),
        ({"classes": 2.5}, "classes: 2.5 is not allowed"),
        ({"resolution": 0}, "resolution: 0 is not allowed"),
        ({"resolution": -32}, "resolution: -32 is not allowed"),
        ({"resolution": 100_000}, "resolution: 100000 is not allowed"),
        ({"channels": 0}, "channels: 0 is not allowed"),
    ],
)
def test_bad_tasks(task, message):
    with pytest.raises(InputError, match=message):
        of(GOOD, **task)


def test_a_network_within_a_space_is_within_an_architecture():
    with pytest.raises(InputError, match=r"s\.yaml:8: stages\[0\]\.out: 32768 x width 16 is more than 65536 channels"):
        of(GOOD.replace("[16, 32]", "[16, 32768]").replace("[0.5, 1]", "[1, 16]"))
    stage = "  - {depth: 100, out: 8, block: conv}\n"
    with pytest.raises(InputError, match="the deepest network has more than 2000 layers"):
        of("input: [3, 8, 8]\nstages:\n" + stage * 20)
    assert len(next(of("input: [3, 8, 8]\nstages:\n" + stage * 19).enumerate()).layers) == 1903


def test_huge_sizes_are_exact():
    space = of("input: [3, 8, 8]\nstages: [{depth: 100, out: 8, each: {block: conv, kernel: [1, 3, 5, 7, 9, 11, 13]}}]")
    assert space.size == 7**100
    assert repr(space) == "Space('s', 84.5 decades)"


def mutated(text: str, rng: random.Random) -> str:
    """A YAML text with one to three changes: words replaced, doubled, removed, indentation or characters inserted."""
    for _ in range(rng.randint(1, 3)):
        words = [match.span() for match in re.finditer(r"[\w.]+|[\[\]{}:,*&-]|\n *", text)]
        i, j = rng.choice(words)
        others = [
            "[]",
            "{}",
            "null",
            "yes",
            "-1",
            "0",
            "2",
            "1.5",
            "1e9",
            "x",
            "[1, 2]",
            "{a: 1}",
            ":",
            ",",
            "!!set",
            "\t",
        ]
        words = [text[slice(*rng.choice(words))], rng.choice(others), rng.choice(others), "", text[i:j] * 2]
        text = text[:i] + rng.choice(words) + text[j:]
    return text


@pytest.mark.slow
def test_a_corrupted_space_is_read_or_refused():
    rng = random.Random(0)
    texts = [GOOD, *(files.find("spaces", name).read_text() for name in SHIPPED)]
    messages = []
    for i in range(2000):
        text = mutated(texts[i % len(texts)], rng)
        try:
            space = of(text, resolution=32)
            arch = space.sample(rng)
        except InputError as error:
            messages.append(str(error))
            continue
        assert type(arch).from_json(arch.to_json()) == arch
    assert 0 < len(messages) < 2000
    assert all(re.match(r"s\.yaml:\d+: ", message) and len(message) < 2000 for message in messages)


@pytest.mark.parametrize("path", sorted(STORIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_spaces_of_the_published_stories_load(path):
    space = Space.load(str(path))
    assert space.name == path.stem
    assert cost(space.sample(random.Random(0))).flops < 40e6
