"""The empirical distribution functions of error of a comparison, as its page and its figure draw them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nasspace.studies.comparison import Comparison

MARGIN = 0.04  # of the range of errors, on both sides of a figure


@dataclass(frozen=True)
class Look:
    """Color, dash and symbol of a group."""

    color: str
    dash: str
    symbol: str


# After Okabe and Ito's palette for color-blind readers.
COLORS = ("#2E86C8", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#7A6FBE")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x")


@dataclass(frozen=True)
class Curve:
    """A distribution function: from each error in percent on, the share of networks, and the ends of its band."""

    name: str
    errors: list[float]
    share: list[float]
    low: list[float]
    high: list[float]


def looks() -> Iterable[Look]:
    """The look of each group; a seventh looks like the first."""
    return itertools.cycle(itertools.starmap(Look, zip(COLORS, DASHES, SYMBOLS, strict=True)))


def curves(comparison: Comparison) -> list[Curve]:
    """The distribution function of each group, over the same range of errors."""
    errors = np.concatenate([group.errors for group in comparison.groups]) * 100
    margin = MARGIN * (errors.max() - errors.min()) or 1.0
    ends = float(errors.min() - margin), float(errors.max() + margin)
    found = []
    for group in comparison.groups:
        steps = np.unique(100 * group.errors)
        share = np.searchsorted(np.sort(100 * group.errors), steps, "right") / len(group.errors)
        y, half = np.array([0.0, *share, 1.0]), comparison.bands[group.name]
        band = np.maximum(y - half, 0).tolist(), np.minimum(y + half, 1).tolist()
        found.append(Curve(group.name, [ends[0], *steps.tolist(), ends[1]], y.tolist(), *band))
    return found
