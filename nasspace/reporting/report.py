"""A study as one HTML page that works offline: its front, its settings, and how to read it.

The functions here compute what the page shows; `templates/` hold the page, and Jinja2 escapes every text in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from nasspace import files
from nasspace.formatting import significant
from nasspace.reporting import paper_figure, plots, publication
from nasspace.reporting.page import Column, Table, Tile, class_names, render, words
from nasspace.reporting.plot_data import as_float, pareto_rows
from nasspace.studies.front import Front, search_fidelity
from nasspace.studies.objectives import COUNTED, OBJECTIVES
from nasspace.studies.trial_table import has_value, network_words

SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
OWN_PLACE = {  # settings of the recipe that the page shows elsewhere
    *("name", "data", "limits", "objectives", "seed", "resolution"),
    *("runtime", "threads", "batch_size", "fidelity"),
}
FLOPS = (
    "FLOPs are multiply-adds of convolutions and linear layers for one image, as in the papers and in fvcore: batch "
    "norm is folded, element-wise work is not counted."
)
MEMORY = "Memory access is ShuffleNet V2's MAC: elements that layers read and write, input + output + weights."


def write_report(front: Front) -> Path:
    """Write report.html, front.svg and front.png into the folder of the study; returns the path of the page."""
    path = front.folder / publication.PAGE
    pictures = {front.folder / name: content for name, content in paper_figure.files_of(front).items()}
    files.write_together({**pictures, path: publication.stamped(report_html(front), front)})
    return path


def report_html(front: Front, *, progress: str = "hypervolume") -> str:
    """Render the page of a study; if its trials have the column `progress`, it is drawn over the trials."""
    return render("report.html", _content(front, progress))


def _content(front: Front, progress: str) -> dict[str, Any]:
    """What the templates show."""
    has_progress = any(has_value(row.get(progress)) for row in front.trials)
    return {
        "name": front.name,
        "subtitle": _subtitle(front),
        "tiles": list(_tiles(front)),
        "pareto_plot": _pareto_plot(front),
        "pareto_hint": _pareto_hint(front),
        "front_table": _front_table(front),
        "front_note": _front_note(front),
        "networks": list(_networks(front)),
        "progress_plot": plots.progress_figure(front.trials, progress) if has_progress else None,
        "settings": _settings(front),
        "notes": list(_notes(front)),
        "trials_table": _trials_table(front),
    }


def _subtitle(front: Front) -> str:
    searched = f"A search of the space {front.settings['space'].get('name', '')}"
    data = f" on {front.data['name']}" if front.data.get("name") else ""
    created = str(front.settings.get("created") or "").replace("T", " ").replace("+00:00", " UTC")
    return searched + data + (f", started {created}" if created else "")


def _tiles(front: Front) -> Iterator[Tile]:
    yield Tile(str(len(front.members)), "networks on the Pareto front")
    yield Tile(str(front.evaluated), "networks evaluated")
    yield Tile(str(front.rejected), "stopped at a limit, never trained")
    yield Tile(_size(front.settings["space"].get("size")), "networks in the space")
    for name, text in _limits(front).items():
        yield Tile(text, f"limit of {name}")


def _size(size: Any) -> str:
    """A count as 12,345, or as 1.2 × 10⁹."""
    if size in (None, ""):
        return "?"
    number = int(size)
    if number < 1_000_000:
        return f"{number:,}"
    power = len(str(number)) - 1
    return f"{number / 10**power:.1f} × 10{str(power).translate(SUPERSCRIPT)}"


def _limits(front: Front) -> dict[str, str]:
    """Label and amount of each limit: {'latency': '20.0 ms'}."""
    return {OBJECTIVES[name].label: OBJECTIVES[name].format(value) for name, value in front.limits.items()}


def _latency_settings(front: Front) -> str:
    """'onnxruntime, 1 thread, batch 1, at 224x224'."""
    recipe, size = front.recipe, front.resolution
    threads = f"{recipe['threads']} thread{'s' if recipe['threads'] != 1 else ''}"
    parts = [recipe["runtime"], threads, f"batch {recipe['batch_size']}", f"at {size}x{size}" if size else ""]
    return ", ".join(part for part in parts if part)


def _pareto_plot(front: Front) -> plots.Figure:
    rows = pareto_rows(front.trials, [member.id for member in front.members])
    titles = {
        "accuracy": _accuracy_title(front),
        "latency": f"{OBJECTIVES['latency'].axis_title}<br>({escape(_latency_settings(front))})",
    }
    return plots.pareto_figure(rows, front.objectives, limits=front.limits, titles=titles)


def _accuracy_title(front: Front) -> str:
    """The title of the axis of accuracy."""
    if _has("accuracy_low", front.trials):
        return f"accuracy expected after full training ({front.recipe['full']['epochs']} epochs)"
    return f"accuracy of {escape(front.accuracy_is_of)}"


def _pareto_hint(front: Front) -> str:
    hint = "Numbers are trials. The line connects the members that are nondominated in the panel's two objectives."
    if _has("accuracy_low", front.trials):
        hint += " Bars are 95 % intervals; members whose accuracies cannot be told apart are listed in the table."
    elif _has("search_accuracy", front.trials):
        hint += " Candidates that were not trained further are drawn at their accuracy in the search."
    return hint


def _has(column: str, rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether any row has a value in a column."""
    return any(has_value(row.get(column)) and row[column] != "" for row in rows)


def _has_accuracy(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether any row has an accuracy; none has if accuracy is no objective."""
    rows = list(rows)
    return _has("accuracy", rows) or _has("search_accuracy", rows)


def _front_table(front: Front) -> Table:
    """The members of the front in their order."""
    rows = front.rows()
    optional = {
        "accuracy": _has_accuracy(rows),
        "in the search": _has("search_accuracy", rows),
        "measured again, ms": _has("latency_again_ms", rows),
        "after full training": _has("accuracy_low", rows),
        "same accuracy": _has("accuracy_ties", rows),
        "same latency": _has("latency_ties", rows),
    }
    columns = [
        Column("trial", "number"),
        Column("accuracy", "number"),
        Column("in the search", "number"),
        Column("after full training", "number"),
        Column("same accuracy", "text"),
        Column("latency, ms", "number"),
        Column("measured again, ms", "number"),
        Column("same latency", "text"),
        *(Column(OBJECTIVES[name].label, "number") for name in _counted(front)),
        Column("layers", "text"),
        Column("digest", "code"),
    ]
    columns = [column for column in columns if optional.get(column.title, True)]
    cells = [{**_figures(row), **_front_cells(row)} for row in rows]
    return Table.of(columns, [[row[column.title] for column in columns] for row in cells])


def _counted(front: Front) -> list[str]:
    """The counted objectives that tables show: memory if the search asked for it."""
    asked = (*front.objectives, *front.limits)
    return [name for name in COUNTED if name not in ("peak_memory", "flash") or name in asked]


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of a trial's figures by the titles of their columns."""
    return {
        "trial": row["id"],
        "accuracy": _shown("accuracy", row),
        "in the search": _shown("accuracy", row, "search_accuracy"),
        "after full training": _full_training(row),
        "latency, ms": _latency(row, "latency"),
        **{OBJECTIVES[name].label: _shown(name, row) for name in COUNTED},
        "digest": row["digest"],
    }


def _front_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """The cells that only members of the front have."""
    again = _latency(row, "latency_again")
    ties = {"same accuracy": row["accuracy_ties"] or "", "same latency": row["latency_ties"]}
    return {"measured again, ms": again, **ties, "layers": network_words(_layers(row))}


def _full_training(row: Mapping[str, Any]) -> tuple[str, str]:
    """The accuracy expected after full training, and its interval; empty without a belief."""
    low, high = (_shown("accuracy", row, f"accuracy_{end}") for end in ("low", "high"))
    return (_shown("accuracy", row, "accuracy_expected"), f"{low} to {high}") if low else ("", "")


def _shown(name: str, row: Mapping[str, Any], column: str = "") -> str:
    """A figure with its unit; empty without a value."""
    value = as_float(row.get(column or OBJECTIVES[name].column))
    return "" if math.isnan(value) else OBJECTIVES[name].format(value)


def _latency(row: Mapping[str, Any], prefix: str) -> tuple[str, str]:
    """Median, and the interval below it."""
    median, low, high = (as_float(row.get(f"{prefix}{end}_ms")) for end in ("", "_low", "_high"))
    interval = "" if math.isnan(low + high) else f"{significant(low)} to {significant(high)}"
    if row.get(f"{prefix}_contended") is True:
        interval += ", busy"
    return ("" if math.isnan(median) else significant(median), interval)


def _front_note(front: Front) -> str:
    rows = front.rows()
    note = "The confidence interval of each latency is below it."
    if _has("latency_again_ms", rows):
        note += " It was measured again from the exported file, in a fresh process."
    if _has("latency_ties", rows):
        note += " Latencies whose intervals overlap are ties."
    return (
        f"{note} nas export STUDY:TRIAL writes one as model.py, ONNX and weights; exports/ holds those written already."
    )


def _layers(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    return json.loads(row["architecture"])["layers"]


def _networks(front: Front) -> Iterator[dict[str, Any]]:
    """The layers of each member."""
    columns = [
        Column("", "number"),
        Column("block"),
        Column("out", "number"),
        Column("stride", "number"),
        Column("options"),
    ]
    for row in front.rows():
        figures = ((objective.label, _shown(name, row)) for name, objective in OBJECTIVES.items())
        yield {
            "id": row["id"],
            "figures": ", ".join(f"{label} {figure}" for label, figure in figures if figure),
            "layers": Table.of(columns, _layer_rows(_layers(row))),
            "json": row["architecture"],
        }


def _layer_rows(layers: list[dict[str, Any]]) -> Iterator[list[Any]]:
    for i, layer in enumerate(layers):
        options = {key: value for key, value in layer.items() if key not in ("block", "out", "stride")}
        yield [i, layer["block"], layer.get("out", ""), layer.get("stride", ""), words(options) if options else ""]


def _settings(front: Front) -> dict[str, Mapping[str, Any]]:
    """The settings of the search, by the titles of their lists."""
    settings, space, data = front.settings, front.settings["space"], dict(front.data)
    classes = data.pop("classes", None)
    if isinstance(classes, list):
        data["classes"] = class_names(classes)
    size = space.get("size")
    return {
        "Space": {
            "name": space.get("name"),
            "networks": f"{int(size):,}" if size not in (None, "") else None,
            "description": space.get("description"),
        },
        "Search": {
            "objectives": list(front.objectives),
            "limits": _limits(front) or "none",
            "seed": front.recipe["seed"],
            "latency": _latency_settings(front),
            "training budget": search_fidelity(front.recipe),
        },
        "Data": data,
        "Recipe": {key: value for key, value in front.recipe.items() if key not in OWN_PLACE},
        "Machine": front.machine,
        "Versions": settings["versions"],
    }


def _notes(front: Front) -> Iterator[str]:
    """How to read the page, a sentence or two per note."""
    accuracy = _has_accuracy(front.trials)
    if front.data:
        if accuracy:
            yield f"Accuracy is of {front.accuracy_is_of}; no test images were used."
            budget = words(search_fidelity(front.recipe))
            how = f"at the search's own training budget ({budget})"
            if front.recipe.get("supernet"):
                how = f"with weights that all networks share ({budget}), and is far below that of a training of its own"
            yield (
                f"Accuracy 'in the search' was found {how}. It chose the networks; those of the front were then "
                "trained at the deployment resolution."
            )
        if _has("accuracy_low", front.trials):
            yield (
                f"'After full training' is the accuracy that a training of {front.recipe['full']['epochs']} epochs at "
                "the deployment resolution is expected to reach on new images, with its 95 % interval. It is what "
                "networks are compared by. Members whose difference may be zero are listed under 'same accuracy'."
            )
        if front.fidelity_tau:
            tau = front.fidelity_tau
            yield (
                "The search's accuracies are expected to rank networks like full trainings with Kendall's tau "
                f"{tau['value']:.2f} ({tau['low']:.2f} to {tau['high']:.2f})."
            )
        if why := front.settings.get("resolution_why"):
            yield f"The deployment resolution is {front.resolution}: {why}."
    if text := front.budget_use:
        yield f"{text[0].upper()}{text[1:]}."
    if accuracy and not front.data:
        yield "Accuracy is what the evaluator of this search gave."
    yield FLOPS
    yield MEMORY
    if _has("latency_ms", front.trials):
        yield (
            f"Latency is the median time of one batch ({_latency_settings(front)}), with its confidence interval, on "
            "the machine named above; it holds for that machine and these versions. 'busy': other work was competing "
            "for the processor."
        )
    if front.latency_predictor:
        yield f"The search's own prediction: {_prediction(front.latency_predictor)}."
    trained = ": it was never trained and has no accuracy" if accuracy else ""
    yield f"A candidate over a limit is rejected{trained}."


def _prediction(judged: Mapping[str, Any]) -> str:
    """How well latency was predicted: the recorded sentence, or, for older studies, one made from the figures."""
    if judged.get("sentence"):
        return str(judged["sentence"])
    from nasspace.latency.predictor import cross_validation_sentence  # imports PyTorch

    return cross_validation_sentence(judged)


def _trials_table(front: Front) -> Table:
    """Every candidate."""
    accuracy = [Column(name, "number") for name in ("accuracy", "in the search", "after full training")]
    columns = [
        Column("trial", "number"),
        Column("state"),
        *(accuracy if _has_accuracy(front.trials) else []),
        Column("latency, ms", "number"),
        *(Column(OBJECTIVES[name].label, "number") for name in _counted(front)),
        Column("seconds", "number"),
        Column("digest", "code"),
        Column("why rejected", "text"),
    ]
    cells = [{**_figures(row), **_trial_cells(row)} for row in front.trials]
    return Table.of(columns, [[row[column.title] for column in columns] for row in cells])


def _trial_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """The cells that only the table of all trials has."""
    seconds = as_float(row.get("seconds"))
    return {
        "state": row["state"],
        "seconds": "" if math.isnan(seconds) else f"{seconds:.1f}",
        "why rejected": row["reason"] if isinstance(row.get("reason"), str) else "",
    }
