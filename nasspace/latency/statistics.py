"""From the values of rounds to a latency and its interval; the two ways, with and without a reference network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

WIDENING = 2.0  # of the bootstrap interval without a reference: one second sees half of how a shared machine wanders
FLOOR_MS = 5e-4  # what no measurement is better than
Z_95 = 1.96  # half of a 95 % interval, in standard deviations
MEDIAN_VARIANCE = math.pi / 2  # variance of a median over that of a mean
SESSION_GAP = 900.0  # seconds without a measurement that end a sitting
CORRELATION_SECONDS = 20.0  # seconds within which a machine hardly changes its speed: readings closer together say less
MAX_SESSIONS = 50  # the latest that count

# Standard deviations, in logarithms, of a machine of which nothing is known, and how many observations each is worth.
READING_PRIOR = 0.02, 2  # of a reading of the reference network from the next; machines were seen from 0.3 to 7 %
WITHIN_PRIOR = 0.026, 2  # of the slow wander within a sitting, which is more than that
BETWEEN_PRIOR = 0.012, 4  # of sittings, as far as it is not LINKED times that
BETWEEN_TO_WITHIN = 1.5  # what is expected of sittings over the slow wander within them
RESIDUAL_PRIOR = 0.015, 4  # of a network against the reference, from sitting to sitting; 0.012 and 0.02 were seen


def quartile_interval(values: Iterable[float], seed: int = 0, resamples: int = 1000) -> tuple[float, float, float]:
    """Without a reference: the undisturbed median, and the low and high end of its interval, from rounds' values.

    Whatever else a machine does only slows a network down, so that the estimate is the lower quartile. The interval
    reaches from the low end of the quartile's bootstrap interval to the high end of the plain median's, and holds
    both readings of what was slow: a disturbance, or the network. Blocks of four rounds are drawn, since neighbours
    are alike (Künsch 1989), and the ends are stretched by `STRETCH`. It is the interval of one sitting: how the
    machine's speed changes from sitting to sitting it cannot see.
    """
    values = np.asarray(list(values))
    drawn = _block_bootstrap(values, seed, resamples)
    middle = float(np.quantile(values, 0.25))
    low = np.quantile(np.quantile(drawn, 0.25, axis=1), 0.025)
    high = np.quantile(np.median(drawn, axis=1), 0.975)
    return middle, float(middle - WIDENING * max(0.0, middle - low)), float(middle + WIDENING * max(0.0, high - middle))


@dataclass(frozen=True)
class Spread:
    """A variance, in logarithms, and the degrees of freedom with which it is known."""

    variance: float
    degrees: float

    @classmethod
    def of(cls, prior: tuple[float, float], squares: float, degrees: float) -> Spread:
        """From a sum of squares and its degrees of freedom; `prior` is a standard deviation and what it is worth."""
        deviation, worth = prior
        return cls((worth * deviation**2 + squares) / (worth + degrees), worth + degrees)

    def times(self, factor: float) -> Spread:
        return Spread(factor * self.variance, self.degrees)


def combine_errors(*spreads: Spread) -> Spread:
    """The spread of a sum of errors, with Satterthwaite's degrees of freedom."""
    variance = sum(one.variance for one in spreads)
    if not variance:
        return Spread(0.0, 1.0)
    return Spread(variance, variance**2 / sum(one.variance**2 / one.degrees for one in spreads))


def half_interval(*spreads: Spread) -> float:
    """Half of the 95 % interval of a sum of errors, by Student's t."""
    total = combine_errors(*spreads)
    return math.sqrt(total.variance) * _student_quantile(total.degrees)


def _student_quantile(degrees: float) -> float:
    """The 97.5 % quantile of Student's t by the expansion of Cornish and Fisher: to 1 % from 3 degrees on."""
    z, d = Z_95, max(degrees, 2.0)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / d + second / d**2 + third / d**3


@dataclass(frozen=True)
class History:
    """What is known of a machine.

    `readings` are (seconds since 1970, milliseconds) of its reference network, one for each measurement beside it;
    `repeats` are, for each network that was measured in several sittings, its time over the reference's in each.
    """

    readings: tuple[tuple[float, float], ...] = ()
    repeats: tuple[tuple[float, ...], ...] = ()

    def with_readings(self, readings: Iterable[tuple[float, float]]) -> History:
        return History((*self.readings, *readings), self.repeats)


NO_HISTORY = History()


def split_sessions(timed: Iterable[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Pairs of a time in seconds and a value, by sittings: a pause of `PAUSE` ends one."""
    found: list[list[tuple[float, float]]] = []
    for pair in sorted(timed):
        if not found or pair[0] - found[-1][-1][0] >= SESSION_GAP:
            found.append([])
        found[-1].append(pair)
    return found


@dataclass(frozen=True)
class UsualSpeed:
    """The usual speed of a machine, by which its latencies are normalized, and how well that is known.

    `usual_ms` is what the reference network usually takes: the median of sittings, each by its own median. `spread`
    is how far another normalizer, known as well as this one, may lie from it; `residual` how far a network's time over
    the reference's varies from sitting to sitting.
    """

    usual_ms: float
    spread: Spread
    residual: Spread

    @classmethod
    def of(cls, history: History) -> UsualSpeed:
        """From all that is known, at least one reading: the spread is the machine's own, within and between sittings.

        Before a machine has shown what it does, priors stand in for it (`READING` to `RESIDUAL`). A machine that
        wanders within a sitting is expected to do so from sitting to sitting, too. Both normalizers are off: by the
        sittings (after one the next is as far off; after many the mean is known), and by the readings in them.
        """
        known = [np.array(sitting) for sitting in split_sessions(history.readings)[-MAX_SESSIONS:]]
        times, logs = [sitting[:, 0] for sitting in known], [np.log(sitting[:, 1]) for sitting in known]
        middles = np.array([np.median(values) for values in logs])
        usual, count = float(np.median(middles)), len(logs)
        reading, slow = _spread_within_sessions(times, logs)
        deviation, worth = BETWEEN_PRIOR
        prior = math.hypot(deviation, BETWEEN_TO_WITHIN * math.sqrt(slow.variance)), worth
        between = Spread.of(prior, float(((middles - usual) ** 2).sum()), count - 1)
        by_sittings = between.times((1 + 1 / count) / count * (MEDIAN_VARIANCE if count > 1 else 1.0))
        by_readings = reading.times(2 * MEDIAN_VARIANCE / sum(map(len, logs)))
        return cls(math.exp(usual), combine_errors(by_sittings, by_readings), _residual_spread(history.repeats))


def _spread_within_sessions(times: Iterable[np.ndarray], logs: Iterable[np.ndarray]) -> tuple[Spread, Spread]:
    """The spreads within sittings: of a reading from the next, and of the slow wander, which is what is above it.

    For the slow wander a reading counts as much as it is away in time from the others.
    """
    fast = slow = count = independent = 0.0
    for at, values in zip(times, logs, strict=True):
        if len(values) > 1:
            step = float((np.diff(values) ** 2).mean()) / 2
            degrees = min(len(values) - 1.0, float(at[-1] - at[0]) / CORRELATION_SECONDS)
            fast, count = fast + (len(values) - 1) * step, count + len(values) - 1
            slow += degrees * max(0.0, float(values.var(ddof=1)) - step)
            independent += degrees
    return Spread.of(READING_PRIOR, fast, count), Spread.of(WITHIN_PRIOR, slow, independent)


def _residual_spread(repeats: Iterable[Sequence[float]]) -> Spread:
    logs = [np.log(values) for values in repeats]
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in logs)
    return Spread.of(RESIDUAL_PRIOR, squares, sum(len(values) - 1 for values in logs))


def reference_interval(ratios: Sequence[float], speed: UsualSpeed, seed: int = 0) -> tuple[float, float, float]:
    """With a reference: the median at the machine's usual speed, and its 95 % interval for another sitting.

    `ratios` are the rounds' values over those of the reference beside them, in which the machine's speed at the time
    cancels. The interval holds what a measurement in another sitting finds. Three errors add up, each of both sittings:
    that of the median of ratios (`within`), the network's own, and the usual speed's.
    """
    middle, half = bootstrap_median(ratios, seed)
    usual = middle * speed.usual_ms
    median = Spread((half / Z_95) ** 2, len(ratios))
    half = half_interval(median.times(2), speed.residual.times(2), speed.spread)
    half = math.hypot(half, FLOOR_MS / usual)
    return usual, usual * math.exp(-half), usual * math.exp(half)


def bootstrap_median(ratios: Sequence[float], seed: int = 0, resamples: int = 400) -> tuple[float, float]:
    """The median of ratios, and half the width of its bootstrap interval in logarithms."""
    values = np.asarray(ratios)
    drawn = _block_bootstrap(values, seed, resamples, least=8)
    low, high = np.quantile(np.log(np.median(drawn, axis=1)), (0.025, 0.975))
    return float(np.median(values)), float(high - low) / 2


def _block_bootstrap(values: np.ndarray, seed: int, resamples: int, least: int = 2) -> np.ndarray:
    """Bootstrap samples in blocks of four neighbours, or fewer to have `least` blocks: (resamples, values)."""
    count, block = len(values), max(1, min(4, len(values) // least))
    starts = np.random.default_rng(seed).integers(0, count - block + 1, (resamples, -(-count // block), 1))
    return values[(starts + np.arange(block)).reshape(resamples, -1)[:, :count]]
