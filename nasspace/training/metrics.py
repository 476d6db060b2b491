"""What predictions are worth: accuracy with its interval, balanced accuracy, macro F1, confusion matrix."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NORMAL_95 = 1.959963984540054  # the 97.5 % point of the normal distribution


@dataclass(frozen=True)
class Scores:
    """Fractions on some images: accuracy, its 95 % interval (Wilson), mean recall, mean F1; the confusion matrix.

    `confusion` is counts [classes, classes], a row a true class, a column a predicted one.
    """

    accuracy: float
    low: float
    high: float
    balanced_accuracy: float
    macro_f1: float
    confusion: tuple[tuple[int, ...], ...]


def scores(predicted: Tensor, labels: Tensor, classes: int) -> Scores:
    """The scores of predictions, int64 [N] as `labels`.

    Balanced accuracy is the mean recall of the classes that occur among the labels, macro F1 the mean F1 of the
    classes that occur among labels or predictions, as in scikit-learn.
    """
    matrix = confusion(predicted, labels, classes)
    right, actual, said = matrix.diagonal().double(), matrix.sum(1).double(), matrix.sum(0).double()
    low, high = wilson(int(right.sum()), len(labels))
    return Scores(
        accuracy=float(right.sum()) / len(labels),
        low=low,
        high=high,
        balanced_accuracy=float((right / actual)[actual > 0].mean()),
        macro_f1=float((2 * right / (actual + said))[actual + said > 0].mean()),
        confusion=tuple(map(tuple, matrix.tolist())),
    )


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Counts, int64 [classes, classes]: a row a true class, a column a predicted one."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of a fraction, `right` of `count` (Wilson 1927)."""
    share, square = right / count, NORMAL_95**2 / count
    middle = share + square / 2
    half = NORMAL_95 * math.sqrt((share * (1 - share) + square / 4) / count)
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


def confusion_csv(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """The matrix as CSV; the first column names the true class, the head the predicted ones."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["true \\ predicted", *classes])
    writer.writerows([name, *row] for name, row in zip(classes, matrix, strict=True))
    return text.getvalue()
