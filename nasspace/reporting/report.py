"""A study as one HTML page that works offline: its front, its settings, and how to read it.

The functions here compute what the page shows; `templates/` hold the page, and Jinja2 escapes every text in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from nasspace import files
from nasspace.formatting import significant
from nasspace.reporting import (
    choices,
    network_panel,
    paper_figure,
    plot_data,
    plots,
    provenance,
    publication,
    published_networks,
    search_plots,
    trained_networks,
)
from nasspace.reporting.network_panel import NetworkPanel
from nasspace.reporting.page import Column, Table, Tile, class_names, render, words
from nasspace.reporting.plot_data import Row, as_float, front_rows, shown
from nasspace.reporting.published_networks import PublishedNetwork
from nasspace.reporting.trained_networks import TrainedNetwork
from nasspace.samplers.importance import LEAST, choice_importances
from nasspace.studies import paths
from nasspace.studies.front import Front, runs_with, search_fidelity
from nasspace.studies.objectives import COUNTED, OBJECTIVES
from nasspace.studies.trial_table import RECORD, has_value, network_words

MOST_DETAILED = 600  # networks up to which the views show all figures of each
MOST_POSSIBLE = 20  # rows of the table of networks that may also belong to the front; front.json has all
MOST_TABLED = 1_000  # rows of the table of all trials; trials.csv has all
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


def report_html(front: Front) -> str:
    """Render the page of a study."""
    return render("report.html", _content(front))


def _content(front: Front) -> dict[str, Any]:
    """What the templates show."""
    rows = front_rows(front)
    views = plot_data.views(front.objectives, rows)
    trainings = trained_networks.of_study(front)
    networks = network_panel.panels(front, rows, trainings.networks)
    if len(rows) > MOST_DETAILED:
        rows = [{**row, "hover": f"trial {row['id']}"} for row in rows]
    published = published_networks.within_limits(front, trainings.networks)
    return {
        "name": front.name,
        "subtitle": _subtitle(front),
        "tiles": list(_tiles(front)),
        "kinds": plot_data.WORDS,
        "shown_kinds": _shown_kinds(rows, published),
        "views": _views(front, rows, published),
        "figure_labels": [_view_label(x, y) for x, y in views],
        "pareto_hint": _pareto_hint(front),
        "networks": networks,
        "summaries": {row["id"]: _figures_of(row) for row in rows},
        "first_network": _first_network(front, networks),
        "suggestions": list(_suggestions(front)),
        "front_table": _front_table(front),
        "front_note": _front_note(front),
        "possible_members": _possible_members(front),
        "possible_members_hidden": max(0, len(front.may_belong or ()) - MOST_POSSIBLE),
        "progress": _progress(front, rows),
        "published": _published(front, published),
        "published_note": _published_note(front),
        "trainings": _trainings_table(front, trainings.networks),
        "unreadable_trainings": ", ".join(trainings.unreadable),
        "settings": _settings(front),
        "commands": provenance.commands(front),
        "provenance": dict(provenance.facts(front)),
        "notes": list(_notes(front)),
        "trials_table": _trials_table(front),
        "trials_count": len(front.trials),
        "trials_hidden": max(0, len(front.trials) - MOST_TABLED),
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
    size = front.resolution
    return runs_with(front.recipe) + (f", at {size}x{size}" if size else "")


def _views(front: Front, rows: Sequence[Row], published: Sequence[PublishedNetwork]) -> list[plots.Figure]:
    """The linked views of the front."""
    titles = {
        "accuracy": _accuracy_title(front),
        "latency": f"{OBJECTIVES['latency'].axis_title} ({escape(front.recipe['runtime'])})",
    }
    known = [
        {
            **{name: one.values[name] * OBJECTIVES[name].factor for name in OBJECTIVES if name in one.values},
            "hover": _published_hover(one),
        }
        for one in published
    ]
    return plots.linked_figures(rows, front.objectives, limits=front.limits, titles=titles, published=known)


def _published_hover(one: PublishedNetwork) -> str:
    """The hover text of a published network: HTML with its name escaped."""
    accuracy = one.values.get("accuracy")
    words = "not trained here" if accuracy is None else f"{OBJECTIVES['accuracy'].format(accuracy)} trained in full"
    return f"<b>{escape(one.name, quote=False)}</b>, published, {words}"


def _view_label(x: str, y: str) -> str:
    """The text alternative of a view."""
    x, y = (OBJECTIVES[name].label for name in (x, y))
    return f"{y} over {x} of all networks; the list and the tables below hold the same figures"


def _figures_of(row: Row) -> str:
    """Accuracy and latency of a network in the list, or what it has instead."""
    names = [name for name in OBJECTIVES if not math.isnan(row[name])][:2]
    return " · ".join(OBJECTIVES[name].format_scaled(row[name]) for name in names)


def _first_network(front: Front, networks: Sequence[NetworkPanel]) -> int | str:
    """The network whose panel is open at first."""
    if front.recommended is not None:
        return front.recommended
    return networks[0].id if networks else ""


def _accuracy_title(front: Front) -> str:
    """The title of the axis of accuracy; a view is too narrow for all that `accuracy_is_of` says."""
    if _has("accuracy_low", front.trials):
        return f"accuracy expected after {front.recipe['full']['epochs']} epochs"
    return "accuracy"


def _pareto_hint(front: Front) -> str:
    hint = (
        "Numbers are trials. The line connects the members that are nondominated in the view's two objectives; dashed "
        "lines are limits."
    )
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
        Column("trial", "network"),
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
        "accuracy": shown("accuracy", row),
        "in the search": shown("accuracy", row, "search_accuracy"),
        "after full training": _full_training(row),
        "latency, ms": _latency(row, "latency"),
        **{OBJECTIVES[name].label: shown(name, row) for name in COUNTED},
        "digest": row["digest"],
    }


def _front_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """The cells that only members of the front have."""
    again = _latency(row, "latency_again")
    ties = {"same accuracy": row["accuracy_ties"] or "", "same latency": row["latency_ties"]}
    return {"measured again, ms": again, **ties, "layers": network_words(_layers(row))}


def _full_training(row: Mapping[str, Any]) -> tuple[str, str]:
    """The accuracy expected after full training, and its interval; empty without a belief."""
    low, high = (shown("accuracy", row, f"accuracy_{end}") for end in ("low", "high"))
    return (shown("accuracy", row, "accuracy_expected"), f"{low} to {high}") if low else ("", "")


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


def _possible_members(front: Front) -> Table | None:
    """The networks that are not on the front but may be after full training; None without any."""
    if not front.may_belong:
        return None
    rows = {row["id"]: row for row in front.trials}
    columns = [
        Column("trial", "network"),
        Column("probability", "number"),
        Column("after full training", "number"),
        Column("latency, ms", "number"),
        *(Column(OBJECTIVES[name].label, "number") for name in _counted(front)),
        Column("digest", "code"),
    ]
    shown_first = [*front.may_belong.items()][:MOST_POSSIBLE]
    cells = [{**_figures(rows[number]), "probability": f"{one:.0%}"} for number, one in shown_first]
    return Table.of(columns, [[row[column.title] for column in columns] for row in cells])


def _layers(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    return json.loads(row["architecture"])["layers"]


def _suggestions(front: Front) -> Iterator[dict[str, Any]]:
    """The recommended network and the knee of the front, each with its reason; none where there is no choice."""
    members = {member.id: member.row for member in front.members}
    if len(members) < 2:
        return
    for title, number, reason in (
        ("Recommended", front.recommended, _why_recommended(front)),
        ("Knee of the front", front.knee, _why_knee(front)),
    ):
        if number is not None:
            names = [name for name in OBJECTIVES if name in front.objectives]
            figures = ", ".join(text for name in names if (text := _compared(name, members[number])))
            yield {"title": title, "id": number, "figures": figures, "reason": reason}


def _compared(name: str, row: Mapping[str, Any]) -> str:
    """A figure by which networks are compared, with what it counts: of accuracy, the expected one."""
    text = shown(name, row, "accuracy_expected" if name == "accuracy" else "")
    return f"{text} {OBJECTIVES[name].label}" if text and OBJECTIVES[name].unit == "M" else text


def _why_recommended(front: Front) -> str:
    """Why a member is recommended."""
    rows = {member.id: member for member in front.members}
    if front.recommended is None:
        return ""
    expected = {number: one.row["accuracy_expected"] for number, one in rows.items()}
    best = max(
        (number for number in rows if has_value(expected[number])), key=lambda number: (expected[number], -number)
    )
    costs = [name for name in front.objectives if name != "accuracy"]
    if front.recommended == best:
        text = "It is the most accurate network of the front"
        if rows[best].accuracy_ties is None or not costs:
            return f"{text}."
        cheaper = "faster one" if "latency" in costs else f"one with lower {OBJECTIVES[costs[0]].label}"
        return f"{text}, and no {cheaper} may be as accurate."
    cost = "latency" if "latency" in costs else costs[0]
    kind = "fastest" if cost == "latency" else f"one with the lowest {OBJECTIVES[cost].label}"
    ties = len(rows[best].accuracy_ties or ()) + 1
    return (
        f"It is the {kind} of the {ties} networks whose accuracies cannot be told from the best. The most accurate, "
        f"trial {best}, has {_compared('accuracy', rows[best].row)} and {_compared(cost, rows[best].row)}."
    )


def _why_knee(front: Front) -> str:
    """Why a member is the knee: what the networks next to it on the front would change."""
    if front.knee is None:
        return ""
    first, second = front.objectives[:2]
    columns = {name: "accuracy_expected" if name == "accuracy" else OBJECTIVES[name].column for name in (first, second)}
    knee = next(member.row for member in front.members if member.id == front.knee)
    rows = [one.row for one in front.members if all(has_value(one.row[column]) for column in columns.values())]
    best = min(rows, key=lambda row: OBJECTIVES[first].to_minimize(row[columns[first]]))
    gained = _difference(first, abs(best[columns[first]] - knee[columns[first]]))
    worse = "less" if OBJECTIVES[second].is_maximized else "more"
    paid = _difference(second, abs(best[columns[second]] - knee[columns[second]]))
    return (
        f"It is farthest from the straight line between the front's ends. The best network in "
        f"{OBJECTIVES[first].label}, trial {best['id']}, gains {gained} for {paid} {worse} of "
        f"{OBJECTIVES[second].label}."
    )


def _difference(name: str, value: float) -> str:
    """A difference of two values: of accuracy, in points."""
    return f"{100 * value:.2f} points" if name == "accuracy" else OBJECTIVES[name].format(value)


def _progress(front: Front, rows: Sequence[Row]) -> dict[str, Any]:
    """Figures and sentences of how the search went; parts that the study cannot show are empty."""
    records = {trial["id"]: trial[RECORD].choices for trial in front.trials if trial.get(RECORD)}
    every = [records[row["id"]] for row in rows if row["kind"] != plot_data.REJECTED and row["id"] in records]
    of_front = [records[row["id"]] for row in rows if row["kind"] == plot_data.FRONT and row["id"] in records]
    importances = _importances(front, rows, records)
    grown = search_plots.growth(front.trials, front.objectives)
    ranked = choices.ranked(of_front, every, importances)
    agreements = list(_agreements(front))
    figure = search_plots.choices_figure(rows, front.trials, ranked) if len(every) > 1 else None
    return {
        "growth": search_plots.growth_figures(grown) if grown else [],
        "growth_of": words([OBJECTIVES[name].label for name in grown.objectives]) if grown else "",
        "choices": figure,
        "choices_width": search_plots.AXIS_WIDTH * (1 + len(figure["layout"]["shapes"])) if figure else 0,
        "choices_hidden": max(0, len(ranked) - search_plots.MOST_AXES),
        "importance": search_plots.importance_figure(importances) if importances else None,
        "least": LEAST,
        "preferences": choices.preferences(of_front, every) if len(every) > len(of_front) else [],
        "agreements": [
            (search_plots.agreement_figure(one), search_plots.agreement_sentence(one), OBJECTIVES[one.name].label)
            for one in agreements
        ],
        "predictor": f"{_prediction(front.latency_predictor)}." if front.latency_predictor else "",
    }


def _importances(
    front: Front, rows: Sequence[Row], records: Mapping[int, Mapping[str, Any]]
) -> dict[str, float] | None:
    """The importance of each choice for reaching the front; None for too few networks."""
    known = [
        row
        for row in rows
        if row["kind"] != plot_data.REJECTED
        and row["id"] in records
        and not any(math.isnan(row[name]) for name in front.objectives)
    ]
    if len(known) < LEAST:
        return None
    points = [[OBJECTIVES[name].to_minimize(row[name]) for name in front.objectives] for row in known]
    return choice_importances([records[row["id"]] for row in known], points)


def _agreements(front: Front) -> Iterator[search_plots.Agreement]:
    """What the search found first, and what was found later, of the same networks."""
    accuracies = [
        (row["id"], first, found)
        for row in front.trials
        if math.isfinite(first := as_float(row.get("search_accuracy")))
        and math.isfinite(found := as_float(row.get("accuracy")))
    ]
    if accuracies:
        numbers, *pairs = zip(*accuracies, strict=True)
        yield search_plots.Agreement(
            "accuracy",
            "accuracy in the search",
            "accuracy of the exported file",
            numbers,
            tuple(zip(*pairs, strict=True)),
        )
    again = [(member.id, member.row, member.remeasured) for member in front.members if member.remeasured]
    again = [(number, row, found) for number, row, found in again if has_value(row["latency_ms"])]
    if again:
        yield search_plots.Agreement(
            "latency",
            "latency in the search",
            "latency measured again",
            tuple(number for number, *_ in again),
            tuple((row["latency_ms"], found["median_ms"]) for _, row, found in again),
            tuple((found["low_ms"], found["high_ms"]) for *_, found in again),
        )


def _shown_kinds(rows: Sequence[Row], published: Sequence[PublishedNetwork]) -> list[str]:
    """The kinds of networks in the views, for their legend."""
    kinds = {row["kind"] for row in rows} | ({plot_data.PUBLISHED} if published else set())
    return [kind for kind in plot_data.WORDS if kind in kinds]


def _published(front: Front, found: Sequence[PublishedNetwork]) -> Table | None:
    """Published networks within the limits; None without any."""
    if not found:
        return None
    names = [name for name in _counted(front) if all(name in one.values for one in found)]
    measured = [Column("latency, ms", "number")] if any(one.latency for one in found) else []
    trained = [Column("trained in full", "number")] if any("accuracy" in one.values for one in found) else []
    columns = [Column("network"), *trained, *measured, *(Column(OBJECTIVES[name].label, "number") for name in names)]
    rows = []
    for one in found:
        latency = one.latency and (
            significant(one.latency["median_ms"]),
            f"{significant(one.latency['low_ms'])} to {significant(one.latency['high_ms'])}",
        )
        cells = [OBJECTIVES[name].format(one.values[name]) for name in names]
        accuracy: Any = ""
        if "accuracy" in one.values:
            accuracy = (OBJECTIVES["accuracy"].format(one.values["accuracy"]), _seeds(one.seeds))
        optional = [*([accuracy] if trained else []), *([latency or ""] if measured else [])]
        rows.append([one.name, *optional, *cells])
    return Table.of(columns, rows)


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"mean of {count} seeds"


def _published_note(front: Front) -> str:
    """What the published networks are, and what is known of them."""
    size = f"{front.resolution}x{front.resolution}"
    study = paths.as_argument(front.folder)
    trained = (
        "Accuracies are of validation images, after trainings like this study's full training that had finished when "
        f"the page was written: nas train NAME --beside {study}. "
    )
    return (
        f"Counted exactly at {size} with this study's classes. "
        f"{trained if front.data and trained_networks.full_epochs(front) else ''}"
        "Latencies are those that the cache of this machine held under the study's conditions when the page was "
        f"written; nas latency NAME --beside {study} measures more."
    )


def _trainings_table(front: Front, trainings: Sequence[TrainedNetwork]) -> Table | None:
    """The finished full trainings; None without any. Networks of the study have the numbers of their trials."""
    if not trainings:
        return None
    trials = {str(row["digest"]): str(row["id"]) for row in front.trials}
    tests = [Column("test", "number")] if any(one.test for one in trainings) else []
    columns = [Column("network"), Column("trial", "number"), Column("validation", "number"), *tests]
    percent = OBJECTIVES["accuracy"].format
    rows: list[list[Any]] = []
    for one in trainings:
        test = one.test and (
            percent(one.test["accuracy"]),
            f"{percent(one.test['low'])} to {percent(one.test['high'])}",
        )
        tested = [test or ""] if tests else []
        rows.append([one.network, trials.get(one.digest, ""), percent(one.validation), *tested, one.words()])
    return Table.of([*columns, Column("training", "text")], rows)


def _settings(front: Front) -> dict[str, Mapping[str, Any]]:
    """The settings of the search, by the titles of their lists."""
    space, data = front.settings["space"], dict(front.data)
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
            "candidates start from": (front.settings.get("start_from") or {}).get("source"),
        },
        "Data": data,
        "Recipe": {key: value for key, value in front.recipe.items() if key not in OWN_PLACE},
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
        if text := front.ranking_note:
            yield f"{text[0].upper()}{text[1:]}."
        if why := front.settings.get("resolution_why"):
            yield f"The deployment resolution is {front.resolution}: {why}."
    if text := front.budget_note:
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
        Column("trial", "network"),
        Column("state"),
        *(accuracy if _has_accuracy(front.trials) else []),
        Column("latency, ms", "number"),
        *(Column(OBJECTIVES[name].label, "number") for name in _counted(front)),
        Column("seconds", "number"),
        Column("digest", "code"),
        Column("why rejected", "text"),
    ]
    cells = [{**_figures(row), **_trial_cells(row)} for row in front.trials[:MOST_TABLED]]
    return Table.of(columns, [[row[column.title] for column in columns] for row in cells])


def _trial_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """The cells that only the table of all trials has."""
    seconds = as_float(row.get("seconds"))
    return {
        "state": row["state"],
        "seconds": "" if math.isnan(seconds) else f"{seconds:.1f}",
        "why rejected": row["reason"] if isinstance(row.get("reason"), str) else "",
    }
