"""From the values of rounds to a latency and its interval; the two ways, with and without a reference network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

STRETCH = 2.0  # of the bootstrap interval without a reference: one second sees half of how a shared machine wanders
RESIDUAL = 0.012  # standard deviation, in logarithms, of a network against the reference from sitting to sitting
SPEED = 0.015  # the same of the reference itself, before anything is known of a machine
FLOOR_MS = 5e-4  # what no measurement is better than
WORTH = 4  # sittings that this prior is worth
NORMAL = 1.96  # half of a 95 % interval, in standard deviations


def estimate(values: Iterable[float], seed: int = 0, resamples: int = 1000) -> tuple[float, float, float]:
    """Without a reference: the undisturbed median, and the low and high end of its interval, from rounds' values.

    Whatever else a machine does only slows a network down, so that the estimate is the lower quartile. The interval
    reaches from the low end of the quartile's bootstrap interval to the high end of the plain median's, and holds
    both readings of what was slow: a disturbance, or the network. Blocks of four rounds are drawn, since neighbours
    are alike (Künsch 1989), and the ends are stretched by `STRETCH`. It is the interval of one sitting: how the
    machine's speed changes from sitting to sitting it cannot see.
    """
    values = np.asarray(list(values))
    drawn = _drawn(values, seed, resamples)
    middle = float(np.quantile(values, 0.25))
    low = np.quantile(np.quantile(drawn, 0.25, axis=1), 0.025)
    high = np.quantile(np.median(drawn, axis=1), 0.975)
    return middle, float(middle - STRETCH * max(0.0, middle - low)), float(middle + STRETCH * max(0.0, high - middle))


@dataclass(frozen=True)
class Speed:
    """How fast a machine is by its reference network: `usual_ms`, and how far another sitting may lie from that.

    From the reference's medians in earlier sittings; in the first one, from what it takes now. `spread` is the standard
    deviation of the logarithm of another sitting's over `usual_ms`, whose own error is in it.
    """

    usual_ms: float
    spread: float

    @classmethod
    def of(cls, earlier: Sequence[float], now_ms: float) -> Speed:
        if not earlier:
            return cls(now_ms, math.sqrt(2) * SPEED)  # now and then may both be off
        logs = np.log(earlier)
        usual = float(np.median(logs))
        squares = float(((logs - usual) ** 2).sum())
        each = (WORTH * SPEED**2 + squares) / (WORTH + len(logs) - 1)
        return cls(math.exp(usual), math.sqrt(each * (1 + math.pi / (2 * len(logs)))))  # the median's variance, too


def against(ratios: Sequence[float], speed: Speed, seed: int = 0) -> tuple[float, float, float]:
    """With a reference: the median at the machine's usual speed, and its 95 % interval for a sitting at any other time.

    `ratios` are the rounds' values over those of the reference beside them, in which the machine's speed at the time
    cancels. Three spreads add up: that of the median of ratios (`within`), the network's own in both sittings
    (`RESIDUAL`), and the machine's speed.
    """
    middle, half = within(ratios, seed)
    usual = middle * speed.usual_ms
    half = math.hypot(half, NORMAL * math.sqrt(2) * RESIDUAL, NORMAL * speed.spread, FLOOR_MS / usual)
    return usual, usual * math.exp(-half), usual * math.exp(half)


def within(ratios: Sequence[float], seed: int = 0, resamples: int = 400) -> tuple[float, float]:
    """The median of ratios, and half the width of its bootstrap interval in logarithms."""
    values = np.asarray(ratios)
    drawn = _drawn(values, seed, resamples, least=8)
    low, high = np.quantile(np.log(np.median(drawn, axis=1)), (0.025, 0.975))
    return float(np.median(values)), float(high - low) / 2


def _drawn(values: np.ndarray, seed: int, resamples: int, least: int = 2) -> np.ndarray:
    """Bootstrap samples in blocks of four neighbours, or fewer to have `least` blocks: (resamples, values)."""
    count, block = len(values), max(1, min(4, len(values) // least))
    starts = np.random.default_rng(seed).integers(0, count - block + 1, (resamples, -(-count // block), 1))
    return values[(starts + np.arange(block)).reshape(resamples, -1)[:, :count]]
