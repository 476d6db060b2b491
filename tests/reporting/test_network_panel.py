"""Panels of networks: exact costs by layer, recorded times, accuracies, and commands that a shell reads."""

from __future__ import annotations

import json
import random
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from nasspace.counting import cost
from nasspace.reporting import network_panel
from nasspace.reporting.network_panel import panels
from nasspace.reporting.plot_data import pareto_rows
from nasspace.space.space import Space
from nasspace.studies.front import Front, Member
from nasspace.studies.trial_table import RECORD, TrialRecord
from nasspace.studies.weight_store import StudyWeights, Weights

SPACE = Space.load("shuffle", classes=10, resolution=32, channels=1)
RECIPE = {
    **{
        "objectives": ["accuracy", "latency", "flops"],
        "runtime": "onnxruntime",
        "threads": 1,
        "batch_size": 1,
        "seed": 0,
    },
    **{"fidelity": {"resolution": 16, "epochs": 2, "share": 0.5}, "full": {"epochs": 25}},
}
TRAININGS = [
    {"resolution": 32, "epochs": 3, "accuracy": 0.8, "seconds": 4.0, "steps": [[16, 2, 0.5], [32, 3, 1.0]]},
    {
        "resolution": 32,
        "epochs": 6,
        "accuracy": 0.85,
        "seconds": 95.0,
        "steps": [[16, 2, 0.5], [32, 3, 1.0], [32, 6, 1]],
    },
]


def front_of(count: int, folder: str = "reports/mine", **record) -> Front:
    """A front of the first of `count` networks; the second is evaluated, the others are rejected."""
    trials, members = [], []
    for i in range(count):
        architecture = SPACE.sample(random.Random(i))
        counted = cost(architecture)
        kept = TrialRecord(architecture.to_json(), dict(architecture.choices), **record)
        row = {
            **{"id": i, "digest": architecture.digest, "state": "evaluated" if i < 2 else "rejected"},
            **{"accuracy": 0.9 if i == 0 else None, "search_accuracy": 0.7, "latency_ms": 2.0, "flops": counted.flops},
            **{"params": counted.params, "memory_access": counted.memory_access, "reason": "over" if i > 1 else ""},
            **{"accuracy_expected": 0.91, "accuracy_low": 0.88, "accuracy_high": 0.94},
            **{"latency_low_ms": 1.9, "latency_high_ms": 2.2, RECORD: kept},
        }
        trials.append(row)
        if i == 0:
            again = {"median_ms": 2.1, "low_ms": 2.0, "high_ms": 2.2}
            members.append(Member("mine", 0, row, architecture.with_name("mine-0").to_json(), remeasured=again))
    settings = {"recipe": RECIPE, "limits": {}, "data": {"name": "digits"}, "task": {"resolution": 32}}
    stores = StudyWeights(Weights(Path("w")), Weights(Path("w/deployed")), Path("exports"))
    return Front("mine", Path(folder), settings, tuple(members), tuple(trials), stores)


def panels_of(front: Front) -> list[network_panel.NetworkPanel]:
    return panels(front, pareto_rows(front.trials, [member.id for member in front.members]))


def texts(table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


def test_the_front_comes_first_then_the_evaluated_then_the_rejected():
    found = panels_of(front_of(4))
    assert [(one.id, one.kind) for one in found] == [(0, "front"), (1, "evaluated"), (2, "rejected"), (3, "rejected")]
    assert [one.note for one in found] == ["", "", "over", "over"]
    assert [bool(one.json) for one in found] == [True, False, False, False]


def test_layers_have_their_exact_costs():
    panel = panels_of(front_of(1))[0]
    counted = cost(SPACE.sample(random.Random(0))).layers
    columns = [column.title for column in panel.layers.columns]
    assert "ms" not in columns
    found = [dict(zip(columns, row, strict=True)) for row in texts(panel.layers)]
    assert [row["block"] for row in found] == [one.block for one in counted]
    assert [row["FLOPs"] for row in found] == [f"{one.flops:,}" for one in counted]
    assert [row["output"] for row in found] == ["×".join(map(str, one.out_shape)) for one in counted]
    assert panel.picture.count("<rect") == len(counted)
    assert "no times by layer" in panel.timing


def test_times_by_layer_are_those_that_the_study_recorded():
    layers = len(SPACE.sample(random.Random(0)).layers)
    panel = panels_of(front_of(1, layers_ms=[0.1] * layers))[0]
    assert [row[-1] for row in texts(panel.layers)] == ["0.100"] * layers
    assert [row[-1].bar for row in panel.layers.rows] == [1.0] * layers
    assert f"{2.0 - 0.1 * layers:.2g}" in panel.timing
    assert "ms" not in [column.title for column in panels_of(front_of(1, layers_ms=[0.1]))[0].layers.columns]


def test_figures_have_their_intervals():
    figures = panels_of(front_of(1))[0].figures
    assert figures["latency"] == "2.00 ms (1.90 to 2.20)"
    assert figures["latency, measured again"] == "2.10 ms (2.00 to 2.20)"
    assert figures["accuracy after full training"] == "91.00% (88.00% to 94.00%)"


def test_accuracies_are_those_of_each_training():
    deployed = {"accuracy": 0.9, "resolution": 32}
    first, second = panels_of(front_of(2, trainings=TRAININGS, deployed=deployed, seconds=1.2))
    assert texts(first.accuracies) == [
        ["search", "16×16", "2 of 50%", "70.00%", "1 s"],
        ["rung 1", "32×32", "3", "80.00%", "4 s"],
        ["deployment resolution", "32×32", "6", "85.00%", "2 min"],
        ["exported file", "32×32", "", "90.00%", ""],
        ["full training, expected", "32×32", "25", "91.00%", ""],
    ]
    assert texts(second.accuracies)[-2][0] == "deployment resolution"  # its file is not judged
    assert texts(panels_of(front_of(1))[0].accuracies)[0][0] == "search"


def test_a_network_is_trained_at_no_higher_resolution_than_its_input():
    front = front_of(1)
    row = front.trials[0]
    small = json.loads(row[RECORD].architecture) | {"input": [1, 12, 12]}
    record = replace(row[RECORD], architecture=json.dumps(small))
    table = panels_of(replace(front, members=(), trials=({**row, RECORD: record},)))[0].accuracies
    rows = {cells[0]: cells[1] for cells in texts(table)}
    assert rows == {"search": "12×12", "exported file": "12×12", "full training, expected": "12×12"}


@pytest.mark.parametrize("folder", ["reports/mine", "elsewhere/a b'c/$(x)", "reports/=cmd()"])
def test_commands_are_quoted_for_a_shell(folder):
    name = folder.removeprefix("reports/")
    commands = {
        shlex.split(one.text)[1]: shlex.split(one.text)[2] for one in panels_of(front_of(1, folder))[0].commands
    }
    assert commands == dict.fromkeys(("export", "train", "show"), f"{name}:0")


LATENCY = {"latency_ms": 2.0, "low_ms": 1.9, "high_ms": 2.1}
FOUND = {
    **{"guideline": "G2", "layers": [1, 3], "text": "8 groups", "change": "one group"},
    **{"saving_ms": 0.5, "plus_minus_ms": 0.04},
}


@pytest.mark.parametrize(
    ("explained", "rows", "note"),
    [
        (None, None, "nas report mine --explain does so"),
        ({**LATENCY, "contended": True, "findings": []}, None, "save 3 % of its 2.00 ms, while other work"),
        (
            {**LATENCY, "contended": False, "findings": [FOUND]},
            [["G2", "0.500 ± 0.0400", "8 groups", "one group", "1, 3"]],
            "took 2.00 ms (1.90 to 2.10) then",
        ),
    ],
)
def test_findings_are_those_that_were_measured(explained, rows, note):
    front = front_of(2)
    front = replace(front, members=(replace(front.members[0], explained=explained),))
    member, other = panels_of(front)
    assert (texts(member.findings) if member.findings else None) == rows
    assert note in member.findings_note
    assert other.findings is None
    assert "by this command" in other.findings_note
    elsewhere = {**front.settings, "recipe": {**RECIPE, "runtime": "eager"}}
    member, _ = panels_of(replace(front, settings=elsewhere))
    assert ("with onnxruntime" in member.findings_note) == (explained is None)


def test_a_network_that_cannot_be_built_says_why():
    front = front_of(2)
    document = json.loads(front.trials[1][RECORD].architecture)
    document["layers"][0]["block"] = "</script>"
    broken = TrialRecord(json.dumps(document), {})
    trials = (front.trials[0], {**front.trials[1], RECORD: broken})
    found = panels_of(Front(front.name, front.folder, front.settings, front.members, trials, front.weights))[1]
    assert found.layers is None
    assert "'</script>' is not a block" in found.missing
    bare = tuple({key: value for key, value in row.items() if key != RECORD} for row in front.trials)
    found = panels_of(Front(front.name, front.folder, front.settings, front.members, bare, front.weights))
    assert [bool(one.layers) for one in found] == [True, False]


def test_a_page_holds_a_limited_number_of_layers(monkeypatch):
    monkeypatch.setattr(network_panel, "MOST_LAYERS", 40)
    assert [bool(one.layers) for one in panels_of(front_of(4))] in (
        [True, True, False, False],
        [True, False, False, False],
    )
