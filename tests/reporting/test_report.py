"""The report is one page that loads nothing, with every text escaped."""

from __future__ import annotations

import json
import random
import re
import shlex
from dataclasses import replace
from datetime import datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nasspace.counting import cost
from nasspace.formatting import significant
from nasspace.reporting import provenance
from nasspace.reporting.plot_data import front_rows, pareto_rows
from nasspace.reporting.plots import linked_figures, plotly_js
from nasspace.reporting.report import report_html, words
from nasspace.space.space import Space
from nasspace.studies import recipe as recipes
from nasspace.studies.front import Front, Member
from nasspace.studies.trial_table import RECORD, TrialRecord
from nasspace.studies.weight_store import StudyWeights, Weights

EVIL = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def architectures():
    space = Space.load("shuffle", classes=10, resolution=32, channels=1)
    return [space.sample(random.Random(i)) for i in range(3)]


def rows_of(architectures) -> list[dict]:
    """Three evaluated networks, and the first one again under another id, rejected."""
    rows = []
    for i, architecture in enumerate([*architectures, architectures[0]]):
        counted = cost(architecture)
        rows.append(
            {
                "id": i,
                "digest": architecture.digest,
                "state": "rejected" if i == 3 else "evaluated",
                "accuracy": None if i == 3 else 0.9,
                "latency_ms": 1.0 + i,
                "flops": counted.flops,
                "params": counted.params,
                "memory_access": counted.memory_access,
                "search_accuracy": None,
                "accuracy_expected": None,
                "accuracy_low": None,
                "accuracy_high": None,
                "resolution": None,
                "latency_low_ms": 0.9 + i,
                "latency_high_ms": 1.2 + i,
                "latency_contended": i == 2,
                "seconds": 3.0,
                "reason": EVIL if i == 3 else "",
            }
        )
    return rows


SETTINGS = {
    "created": "2025-11-21T10:00:00+00:00",
    "space": {"name": "shuffle", "size": str(6 * 10**18 + 1), "description": EVIL, "document": {"secret": 1}},
    "task": {"classes": 10, "channels": 1, "resolution": 32},
    "data": {"name": EVIL, "classes": ["zero", EVIL], "train": 1200, "validation": 300},
    "accuracy_is_of": f"held-out training images at 28x28 {EVIL}",
    "limits": {"latency": 20.0, "flops": 150_000_000.0},
    "recipe": {
        "name": "quick",
        "sampler": "gain",
        "training": {"rate": 0.1, "note": EVIL},
        "seed": 3,
        "objectives": ["accuracy", "latency", "flops"],
        "runtime": "onnxruntime",
        "threads": 1,
        "batch_size": 1,
        "fidelity": {"resolution": 28, "epochs": 10, "share": 1.0},
    },
    "versions": {"torch": "2.13.0"},
    "storage": "postgresql://me:password@host/db",
}


@pytest.fixture(scope="module")
def front(architectures) -> Front:
    """A front of the first and the third network; the first was measured again."""
    rows = rows_of(architectures)
    again = {"median_ms": 1.5, "low_ms": 1.4, "high_ms": 1.6}
    return Front(
        name=f"mine {EVIL}",
        folder=Path("reports/mine"),
        settings=SETTINGS,
        members=(
            Member("mine", 0, rows[0], architectures[0].to_json(), remeasured=again),
            Member("mine", 2, rows[2], architectures[2].to_json()),
        ),
        trials=tuple(rows),
        weights=StudyWeights(Weights(Path("w")), Weights(Path("w/deployed")), Path("exports")),
        machine={"processor": f"CPU {EVIL}", "cores": 2},
    )


def changed(front: Front, columns: dict | None = None, **settings) -> Front:
    """The front with other settings, and with other values in some columns of all its rows."""

    def row(given):
        return {**given, **(columns or {})}

    members = tuple(replace(member, row=row(member.row)) for member in front.members)
    trials = tuple(map(row, front.trials))
    return replace(front, members=members, trials=trials, settings={**front.settings, **settings})


class Text(HTMLParser):
    """Collect a page's text outside scripts and styles in one line, what it loads, and its number of scripts."""

    def __init__(self, page: str):
        super().__init__()
        self.parts: list[str] = []
        self.loads: list[str] = []
        self.scripts = 0
        self.inside = ""
        self.feed(page)
        self.text = " ".join(" ".join(self.parts).split())

    def handle_starttag(self, tag, attributes):
        self.inside = tag
        self.scripts += tag == "script"
        if (
            tag in ("link", "base", "iframe", "object", "embed", "img")
            or {"src", "href", "action"} & dict(attributes).keys()
        ):
            self.loads.append(tag)

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.parts.append(data)


@pytest.fixture(scope="module")
def page(front):
    return report_html(front)


def test_page_loads_nothing_and_forbids_it(page):
    assert Text(page).loads == []
    policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in page


def test_every_text_is_escaped(page):
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(") >= 8
    assert Text(page).scripts == page.count("</script>")


def test_texts_of_figures_cannot_end_their_script(front):
    page = report_html(changed(front, {"digest": "</script>" + EVIL, "reason": "</script>" + EVIL}))
    assert Text(page).scripts == page.count("</script>")
    assert "<script>alert" not in page


def test_figures_are_the_drawn_ones(front, page):
    rows = pareto_rows(front.trials, [member.id for member in front.members])
    figures = linked_figures(rows, front.objectives)
    for i, figure in enumerate(figures, start=1):
        data = json.loads(re.search(rf'newPlot\("view{i}", (\[.*\]), \{{"annotations"', page)[1])
        assert [trace for trace in data if trace["name"] != "published"] == [
            trace for trace in json.loads(json.dumps(figure["data"])) if trace["name"] != "published"
        ]
    assert '"showSendToCloud": false' in page
    drawn = len(figures) + 1  # growth over trials; the fixture has no times, choices or last rung
    assert page.count("Plotly.newPlot(") == drawn + 1 + plotly_js().count("Plotly.newPlot(")


def test_page_shows_settings_and_results(page, architectures):
    text = Text(page).text
    for part in (
        "2 networks on the Pareto front",
        "3 networks evaluated",
        "1 stopped at a limit",
        "6.0 × 10¹⁸ networks in the space",
        "6,000,000,000,000,000,001",
        "20.0 ms limit of latency",
        "150 M limit of FLOPs",
        "held-out training images at 28x28",
        "onnxruntime, 1 thread, batch 1, at 32x32",
        "1.50 1.40 to 1.60",  # measured again
        "busy",
        "multiply-adds of convolutions and linear layers",
        "rate 0.1",
        "torch 2.13.0",
        architectures[0].digest,
        architectures[1].digest,
        "seed 3",
    ):
        assert part in text, part
    assert "password" not in page
    assert "secret" not in page


def test_layers_of_the_front_are_shown(page, architectures):
    text = Text(page).text
    assert text.count("as JSON") == 2
    assert f'"classes": {architectures[0].classes}' in text
    shuffles = sum(layer.block == "shuffle_v2" for layer in architectures[0].layers)
    assert f"{shuffles} shuffle_v2" in text


def test_growth_is_drawn_if_networks_have_all_values(front, page):
    assert "Growth of the front" in Text(page).text
    assert "Growth of the front" not in Text(report_html(changed(front, {"accuracy": None}))).text


def test_a_study_without_data_latency_and_front_has_a_report(front):
    recipe = {**SETTINGS["recipe"], "objectives": ["accuracy", "flops"]}
    no_latency = {name: None for name in front.trials[0] if name.startswith("latency")}
    bare = replace(changed(front, no_latency, data=None, limits={}, recipe=recipe), members=())
    text = Text(report_html(bare)).text
    assert "No network was found" in text
    assert "what the evaluator of this search gave" in text
    assert "Latency is" not in text
    assert "0 networks evaluated" in Text(report_html(replace(bare, trials=()))).text


def test_numbers_as_text():
    assert [significant(v) for v in (0.0012345, 9.999, 1234567.0)] == ["0.00123", "10.0", "1,234,567"]
    assert words({"a_b": [1, 2.5, None], "c": None, "d": {"e": True}}) == "a b 1, 2.5, None, d e yes"


def test_a_search_without_accuracy_shows_none(front, page):
    recipe = {**SETTINGS["recipe"], "objectives": ["latency", "flops"]}
    assert "ccuracy" not in Text(report_html(changed(front, {"accuracy": None}, recipe=recipe))).text
    assert "ccuracy is of" in Text(page).text


def test_the_sentence_on_the_predictor_is_the_recorded_one(front):
    judged = {"networks": 4, "median_error": 0.1, "error_90": 0.2, "tau": 1.0}
    assert "half within 10.0 %" in Text(report_html(replace(front, latency_predictor=judged))).text
    recorded = replace(front, latency_predictor={**judged, "sentence": "as recorded"})
    assert "prediction: as recorded." in Text(report_html(recorded)).text


def test_the_choices_of_hostile_spaces_stay_text(front):
    """Names of options, classes, and folders reach figures, tables, commands and attributes."""
    choices = [{"width": f"{EVIL}'\"\n{i}", f"stages.0.{EVIL}": i % 2} for i in range(4)]
    records = [TrialRecord("", one) for one in choices]
    trials = tuple({**row, RECORD: record} for row, record in zip(front.trials, records, strict=True))
    hostile = replace(front, trials=trials, folder=Path(f"reports/{EVIL}\n=cmd()"))
    page = report_html(hostile)
    assert "<script>alert" not in page
    assert Text(page).scripts == page.count("</script>")
    assert Text(page).loads == []
    assert "What the front prefers" in Text(page).text


def test_suggestions_have_reasons(front):
    rows = [
        {**row, "accuracy": 0.9 + 0.01 * i, "accuracy_expected": 0.9 + 0.01 * i, "latency_ms": 1.0 + i * i}
        for i, row in enumerate(front.trials[:3])
    ]
    members = [replace(front.members[0], id=row["id"], row=row, accuracy_ties=()) for row in rows]
    best = Text(report_html(replace(front, members=tuple(members), trials=tuple(rows)))).text
    assert "Recommended: trial 2 92.00%, 5.00 ms" in best
    assert " M FLOPs It is" in best.partition("Knee of the front")[0]
    assert "most accurate network of the front" in best
    assert "Knee of the front: trial 1" in best
    assert "trial 2, gains 1.00 points for 3.00 ms more of latency" in best
    members[2] = replace(members[2], accuracy_ties=(0,))
    tied = Text(report_html(replace(front, members=tuple(members), trials=tuple(rows)))).text
    assert "Recommended: trial 0" in tied
    assert "fastest of the 2 networks whose accuracies cannot be told from the best" in tied
    assert "Recommended" not in Text(report_html(front)).text  # its members have no expected accuracy


def test_networks_that_may_belong_to_the_front_have_a_table_and_a_note(front, page):
    interval = {"accuracy_expected": 0.9, "accuracy_low": 0.85, "accuracy_high": 0.94}
    believed = changed(front, interval, recipe={**SETTINGS["recipe"], "full": {"epochs": 25}})
    possible = replace(believed, may_belong={1: 0.34})
    text = Text(report_html(possible)).text
    assert "May also belong to the front" not in Text(page).text
    table = text.partition("May also belong to the front")[2].partition("Growth")[0]
    assert "1 34% 90.00% 85.00% to 94.00% 2.00 1.90 to 2.20" in table
    assert "on the front after full training 34%" in text
    assert front_rows(possible)[1]["hover"].endswith("may be on the front after full training: 34%")
    many = replace(believed, may_belong=dict.fromkeys(range(25), 0.3))
    rows = [{**believed.trials[1], "id": number} for number in range(25)]
    assert "And 5 more in front.json." in Text(report_html(replace(many, trials=tuple(rows)))).text


def test_hover_texts_have_the_ties_of_the_table(front):
    first, second = front.members
    tied = replace(front, members=(replace(first, ties=(2,), accuracy_ties=(2, 7)), second))
    hovers = {row["id"]: row["hover"] for row in front_rows(tied)}
    assert hovers[0].endswith("<br>same accuracy: 2, 7<br>same latency: 2")
    assert "same" not in hovers[2]


def test_commands_run_the_search_again(front):
    recipe = {name: value for name, value in SETTINGS["recipe"].items() if name not in ("training", "fidelity")}
    front = changed(front, recipe=recipe)
    plain = provenance.search_command(front)
    limits = "--latency-target 20ms --flops-target 150000000"
    assert plain == f"nas search --space shuffle --recipe quick {limits} --data digits --seed 3"
    settings = {"trials": 8, "objectives": ["accuracy", "flops"], "threads": 2, "resolution": 32, "accuracy_of": "int8"}
    changed_recipe = changed(front, recipe={**recipe, **settings}, limits={"flash": 1024.0})
    assert shlex.split(provenance.search_command(changed_recipe))[6:] == [
        *("--flash-target", "1024B", "--trials", "8", "--objectives", "accuracy_int8,flops"),
        *("--data", "digits", "--threads", "2", "--resolution", "32", "--seed", "3"),
    ]
    # A flag is shown where it differs from the recipe's own value, not from the default.
    cluster = {"name": "cluster", "workers": 1, "skip_broken": True, "ray": "head:10001", "gpus": 0.5}
    command = provenance.search_command(changed(front, recipe={**recipe, **cluster}))
    for flag in ("--workers 1", "--skip-broken", "--ray head:10001", "--gpus 0.5"):
        assert flag in command
    learned = changed(front, belief={"learned_from": "earlier"})
    assert provenance.search_command(learned) == f"{plain} --learn-from earlier"
    mine = changed(front, recipe={**recipe, "name": "of-a-script"})
    assert provenance.search_command(mine) == ""
    assert all("search again" not in one.does for one in provenance.commands(mine))


def test_no_command_repeats_a_search_whose_space_or_recipe_it_cannot_name(front):
    recipe = {**SETTINGS["recipe"], "training": recipes.load("quick").as_written()["training"]}
    recipe["fidelity"] = {"resolution": 8, "epochs": 4, "share": 1.0}  # lowered to the deployment's
    front = changed(front, recipe=recipe, space={**SETTINGS["space"], "source": "my spaces/one.yaml"})
    assert shlex.split(provenance.search_command(front))[2:6] == ["--space", "my spaces/one.yaml", "--recipe", "quick"]
    without_file = changed(front, space={**SETTINGS["space"], "source": None})
    copied = changed(front, recipe={**recipe, "fidelity": {**recipe["fidelity"], "epochs": 5}})
    assert [provenance.search_command(one) for one in (without_file, copied)] == ["", ""]


def test_durations_are_those_recorded(front):
    start = datetime(2026, 1, 1)
    records = [
        TrialRecord("", {}, start + timedelta(minutes=i), start + timedelta(minutes=i + 1), seconds=30.0)
        for i in range(3)
    ]
    records[0] = replace(records[0], trainings=[{"steps": [[32, 2, 1.0]], "seconds": 600.0, "epochs": 2}])
    trials = tuple({**row, RECORD: record} for row, record in zip(front.trials, records, strict=False))
    assert provenance.durations(replace(front, trials=trials)) == {
        "search, from its first trial to its last": "3 min",
        "3 trainings of the search": "2 min",
        "1 further training": "10 min",
    }
