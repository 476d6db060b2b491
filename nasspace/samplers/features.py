"""Numeric features of architectures for the Gaussian process, in groups from coarse to fine."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from nasspace.architecture import Architecture

SCALARS = ("depth", "width", "resolution", "out")  # choices that set the size of a network
POSITION = re.compile(r"(?<![^.])\d+(?![^.])|\d+$")  # the stage and the layer in a choice's name


class Features:
    """Four groups of features: known figures, sizes, counts of options, and every choice's option.

    `options` has every choice of the space with its options, `known` functions that compute figures (FLOPs, ...),
    `sample` architectures that set the scales. Results are memoized by digest until `forget`.
    """

    def __init__(
        self,
        options: Mapping[str, Sequence[Any]],
        known: Mapping[str, Callable[[Architecture], float]],
        sample: Sequence[Architecture],
    ):
        self.known = dict(known)
        self.sample = sample
        self.names = list(options)
        self.positions = [{option: i for i, option in enumerate(values)} for values in options.values()]
        self.codes = [_code(name, values) for name, values in options.items()]
        self.families = _families(options, self.codes)
        self.scalars = [name for name in options if name.rpartition(".")[2] in SCALARS and _numeric(options[name])]
        self._figures: dict[str, dict[str, float]] = {}
        self._rows: dict[str, tuple[list[float], list[float], list[int]]] = {}
        self.scales = [_scale(block, each=i < 3) for i, block in enumerate(self._blocks(sample))]
        self._sample_memo = (dict(self._figures), dict(self._rows))

    def forget(self, kept: Iterable[str] = ()) -> None:
        """Drop all results but the sample's and those of the digests `kept`: most candidates never occur again."""
        figures, rows = self._sample_memo
        kept = list(kept)
        self._figures = {**figures, **{digest: self._figures[digest] for digest in kept if digest in self._figures}}
        self._rows = {**rows, **{digest: self._rows[digest] for digest in kept if digest in self._rows}}

    def figures(self, architecture: Architecture) -> dict[str, float]:
        """The known figures of an architecture, by name."""
        if architecture.digest not in self._figures:
            figures = {name: float(figure(architecture)) for name, figure in self.known.items()}
            self._figures[architecture.digest] = figures
        return self._figures[architecture.digest]

    def groups(self, architectures: Sequence[Architecture]) -> list[np.ndarray]:
        """One array (architectures, columns) per group, scaled to a mean squared distance of 1 in the sample."""
        blocks = self._blocks(architectures)
        return [(block - mean) * factor for block, (mean, factor) in zip(blocks, self.scales, strict=True)]

    def _blocks(self, architectures: Sequence[Architecture]) -> list[np.ndarray]:
        """The groups before scaling."""
        rows = [self._row(architecture) for architecture in architectures]
        figures, sizes = (np.array(part, float) for part in zip(*((row[0], row[1]) for row in rows), strict=True))
        chosen = np.array([positions for *_, positions in rows], int)
        coded = [code[column] for code, column in zip(self.codes, chosen.T, strict=True)]
        options = np.hstack([np.zeros((len(rows), 0)), *coded])
        return [figures, sizes, options @ self.families, options]

    def _row(self, architecture: Architecture) -> tuple[list[float], list[float], list[int]]:
        """Figures, sizes, and the index of each choice's option; one past the last for choices not reached."""
        if architecture.digest not in self._rows:
            choices = architecture.choices or {}
            figures = [math.log(max(figure, 1e-9)) for figure in self.figures(architecture).values()]
            sizes = [float(choices.get(name, 0)) for name in self.scalars]
            options = zip(self.names, self.positions, strict=True)
            positions = [at.get(choices[name], len(at)) if name in choices else len(at) for name, at in options]
            self._rows[architecture.digest] = (figures, sizes, positions)
        return self._rows[architecture.digest]


def _code(name: str, values: Sequence[Any]) -> np.ndarray:
    """One-hot rows for the options of a choice, and a last row of zeros for choices not reached.

    Numeric options get another column, their rank from 0 to 1. Blocks do not: their numbers are no order.
    """
    code = np.eye(len(values) + 1, len(values))
    if name.endswith("block") or len(values) < 3 or not _numeric(values):
        return code
    rank = np.argsort(np.argsort(values)) / (len(values) - 1)
    return np.column_stack([code, np.append(rank, 0)])


def _numeric(values: Sequence[Any]) -> bool:
    """Whether all options are numbers."""
    return all(isinstance(value, int | float) for value in values)


def _families(options: Mapping[str, Sequence[Any]], codes: Sequence[np.ndarray]) -> np.ndarray:
    """A matrix that sums the columns of choices that differ in position only: over a stage, over the network."""
    families: dict[tuple[Any, ...], list[int]] = {}
    for i, (name, values) in enumerate(options.items()):
        positions = list(POSITION.finditer(name))
        stage = name[: positions[-1].start()] + "#" + name[positions[-1].end() :] if positions else name
        for family in sorted({stage, POSITION.sub("#", name)}):
            families.setdefault((family, tuple(values)), []).append(i)
    starts = np.cumsum([0, *(code.shape[1] for code in codes)])
    sums = [np.zeros((starts[-1], 0))]
    for members in families.values():
        if len(members) > 1:
            sums.append(np.zeros((starts[-1], codes[members[0]].shape[1])))
            for i in members:
                sums[-1][starts[i] : starts[i + 1]] = np.eye(codes[i].shape[1])
    return np.hstack(sums)


def _scale(block: np.ndarray, each: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and factor of the columns: `each` column scaled to the same spread, or all columns by one factor."""
    spread = block.std(axis=0)
    varied = spread > 1e-9
    if each:
        factor = np.where(varied, 1 / np.where(varied, spread, 1), 0) / np.sqrt(max(2 * varied.sum(), 1))
    else:
        factor = np.full(len(spread), 1 / np.sqrt(max(2 * (spread**2).sum(), 1e-9)))
    return block.mean(axis=0), factor
