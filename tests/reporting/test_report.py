"""The report: one page, everything in it, nothing loaded, every text escaped."""

from __future__ import annotations

import random
from html.parser import HTMLParser

import pandas
import pytest

from nasspace.counting import cost
from nasspace.formatting import significant
from nasspace.reporting.page import POLICY, words
from nasspace.reporting.report import report_html
from nasspace.space.space import Space

EVIL = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def architectures():
    space = Space.load("shuffle", classes=10, resolution=32, channels=1)
    return [space.sample(random.Random(i)) for i in range(3)]


@pytest.fixture(scope="module")
def frames(architectures):
    """Three networks evaluated, one of them again rejected under another id; the first and the third are the front."""
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
                "latency_low_ms": 0.9 + i,
                "latency_high_ms": 1.2 + i,
                "latency_contended": i == 2,
                "flops": counted.flops,
                "params": counted.params,
                "memory_access": counted.memory_access,
                "seconds": 3.0,
                "reason": EVIL if i == 3 else "",
            }
        )
    trials = pandas.DataFrame(rows)
    front = trials[trials["id"].isin([0, 2])].drop(columns=["state", "reason"])
    again = {"latency_again_ms": [1.5, None], "latency_again_low_ms": [1.4, None], "latency_again_high_ms": [1.6, None]}
    return trials, front.assign(architecture=[architectures[0].to_json(), architectures[2].to_json()], **again)


def study(**changes) -> dict:
    return {
        "name": f"mine {EVIL}",
        "created": "2025-11-21T10:00:00+00:00",
        "space": {"name": "shuffle", "size": str(6 * 10**18 + 1), "description": EVIL, "document": {"secret": 1}},
        "data": {"name": EVIL, "classes": ["zero", EVIL], "train": 1200, "validation": 300},
        "recipe": {"name": "quick", "sampler": "gain", "training": {"rate": 0.1, "note": EVIL}, "seed": 3},
        "seed": 3,
        "limits": {"latency": 20.0, "flops": 150_000_000.0},
        "objectives": ["accuracy", "latency", "flops"],
        "runtime": "onnxruntime",
        "threads": 1,
        "batch_size": 1,
        "resolution": 32,
        "fidelity": {"resolution": 28, "epochs": 10, "share": 1.0},
        "machine": {"processor": f"CPU {EVIL}", "cores": 2},
        "versions": {"torch": "2.13.0"},
        "storage": "postgresql://me:password@host/db",
        **changes,
    }


class Text(HTMLParser):
    """The text of a page outside of scripts and styles, in one line; what it loads; how many scripts it has."""

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
def page(frames):
    return report_html(study(), *frames)


def test_page_loads_nothing_and_says_so_to_the_browser(page):
    assert Text(page).loads == []
    assert POLICY in page
    assert "http" not in POLICY


def test_every_text_is_escaped(page):
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(") >= 8
    assert Text(page).scripts == page.count("</script>")


def test_page_tells_what_was_asked_and_found(page, frames, architectures):
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
    assert "Progress" not in text


def test_layers_of_the_front_are_shown(page, architectures):
    text = Text(page).text
    assert text.count("as JSON") == 2
    assert f'"classes": {architectures[0].classes}' in text
    shuffles = sum(layer.block == "shuffle_v2" for layer in architectures[0].layers)
    assert f"{shuffles} shuffle_v2" in text


def test_progress_is_drawn_where_its_column_is(frames):
    trials, front = frames
    page = report_html(study(), trials.assign(hypervolume=[0.1, 0.2, 0.2, None]), front)
    assert "Progress" in Text(page).text


def test_little_is_enough(frames):
    """An evaluator's study: no data, no latency, an empty front."""
    trials, front = frames
    bare = {"name": "bare", "data": None, "limits": {}, "objectives": ["accuracy", "flops"]}
    nothing = trials.assign(**{c: None for c in trials if c.startswith("latency")})
    text = Text(report_html(bare, nothing, front.head(0))).text
    assert "No network was found" in text
    assert "what the evaluator of this search gave" in text
    assert "Latency is" not in text
    empty = pandas.DataFrame(columns=trials.columns)
    assert "0 networks evaluated" in Text(report_html(bare, empty, front.head(0))).text


def test_numbers_in_words():
    assert [significant(v) for v in (0.0012345, 9.999, 1234567.0)] == ["0.00123", "10.0", "1,234,567"]
    assert words({"a_b": [1, 2.5, None], "c": None, "d": {"e": True}}) == "a b 1, 2.5, None, d e yes"


def test_a_search_without_accuracy_shows_none(frames):
    trials, front = (frame.assign(accuracy=None) for frame in frames)
    page = Text(report_html(study(objectives=["latency", "flops"]), trials, front))
    assert "ccuracy" not in page.text
    assert "ccuracy is of" in Text(report_html(study(), *frames)).text


def test_the_sentence_on_the_predictor_is_the_recorded_one(frames):
    judged = {"networks": 4, "median_error": 0.1, "error_90": 0.2, "tau": 1.0}
    assert "half within 10.0 %" in Text(report_html(study(latency_predictor=judged), *frames)).text
    recorded = study(latency_predictor={**judged, "sentence": "as recorded"})
    assert "prediction: as recorded." in Text(report_html(recorded, *frames)).text
