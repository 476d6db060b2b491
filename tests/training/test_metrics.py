"""Scores of predictions, against scikit-learn and scipy."""

from __future__ import annotations

import csv

import pytest
import torch
from scipy.stats import binomtest
from sklearn import metrics as sklearn

from nasspace.training.metrics import confusion_csv, scores, wilson


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("kind", ["usual", "a class without images", "a class never predicted", "one class", "perfect"])
def test_scores_are_those_of_scikit_learn(kind):
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(5, (300,), generator=generator)
    predicted = torch.where(torch.rand(300, generator=generator) < 0.7, labels, labels.roll(1))
    if kind == "a class without images":
        labels[labels == 2] = 3
    elif kind == "a class never predicted":
        predicted[predicted == 4] = 0
    elif kind == "one class":
        labels[:] = 1
    elif kind == "perfect":
        predicted = labels
    found = scores(predicted, labels, 5)
    assert found.accuracy == pytest.approx(sklearn.accuracy_score(labels, predicted))
    assert found.balanced_accuracy == pytest.approx(sklearn.balanced_accuracy_score(labels, predicted))
    assert found.macro_f1 == pytest.approx(sklearn.f1_score(labels, predicted, average="macro"))
    assert [list(row) for row in found.confusion] == sklearn.confusion_matrix(
        labels, predicted, labels=range(5)
    ).tolist()


@pytest.mark.parametrize(("right", "count"), [(0, 7), (7, 7), (93, 100), (1, 3), (9_999, 10_000)])
def test_the_interval_is_wilson_s(right, count):
    expected = binomtest(right, count).proportion_ci(0.95, "wilson")
    assert wilson(right, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_class_is_a_formula_in_a_spreadsheet():
    rows = list(csv.reader(confusion_csv(((5, 1), (0, 7)), ("=cmd()", "-")).splitlines()))
    assert (rows[0][1:], rows[1][0], rows[2][0]) == (["'=cmd()", "-"], "'=cmd()", "-")


def test_the_csv_names_rows_and_columns():
    text = confusion_csv(((5, 1), (0, 7)), ("a, b", "c"))
    assert list(csv.reader(text.splitlines())) == [
        ["true \\ predicted", "a, b", "c"],
        ["a, b", "5", "1"],
        ["c", "0", "7"],
    ]
