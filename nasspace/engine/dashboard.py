"""What optuna-dashboard shows of a search: a note for each trial with its network, a note and a figure of the front.

All of it follows from the record, is written after the record, and only where it changed: a search that was killed in
between writes the rest when it is resumed.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nasspace.architecture import Architecture
from nasspace.counting import LayerCost, cost
from nasspace.errors import InputError
from nasspace.formatting import escape_markdown as plain
from nasspace.formatting import significant
from nasspace.reporting import plots
from nasspace.reporting.plot_data import pareto_rows, shown, shown_interval
from nasspace.studies import paths
from nasspace.studies.dashboard import Dashboard
from nasspace.studies.front import Front, runs_with, search_fidelity
from nasspace.studies.objectives import COUNTED, OBJECTIVES
from nasspace.studies.schema import LAST_RUNG, RUNG, RUNGS
from nasspace.studies.study import Study
from nasspace.studies.trial_table import has_value, network_words, row, whole
from nasspace.training.metrics import wilson

MOST_NOTES = 500  # trials with a note, the front and the latest: a table may have 100,000 networks
MOST_DRAWN = 300  # candidates in the figure, the front and the latest
BAR = 16  # characters of the widest layer in the picture of a network
FIGURE, HEIGHT = "front", 440  # the figure's name in the dashboard, and its height in pixels there
Fact = tuple[str, str]  # a line of a table: what, and how much


# Attributes


def describe_study(study: Study) -> None:
    """Set readable attributes of a study: what is searched, on which data, within which limits."""
    settings, recipe = study.settings, study.settings["recipe"]
    limits = [f"{OBJECTIVES[name].label} {OBJECTIVES[name].format(value)}" for name, value in study.limits.items()]
    shown = {
        "space": f"{settings['space']['name']}, {settings['space'].get('size') or '?'} networks",
        "objectives": "; ".join(f"{OBJECTIVES[name].direction} {OBJECTIVES[name].column}" for name in study.objectives),
        "limits": "; ".join(limits) or "none",
        "data": settings["data"]["name"] if settings["data"] else f"the evaluator {settings['evaluator']}",
        "latency with": runs_with(recipe),
        "deployment resolution": settings["task"].get("resolution"),
    }
    known = study.record.user_attrs
    for key, value in shown.items():
        if value is not None and known.get(key) != value:
            study.record.set_user_attr(key, value)


def attributes(
    study: Study, architecture: Architecture, values: Mapping[str, float], details: Mapping[str, Any]
) -> dict[str, Any]:
    """Readable attributes of an evaluated trial: its network in words, intervals, and counts that are no objectives.

    `values` are those of the objectives, `details` what its evaluation recorded.
    """
    found: dict[str, Any] = {"network": network_text(architecture)}
    for name in ("flops", "params"):
        if name in values and name not in study.objectives:
            found[OBJECTIVES[name].column] = whole(values[name])
    if interval := details.get("latency_interval"):
        low, median, high = (significant(interval[key]) for key in ("low_ms", "median_ms", "high_ms"))
        found["latency_95_ms"] = f"{median} ({low} to {high})"
    if "accuracy" in values and study.settings.get("data"):
        found["accuracy_95"] = _with_interval(values["accuracy"], study.settings["data"]["validation"])
    return found


def _with_interval(accuracy: float, images: int) -> str:
    """An accuracy with its 95 % interval on new images, from the number of images that it was found with."""
    low, high = wilson(round(accuracy * images), images)
    return f"{accuracy:.4f} ({low:.4f} to {high:.4f})"


def network_text(architecture: Architecture) -> str:
    """A network in words, such as '7 shuffle_v2, 2 conv; widths 24, 48, 96'."""
    return "; ".join(part for part in network_words(json.loads(architecture.to_json())["layers"]) if part)


# Notes


def describe_trial(study: Study, number: int, architecture: Architecture) -> None:
    """Write the note of a trial that has just finished; `update` completes it by what is found out later.

    Only `update` writes those of a long search, since all notes are read before one is written.
    """
    if number >= MOST_NOTES:
        return
    trial = study.frozen()[number]
    figures = row(trial, study.latency(trial), None, study.has_last_rung)
    note = _trial_note(study, figures, architecture, _state(figures), study.record.user_attrs)
    Dashboard(study.record).write_note(note, trial)


def update(study: Study, front: Front) -> None:
    """Write the notes of the trials, and the note and the figure of the study, where they changed."""
    dashboard, members = Dashboard(study.record), {member.id: member for member in front.members}
    others = [figures for figures in front.trials if figures["id"] not in members][-MOST_NOTES:]
    trials, recorded = study.frozen(), study.record.user_attrs  # read once: Optuna copies all of them each time
    for figures in (*(member.row for member in front.members), *others):
        number = figures["id"]
        state = _member_state(front, number) if number in members else _state(figures)
        with contextlib.suppress(InputError):  # a network of blocks that are not registered any more
            note = _trial_note(study, figures, study.architecture(number), state, recorded)
            dashboard.write_note(note, trials[number])
    dashboard.write_note(_study_note(front))
    if front.members:
        dashboard.write_figure(FIGURE, _figure(front))


def _state(figures: Mapping[str, Any]) -> str:
    """What became of a trial."""
    if figures["state"] == "rejected":
        return f"Rejected, never trained: {plain(figures['reason'])}."
    over = f": {plain(figures['reason'])}" if figures["reason"] else ""
    return f"Evaluated{over}."


def _member_state(front: Front, number: int) -> str:
    """What is said of a member of the front."""
    (member,) = (member for member in front.members if member.id == number)
    parts = ["**On the Pareto front**"]
    parts += ["recommended"] if number == front.recommended else []
    parts += ["the knee of the front"] if number == front.knee else []
    parts += [f"may be as accurate as {_listed(member.accuracy_ties)}"] if member.accuracy_ties else []
    parts += [f"may be as fast as {_listed(member.ties)}"] if member.ties else []
    return f"{', '.join(parts)}."


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _trial_note(
    study: Study, figures: Mapping[str, Any], architecture: Architecture, state: str, recorded: Mapping[str, Any]
) -> str:
    """The note of a trial; `recorded` are the attributes of the study."""
    facts = [*_facts(figures), *_trainings(study, figures, architecture, recorded)]
    name = paths.as_argument(study.folder, figures["id"])
    commands = ", ".join(_code(f"nas {verb} {name}") for verb in ("show", "explain", "export"))
    return "\n\n".join(
        [state, _table(("", ""), facts), f"Network `{figures['digest']}`", picture(architecture), commands]
    )


def _code(text: str) -> str:
    """A text as code in Markdown, also if it has backticks.

    >>> _code("nas show a:1"), _code("nas show 'a`<b>:1'")
    ('`nas show a:1`', "``nas show 'a`<b>:1'``")
    """
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}"


def _facts(figures: Mapping[str, Any]) -> Iterator[Fact]:
    """The figures of a trial with their intervals."""
    latency = shown_interval("latency", figures, "latency_ms", "latency_{}_ms")
    facts = {
        "accuracy": shown("accuracy", figures),
        "accuracy in the search": shown("accuracy", figures, "search_accuracy"),
        "accuracy after full training (95 %)": shown_interval("accuracy", figures, "accuracy_expected", "accuracy_{}"),
        "latency (95 %)" if latency else "latency": latency or shown("latency", figures),
        **{OBJECTIVES[name].label: shown(name, figures) for name in COUNTED},
    }
    yield from ((what, text) for what, text in facts.items() if text)


def _trainings(
    study: Study, figures: Mapping[str, Any], architecture: Architecture, recorded: Mapping[str, Any]
) -> Iterator[Fact]:
    """The trainings of a trial's network, from the search to the last rung."""
    if has_value(found := figures.get("search_accuracy")):
        fidelity = search_fidelity(study.settings["recipe"], architecture.input)
        yield "trained in the search", f"{_budget(fidelity)}: {OBJECTIVES['accuracy'].format(found)}"
    keys = {f"rung {i + 1}": f"{RUNG}{i}:{figures['id']}" for i in range(len(recorded.get(RUNGS) or ()))}
    for what, key in {**keys, "last rung": f"{LAST_RUNG}{figures['id']}"}.items():
        if record := recorded.get(key):
            yield what, f"{_budget(record)}: {OBJECTIVES['accuracy'].format(record['accuracy'])}"


def _budget(training: Mapping[str, Any]) -> str:
    """'8 epochs at 32x32'."""
    size = training["resolution"]
    return f"{training['epochs']} epoch{'s' if training['epochs'] != 1 else ''} at {size}x{size}"


def picture(architecture: Architecture) -> str:
    """A network as a table in Markdown: a row for each layer, a bar for its width, its output, its share of FLOPs."""
    counted: tuple[LayerCost, ...] = ()
    with contextlib.suppress(InputError):  # an architecture of a benchmark table may not be runnable
        counted = cost(architecture).layers
    widths = [layer.out_shape[0] for layer in counted] or [layer.out or 0 for layer in architecture.layers]
    total, widest, lines = sum(layer.flops for layer in counted) or 1, max(widths) or 1, []
    for i, layer in enumerate(architecture.layers):
        options = [f"{key} {value}" for key, value in layer.options.items()]
        options += [f"stride {layer.stride}"] if layer.stride != 1 else []
        bar = "█" * max(1, round(BAR * widths[i] / widest))
        cells = [plain(layer.block), plain(", ".join(options)), f"{bar} {widths[i]}"]
        if counted:
            shape = counted[i].out_shape
            cells += ["x".join(map(str, shape[1:])), f"{counted[i].flops / total:.0%}"]
        lines.append(cells)
    titles = ("block", "options", "width", "map", "FLOPs") if counted else ("block", "options", "width")
    return _table(titles, lines)


def _table(titles: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    titles = list(titles)
    rows = [titles, ["--"] * len(titles), *lines]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in rows)


def _study_note(front: Front) -> str:
    """The front as a table, and what the dashboard itself does not know: limits, intervals, measurements made again."""
    limits = [f"{OBJECTIVES[name].label} {OBJECTIVES[name].format(value)}" for name, value in front.limits.items()]
    data = f" on {plain(front.data['name'])}" if front.data.get("name") else ""
    within = f", within {', '.join(limits)}" if limits else ""
    sentence = (
        f"A search of the space {plain(front.settings['space']['name'])}{data}{within}: {front.evaluated} evaluated, "
        f"{front.rejected} rejected."
    )
    rows = [{"trial": str(member.id), **dict(_facts(member.row))} for member in front.members]
    titles = list(dict.fromkeys(title for each in rows for title in each))
    table = _table(titles, [[each.get(title, "") for title in titles] for each in rows])
    why = (
        "This is the front of `nas front`: within the limits, also when measured again, and by the accuracy expected "
        'after a full training. "Best Trials" of the dashboard compares what the search found, and ignores limits.'
    )
    state = [] if front.is_finished or not front.data else ["The search is not finished: the front may change."]
    return "\n\n".join([sentence, *([table] if rows else ["No network is on the front yet."]), *state, why])


def _figure(front: Front) -> dict[str, Any]:
    """The Pareto plot of the report without its texts, which would take most of its size."""
    members = {member.id for member in front.members}
    others = [figures for figures in front.trials if figures["id"] not in members][-MOST_DRAWN:]
    rows = pareto_rows([*(member.row for member in front.members), *others], members)
    figure = plots.pareto_figure(rows, front.objectives, limits=front.limits)
    traces = [{key: value for key, value in trace.items() if key != "customdata"} for trace in figure["data"]]
    traces = [{**trace, "hovertemplate": "%{x}, %{y}<extra></extra>"} for trace in traces]
    return _finite({"data": traces, "layout": {**figure["layout"], "height": HEIGHT}})


def _finite(value: Any) -> Any:
    """Plain values with None for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
