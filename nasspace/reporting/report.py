"""A study as one HTML page that works offline: what was asked, what was found, and how to read it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

from nasspace.formatting import significant
from nasspace.reporting import page, plots
from nasspace.reporting.plot_data import pareto_rows, records
from nasspace.studies.objectives import OBJECTIVES

if TYPE_CHECKING:
    import pandas

HEADS = ("global_pool", "flatten", "dropout", "linear")  # every network ends in these: left out of summaries
SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
FLOPS = (
    "FLOPs are multiply-adds of convolutions and linear layers for one image, as in the papers and in fvcore: batch "
    "norm is folded, element-wise work is not counted."
)
MEMORY = "Memory access is ShuffleNet V2's MAC: elements that layers read and write, input + output + weights."


def report_html(
    study: Mapping[str, Any], trials: pandas.DataFrame, front: pandas.DataFrame, *, progress: str = "hypervolume"
) -> str:
    """The page of a study.

    `study` holds what was asked, as in study.yaml: `name`, `space`, `data`, `recipe`, `limits`, `objectives`,
    `runtime`, `machine`, ...; what it lacks is left out. `trials` and `front` are a study's frames. Where `trials` has
    the column `progress`, it is drawn over the trials.
    """
    body = [
        *_head(study, trials, front),
        _plot(study, trials, front),
        _front(study, front),
        _networks(front),
        *_progress(trials, progress),
        _asked(study),
        page.section("How to read this", *(page.paragraph(text) for text in _notes(study, trials))),
        _trials(trials),
    ]
    return page.page(f"{study['name']}: study of nasspace", body, [plots.plotly_js()])


def _head(study: Mapping[str, Any], trials: pandas.DataFrame, front: pandas.DataFrame) -> Iterator[str]:
    space, data = study.get("space") or {}, study.get("data") or {}
    yield f"<h1>{page.escape(str(study['name']))}</h1>"
    searched = f"A search of the space {space.get('name', '')}"
    on = f" on {data['name']}" if data.get("name") else ""
    started = str(study.get("created") or "").replace("T", " ").replace("+00:00", " UTC")
    when = f", started {started}" if started else ""
    yield page.paragraph(f"{searched}{on}{when}", "soft")
    states = trials["state"].value_counts()
    yield page.tiles(
        [
            (f"{len(front)}", "networks on the Pareto front"),
            (f"{states.get('evaluated', 0)}", "networks evaluated"),
            (f"{states.get('rejected', 0)}", "stopped at a limit, never trained"),
            (_size(space.get("size")), "networks in the space"),
            *((text, f"limit of {name}") for name, text in _limits(study)),
        ]
    )


def _size(size: Any) -> str:
    """A count as people say it: 12,345, or 1.2 × 10⁹."""
    if size is None:
        return "?"
    number = int(size)
    if number < 1_000_000:
        return f"{number:,}"
    power = len(str(number)) - 1
    return f"{number / 10**power:.1f} × 10{str(power).translate(SUPERSCRIPT)}"


def _limits(study: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each limit's name and amount: ('latency', '20.0 ms')."""
    limits = ((OBJECTIVES[name], value) for name, value in (study.get("limits") or {}).items())
    return [(objective.label, objective.format(value)) for objective, value in limits]


def _accuracy_is_of(study: Mapping[str, Any]) -> str:
    if study.get("accuracy_is_of"):
        return str(study["accuracy_is_of"])
    size = (study.get("fidelity") or {}).get("resolution")
    return "held-out training images" + (f" at {size}x{size}" if size else "")


def _measured_with(study: Mapping[str, Any]) -> str:
    """'onnxruntime, 1 thread, batch 1 at 224x224'."""
    threads, size = study.get("threads"), study.get("resolution")
    parts = [
        study.get("runtime"),
        f"{threads} thread{'s' if threads != 1 else ''}" if threads else None,
        f"batch {study['batch_size']}" if study.get("batch_size") else None,
        f"at {size}x{size}" if size else None,
    ]
    return ", ".join(str(part) for part in parts if part)


def _plot(study: Mapping[str, Any], trials: pandas.DataFrame, front: pandas.DataFrame) -> str:
    objectives = list(study.get("objectives") or ("accuracy", "latency", "flops"))
    rows = pareto_rows(trials, objectives, front["id"])
    titles = {"accuracy": f"accuracy of {page.escape(_accuracy_is_of(study))}"}
    if study.get("runtime"):
        titles["latency"] = f"latency, ms<br>({page.escape(_measured_with(study))})"
    figure = plots.pareto_figure(rows, objectives, limits=study.get("limits"), titles=titles)
    hint = "Numbers are trials. The line joins the members that nothing beats in the two objectives of its panel alone."
    if "search_accuracy" in trials and trials["search_accuracy"].notna().any():
        hint += (
            " Candidates off the front that were not trained further are drawn at the accuracy that the search found."
        )
    return page.section("Pareto front", plots.to_html(figure, whole=False), page.paragraph(hint, "soft"))


def _front(study: Mapping[str, Any], front: pandas.DataFrame) -> str:
    """The front as a table, in the order given."""
    if front.empty:
        return page.section("Front", page.paragraph("No network was found within the limits."))
    again = "latency_again_ms" in front and front["latency_again_ms"].notna().any()
    searched = "search_accuracy" in front and front["search_accuracy"].notna().any()
    accuracy = _has_accuracy(front)
    columns = [("trial", "number"), *([("accuracy", "number")] if accuracy else [])]
    columns += [("in the search", "number")] if searched else []
    columns += [("latency, ms", "number")]
    columns += [("measured again, ms", "number")] if again else []
    ties = "latency_ties" in front and front["latency_ties"].astype(bool).any()
    columns += [("ties with", "text")] if ties else []
    columns += [("FLOPs", "number"), ("parameters", "number"), ("memory access", "number")]
    columns += [("layers", "text"), ("digest", "code")]
    rows = [
        [
            row["id"],
            *([_shown("accuracy", row)] if accuracy else []),
            *([_searched(row)] if searched else []),
            _latency(row, "latency"),
            *([_latency(row, "latency_again")] if again else []),
            *([row["latency_ties"]] if ties else []),
            *(_shown(name, row) for name in ("flops", "params", "memory_access")),
            _summary(_layers(row)),
            row["digest"],
        ]
        for row in records(front)
    ]
    text = "nas export STUDY:TRIAL writes one as model.py, ONNX and weights; exports/ holds those written already."
    said = "Below each latency stands its confidence interval."
    said += " It was measured again from the exported file, in a fresh process." if again else ""
    said += " Latencies whose intervals overlap are ties." if ties else ""
    return page.section("Front", page.table(columns, rows), page.paragraph(f"{said} {text}", "soft"))


def _has_accuracy(frame: pandas.DataFrame) -> bool:
    """Whether any network of a frame has an accuracy: none has where it is no objective."""
    return any(name in frame and frame[name].notna().any() for name in ("accuracy", "search_accuracy"))


def _shown(name: str, row: Mapping[str, Any]) -> str:
    objective = OBJECTIVES[name]
    value = _number(row.get(objective.column))
    return "" if math.isnan(value) else objective.format(value)


def _searched(row: Mapping[str, Any]) -> str:
    value = _number(row.get("search_accuracy"))
    return "" if math.isnan(value) else OBJECTIVES["accuracy"].format(value)


def _latency(row: Mapping[str, Any], name: str) -> tuple[str, str]:
    """Median and interval, as a cell."""
    median, low, high = (_number(row.get(f"{name}{end}_ms")) for end in ("", "_low", "_high"))
    interval = "" if math.isnan(low + high) else f"{significant(low)} to {significant(high)}"
    if row.get(f"{name}_contended") is True:
        interval += ", busy"
    return ("" if math.isnan(median) else significant(median), interval)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _layers(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    text = row.get("architecture")
    return json.loads(text)["layers"] if isinstance(text, str) and text else []


def _summary(layers: list[dict[str, Any]]) -> tuple[str, str]:
    """'7 shuffle_v2, 4 shuffle_v1, 2 conv' and the widths in order, without the head; as a cell."""
    body = [layer for layer in layers if layer["block"] not in HEADS]
    counts = Counter(layer["block"] for layer in body)
    widths = [width for width, _ in groupby(layer["out"] for layer in body if "out" in layer)]
    return ", ".join(f"{n} {name}" for name, n in counts.most_common()), "widths " + page.words(
        widths
    ) if widths else ""


def _networks(front: pandas.DataFrame) -> str:
    """Each member's layers, closed until asked for."""
    parts = []
    for row in records(front):
        layers = _layers(row)
        if layers:
            figures = ", ".join(f"{OBJECTIVES[n].label} {_shown(n, row)}" for n in OBJECTIVES if _shown(n, row))
            layers_table = page.table([("", "number"), ("block", ""), ("out", "number"), ("stride", "number"),
                                       ("options", "")], _layer_rows(layers))  # fmt: skip
            as_json = page.details("as JSON", page.preformatted(row["architecture"]))
            parts.append(page.details(figures, layers_table, as_json, strong=f"Trial {row['id']}", printed=True))
    return page.section("Networks of the front", *parts) if parts else ""


def _layer_rows(layers: list[dict[str, Any]]) -> Iterator[list[Any]]:
    for i, layer in enumerate(layers):
        options = {key: value for key, value in layer.items() if key not in ("block", "out", "stride")}
        yield [i, layer["block"], layer.get("out", ""), layer.get("stride", ""), page.words(options) if options else ""]


def _progress(trials: pandas.DataFrame, column: str) -> Iterator[str]:
    if column in trials and trials[column].notna().any():
        yield page.section("Progress", plots.to_html(plots.progress_figure(trials, column), whole=False))


def _asked(study: Mapping[str, Any]) -> str:
    """What was asked, where and with what."""
    space, data = dict(study.get("space") or {}), dict(study.get("data") or {})
    classes = data.pop("classes", None)
    if isinstance(classes, list):
        data["classes"] = f"{len(classes)}: {page.words(classes[:20])}" + (", ..." if len(classes) > 20 else "")
    recipe = {key: value for key, value in (study.get("recipe") or {}).items() if key not in study}
    search = {
        "objectives": study.get("objectives"),
        "limits": dict(_limits(study)) or "none",
        "seed": study.get("seed"),
        "latency": _measured_with(study),
        "training budget": study.get("fidelity"),
    }
    columns = {
        "Space": {
            "name": space.get("name"),
            "networks": _exact(space.get("size")),
            "description": space.get("description"),
        },
        "Search": search,
        "Data": data,
        "Recipe": recipe,
        "Machine": study.get("machine"),
        "Versions": study.get("versions"),
    }
    parts = [f"<div><h3>{title}</h3>{page.facts(values)}</div>" for title, values in columns.items() if values]
    return page.section("What was asked", f'<div class="columns">{"".join(parts)}</div>')


def _exact(size: Any) -> str | None:
    return None if size is None else f"{int(size):,}"


def _notes(study: Mapping[str, Any], trials: pandas.DataFrame) -> Iterator[str]:
    accuracy = _has_accuracy(trials)
    if study.get("data"):
        if accuracy:
            yield f"Accuracy is of {_accuracy_is_of(study)}; no test images were used."
        if accuracy and study.get("fidelity"):
            budget = page.words(study["fidelity"])
            yield (
                f"Accuracy 'in the search' was found with a training budget of its own ({budget}). It chose the "
                "networks; those of the front were then trained at the deployment resolution."
            )
        if study.get("resolution_why"):
            yield f"The deployment resolution is {study.get('resolution')}: {study['resolution_why']}."
    if study.get("budget_use"):
        text = str(study["budget_use"])
        yield f"{text[0].upper()}{text[1:]}."
    if accuracy and not study.get("data"):
        yield "Accuracy is what the evaluator of this search gave."
    yield FLOPS
    yield MEMORY
    if trials["latency_ms"].notna().any():
        with_what = f" ({_measured_with(study)})" if study.get("runtime") else ""
        yield (
            f"Latency is the median time of one batch{with_what}, with its confidence interval, on the machine named "
            "above; it holds for that machine and these versions. 'busy': other work was competing for the processor."
        )
    if study.get("latency_predictor"):
        yield f"The search's own prediction: {_prediction(study['latency_predictor'])}."
    yield "A candidate that breaks a limit is stopped there" + (
        ": it was never trained and has no accuracy." if accuracy else "."
    )


def _prediction(judged: Mapping[str, Any]) -> str:
    """How well latency was predicted: the sentence that the study recorded, else (older studies) a new one."""
    if judged.get("sentence"):
        return str(judged["sentence"])
    from nasspace.latency.predictor import cross_validation_sentence  # and with it PyTorch

    return cross_validation_sentence(judged)


def _trials(trials: pandas.DataFrame) -> str:
    """Every candidate, closed until asked for."""
    accuracy = _has_accuracy(trials)
    columns = [("trial", "number"), ("state", ""),
               *([("accuracy", "number"), ("in the search", "number")] if accuracy else []), ("latency, ms", "number"),
               ("FLOPs", "number"), ("parameters", "number"), ("memory access", "number"), ("seconds", "number"),
               ("digest", "code"), ("why rejected", "text")]  # fmt: skip
    rows = (
        [
            row["id"],
            row["state"],
            *([_shown("accuracy", row), _searched(row)] if accuracy else []),
            _latency(row, "latency"),
            *(_shown(name, row) for name in ("flops", "params", "memory_access")),
            "" if math.isnan(_number(row.get("seconds"))) else f"{row['seconds']:.1f}",
            row["digest"],
            row["reason"] if isinstance(row.get("reason"), str) else "",
        ]
        for row in records(trials)
    )
    return page.section("All trials", page.details(f"{len(trials)} trials", page.table(columns, rows)))
