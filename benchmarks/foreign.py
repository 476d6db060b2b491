"""Latencies of torchvision's networks, as ONNX files and as modules, and of the same networks of the zoo.

    python benchmarks/foreign.py [--networks NAME,...] [--resolution 224] [--seconds 1] [--explain NAME,...]

needs torchvision. Of each network three ONNX files are measured in turn: the zoo's, the one that PyTorch's exporter
writes from torchvision's model, and the one that `nas latency module:function` makes of that model. Printed: whether
FLOPs are equal, latencies, and how much longer torchvision's take, with twice the standard error over loads.
`--explain` names networks of which `nas explain` is run on both sides: the guidelines' findings, and their predicted
savings.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from nasspace import build, cost, guidelines, zoo
from nasspace.guidelines.counterfactuals import MeasurementSettings, measure_in_turn
from nasspace.latency import foreign
from nasspace.latency.cache import LatencyCache
from nasspace.latency.conditions import machine
from nasspace.latency.convert import to_onnx
from nasspace.latency.numbered import write_numbered

SAME = {  # of the zoo: of torchvision
    "alexnet": "alexnet",
    "squeezenet_1.1": "squeezenet1_1",
    "googlenet": "googlenet",
    "resnet18": "resnet18",
    "resnext50_32x4d": "resnext50_32x4d",
    "mobilenet_v2_1.0": "mobilenet_v2",
    "mobilenet_v3_small_1.0": "mobilenet_v3_small",
    "mobilenet_v3_large_1.0": "mobilenet_v3_large",
    "mnasnet_b1_1.0": "mnasnet1_0",
    "shufflenet_v2_1.0_torchvision": "shufflenet_v2_x1_0",
}
LOADS = 5
MODULE = "import torchvision\n\ndef make():\n    return torchvision.models.get_model({name!r}, weights=None{more})\n"


def arguments_of(name: str) -> dict[str, Any]:
    """What torchvision's function takes beyond `weights`: no auxiliary classifiers."""
    return {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(SAME))
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each load of a network")
    parser.add_argument("--explain", default="")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}, at {options.resolution}x{options.resolution}\n")
    print("| network | FLOPs | equal | zoo, ms | file, + % | module, + % |\n| -- | -- | -- | -- | -- | -- |")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks.split(","):
            print(row(name, Path(folder), options), flush=True)
        for name in filter(None, options.explain.split(",")):
            print(f"\n`{name}`\n", flush=True)
            for side, found in explanations(name, Path(folder), options).items():
                shown = ", ".join(
                    f"{one.guideline} {one.kind} {100 * one.saving_ms / found.latency_ms:.0f} %"
                    for one in found.findings
                )
                print(f"- {side}: {found.latency_ms:.3g} ms; {shown or 'no finding'}", flush=True)


def exported(name: str, folder: Path, resolution: int) -> tuple[Path, Path]:
    """The ONNX files of the zoo's network, and of torchvision's by PyTorch's exporter."""
    import torchvision

    architecture = zoo.load(name, resolution=resolution)
    own = to_onnx(build(architecture), architecture.input, folder / f"{name}.onnx")
    model = torchvision.models.get_model(SAME[name], weights=None, **arguments_of(SAME[name])).eval()
    other = folder / f"torchvision-{name}.onnx"
    torch.onnx.export(model, (torch.zeros(1, 3, resolution, resolution),), str(other), dynamo=False)
    return own, other


def row(name: str, folder: Path, options: argparse.Namespace) -> str:
    """A line of the table."""
    own, other = exported(name, folder, options.resolution)
    _, layers = write_numbered(other, folder / "numbered.onnx", 1)
    expected, found = cost(zoo.load(name, resolution=options.resolution)).flops, sum(layer.flops for layer in layers)
    more = "".join(f", {key}={value}" for key, value in arguments_of(SAME[name]).items())
    module = f"module_{name}".replace(".", "_")
    (folder / f"{module}.py").write_text(MODULE.format(name=SAME[name], more=more))
    sys.path.insert(0, str(folder))
    settings = MeasurementSettings(1, 1, LatencyCache(folder / "latency.db"), fresh=True, seconds=options.seconds)
    with foreign.as_file(f"{module}:make", 1, options.resolution) as path:
        sides = measure_in_turn([own, other, path], settings, LOADS)
    sys.path.remove(str(folder))
    ratios = [ratio(side, sides[0]) for side in sides[1:]]
    return f"| `{name}` | {expected:,} | {found == expected} | {sides[0]['ms']:.3g} | {' | '.join(ratios)} |"


def ratio(side: dict[str, float], reference: dict[str, float]) -> str:
    """How much longer one side takes than another, in percent with its uncertainty."""
    value = side["ms"] / reference["ms"]
    error = value * math.hypot(side["scatter"] / side["ms"], reference["scatter"] / reference["ms"])
    return f"{100 * (value - 1):+.1f} ± {100 * error:.1f}"


def explanations(name: str, folder: Path, options: argparse.Namespace) -> dict[str, guidelines.Explanation]:
    """The explanations of both sides."""
    own, other = exported(name, folder, options.resolution)
    given = {"seconds": options.seconds, "fresh": True, "cache": LatencyCache(folder / "latency.db")}
    architecture = zoo.load(name, resolution=options.resolution)
    return {
        "of the zoo": guidelines.explain(architecture, **given),
        "its ONNX file": guidelines.explain_file(own, **given),
        "torchvision's ONNX file": guidelines.explain_file(other, **given),
    }


if __name__ == "__main__":
    main()
