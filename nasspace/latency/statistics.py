"""Estimators of a latency and its 95 % interval from rounds, with and without a reference network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

WIDENING = 2.0  # of intervals without a reference: one second shows half of a shared machine's drift
FLOOR_MS = 5e-4  # smallest half interval
Z_95 = 1.96  # half of a 95 % interval in standard deviations
MEDIAN_VARIANCE = math.pi / 2  # variance of a median relative to that of a mean
SESSION_GAP = 900.0  # seconds without a measurement that end a session
CORRELATION_SECONDS = 20.0  # readings closer in time are correlated and count as less than one observation
MAX_SESSIONS = 50  # older sessions are ignored

# Priors: (standard deviation of logarithms, equivalent number of observations).
READING_PRIOR = 0.02, 2  # between consecutive readings of the reference network; 0.3 to 7 % were observed
WITHIN_PRIOR = 0.026, 2  # slow drift within a session, in excess of READING_PRIOR
BETWEEN_PRIOR = 0.012, 4  # between sessions, in excess of BETWEEN_TO_WITHIN times the drift within them
BETWEEN_TO_WITHIN = 1.5  # expected ratio of the deviation between sessions to the slow drift within them
RESIDUAL_PRIOR = 0.015, 4  # of a network relative to the reference, between sessions; 0.012 and 0.02 were observed


def quartile_interval(values: Iterable[float], seed: int = 0, resamples: int = 1000) -> tuple[float, float, float]:
    """Return (estimate, low, high) of the undisturbed median from the values of rounds, without a reference.

    Other load only slows a network down, so the estimate is the lower quartile. The interval extends from the low end
    of the quartile's bootstrap interval to the high end of the median's: slow rounds may be due to a disturbance or to
    the network itself. The bootstrap draws blocks of four rounds, since neighboring rounds are correlated (Künsch
    1989), and the interval is widened by `WIDENING`. It does not include changes in speed between sessions.
    """
    values = np.asarray(list(values))
    drawn = _block_bootstrap(values, seed, resamples)
    middle = float(np.quantile(values, 0.25))
    low = np.quantile(np.quantile(drawn, 0.25, axis=1), 0.025)
    high = np.quantile(np.median(drawn, axis=1), 0.975)
    return middle, float(middle - WIDENING * max(0.0, middle - low)), float(middle + WIDENING * max(0.0, high - middle))


@dataclass(frozen=True)
class Spread:
    """A variance (of logarithms) and its degrees of freedom."""

    variance: float
    degrees: float

    @classmethod
    def of(cls, prior: tuple[float, float], squares: float, degrees: float) -> Spread:
        """Combine a sum of squares and its degrees of freedom with a prior (standard deviation, observations)."""
        deviation, worth = prior
        return cls((worth * deviation**2 + squares) / (worth + degrees), worth + degrees)

    def times(self, factor: float) -> Spread:
        """Multiply the variance by a factor."""
        return Spread(factor * self.variance, self.degrees)


def combine_errors(*spreads: Spread) -> Spread:
    """Return the spread of a sum of independent errors, with Satterthwaite's degrees of freedom."""
    variance = sum(one.variance for one in spreads)
    if not variance:
        return Spread(0.0, 1.0)
    return Spread(variance, variance**2 / sum(one.variance**2 / one.degrees for one in spreads))


def half_interval(*spreads: Spread) -> float:
    """Return half of the 95 % interval of a sum of independent errors, by Student's t."""
    total = combine_errors(*spreads)
    return math.sqrt(total.variance) * _student_quantile(total.degrees)


def _student_quantile(degrees: float) -> float:
    """The 97.5 % quantile of Student's t by the Cornish-Fisher expansion; accurate to 1 % for `degrees` >= 3."""
    z, d = Z_95, max(degrees, 2.0)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / d + second / d**2 + third / d**3


@dataclass(frozen=True)
class History:
    """Past measurements on a machine.

    `readings` holds (seconds since 1970, milliseconds) of the reference network, one for each measurement; `repeats`
    holds, for each network measured in several sessions, the ratio of its time to the reference's in each session.
    """

    readings: tuple[tuple[float, float], ...] = ()
    repeats: tuple[tuple[float, ...], ...] = ()

    def with_readings(self, readings: Iterable[tuple[float, float]]) -> History:
        """Return the history with more readings."""
        return History((*self.readings, *readings), self.repeats)


NO_HISTORY = History()


def split_sessions(timed: Iterable[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Group pairs (seconds, value) by session: a gap of `SESSION_GAP` seconds starts a new one."""
    found: list[list[tuple[float, float]]] = []
    for pair in sorted(timed):
        if not found or pair[0] - found[-1][-1][0] >= SESSION_GAP:
            found.append([])
        found[-1].append(pair)
    return found


@dataclass(frozen=True)
class UsualSpeed:
    """The usual speed of a machine, which normalizes its latencies, and its uncertainty.

    `usual_ms` is the usual time of the reference network: the median of the sessions' medians. `spread` is that of the
    difference between two such estimates from equal amounts of data; `residual` is the variation between sessions of a
    network's ratio to the reference.
    """

    usual_ms: float
    spread: Spread
    residual: Spread

    @classmethod
    def of(cls, history: History) -> UsualSpeed:
        """Estimate the usual speed from a history of at least one reading.

        The spread is estimated from the machine's variation within and between sessions, with the priors
        `READING_PRIOR` to `RESIDUAL_PRIOR`. A machine that drifts within a session is expected to drift between
        sessions too. Two estimates differ by the sessions that they are based on, less so the more sessions there are,
        and by the readings in them.
        """
        sessions = [np.array(session) for session in split_sessions(history.readings)[-MAX_SESSIONS:]]
        times, logs = [session[:, 0] for session in sessions], [np.log(session[:, 1]) for session in sessions]
        medians = np.array([np.median(values) for values in logs])
        usual, count = float(np.median(medians)), len(logs)
        reading, slow = _spread_within_sessions(times, logs)
        deviation, worth = BETWEEN_PRIOR
        prior = math.hypot(deviation, BETWEEN_TO_WITHIN * math.sqrt(slow.variance)), worth
        between = Spread.of(prior, float(((medians - usual) ** 2).sum()), count - 1)
        by_sessions = between.times((1 + 1 / count) / count * (MEDIAN_VARIANCE if count > 1 else 1.0))
        by_readings = reading.times(2 * MEDIAN_VARIANCE / sum(map(len, logs)))
        return cls(math.exp(usual), combine_errors(by_sessions, by_readings), _residual_spread(history.repeats))


def _spread_within_sessions(times: Iterable[np.ndarray], logs: Iterable[np.ndarray]) -> tuple[Spread, Spread]:
    """Return the spread between consecutive readings within a session, and that of the slow drift in excess of it.

    For the slow drift, readings that are close in time count as less than one observation (`CORRELATION_SECONDS`).
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
    """Return the spread between sessions of a network's ratio to the reference."""
    logs = [np.log(values) for values in repeats]
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in logs)
    return Spread.of(RESIDUAL_PRIOR, squares, sum(len(values) - 1 for values in logs))


def reference_interval(ratios: Sequence[float], speed: UsualSpeed, seed: int = 0) -> tuple[float, float, float]:
    """Return (median, low, high) at the machine's usual speed from rounds measured next to a reference.

    `ratios` holds each round's time divided by the reference's next to it, which cancels the machine's current speed.
    The 95 % interval is for a measurement in another session. It adds three errors, each for both sessions: of the
    median of ratios (`bootstrap_median`), of the network's own variation, and of the usual speed.
    """
    middle, half = bootstrap_median(ratios, seed)
    usual = middle * speed.usual_ms
    median = Spread((half / Z_95) ** 2, len(ratios))
    half = half_interval(median.times(2), speed.residual.times(2), speed.spread)
    half = math.hypot(half, FLOOR_MS / usual)
    return usual, usual * math.exp(-half), usual * math.exp(half)


def bootstrap_median(ratios: Sequence[float], seed: int = 0, resamples: int = 400) -> tuple[float, float]:
    """Return the median of ratios and half the width of its bootstrap interval, in logarithms."""
    values = np.asarray(ratios)
    drawn = _block_bootstrap(values, seed, resamples, min_blocks=8)
    low, high = np.quantile(np.log(np.median(drawn, axis=1)), (0.025, 0.975))
    return float(np.median(values)), float(high - low) / 2


def _block_bootstrap(values: np.ndarray, seed: int, resamples: int, min_blocks: int = 2) -> np.ndarray:
    """Draw bootstrap samples in blocks of four neighbors (smaller blocks if that gives fewer than `min_blocks`).

    The result has shape (resamples, values).
    """
    count, block = len(values), max(1, min(4, len(values) // min_blocks))
    starts = np.random.default_rng(seed).integers(0, count - block + 1, (resamples, -(-count // block), 1))
    return values[(starts + np.arange(block)).reshape(resamples, -1)[:, :count]]
