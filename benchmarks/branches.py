"""What the branches of Inception modules cost: networks, and the same ones with one branch of equal FLOPs a module.

    python benchmarks/branches.py [--seconds 1] [--networks googlenet:224 googlenet:64 inception_v3:107]

Every module of at least three branches becomes a 1x1 and a 3x3 convolution with about its FLOPs and its output (the
change that `nas explain` proposes under guideline G3). Both networks are measured in turn, in four loads each, in ONNX
Runtime on one thread. Printed: milliseconds with twice their standard error, FLOPs, and how much faster one branch is.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

from nasspace import build, cost, zoo
from nasspace.architecture import Architecture
from nasspace.guidelines import counterfactuals, fragments
from nasspace.guidelines.context import NetworkContext
from nasspace.guidelines.counterfactuals import MeasurementSettings
from nasspace.latency.conditions import machine
from nasspace.latency.convert import to_onnx
from nasspace.latency.graph import Graph
from nasspace.latency.profile import profile_onnx


def with_one_branch(architecture: Architecture, path: Path) -> tuple[Architecture, int]:
    """The network with one branch in place of each module's, and the number of modules; `path` is its ONNX file."""
    profile = profile_onnx(path, len(architecture.layers), 0.01, seconds=0.1)
    context = NetworkContext(path, Graph(path), profile, architecture)
    parts = next(one for one in fragments.find_fragments(context) if one.kind == "branches").parts
    return counterfactuals.changed_architecture(architecture, parts), len(parts)


def main() -> None:
    """Print a row for each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--networks", nargs="+", default=["googlenet:224", "googlenet:64", "inception_v3:107"])
    options = parser.parse_args()
    print(machine())
    print("| network | modules | FLOPs, changed by | branches, ms | one branch, ms | one branch saves |")
    print("| -- | -- | -- | -- | -- | -- |")
    for text in options.networks:
        name, _, resolution = text.partition(":")
        architecture = zoo.load(name, resolution=int(resolution))
        with tempfile.TemporaryDirectory() as folder:
            path = to_onnx(build(architecture), architecture.input, Path(folder) / "before.onnx")
            changed, modules = with_one_branch(architecture, path)
            after = to_onnx(build(changed), changed.input, Path(folder) / "after.onnx")
            sides = counterfactuals.measure_in_turn([path, after], MeasurementSettings(seconds=options.seconds))
        (one, other), flops = sides, cost(architecture).flops
        times = [f"{side['ms']:.3f} +- {side['scatter']:.3f}" for side in sides]
        share = 1 - other["ms"] / one["ms"]
        error = math.hypot(one["scatter"] / one["ms"], other["scatter"] / other["ms"]) * other["ms"] / one["ms"]
        ratio = cost(changed).flops / flops - 1
        print(
            f"| {name} at {resolution} | {modules} | {flops / 1e6:,.0f} M, {ratio:+.1%} | {' | '.join(times)} |", end=""
        )
        print(f" {share:+.1%} +- {error:.1%} |", flush=True)


if __name__ == "__main__":
    main()
