"""What short trainings say of a network's accuracy after full training: a normal model on the scale of log odds.

Networks of one study are looked at with several training budgets. The accuracy that a look finds differs from that of
the full training, on new images, for these reasons, and the model has a term for each:

- the training is shorter: the log odds rise by about the same amount with each doubling of the training, for all
  networks of a study (`gain`), with a deviation for each budget (`gap`) and each network (`drift`). Below
  `EARLY_STEPS` steps of the optimizer they rise faster, and how much faster differs between sets (`early_gain`);
- it started from one seed (`seed`);
- it was judged on a sample of images. The share `shared` of this variance is common to all looks, since the images
  are the same; the rest differs between trainings even of one network.

A network may also have been judged with weights that all networks share. Such accuracies are far below those of own
trainings, so only their differences say something: standardized, they are a measurement that has the correlation
`inherited` with the differences between networks of equal counts, at an unknown level.

Accuracies after full training vary about a linear function of the logarithms of FLOPs and activations, which rank
networks before any training. All terms are normal, so the belief is a linear regression with correlated errors, solved
at once. It pulls a network whose single look was lucky towards that function, so the best of many is not flattered (the
winner's curse; Efron 2011, "Tweedie's formula and selection bias").

The default `Prior` was chosen to agree with the trainings in `reports/benchmarks/fidelities`, of which it is close to
the most probable; `benchmarks/belief.py` measures how often the intervals hold. NumPy alone solves the systems, since
every table of a front needs them, and the import of SciPy would take longer.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

NORMAL_95 = 1.959963984540054  # the 97.5 % point of the normal distribution
SPREADS = (0.03, 0.05, 0.08, 0.12, 0.18, 0.27, 0.4)  # candidate deviations of networks of equal counts
MAX_FITTED = 300  # looks that the spread is fitted to
LEAST_GAIN_SD = 0.02  # that a learned prior has: another search trains other networks
TINY = 1e-9  # variance in log odds
EARLY_STEPS = 128  # steps up to which a training learns fast: on digits to 90 steps, on clothing10 below 130
UNKNOWN_SD = 100.0  # in log odds, of the level of accuracies with shared weights: it says nothing
MIN_LOOKS = 4  # looks of one budget whose log losses can be compared


@dataclass(frozen=True)
class Prior:
    """What is expected before a study's own trainings; all in log odds, deviations are standard deviations."""

    level: float = 1.5  # a network of average counts after full training
    level_sd: float = 3.0
    slope: float = 0.03  # per doubling of FLOPs
    slope_sd: float = 0.03
    activation_slope: float = 0.06  # per doubling of activations
    activation_slope_sd: float = 0.05
    spread: float = 0.12  # of networks of equal counts: the median of what is expected
    spread_factor: float = 2.0  # by which the spread may be larger or smaller (one deviation)
    gain: float = 0.25  # per doubling of the training
    gain_sd: float = 0.09
    early_gain: float = 0.9  # in addition, per doubling of the steps up to `EARLY_STEPS`
    early_gain_sd: float = 0.6
    early_drift_sd: float = 0.3  # of a network, per doubling of the steps up to `EARLY_STEPS`
    gap_sd: float = 0.07  # of a budget
    drift_sd: float = 0.025  # of a network, per doubling of the training
    seed_sd: float = 0.04
    shared: float = 0.6  # share of the sampling variance that is common to all trainings
    inherited: float = 0.3  # correlation of accuracies with shared weights: below published ones, above those measured
    resolution_power: float = 1.0  # an epoch at half the resolution counts 0.5 ** this

    def trend(self, sizes: np.ndarray) -> np.ndarray:
        """What is expected of networks by their counts, without the level.

        `sizes` are doublings of FLOPs, or of FLOPs and activations, of shape (networks, 1 or 2).
        """
        return sizes @ np.array([self.slope, self.activation_slope])[: sizes.shape[1]]

    def trend_covariance(self, sizes: np.ndarray) -> np.ndarray:
        """The covariance of networks that follows from the uncertain slopes; `sizes` are as in `trend`."""
        deviations = np.array([self.slope_sd, self.activation_slope_sd])
        scaled = sizes * deviations[: sizes.shape[1]]
        return scaled @ scaled.T


@dataclass(frozen=True)
class Look:
    """One training of a network and the accuracy that it found.

    `epochs` lists (epochs, resolution relative to the deployment's) of all trainings so far of these weights; it is
    empty for weights that all networks share. `budget` names the budget; `images` is the number of images that judged
    it, `log_loss` their mean after temperature scaling.
    """

    network: int
    budget: Hashable
    epochs: tuple[tuple[float, float], ...]
    accuracy: float
    images: int
    log_loss: float | None = None


class AccuracyBelief:
    """The belief about networks' accuracies after full training, from looks at some of them.

    Args:
        sizes: FLOPs of each network, or its FLOPs and activations; `Look.network` is an index into it.
        looks: All looks, at least one.
        full_epochs: Epochs of the full training, at the deployment resolution.
        images: Number of new images that the accuracy of the intervals is measured on.
        prior: What is expected before the looks.
        steps: Steps of the optimizer in an epoch. Without it, no training counts as an early one.
    """

    def __init__(
        self,
        sizes: Sequence[float] | Sequence[Sequence[float]],
        looks: Sequence[Look],
        full_epochs: float,
        images: int,
        prior: Prior | None = None,
        steps: float = math.inf,
    ):
        self.prior = prior = prior or Prior()
        self.looks = list(looks)
        self._images = images
        counts = np.asarray(sizes, float).reshape(len(sizes), -1)
        doublings = np.log2(np.maximum(counts, 1.0))  # a network of pooling layers has 0 FLOPs
        self._sizes = doublings - doublings.mean(axis=0)
        trained = [look for look in self.looks if look.epochs]  # the scale of the others follows from the spread
        terms = _Terms(trained, self._sizes, full_epochs, prior, steps)
        self.spread = self._fitted_spread(terms) if trained else prior.spread
        is_all = len(trained) == len(self.looks)
        self._terms = terms if is_all else _Terms(self.looks, self._sizes, full_epochs, prior, steps, self.spread)
        self._mean, self._covariance, self._factor = self._posterior()

    def _fitted_spread(self, terms: _Terms) -> float:
        """The most probable spread of networks of equal counts."""
        terms = terms.subset(MAX_FITTED)

        def log_probability(spread: float) -> float:
            factor = np.linalg.cholesky(terms.covariance(spread))
            scaled = np.linalg.solve(factor, terms.residual)
            distance = math.log(spread / self.prior.spread) / math.log(self.prior.spread_factor)
            return float(-0.5 * scaled @ scaled - np.log(np.diag(factor)).sum() - 0.5 * distance**2)

        return max(SPREADS, key=log_probability)

    def _posterior(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean and covariance of the log odds after full training, and the Cholesky factor of the looks' covariance."""
        terms, prior = self._terms, self.prior
        factor = np.linalg.cholesky(terms.covariance(self.spread))
        prior_covariance = prior.level_sd**2 + prior.trend_covariance(self._sizes)
        cross = prior_covariance[:, terms.network]
        prior_covariance[np.diag_indices_from(prior_covariance)] += self.spread**2
        cross[terms.network, np.arange(len(terms.network))] += self.spread**2
        half = np.linalg.solve(factor, cross.T)
        mean = prior.level + prior.trend(self._sizes) + half.T @ np.linalg.solve(factor, terms.residual)
        return mean, prior_covariance - half.T @ half, factor

    @property
    def expected(self) -> np.ndarray:
        """The expected accuracy of each network: the median of the belief."""
        return _accuracy(self._mean)

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """The ends of the 95 % interval of each network's accuracy after full training, measured on new images."""
        expected = self.expected
        sampling = 1 / (self._images * np.maximum(expected * (1 - expected), 1 / self._images))
        deviation = np.sqrt(np.diag(self._covariance) + self.prior.seed_sd**2 + sampling)
        return _accuracy(self._mean - NORMAL_95 * deviation), _accuracy(self._mean + NORMAL_95 * deviation)

    def learned_prior(self) -> Prior:
        """The prior for another study on the same images: with the gains per doubling that these looks show."""
        gain, gain_sd = self._learned(self.prior.gain, self.prior.gain_sd, self._terms.missing)
        early, early_sd = self._learned(self.prior.early_gain, self.prior.early_gain_sd, self._terms.early)
        return replace(self.prior, gain=gain, gain_sd=gain_sd, early_gain=early, early_gain_sd=early_sd)

    def _learned(self, gain: float, deviation: float, doublings: np.ndarray) -> tuple[float, float]:
        """Mean and deviation of a gain per doubling, given the looks; `doublings` are those that each look misses."""
        half = np.linalg.solve(self._factor, -(deviation**2) * doublings)
        mean = gain + half @ np.linalg.solve(self._factor, self._terms.residual)
        return float(mean), min(deviation, max(LEAST_GAIN_SD, math.sqrt(max(0.0, float(deviation**2 - half @ half)))))

    def tied(self, one: int, other: int) -> bool:
        """Whether 0 is in the 95 % interval of the difference of two networks after full training."""
        covariance = self._covariance
        variance = covariance[one, one] + covariance[other, other] - 2 * covariance[one, other]
        return abs(self._mean[one] - self._mean[other]) <= NORMAL_95 * math.sqrt(max(0.0, variance))

    def draws(self, count: int, seed: int = 0) -> np.ndarray:
        """Accuracies after full training drawn from the belief, of shape (count, networks)."""
        rng = np.random.default_rng(seed)
        # Cholesky's factor is unique, so that machines promote the same networks; the diagonal keeps it positive.
        root = np.linalg.cholesky(self._covariance + TINY * np.eye(len(self._mean)))
        return _accuracy(self._mean + rng.standard_normal((count, len(self._mean))) @ root.T)


class _Terms:
    """The looks as arrays: residuals from the prior mean, and the covariance of all terms but the spread.

    `spread` sets the scale of looks with shared weights.
    """

    def __init__(
        self,
        looks: Sequence[Look],
        sizes: np.ndarray,
        full_epochs: float,
        prior: Prior,
        steps: float,
        spread: float = 1.0,
    ):
        self.network = np.array([look.network for look in looks], int)
        self.missing = np.array([missing_doublings(look.epochs, full_epochs, prior) for look in looks])
        self.early = np.array([missing_early_doublings(look.epochs, full_epochs, steps) for look in looks])
        observed, variance = _observed(looks)
        size = sizes[self.network]
        kinds = {kind: i for i, kind in enumerate(dict.fromkeys(look.budget for look in looks))}
        budget = np.array([kinds[look.budget] for look in looks], int)
        inherited = np.array([not look.epochs for look in looks], bool)
        for kind in np.unique(budget[inherited]):
            alike = budget == kind
            observed[alike] = _inherited(observed[alike], size[alike], prior, spread)
        gained = prior.gain * self.missing + prior.early_gain * self.early
        self.residual = observed - (prior.level + prior.trend(size) - gained)
        far = np.maximum(self.missing, 0.0)
        root = np.where(inherited, UNKNOWN_SD, np.sqrt(prior.shared * variance))
        own = (
            (1 - prior.shared) * variance
            + prior.seed_sd**2
            + (prior.drift_sd * far) ** 2
            + (prior.early_drift_sd * self.early) ** 2
        )
        own[inherited] = spread**2 * (1 / prior.inherited**2 - 1)
        # The error of the images is one for all trainings, and another one for each budget with shared weights.
        same_level = np.where(inherited, budget + 1, 0)
        self.fixed = (
            prior.level_sd**2
            + prior.trend_covariance(size)
            + prior.gain_sd**2 * np.outer(self.missing, self.missing)
            + prior.early_gain_sd**2 * np.outer(self.early, self.early)
            + prior.gap_sd**2 * (budget[:, None] == budget) * np.minimum(1, np.outer(far, far))
            + np.outer(root, root) * (same_level[:, None] == same_level)
            + np.diag(own)
        )

    def subset(self, count: int) -> _Terms:
        """At most `count` looks, evenly spread over all."""
        if len(self.network) <= count:
            return self
        chosen = np.linspace(0, len(self.network) - 1, count).round().astype(int)
        part = object.__new__(_Terms)
        part.network, part.residual = self.network[chosen], self.residual[chosen]
        part.fixed = self.fixed[np.ix_(chosen, chosen)]
        return part

    def covariance(self, spread: float) -> np.ndarray:
        """The covariance of the looks if networks of equal counts vary with this deviation."""
        return self.fixed + spread**2 * (self.network[:, None] == self.network)


def missing_doublings(epochs: Sequence[tuple[float, float]], full_epochs: float, prior: Prior) -> float:
    """How often a training would have to be doubled to be as long as the full one; 0 for shared weights."""
    if not epochs:
        return 0.0
    done = sum(count * min(1.0, share) ** prior.resolution_power for count, share in epochs)
    return math.log2(full_epochs / done)


def missing_early_doublings(epochs: Sequence[tuple[float, float]], full_epochs: float, steps: float) -> float:
    """How often the steps of a training would have to be doubled to reach `EARLY_STEPS`, or those of the full training.

    Of several trainings in a row, each with its warm-up, the longest counts. `steps` are those of an epoch. 0 for
    shared weights.
    """
    if not epochs:
        return 0.0
    done, end = steps * max(count for count, _ in epochs), min(EARLY_STEPS, steps * full_epochs)
    return max(0.0, math.log2(end / done)) if done < end else 0.0


def _observed(looks: Sequence[Look]) -> tuple[np.ndarray, np.ndarray]:
    """Log odds of each look, and their sampling variance."""
    images = np.array([look.images for look in looks], float)
    right = np.array([look.accuracy for look in looks]) * images
    variance = 1 / (right + 0.5) + 1 / (images - right + 0.5)
    result = np.empty(len(looks))
    for budget in {look.budget for look in looks}:
        chosen = [i for i, look in enumerate(looks) if look.budget == budget]
        result[chosen] = quality(
            [looks[i].accuracy for i in chosen], [looks[i].log_loss for i in chosen], images[chosen]
        )
    return result, variance


def _inherited(observed: np.ndarray, sizes: np.ndarray, prior: Prior, spread: float) -> np.ndarray:
    """Log odds with shared weights on the scale of full trainings, at an unknown level.

    Their trend over sizes is replaced by the prior's: it shows how the shared weights suit large networks.
    """
    centered = sizes - sizes.mean(axis=0)
    slopes, *_ = np.linalg.lstsq(centered, observed - observed.mean(), rcond=None)
    rest = observed - observed.mean() - centered @ slopes
    scale = rest.std()
    standardized = rest / scale if scale > TINY else np.zeros_like(rest)
    return prior.level + prior.trend(sizes) + standardized * spread / prior.inherited


def quality(accuracies: Sequence[float], log_losses: Sequence[float | None], images: float | np.ndarray) -> np.ndarray:
    """The quality of networks after the same training, in log odds of accuracy: from accuracies and log losses.

    The log loss of the same images ranks networks about as well as their accuracy, and errs otherwise. It is put on the
    scale of the log odds, and the mean of both is taken. With few log losses, only the accuracies count.
    """
    right = np.asarray(accuracies, float) * images
    odds = np.log((right + 0.5) / (images - right + 0.5))
    known = np.array([bool(loss) for loss in log_losses])
    if known.sum() >= MIN_LOOKS:
        score = -np.log(np.array([loss for loss in log_losses if loss], float))
        if (scale := score.std()) > 0:
            scaled = (score - score.mean()) / scale * max(odds[known].std(), SPREADS[0]) + odds[known].mean()
            odds[known] = (odds[known] + scaled) / 2
    return odds


def _accuracy(log_odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-log_odds))
