"""An architecture as numbers: cheap figures, sizes, and the options chosen, in groups from coarse to fine."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from nasspace.architecture import Architecture

SCALARS = ("depth", "width", "resolution", "out")  # numbers that say how large a network is
PLACE = re.compile(r"(?<![^.])\d+(?![^.])|\d+$")  # the stage and the layer in a choice's name


class Features:
    """An architecture as numbers, in four groups from coarse to fine: known figures, sizes, counts, every option.

    `options` is every choice of the space with its options, `known` the figures that are cheap (FLOPs, ...),
    `sample` some architectures that set the scales. All is memoised by digest until `forget`.
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
        self._of_sample = (dict(self._figures), dict(self._rows))

    def forget(self) -> None:
        """Forget all but the sample: a proposal meets some hundred architectures that never come again."""
        self._figures, self._rows = map(dict, self._of_sample)

    def figures(self, architecture: Architecture) -> dict[str, float]:
        """The known figures of an architecture, by name."""
        if architecture.digest not in self._figures:
            figures = {name: float(figure(architecture)) for name, figure in self.known.items()}
            self._figures[architecture.digest] = figures
        return self._figures[architecture.digest]

    def groups(self, architectures: Sequence[Architecture]) -> list[np.ndarray]:
        """One array (architectures, columns) a group; random networks have a mean squared distance of 1 in each."""
        blocks = self._blocks(architectures)
        return [(block - mean) * factor for block, (mean, factor) in zip(blocks, self.scales, strict=True)]

    def _blocks(self, architectures: Sequence[Architecture]) -> list[np.ndarray]:
        rows = [self._row(architecture) for architecture in architectures]
        figures, sizes = (np.array(part, float) for part in zip(*((row[0], row[1]) for row in rows), strict=True))
        chosen = np.array([positions for *_, positions in rows], int)
        coded = [code[column] for code, column in zip(self.codes, chosen.T, strict=True)]
        places = np.hstack([np.zeros((len(rows), 0)), *coded])
        return [figures, sizes, places @ self.families, places]

    def _row(self, architecture: Architecture) -> tuple[list[float], list[float], list[int]]:
        """Figures, sizes, and the position of each choice's option; one past the last where it is not reached."""
        if architecture.digest not in self._rows:
            choices = architecture.choices
            figures = [math.log(max(figure, 1e-9)) for figure in self.figures(architecture).values()]
            sizes = [float(choices.get(name, 0)) for name in self.scalars]
            options = zip(self.names, self.positions, strict=True)
            positions = [at.get(choices[name], len(at)) if name in choices else len(at) for name, at in options]
            self._rows[architecture.digest] = (figures, sizes, positions)
        return self._rows[architecture.digest]


def _code(name: str, values: Sequence[Any]) -> np.ndarray:
    """A row an option: a 1 in its own column, for numbers their rank from 0 to 1 beside it; a last row of zeros.

    Blocks are numbered by their position, which says nothing of their order.
    """
    code = np.eye(len(values) + 1, len(values))
    if name.endswith("block") or len(values) < 3 or not _numeric(values):
        return code
    rank = np.argsort(np.argsort(values)) / (len(values) - 1)
    return np.column_stack([code, np.append(rank, 0)])


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _families(options: Mapping[str, Sequence[Any]], codes: Sequence[np.ndarray]) -> np.ndarray:
    """What adds up the columns of choices that differ in their place only: in one stage, in the whole network."""
    families: dict[tuple, list[int]] = {}
    for i, (name, values) in enumerate(options.items()):
        places = list(PLACE.finditer(name))
        stage = name[: places[-1].start()] + "#" + name[places[-1].end() :] if places else name
        for family in sorted({stage, PLACE.sub("#", name)}):
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
    """Mean and factor of the columns: `each` column to one spread, or all by one factor (options of a choice)."""
    spread = block.std(axis=0)
    varied = spread > 1e-9
    if each:
        factor = np.where(varied, 1 / np.where(varied, spread, 1), 0) / np.sqrt(max(2 * varied.sum(), 1))
    else:
        factor = np.full(len(spread), 1 / np.sqrt(max(2 * (spread**2).sum(), 1e-9)))
    return block.mean(axis=0), factor
