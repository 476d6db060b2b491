"""Whether `nas explain` finds planted violations, reports nothing without them, and predicts savings correctly.

    python benchmarks/explain.py [--cases 40] [--seconds 1] [--seed 0] [--out reports/explain]

A quarter of the cases each plant one kind of violation in plain networks of equal widths: G1 convolutions of widths 1:4
to 1:12; G2 2, 4 or 8 groups; G3 2 to 4 branches, added or concatenated; G4 squeeze-and-excitation, channel shuffles,
shortcuts, slow activations. Not every violation costs time on every processor, so they are drawn until the network
is at least 5 % slower than one without it, with both measured in turn. That one has plain layers in its place, as many
as give both networks equal FLOPs: wide grouped maps make the dense layers around them more expensive too, and the cost
of those FLOPs does not belong to the violation. Printed and written: how often the planted guideline comes first (goal:
at least 90 %), how many networks without a violation have a finding (at most 10 %), and how often the predicted saving
is within 25 % of the measured one where the violation takes at least 5 % of the time. The cache is not used.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nasspace import Architecture, blocks, build, cost
from nasspace.blocks.layers import channel_shuffle, conv_bn
from nasspace.guidelines import Explanation, explain
from nasspace.latency import benchmark, runtimes
from nasspace.latency.conditions import machine

Layers = list[dict[str, Any]]
PLACES = (28, 56)
WIDTHS = (32, 48, 64, 96)
HARMFUL = 0.05  # share of the network's time, measured against the network without the violation at equal FLOPs
MOST = 40  # limit of plain layers in place of a violation


class Branches(nn.Module):
    """A user-defined block: parallel 1x1 convolutions."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, count: int = 2, join: str = "concat"):
        super().__init__()
        shares = [out_channels // count + (i < out_channels % count) for i in range(count)]
        widths = shares if join == "concat" else [out_channels] * count
        self.parts = nn.ModuleList(conv_bn(in_channels, width, 1, stride, activation="relu") for width in widths)
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        outputs = [part(x) for part in self.parts]
        return torch.cat(outputs, 1) if self.join == "concat" else sum(outputs[1:], outputs[0])


class Shuffled(nn.Module):
    """A user-defined block: 1x1 convolution, channel shuffle."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, *, groups: int = 2):
        super().__init__()
        self.conv, self.groups = conv_bn(in_channels, out_channels, 1, stride, activation="relu"), groups

    def forward(self, x: Tensor) -> Tensor:
        return channel_shuffle(self.conv(x), self.groups)


def pointwise(out: int, **options: Any) -> dict[str, Any]:
    """Return a 1x1 convolution as a dictionary."""
    return {"block": "conv", "kernel": 1, "out": out, **options}


def unequal(rng: random.Random, width: int) -> tuple[str, Layers]:
    """Plant unequal widths (G1); return a description and the layers."""
    ratio, count = rng.choice((4, 6, 9, 12)), rng.randrange(6, 11)
    narrow, wide = round(width / math.sqrt(ratio)), round(width * math.sqrt(ratio))
    layers = [pointwise(narrow if i % 2 else wide) for i in range(count)]
    return f"{narrow}:{wide}", [pointwise(narrow), *layers]


def grouped(rng: random.Random, width: int) -> tuple[str, Layers]:
    """Plant grouped convolutions (G2)."""
    groups, count = rng.choice((2, 4, 8)), rng.randrange(6, 11)
    wide = math.ceil(width * math.sqrt(groups) / groups) * groups
    layers = [pointwise(wide, groups=groups) for _ in range(count)]
    return f"{groups} groups of {wide}", [pointwise(wide), *layers]


def fragmented(rng: random.Random, width: int) -> tuple[str, Layers]:
    """Plant parallel branches (G3)."""
    branches, join, count = rng.choice((2, 3, 4)), rng.choice(("concat", "add")), rng.randrange(6, 11)
    out = width if join == "concat" else round(width / math.sqrt(branches))
    layer = {"block": "branches", "out": out, "count": branches, "join": join}
    return f"{branches} branches, {join}", [pointwise(out), *[layer] * count]


def elementwise(rng: random.Random, width: int) -> tuple[str, Layers]:
    """Plant element-wise work (G4)."""
    kinds = {
        "se": pointwise(width, se=0.25),
        "shuffle": {"block": "shuffled", "out": width},
        "shortcut": pointwise(width, skip="identity"),
        "hard_swish": pointwise(width, activation="hard_swish"),
        "elu": pointwise(width, activation="elu"),
        "silu": pointwise(width, activation="silu"),
    }
    kind, count = rng.choice(sorted(kinds)), rng.randrange(6, 11)
    return kind, [kinds[kind]] * count


PLANTS: dict[str, Callable[[random.Random, int], tuple[str, Layers]]] = {
    "G1": unequal,
    "G2": grouped,
    "G3": fragmented,
    "G4": elementwise,
}


def plain(rng: random.Random, width: int) -> Layers:
    """Return layers without a violation: equal widths, one group, one branch, a fused ReLU."""
    forms = [{"kernel": 1}, {"kernel": 3}, {"block": "depthwise_separable"}]
    return [{"block": "conv", "out": width, **rng.choice(forms)} for _ in range(rng.randrange(1, 4))]


def surroundings(rng: random.Random, width: int) -> Callable[[Layers], Architecture]:
    """Return a function that puts layers between a stem, plain layers, a second, wider stage, and a head."""
    place = rng.choice(PLACES)
    stem = [{"block": "conv", "out": width, "kernel": 3, "stride": 2}, *plain(rng, width)]
    second = [{"block": "conv", "out": 2 * width, "kernel": 3, "stride": 2}, *plain(rng, 2 * width)]
    tail = [*plain(rng, width), *second, {"block": "global_pool"}, {"block": "linear", "out": 10}]
    return lambda layers: Architecture.of([*stem, *layers, *tail], input=(3, 2 * place, 2 * place))


def unplanted(around: Callable[[Layers], Architecture], width: int, planted: Architecture) -> Architecture:
    """Return the network with plain layers in place of the violation, at the closest FLOPs."""
    found = (around([pointwise(width)] * count) for count in range(MOST))
    return min(found, key=lambda one: abs(cost(one).flops - cost(planted).flops))


def harm(planted: Architecture, without: Architecture, seconds: float) -> float:
    """Measure both networks in turn; return the share of the planted network's time that the other one saves."""
    loaded = [runtimes.get("onnxruntime")(1, 1).load(build(one), one.input) for one in (planted, without)]
    slow, fast = benchmark.measure(dict(enumerate(loaded)), seconds=seconds).values()
    return 1 - fast.median_ms / slow.median_ms


def compare_savings(found: Explanation, guideline: str) -> list[tuple[float, bool, bool]]:
    """For findings of a guideline whose operators take 5 % of the time, compare the saving with its prediction.

    Returns (measured saving as a share of the latency, prediction within 25 %, measured in the whole network) of each.
    """
    result = []
    for one in found.findings:
        if one.guideline == guideline and one.share >= 0.05:
            within = abs(one.saving_ms - one.measured_ms) <= 0.25 * abs(one.measured_ms)
            result.append((one.measured_ms / found.latency_ms, within, one.measured_on == "network"))
    return result


def percent(found: list[bool]) -> str:
    """Format how many values are true."""
    return f"{sum(found)} of {len(found)} ({100 * sum(found) / max(1, len(found)):.0f} %)"


def row(name: str, what: str, found: Explanation) -> str:
    """Format a row of the table."""
    cells = []
    for one in found.findings:
        measured = "" if one.measured_ms is None else f", measured {one.measured_ms:.3f} on the {one.measured_on}"
        cells.append(f"{one.guideline} {one.kind} ({one.share:.0%}): saves {one.saving_ms:.3f}{measured}")
    mark = " contended" if found.contended else ""
    return f"| {name} | {what} | {found.latency_ms:.3f}{mark} | {'; '.join(cells) or 'nothing'} |"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("reports/explain"))
    arguments = parser.parse_args()
    blocks.register("branches", Branches)
    blocks.register("shuffled", Shuffled)
    rng = random.Random(arguments.seed)
    first, flagged, close, rows = [], [], [], []
    drawn = Counter()
    for i in range(arguments.cases):
        guideline = list(PLANTS)[i % 4]
        loss = 0.0
        while loss < HARMFUL:
            width = rng.choice(WIDTHS)
            what, planted = PLANTS[guideline](rng, width)
            around = surroundings(rng, width)
            network = around(planted)
            loss = harm(network, unplanted(around, width, network), arguments.seconds)
            drawn[guideline] += 1
        found = explain(network, measure=True, fresh=True, seconds=arguments.seconds)
        first.append(bool(found.findings) and found.findings[0].guideline == guideline)
        close += compare_savings(found, guideline)
        rows.append(row(guideline, f"{what} (costs {loss:.0%})", found))
        print(rows[-1], flush=True)
    for _ in range(arguments.cases):
        found = explain(surroundings(rng, rng.choice(WIDTHS))([]), fresh=True, seconds=arguments.seconds)
        flagged.append(bool(found.findings))
        rows.append(row("none", "", found))
        print(rows[-1], flush=True)
    large = [one for one in close if one[0] >= 0.05]
    tried = ", ".join(f"{guideline} {count}" for guideline, count in drawn.items())
    sums = [
        f"Violations drawn until {arguments.cases} cost at least {HARMFUL:.0%} of the time on this machine: {tried}.",
        f"The planted guideline comes first in {percent(first)}.",
        f"Networks without a violation that have a finding: {percent(flagged)}.",
        f"Predicted within 25 % of measured, where the operators take 5 % of the time: "
        f"{percent([c[1] for c in close])}; where the measured saving is at least 5 %: "
        f"{percent([c[1] for c in large])}; "
        f"of these measured in the whole network: {percent([c[1] for c in large if c[2]])}.",
    ]
    print("\n".join(sums))
    here = ", ".join(f"{key} {value}" for key, value in machine().items())
    versions = ", ".join(f"{key} {value}" for key, value in runtimes.versions("onnxruntime").items())
    text = ["# Planted violations", "", f"{here}; {versions}; one thread, batch 1, seed {arguments.seed}.", ""]
    text += [
        f"Each network was measured for up to {arguments.seconds:g} s of rounds, twice that under contention.",
        "",
        *sums,
        "",
    ]
    text += ["| planted | what | ms | found |", "| -- | -- | -- | -- |", *rows, ""]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "README.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
