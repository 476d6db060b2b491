"""ShuffleNet V2's tables 1 to 4 (guidelines G1 to G4) on this processor, and the direction of each effect.

    python benchmarks/guidelines.py [--seconds 1] [--sizes 1 2 4] [--gpu-sizes] [--out reports/guidelines]

Each network has ten blocks on 56x56 maps, with the paper's widths for its ARM processor; `--gpu-sizes` adds those for
its GPU. The paper's speeds fit x1, x2, x4 as factors of the widths (FLOPs grow by 4 and 16), and G4 units of width c
with a bottleneck of c / 4. Details that the paper does not give are chosen here: parallel fragments are added (at
c / sqrt(n), equal FLOPs), and in separate rows concatenated (c to c / n); a ReLU follows every convolution. All rows of
one size are measured in turn, in ONNX Runtime on one thread. Printed and written: milliseconds, and percent above the
first row.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from nasspace.latency import benchmark, runtimes
from nasspace.latency.benchmark import Latency
from nasspace.latency.conditions import machine

MAP = 56
BLOCKS = 10
Built = tuple[nn.Module, int]  # a network, and its input's width


def conv(c_in: int, c_out: int, kernel: int = 1, groups: int = 1, relu: bool = True) -> nn.Sequential:
    """Return a convolution with an optional ReLU."""
    layers = [nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, groups=groups)]
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


def repeated(block: Callable[[], nn.Module], width: int) -> Built:
    """Return a network of ten blocks."""
    return nn.Sequential(*(block() for _ in range(BLOCKS))), width


def unequal(c1: int, c2: int, factor: int) -> Built:
    """Pairs of 1x1 convolutions from c1 to c2 channels and back (table 1)."""
    c1, c2 = c1 * factor, c2 * factor
    return repeated(lambda: nn.Sequential(conv(c1, c2), conv(c2, c1)), c1)


def grouped(groups: int, width: int, factor: int) -> Built:
    """Grouped 1x1 convolutions (table 2)."""
    width = math.ceil(width * factor / groups) * groups  # 90 and 180 divide by 2 and 4, 180 not by 8
    return repeated(lambda: conv(width, width, groups=groups), width)


class Fragments(nn.ModuleList):
    """Convolutions that read one input, added or concatenated."""

    def __init__(self, count: int, c_in: int, c_out: int, join: str):
        super().__init__(conv(c_in, c_out) for _ in range(count))
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        found = [part(x) for part in self]
        return torch.cat(found, 1) if self.join == "concatenated" else sum(found[1:], found[0])


def fragmented(count: int, form: str, width: int, factor: int) -> Built:
    """Convolutions in series or in parallel (table 3)."""
    if form == "concatenated":
        return repeated(lambda: Fragments(count, width * factor, width * factor // count, form), width * factor)
    narrow = round(width * factor / math.sqrt(count))
    if form == "series":
        return repeated(lambda: nn.Sequential(*(conv(narrow, narrow) for _ in range(count))), narrow)
    return repeated(lambda: Fragments(count, narrow, narrow, form), narrow)


class Unit(nn.Module):
    """ResNet's bottleneck unit, with or without its ReLUs and its shortcut."""

    def __init__(self, width: int, relu: bool, shortcut: bool):
        super().__init__()
        inner = width // 4
        self.layers = nn.Sequential(
            conv(width, inner, relu=relu), conv(inner, inner, 3, relu=relu), conv(inner, width, relu=False)
        )
        self.relu = nn.ReLU() if relu else nn.Identity()
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        return self.relu(x + out if self.shortcut else out)


def unit(relu: bool, shortcut: bool, width: int, factor: int) -> Built:
    """Bottleneck units with or without element-wise work (table 4)."""
    return repeated(lambda: Unit(width * factor, relu, shortcut), width * factor)


FORMS = {"2 in series": (2, "series"), "4 in series": (4, "series")} | {
    f"{n} in parallel, {how}": (n, how) for how in ("added", "concatenated") for n in (2, 4)
}
WORK = {"ReLU, shortcut": (True, True), "ReLU": (True, False), "shortcut": (False, True), "neither": (False, False)}
Table = Mapping[str, Callable[[int], Built]]


def tables(gpu: bool) -> dict[str, Table]:
    """Return the tables: rows by name, each a function that builds a network for a factor of the widths."""
    widths = [(128, 128), (90, 180), (52, 312), (36, 432)] if gpu else [(32, 32), (22, 44), (13, 78), (9, 108)]
    groups = {1: 128, 2: 180, 4: 256, 8: 360} if gpu else {1: 64, 2: 90, 4: 128, 8: 180}
    c3, c4 = (128, 32) if gpu else (64, 32)
    return {
        "G1: widths c1:c2 of 1x1 convolutions": {f"{a}:{b}": partial(unequal, a, b) for a, b in widths},
        "G2: groups": {f"{g} group(s), width {c}": partial(grouped, g, c) for g, c in groups.items()},
        "G3: fragments": {"1": partial(fragmented, 1, "series", c3)}
        | {name: partial(fragmented, *form, c3) for name, form in FORMS.items()},
        "G4: element-wise work": {name: partial(unit, *form, c4) for name, form in reversed(WORK.items())},
    }


def measured(table: Table, factor: int, seconds: float) -> dict[str, Latency]:
    """Measure the rows of a table in turn."""
    networks = {}
    for name, builder in table.items():
        network, width = builder(factor)
        networks[name] = runtimes.get("onnxruntime")(1, 1).load(network, (width, MAP, MAP))
    return benchmark.measure(networks, seconds=seconds)


def cell(one: Latency, first: Latency) -> str:
    """Format a latency and its difference from the first row."""
    above = 100 * (one.median_ms / first.median_ms - 1)
    return f"{one.median_ms:.3f} ({one.low_ms:.3f}-{one.high_ms:.3f}), {above:+.0f} %"


def direction(one: Latency, first: Latency) -> str:
    """Whether a row agrees with the guideline, which predicts that it is slower than the first."""
    if one.low_ms > first.high_ms:
        return "agrees"
    return "disagrees" if one.high_ms < first.low_ms else "no difference"


def lines(name: str, table: Table, factors: list[int], seconds: float) -> list[str]:
    """Measure and format a table."""
    found = {factor: measured(table, factor, seconds) for factor in factors}
    result = [
        f"## {name}",
        "",
        "| | " + " | ".join(f"x{f}, ms (95 %)" for f in factors) + " | slower, as in the paper |",
    ]
    result.append("| -- |" + " -- |" * (len(factors) + 1))
    for row in table:
        cells = [cell(one[row], next(iter(one.values()))) for one in found.values()]
        says = [direction(one[row], next(iter(one.values()))) for one in found.values()]
        same = row == next(iter(table))
        result.append(f"| {row} | {' | '.join(cells)} | {'-' if same else ', '.join(says)} |")
    rounds = [one.rounds for row in found.values() for one in row.values()]
    contended = sum(one.contended for row in found.values() for one in row.values())
    return [
        *result,
        "",
        f"{min(rounds)} to {max(rounds)} rounds per cell, {contended} of {len(rounds)} cells contended.",
        "",
    ]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--gpu-sizes", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("reports/guidelines"))
    arguments = parser.parse_args()
    here = ", ".join(f"{key} {value}" for key, value in machine().items())
    versions = ", ".join(f"{key} {value}" for key, value in runtimes.versions("onnxruntime").items())
    text = ["# ShuffleNet V2's guidelines on this processor", "", f"{here}; {versions}; one thread, batch 1.", ""]
    text += [f"Ten blocks on {MAP}x{MAP} maps. In parentheses the 95 % interval, then percent above the first row.", ""]
    for gpu in (False, True)[: 1 + arguments.gpu_sizes]:
        text += ["With the paper's widths for " + ("its GPU." if gpu else "ARM."), ""]
        for name, table in tables(gpu).items():
            text += lines(name, table, arguments.sizes, arguments.seconds)
            print("\n".join(text[-len(table) - 7 :]), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "README.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
