"""Figures of a search: growth of the front, parallel coordinates, importance, agreement."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import plotly.graph_objects as go
import pytest

from nasspace.reporting.plot_data import pareto_rows
from nasspace.reporting.search_plots import (
    MOST_AXES,
    MOST_IMPORTANT,
    NOT_REACHED,
    Agreement,
    agreement_figure,
    agreement_sentence,
    choices_figure,
    growth,
    growth_figures,
    importance_figure,
)
from nasspace.studies.trial_table import RECORD, TrialRecord

START = datetime(2026, 1, 1)
HOSTILE = "<b>'\n=cmd()"


def trial(number: int, accuracy: float | None, latency: float, choices: dict | None = None, **columns) -> dict:
    """An evaluated trial, which ends a minute after the one before."""
    ended = START + timedelta(minutes=number + 1)
    record = TrialRecord("", choices or {}, started=START + timedelta(minutes=number), finished=ended)
    values = {"accuracy": accuracy, "latency_ms": latency, "flops": 1e6 * latency, "reason": ""}
    return {"id": number, "digest": "0" * 12, "state": "evaluated", **values, RECORD: record, **columns}


def test_the_front_grows_to_its_hypervolume():
    """By hand: in units of the range with a tenth more, boxes 1 x 1 of the ends, and 1.1 x 1.1 in all."""
    found = growth([trial(0, 0.8, 1.0), trial(1, 0.9, 2.0), trial(2, 0.8, 2.0)], ["accuracy", "latency"])
    ends = 1.1 * 0.1 + 1.1 * 0.1 - 0.1 * 0.1
    assert found.shares == pytest.approx((1.1 * 0.1 / 1.21, ends / 1.21, ends / 1.21))
    assert found.trials == (0, 1, 2)
    assert found.seconds == (60, 120, 180)


def test_growth_in_time_is_in_the_order_in_which_workers_finished():
    late = trial(0, 0.9, 2.0)
    late[RECORD] = replace(late[RECORD], finished=START + timedelta(minutes=9))
    found = growth([late, trial(1, 0.8, 1.0)], ["accuracy", "latency"])
    assert found.seconds == (120, 540)
    assert found.shares_in_time == pytest.approx((found.shares[0], found.shares[1]))
    assert list(found.seconds) == sorted(found.seconds)
    assert list(found.shares_in_time) == sorted(found.shares_in_time)


def test_growth_counts_networks_within_the_limits_with_all_values():
    rejected = {**trial(3, None, 9.0), "state": "rejected"}
    over = trial(4, 0.99, 9.0, reason="latency 9 ms is over the limit")
    found = growth(
        [trial(0, 0.8, 1.0), trial(1, None, 1.0), rejected, over, trial(5, 0.9, 2.0)], ["accuracy", "latency"]
    )
    assert found.trials == (0, 5)
    assert growth([trial(0, 0.8, 1.0), rejected], ["accuracy", "latency"]) is None
    assert growth([], ["accuracy"]) is None


def test_growth_takes_the_expected_accuracies_else_those_of_the_search():
    believed = {"accuracy_low": 0.5, "accuracy_expected": 0.7}
    trials = [trial(0, 0.9, 1.0, **believed), trial(1, 0.9, 2.0, **{**believed, "accuracy_expected": 0.8})]
    assert growth(trials, ["accuracy", "latency"]).shares[1] > growth(trials, ["accuracy", "latency"]).shares[0]
    searched = [trial(0, 0.9, 1.0, search_accuracy=0.5), trial(1, None, 2.0, search_accuracy=0.5)]
    assert growth(searched, ["accuracy"]).shares == pytest.approx((1, 1))


def test_growth_is_drawn_over_trials_and_time():
    first, second = map(go.Figure, growth_figures(growth([trial(0, 0.8, 1.0), trial(1, 0.9, 2.0)], ["accuracy"])))
    assert list(first.data[0].x) == [0, 1]
    assert list(second.data[0].x) == [60, 120]
    untimed = [{**one, RECORD: None} for one in (trial(0, 0.8, 1.0), trial(1, 0.9, 2.0))]
    assert len(growth_figures(growth(untimed, ["accuracy"]))) == 1


def test_a_line_passes_the_options_of_its_network():
    trials = [trial(0, 0.8, 1.0, {"a": 3, "b": HOSTILE}), trial(1, 0.9, 2.0, {"a": 5}), trial(2, 0.7, 3.0, {"a": 4})]
    figure = choices_figure(pareto_rows(trials, [1]), trials, ["a", "b"])
    drawn = go.Figure(figure)
    lines = {trace.name: trace for trace in drawn.data}
    assert list(lines["front"].ids) == ["1"] * 5 + [""]
    a, b, accuracy, latency, flops, gap = lines["front"].y
    assert (a, b) == pytest.approx((1, NOT_REACHED), abs=0.03)
    assert (accuracy, latency, flops, gap) == (1, 0.5, 0.5, None)
    assert len(lines["evaluated"].x) == 12
    texts = [note.text for note in drawn.layout.annotations]
    assert any(text.startswith("&lt;b&gt;") for text in texts)
    assert not any("<b>" in text for text in texts)


def test_only_the_first_choices_are_axes():
    names = [f"stages.0.{i}.kernel" for i in range(MOST_AXES + 4)]
    trials = [trial(i, 0.8, 1.0 + i, dict.fromkeys(names, i)) for i in range(3)]
    figure = choices_figure(pareto_rows(trials, []), trials, names)
    assert len(figure["layout"]["shapes"]) == MOST_AXES + 3  # and the three figures
    assert choices_figure(pareto_rows(trials, []), trials, []) is None
    assert choices_figure([], [], names) is None


def test_importances_are_bars_the_largest_at_the_top():
    figure = go.Figure(importance_figure({f"stages.{i}.depth": 1 / (i + 1) for i in range(20)}))
    assert len(figure.data[0].x) == MOST_IMPORTANT
    assert figure.data[0].y[-1] == "stage 1 depth"


def test_agreement():
    pairs = ((0.5, 0.8), (0.6, 0.7), (0.7, 0.9))
    one = Agreement("accuracy", "first", "later", (4, 5, 6), pairs, ((0.7, 0.9), (0.6, 0.8), (0.8, 1.0)))
    figure = go.Figure(agreement_figure(one))
    assert list(figure.data[0].x) == [0.5, 0.6, 0.7]
    assert list(figure.data[0].error_y.array) == pytest.approx([0.1] * 3)
    assert figure.layout.xaxis.range == figure.layout.yaxis.range
    sentence = agreement_sentence(one)
    assert "Accuracy of 3 networks changed by +20.0 points on average" in sentence
    assert "of 3 pairs of networks that differ in both, 2 kept their order" in sentence
    single = Agreement("latency", "first", "later", (1,), ((2.0, 2.2),))
    assert agreement_sentence(single) == "Latency of 1 network changed by 0.200 ms (10.0%) in the middle case."
    go.Figure(agreement_figure(single))
