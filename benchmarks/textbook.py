"""Whether `nas explain` finds what the papers compare, and predicts what it saves on this processor.

    python benchmarks/textbook.py [--seconds 1] [--repeats 3] [--sizes 1 2 4] [--parts groups tables generations]
        [--networks shufflenet_v1_g8_1.0] [--resolution 224] [--guidelines G1 G2]
        [--out reports/textbook]  (one file for each part)

`groups`: ShuffleNet with 1, 2, 3, 4 and 8 groups (table 1 of its paper), and ResNeXt. The saving that `nas explain`
predicts for one group at equal FLOPs, against two measurements: the network of the finding, and the paper's own network
of one group. `tables`: ShuffleNet V2's tables 1 to 4 (the networks of guidelines.py, between two 1x1 convolutions).
What is predicted for each row but the first, as an ONNX file of another program, against the first row. `generations`:
ShuffleNet V1 (3 groups) and V2 of about the same FLOPs; V2's paper says that V1 breaks G2, and its bottlenecks G1.

Predictions are not from the cache. The networks of a comparison are measured in turn, in ONNX Runtime on one thread,
for `--seconds` in each of four loads. After "+-": twice the standard error. A prediction is right within 25 % of the
measured saving, or if there is none where less than 3 % of the time is saved.
"""

from __future__ import annotations

import argparse
import json
import operator
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from guidelines import MAP, Table, conv, tables
from torch import nn

from nasspace import Architecture, build, cost, zoo
from nasspace.guidelines import Explanation, Finding, explain, explain_file
from nasspace.guidelines.counterfactuals import MeasurementSettings, Saving, measure_in_turn, saving_between
from nasspace.guidelines.explanation import MIN_SAVING
from nasspace.latency import runtimes
from nasspace.latency.conditions import machine
from nasspace.latency.convert import to_onnx

GROUPED = {f"shufflenet_v1_g{groups}_1.0": "shufflenet_v1_g1_1.0" for groups in (1, 2, 3, 4, 8)}
GROUPED["resnext50_32x4d"] = "resnet50"
GENERATIONS = {f"shufflenet_v1_g3_{scale}": f"shufflenet_v2_{scale}" for scale in (0.5, 1.0, 1.5, 2.0)}
GUIDELINES = ("G1", "G2", "G3", "G4")
IMAGE = 3  # channels of the images
TOLERANCE = 0.25  # of the measured saving


@dataclass(frozen=True)
class Measured:
    """The milliseconds of a network, and what others save against it, by name."""

    ms: float
    savings: dict[str, Saving]


def measured(networks: Mapping[str, Path], seconds: float) -> Measured:
    """Measure ONNX files in turn, and compare each with the first."""
    first, *others = measure_in_turn(list(networks.values()), MeasurementSettings(seconds=seconds))
    names = list(networks)[1:]
    savings = {name: saving_between((first, one), operator.sub) for name, one in zip(names, others, strict=True)}
    return Measured(first["ms"], savings)


def written(architecture: Architecture, path: Path) -> Path:
    """Write an architecture as ONNX."""
    return to_onnx(build(architecture), architecture.input, path)


def of_guideline(found: Explanation, guideline: str) -> Finding | None:
    """The finding with the largest saving of a guideline."""
    return next((one for one in found.findings if one.guideline == guideline), None)


def is_right(predicted: float, saving: Saving, ms: float) -> bool:
    """Whether a prediction is within the tolerance, or none was made where there is little to save."""
    return abs(predicted - saving.ms) <= TOLERANCE * saving.ms or (not predicted and saving.ms < MIN_SAVING * ms)


def text(saving: Saving, ms: float) -> str:
    """Format a saving."""
    return f"{saving.ms:.3f} +- {saving.plus_minus:.3f} ({saving.ms / ms:.0%})"


def predicted_text(finding: Finding | None) -> str:
    """Format the saving of a finding."""
    return "none" if finding is None else f"{finding.saving_ms:.3f} +- {finding.plus_minus_ms:.3f}"


def errors(finding: Finding | None, savings: list[Saving]) -> str:
    """Format how far a prediction is from each measured saving."""
    return "-" if finding is None else ", ".join(f"{finding.saving_ms / one.ms - 1:+.0%}" for one in savings)


def group_rows(names: list[str], resolution: int, seconds: float, repeats: int, right: list[bool]) -> Iterator[str]:
    """Compare the predicted savings of one group with those of the changed network, and of the paper's."""
    yield "| network | ms | change | predicted | measured, its network | measured, the paper's | error to each |"
    yield "| -- | -- | -- | -- | -- | -- | -- |"
    for name in names:
        architecture, dense = zoo.load(name, resolution=resolution), GROUPED[name]
        for _ in range(repeats):
            finding = of_guideline(explain(architecture, seconds=seconds, fresh=True), "G2")
            with tempfile.TemporaryDirectory() as folder:
                networks = {name: written(architecture, Path(folder) / "network.onnx")}
                if finding is not None and finding.architecture is not None:
                    changed = Architecture.from_json(json.dumps(finding.architecture))
                    networks["changed"] = written(changed, Path(folder) / "changed.onnx")
                networks[f"{dense} "] = written(zoo.load(dense, resolution=resolution), Path(folder) / "dense.onnx")
                found = measured(networks, seconds)
            savings = list(found.savings.values())
            cells = [name, f"{found.ms:.3f}", finding.change if finding else "nothing", predicted_text(finding)]
            own = text(savings[0], found.ms) if len(savings) > 1 else "-"
            right += [is_right(finding.saving_ms if finding else 0.0, one, found.ms) for one in savings]
            yield f"| {' | '.join([*cells, own, text(savings[-1], found.ms), errors(finding, savings)])} |"


def between(network: nn.Module, width: int) -> nn.Module:
    """Put a row of a table between 1x1 convolutions, so that its first and last maps may change their width."""
    return nn.Sequential(conv(IMAGE, width), network, conv(width, IMAGE))


def table_rows(table: Table, guideline: str, factor: int, seconds: float, right: list[bool]) -> Iterator[str]:
    """Compare what is predicted for each row of a table with what the first row saves."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for i, (name, builder) in enumerate(table.items()):
            paths[name] = to_onnx(between(*builder(factor)), (IMAGE, MAP, MAP), Path(folder) / f"{i}.onnx")
        first, *rows = paths
        for name in rows:
            found = explain_file(paths[name], seconds=seconds, fresh=True)
            pair = measured({name: paths[name], first: paths[first]}, seconds)
            (saving,) = pair.savings.values()
            finding = of_guideline(found, guideline)
            others = ", ".join(one.guideline for one in found.findings if one is not finding) or "nothing"
            right.append(is_right(finding.saving_ms if finding else 0.0, saving, pair.ms))
            comes = "first" if found.findings and found.findings[0] is finding else others
            says = f"{guideline} {comes}" if finding else others
            cells = [f"{name}, x{factor}", f"{pair.ms:.3f}", text(saving, pair.ms), says, predicted_text(finding)]
            yield f"| {' | '.join([*cells, errors(finding, [saving])])} |"


def generation_rows(seconds: float) -> Iterator[str]:
    """List what is found in V1 and in V2, next to the time between them."""
    yield "| V1, V2 | FLOPs in millions | V1, ms | V2 saves | found in V1 | found in V2 |"
    yield "| -- | -- | -- | -- | -- | -- |"
    for names in GENERATIONS.items():
        networks = [zoo.load(name) for name in names]
        found = [explain(one, seconds=seconds, fresh=True) for one in networks]
        with tempfile.TemporaryDirectory() as folder:
            paths = [written(one, Path(folder) / f"{i}.onnx") for i, one in enumerate(networks)]
            pair = measured(dict(zip(names, paths, strict=True)), seconds)
        flops = ", ".join(f"{cost(one).flops / 1e6:.0f}" for one in networks)
        says = ["; ".join(map(finding_text, one.findings)) or "nothing" for one in found]
        (saving,) = pair.savings.values()
        yield f"| {', '.join(names)} | {flops} | {pair.ms:.3f} | {text(saving, pair.ms)} | {' | '.join(says)} |"


def finding_text(finding: Finding) -> str:
    """Format a finding in a table of many."""
    return f"{finding.guideline} {finding.kind} saves {predicted_text(finding)}"


def groups_part(arguments: argparse.Namespace) -> Iterator[str]:
    """Yield the lines about groups."""
    right: list[bool] = []
    yield from ("# Groups at equal FLOPs: table 1 of ShuffleNet's paper, table 1 of ResNeXt's", "")
    given = arguments.networks, arguments.resolution, arguments.seconds, arguments.repeats
    yield from group_rows(*given, right)
    yield from ("", summary(right), "")


def tables_part(arguments: argparse.Namespace) -> Iterator[str]:
    """Yield the lines about the tables of ShuffleNet V2's paper."""
    yield from ("# ShuffleNet V2's tables 1 to 4: what is found in each row, against the first row", "")
    for name, table in tables(gpu=False).items():
        if name[:2] not in arguments.guidelines:
            continue
        right: list[bool] = []
        yield from (f"## {name}", "")
        yield from ("| row | ms | the first row saves | found | predicted | error |", "| -- " * 6 + "|")
        for factor in arguments.sizes:
            yield from table_rows(table, name[:2], factor, arguments.seconds, right)
        yield from ("", summary(right), "")


def generations_part(arguments: argparse.Namespace) -> Iterator[str]:
    """Yield the lines about both generations of ShuffleNet."""
    yield from ("# ShuffleNet V1 and V2 at about the same FLOPs", "")
    yield from generation_rows(arguments.seconds)


def summary(right: list[bool]) -> str:
    """Count the right predictions."""
    return f"Right predictions: {sum(right)} of {len(right)}."


PARTS = {"groups": groups_part, "tables": tables_part, "generations": generations_part}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--guidelines", nargs="+", choices=GUIDELINES, default=GUIDELINES, help="Those of `tables`.")
    parser.add_argument("--networks", nargs="+", choices=GROUPED, default=list(GROUPED), help="Those of `groups`.")
    parser.add_argument("--resolution", type=int, default=224, help="That of `groups`.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("reports/textbook"))
    arguments = parser.parse_args()
    here = ", ".join(f"{key} {value}" for key, value in machine().items())
    versions = ", ".join(f"{key} {value}" for key, value in runtimes.versions("onnxruntime").items())
    arguments.out.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts:
        lines = []
        for line in PARTS[part](arguments):
            lines.append(line)
            print(line, flush=True)
        lines[2:2] = [f"{here}; {versions}; one thread, batch 1. Milliseconds; after +- twice the standard error.", ""]
        (arguments.out / f"{part}.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
