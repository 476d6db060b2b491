"""What the report shows of one network: its picture, costs and time by layer, accuracies, intervals, and commands."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nasspace.errors import NasspaceError
from nasspace.formatting import duration, significant
from nasspace.reporting import network_picture
from nasspace.reporting.page import Column, Table, words
from nasspace.reporting.plot_data import EVALUATED, FRONT, REJECTED, as_float
from nasspace.reporting.trained_networks import TrainedNetwork, by_digest
from nasspace.studies import paths
from nasspace.studies.front import Front, Member, search_fidelity
from nasspace.studies.objectives import OBJECTIVES
from nasspace.studies.trial_table import RECORD, TrialRecord, has_value

if TYPE_CHECKING:
    from nasspace.architecture import Architecture
    from nasspace.counting import Cost

MOST_NETWORKS = 400  # that have a panel
MOST_LAYERS = 2_500  # of all networks of a page together, whose pictures and tables it holds
PROFILED = "onnxruntime"  # the runtime whose searches record times by layer


@dataclass(frozen=True)
class Command:
    """A command to copy, and what it does."""

    does: str
    text: str


@dataclass(frozen=True)
class NetworkPanel:
    """The panel of one network; `missing` says why there is no picture, and `timing` what the times by layer are."""

    id: int
    kind: str
    digest: str
    note: str
    figures: Mapping[str, str]
    accuracies: Table | None
    findings: Table | None
    findings_note: str
    commands: Sequence[Command]
    explain: Command
    picture: str = ""
    layers: Table | None = None
    timing: str = ""
    missing: str = ""
    json: str = ""
    architecture: Architecture | None = field(default=None, repr=False)


def panels(
    front: Front, rows: Sequence[Mapping[str, Any]], trainings: Sequence[TrainedNetwork] = ()
) -> list[NetworkPanel]:
    """The panels of all candidates: the front's in its order, the other evaluated ones by accuracy, the rejected ones.

    `rows` are those of `pareto_rows`, `trainings` the finished full trainings. Networks beyond MOST_LAYERS
    layers have no picture, and only the first MOST_NETWORKS have a panel.
    """
    members = {member.id: i for i, member in enumerate(front.members)}
    order = (FRONT, EVALUATED, REJECTED)

    def rank(row: Mapping[str, Any]) -> tuple[int, int, float, int]:
        accuracy = row["accuracy"] if row["accuracy"] == row["accuracy"] else 0.0
        return order.index(row["kind"]), members.get(row["id"], 0), -accuracy, row["id"]

    trials = {trial["id"]: trial for trial in front.trials}
    found, left, trained = [], MOST_LAYERS, by_digest(trainings)
    for row in sorted(rows, key=rank)[:MOST_NETWORKS]:
        panel = _panel(front, trials[row["id"]], row["kind"], left, trained.get(str(row["digest"]), ()))
        left -= len(panel.layers.rows) if panel.layers else 0
        found.append(panel)
    return found


def _panel(
    front: Front, trial: Mapping[str, Any], kind: str, left: int, trainings: Sequence[TrainedNetwork]
) -> NetworkPanel:
    """The panel of a trial; without its layers if it has more than `left`."""
    member = next((member for member in front.members if member.id == trial["id"]), None)
    record = trial.get(RECORD)
    text = member.architecture if member else record.architecture if record else ""
    row = {**trial, **(member.front_row() if member else {})}
    shape = json.loads(text)["input"] if text else None
    name = paths.as_argument(front.folder, trial["id"])
    panel = {
        "id": trial["id"],
        "kind": kind,
        "digest": str(trial["digest"]),
        "note": str(trial["reason"]) if isinstance(trial.get("reason"), str) else "",
        "figures": {**dict(_figures(row)), **_probability(front, trial["id"])},
        "accuracies": _accuracies(front, row, record, member.last_rung if member else None, shape, trainings),
        "findings": _findings(member.explained if member else None),
        "findings_note": _findings_note(front, member),
        "commands": list(_commands(front, name)),
        "explain": Command("Find what slows it down, and what a change would save", f"nas explain {name}"),
        "json": text if member else "",
    }
    if not text:
        return NetworkPanel(**panel, missing="The study does not hold its layers.")
    try:
        architecture, cost = _counted(text)
    except NasspaceError as error:
        return NetworkPanel(**panel, missing=f"Its layers cannot be counted here: {error}.")
    if len(architecture.layers) > left:
        return NetworkPanel(
            **panel, missing="This page holds the layers of better networks only; nas show prints them."
        )
    times = record.layers_ms if record else None
    if times is not None and len(times) != len(architecture.layers):
        times = None
    return NetworkPanel(
        **panel,
        picture=network_picture.picture(_drawn(architecture, cost), f"Network {trial['id']}"),
        layers=_layers(architecture, cost, times),
        timing=_timing(front, row, times),
        architecture=architecture,
    )


def _counted(text: str) -> tuple[Architecture, Cost]:
    """The architecture of a JSON with its cost; one that does not run raises `InputError`."""
    from nasspace.architecture import Architecture  # imports PyTorch
    from nasspace.counting import cost

    architecture = Architecture.from_json(text)
    return architecture, cost(architecture)


def _drawn(architecture: Architecture, cost: Cost) -> list[network_picture.Drawn]:
    from nasspace import blocks

    return [
        network_picture.drawn(layer.block, counted.out_shape, {**blocks.get(layer.block).defaults, **layer.options})
        for layer, counted in zip(architecture.layers, cost.layers, strict=True)
    ]


def _layers(architecture: Architecture, cost: Cost, times: Sequence[float] | None) -> Table:
    """A row for each layer; shares of the time and of FLOPs are bars."""
    columns = [
        Column("layer", "number"),
        Column("block"),
        Column("options"),
        Column("output"),
        Column("FLOPs", "number"),
        Column("parameters", "number"),
        Column("memory access", "number"),
        *([Column("ms", "number")] if times else []),
    ]
    most = {"FLOPs": max(one.flops for one in cost.layers), "ms": max(times or [0.0])}
    rows = []
    for i, (layer, counted) in enumerate(zip(architecture.layers, cost.layers, strict=True)):
        stride = {"stride": layer.stride} if layer.stride != 1 else {}
        options = words({**stride, **layer.options}) if stride or layer.options else ""
        shape = "×".join(map(str, counted.out_shape))
        cells: list[Any] = [i, layer.block, options, shape, f"{counted.flops:,}", f"{counted.params:,}"]
        cells += [f"{counted.memory_access:,}", *([f"{times[i]:.3f}"] if times else [])]
        rows.append(cells)
    shares = {
        "FLOPs": [one.flops / (most["FLOPs"] or 1) for one in cost.layers],
        "ms": [ms / (most["ms"] or 1) for ms in times or ()],
    }
    return Table.of(columns, rows).with_bars(shares)


def _timing(front: Front, row: Mapping[str, Any], times: Sequence[float] | None) -> str:
    """What the times by layer are, or why there are none."""
    latency = as_float(row.get("latency_ms"))
    if times is None:
        if latency != latency:
            return ""
        return f"The study has no times by layer: only searches with {PROFILED} on this machine record them."
    rest = latency - sum(times)
    between = f"; {significant(rest)} ms more pass between operators" if rest > 0 else ""
    return f"Times by layer are from the search's own profile in ONNX Runtime{between}."


def _figures(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values of a network's figures, with their intervals."""
    accuracy = OBJECTIVES["accuracy"].format
    for name, objective in OBJECTIVES.items():
        value = as_float(row.get(objective.column))
        if value != value:
            continue
        text = objective.format(value)
        if name == "latency":
            text += _interval(row, "latency")
        yield objective.label, text
        if name == "latency" and has_value(row.get("latency_again_ms")):
            yield "latency, measured again", objective.format(row["latency_again_ms"]) + _interval(row, "latency_again")
    if has_value(row.get("accuracy_low")):
        low, high = accuracy(row["accuracy_low"]), accuracy(row["accuracy_high"])
        yield "accuracy after full training", f"{accuracy(row['accuracy_expected'])} ({low} to {high})"
    for name in ("accuracy_ties", "latency_ties"):
        if row.get(name):
            yield f"same {name.partition('_')[0]} as trials", str(row[name])


def _probability(front: Front, number: int) -> dict[str, str]:
    """The probability that a network outside the front is on it after full training; empty if it is low."""
    probability = (front.may_belong or {}).get(number)
    return {} if probability is None else {"on the front after full training": f"{probability:.0%}"}


def _interval(row: Mapping[str, Any], prefix: str) -> str:
    low, high = (as_float(row.get(f"{prefix}_{end}_ms")) for end in ("low", "high"))
    return "" if low + high != low + high else f" ({significant(low)} to {significant(high)})"


def _findings(explained: Mapping[str, Any] | None) -> Table | None:
    """A row for each change that the guidelines suggest, the largest saving first; None without any."""
    if not explained or not explained["findings"]:
        return None
    whole, rows = explained["latency_ms"], []
    for found in explained["findings"]:
        saving = f"{significant(found['saving_ms'])} ± {significant(found['plus_minus_ms'])}"
        where = ", ".join(map(str, found["layers"]))
        part = f"{found['saving_ms'] / whole:.0%}"
        rows.append([found["guideline"], (saving, f"{part} of the time"), found["text"], found["change"], where])
    columns = [Column("guideline"), Column("saves, ms", "number"), Column("finding", "text"), Column("what if", "text")]
    return Table.of([*columns, Column("layers", "text")], rows)


def _findings_note(front: Front, member: Member | None) -> str:
    """What the findings are, or how to get them."""
    if member is None:
        return "Its findings are measured by this command."
    if member.explained is None and not front.is_explainable:
        return "Findings of the guidelines are measured for searches with onnxruntime on their own machine."
    if member.explained is None:
        name = paths.as_argument(front.folder)
        return f"Its findings are not measured yet; nas report {name} --explain does so for all networks of the front."
    low, whole, high = (significant(member.explained[key]) for key in ("low_ms", "latency_ms", "high_ms"))
    busy = ", while other work was competing for the processor" if member.explained["contended"] else ""
    if not member.explained["findings"]:
        return f"No change by the guidelines G1 to G4 is predicted to save 3 % of its {whole} ms{busy}."
    return (
        f"Savings by ShuffleNet V2's guidelines G1 to G4 are predicted from the parts that change, measured alone. The "
        f"whole network took {whole} ms ({low} to {high}) then{busy}. Accuracies of the changed networks are not known."
    )


def _accuracies(
    front: Front,
    row: Mapping[str, Any],
    record: TrialRecord | None,
    last_rung: Mapping[str, Any] | None,
    shape: Sequence[int] | None,
    full: Sequence[TrainedNetwork],
) -> Table | None:
    """The accuracy of a network after each of its trainings, the first being the search's; None without images.

    `full` are its finished full trainings. `shape` is that of the network's input, which may be smaller than others of
    the study; None if it is not known.
    """
    if not front.data:
        return None
    side = min(shape[1:]) if shape else front.resolution
    rows: list[list[str]] = []
    searched = as_float(row.get("search_accuracy"))
    if searched == searched:
        budget = search_fidelity(front.recipe, shape)
        rows.append(["search", *_budget(budget), _percent(searched), _time(record and record.seconds)])
    trainings = list(record.trainings) if record else []
    trainings = trainings or ([last_rung] if last_rung else [])
    deployed = (record.deployed if record else None) or {}
    for i, training in enumerate(trainings):
        is_last = bool(deployed) and i == len(trainings) - 1
        name = "deployment resolution" if is_last else f"rung {i + 1}"
        rows.append([name, *_budget(training), _percent(training["accuracy"]), _time(training.get("seconds"))])
    exported = as_float(row.get("accuracy"))
    if exported == exported:
        rows.append(["exported file", _size(deployed.get("resolution") or side), "", _percent(exported), ""])
    if has_value(row.get("accuracy_low")):
        epochs = front.recipe["full"]["epochs"]
        low, high = _percent(row["accuracy_low"]), _percent(row["accuracy_high"])
        expected = (_percent(row["accuracy_expected"]), f"{low} to {high}")
        rows.append(["full training, expected", _size(side), str(epochs), expected, ""])
    for one in full:
        name = f"full training, seed {one.seed}" if one.is_standard else f"further training: {one.words()}"
        rows.append([name, _size(one.resolution), str(one.epochs), _percent(one.validation), _time(one.seconds)])
        if one.test:
            interval = f"{_percent(one.test['low'])} to {_percent(one.test['high'])}"
            rows.append(["its test images", _size(one.resolution), "", (_percent(one.test["accuracy"]), interval), ""])
    columns = [
        Column("training"),
        Column("resolution", "number"),
        Column("epochs", "number"),
        Column("accuracy", "number"),
        Column("time", "number"),
    ]
    return Table.of(columns, rows) if rows else None


def _budget(training: Mapping[str, Any]) -> tuple[str, str]:
    """Resolution and epochs of a training."""
    share = training.get("share", 1.0)
    part = "" if share in (None, 1.0) else f" of {share:.0%}"
    return _size(training.get("resolution")), f"{training.get('epochs', '')}{part}"


def _size(side: int | None) -> str:
    return f"{side}×{side}" if side else ""


def _percent(value: float) -> str:
    return OBJECTIVES["accuracy"].format(value)


def _time(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)


def _commands(front: Front, name: str) -> Iterator[Command]:
    """What can be done with a network."""
    yield Command("Export it as model.py, ONNX and weights", f"nas export {name}")
    if front.data:
        yield Command("Train it in full", f"nas train {name}")
    yield Command("Print its layers", f"nas show {name}")
