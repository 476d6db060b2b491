"""Widths at which a changed network has as many FLOPs, rounded to what fills vector units."""

from __future__ import annotations

import math
from collections.abc import Callable

Rounding = Callable[[float], int]
FLOPS_TOLERANCE = 0.05  # "the same FLOPs" means within this tolerance, so that a width can be a multiple of 16, 8 or 4
ALIGNED_TOLERANCE = 0.07  # the same for a whole network: the columns of ShuffleNet's table 1 differ by up to 6.5 %
STEPS = 14  # of the search for equal FLOPs


def nearest_width(width: float) -> int:
    """Return a width of about the same FLOPs (which grow with its square): a multiple of 16, 8 or 4 if one is close.

    >>> nearest_width(63.7), nearest_width(52.0), nearest_width(17.6)
    (64, 52, 18)
    """
    for divisor in (16, 8, 4):
        rounded = max(1, round(width / divisor)) * divisor
        if abs(rounded**2 / width**2 - 1) <= FLOPS_TOLERANCE:
            return rounded
    return max(1, round(width))


def next_multiple_of_16(width: float) -> int:
    """Return the next multiple of 16, which fills vector units: more FLOPs, and often less time.

    >>> next_multiple_of_16(56), next_multiple_of_16(64)
    (64, 64)
    """
    return 16 * math.ceil(width / 16)


ROUNDINGS = {nearest_width: "the same FLOPs", next_multiple_of_16: "more FLOPs, with widths that are multiples of 16"}


def width_at_flops(flops_at: Callable[[int], float], target: float, widest: int) -> float:
    """Return the width, at most `widest`, that has the `target` FLOPs, which grow with it; interpolated.

    >>> width_at_flops(lambda width: 2.0 * width, 5.0, 8)
    2.5
    """
    low, high = 1, widest
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if flops_at(middle) >= target else (middle + 1, high)
    above, below = flops_at(low), flops_at(max(1, low - 1))
    return low - ((above - target) / (above - below) if below < above < math.inf else 0.0)


def aligned_width(exact: float, flops_at: Callable[[int], float], target: float) -> int:
    """Return the nearest multiple of 16, 8 or 4 that has about the `target` FLOPs, else the nearest width.

    A unit or network of another width has about the `target` FLOPs if they differ by at most `ALIGNED_TOLERANCE`.

    >>> aligned_width(65.0, float, 65.0), aligned_width(18.0, float, 18.0)
    (64, 18)
    """
    for divisor in (16, 8, 4):
        rounded = max(1, round(exact / divisor)) * divisor
        if abs(flops_at(rounded) / target - 1) <= ALIGNED_TOLERANCE:
            return rounded
    return max(1, round(exact))


def ratio_at_flops(flops_at: Callable[[float], float], target: float) -> float:
    """Return the ratio, below 1, of all widths to the present ones that has about the `target` FLOPs.

    >>> round(ratio_at_flops(lambda ratio: 8 * ratio**2, 2.0), 3)
    0.5
    """
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if flops_at(middle) >= target else (middle, high)
    return high


def aligned_ratios(exact: float, narrowest: int, flops_at: Callable[[float], float], target: float) -> list[float]:
    """Return ratios near the exact one at which the narrowest width is a multiple of 16, 8 or 4: two at most.

    The first has about the `target` FLOPs; with the second the width is the next multiple of 16.

    >>> aligned_ratios(0.35, 384, lambda ratio: ratio, 0.35)
    [0.3333333333333333, 0.375]
    """
    near = (max(1, round(exact * narrowest / divisor)) * divisor / narrowest for divisor in (16, 8, 4))
    first = next((one for one in near if abs(flops_at(one) / target - 1) <= ALIGNED_TOLERANCE), exact)
    return list(dict.fromkeys((first, min(1.0, next_multiple_of_16(exact * narrowest) / narrowest))))
