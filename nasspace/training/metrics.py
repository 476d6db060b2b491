"""Metrics of predictions: accuracy with its interval, balanced accuracy, macro F1, confusion matrix."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nasspace.formatting import csv_cell

NORMAL_95 = 1.959963984540054  # the 97.5 % point of the normal distribution


@dataclass(frozen=True)
class Scores:
    """Accuracy with its 95 % interval (Wilson), mean recall and mean F1 as fractions; the confusion matrix.

    `confusion` has counts [classes, classes]; rows are true classes, columns predicted ones.
    """

    accuracy: float
    low: float
    high: float
    balanced_accuracy: float
    macro_f1: float
    confusion: tuple[tuple[int, ...], ...]


def scores(predicted: Tensor, labels: Tensor, classes: int) -> Scores:
    """The scores of predictions; `predicted` and `labels` are int64 [N].

    Balanced accuracy is the mean recall over the classes that occur in the labels, macro F1 the mean F1 over the
    classes that occur in labels or predictions, as in scikit-learn.
    """
    matrix = confusion(predicted, labels, classes)
    correct, actual, claimed = matrix.diagonal().double(), matrix.sum(1).double(), matrix.sum(0).double()
    low, high = wilson(int(correct.sum()), len(labels))
    return Scores(
        accuracy=float(correct.sum()) / len(labels),
        low=low,
        high=high,
        balanced_accuracy=float((correct / actual)[actual > 0].mean()),
        macro_f1=float((2 * correct / (actual + claimed))[actual + claimed > 0].mean()),
        confusion=tuple(map(tuple, matrix.tolist())),
    )


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Counts, int64 [classes, classes]: rows are true classes, columns predicted ones."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def wilson(correct: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of the fraction `correct` / `count` (Wilson 1927)."""
    share, square = correct / count, NORMAL_95**2 / count
    middle = share + square / 2
    half = NORMAL_95 * math.sqrt((share * (1 - share) + square / 4) / count)
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


def confusion_csv(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """The confusion matrix as CSV; the first column has the true classes, the header the predicted ones."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [csv_cell(name) for name in classes]
    writer.writerow(["true \\ predicted", *names])
    writer.writerows([name, *row] for name, row in zip(names, matrix, strict=True))
    return text.getvalue()
