"""What the trials seen so far say of networks not yet tried: features of choices, and a Gaussian process on them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from nasspace.architecture import Architecture

SCALARS = ("depth", "width", "resolution", "out")  # numbers that say how large a network is
PLACE = re.compile(r"(?<![^.])\d+(?![^.])|\d+$")  # the stage and the layer in a choice's name
LINEAR, WEIGHT, SMOOTH = (1.0, 0.3, 0.2, 0.2), 1.0, 0.5  # prior modes of a, w and s
SPREAD = 1.0  # of the priors on their logarithms
MOST, ENOUGH = 1000, 200  # observations that are used, the latest; and of them to fit the parameters on


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


class Parameters(NamedTuple):
    """Of the kernel: weights of the linear parts and of the distances, a group each; of the smooth part; noise."""

    a: np.ndarray
    w: np.ndarray
    s: float
    noise: float


class GaussianProcess:
    """A Gaussian process whose kernel is a sum over groups of features, fitted by its posterior mode.

    k(x, x') = 1/2 + sum_g a_g x_g.x'_g + s Matern52(sum_g w_g |x_g - x'_g|^2), plus noise, on standardised values.
    The logarithms of a, w, s and the noise have normal priors, so that a handful of observations is enough to start.
    """

    def __init__(self, groups: Sequence[np.ndarray], values: np.ndarray, noise: float = 0.05, spread: float = 1e-6):
        """`values` of shape (observations,); prior guesses: `noise`'s share of their variance, their least `spread`."""
        self.groups = [group[-MOST:] for group in groups]
        values = values[-MOST:]
        self.mean, self.scale = float(values.mean()), max(float(values.std()), spread)
        target = (values - self.mean) / self.scale
        some = np.linspace(0, len(values) - 1, min(len(values), ENOUGH)).astype(int)
        self.parameters = _mode([group[some] for group in self.groups], target[some], noise)
        kernel, _, _ = _kernel(self.parameters, *_compared(self.groups, self.groups))
        self.root = np.linalg.cholesky(kernel + self.parameters.noise * np.eye(len(values)))
        self.weights = _solve(self.root, target)

    def predict(self, groups: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, without the noise of a measurement, each of shape (architectures,)."""
        from scipy.linalg import solve_triangular

        a, _, s, _ = self.parameters
        kernel, _, _ = _kernel(self.parameters, *_compared(groups, self.groups))
        own = 0.5 + sum(share * (group**2).sum(axis=1) for share, group in zip(a, groups, strict=True)) + s
        left = solve_triangular(self.root, kernel.T, lower=True)
        variance = np.maximum(own - (left**2).sum(axis=0), 1e-10)
        return self.mean + self.scale * (kernel @ self.weights), self.scale * np.sqrt(variance)

    @property
    def noise_deviation(self) -> float:
        """The standard deviation of a measurement's noise, in the units of the values."""
        return self.scale * math.sqrt(self.parameters.noise)


def _mode(groups: Sequence[np.ndarray], target: np.ndarray, noise: float) -> Parameters:
    """The most probable parameters."""
    from scipy.optimize import minimize

    prior = np.log([*LINEAR[: len(groups)], *[WEIGHT] * len(groups), SMOOTH, noise])
    given = (prior, *_compared(groups, groups), target)
    bounds = [(mode - 6 * SPREAD, mode + 6 * SPREAD) for mode in prior]
    found = minimize(_loss, prior, given, "L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": 50})
    return _parameters(found.x)


def _parameters(logs: np.ndarray) -> Parameters:
    values, count = np.exp(logs), len(logs) // 2 - 1
    return Parameters(values[:count], values[count : 2 * count], float(values[-2]), float(values[-1]))


def _kernel(
    parameters: Parameters, products: np.ndarray, distances: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The kernel, its smooth part over s, and the smooth part's derivative by the squared distance, over s."""
    a, w, s, _ = parameters
    r = np.sqrt(5 * np.maximum(np.tensordot(w, distances, 1), 1e-12))
    smooth, slope = (1 + r + r**2 / 3) * np.exp(-r), -5 / 6 * (1 + r) * np.exp(-r)
    return 0.5 + np.tensordot(a, products, 1) + s * smooth, smooth, slope


def _loss(
    logs: np.ndarray, prior: np.ndarray, products: np.ndarray, distances: np.ndarray, target: np.ndarray
) -> tuple[float, np.ndarray]:
    """The negative log posterior and its gradient (Rasmussen and Williams 2006, eq. 5.8 and 5.9)."""
    parameters = _parameters(logs)
    a, w, s, noise = parameters
    kernel, smooth, slope = _kernel(parameters, products, distances)
    identity = np.eye(len(target))
    root = np.linalg.cholesky(kernel + noise * identity)
    weights = _solve(root, target)
    outer = 0.5 * (_solve(root, identity) - np.outer(weights, weights))
    by_a, by_w = a * np.tensordot(products, outer, 2), w * np.tensordot(distances, outer * s * slope, 2)
    gradient = np.concatenate([by_a, by_w, [s * (outer * smooth).sum(), noise * np.trace(outer)]])
    off = (logs - prior) / SPREAD**2
    loss = 0.5 * target @ weights + np.log(np.diag(root)).sum() + 0.5 * off @ (logs - prior)
    return loss, gradient + off


def _compared(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Inner products and squared distances of rows, each of shape (groups, left rows, right rows)."""
    products = np.array([one @ other.T for one, other in zip(left, right, strict=True)])
    squares = [[(group**2).sum(axis=1) for group in side] for side in (left, right)]
    sums = np.array([one[:, None] + other for one, other in zip(*squares, strict=True)])
    return products, np.maximum(sums - 2 * products, 0)


def _solve(root: np.ndarray, right: np.ndarray) -> np.ndarray:
    from scipy.linalg import cho_solve

    return cho_solve((root, True), right)
