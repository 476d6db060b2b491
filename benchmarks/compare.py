"""Check the statistics of `nas compare` by simulation: draws, bands, tests, several spaces, power, intervals.

    python benchmarks/compare.py [--repeats 2000] [--out reports/benchmarks/compare.md]

Draws: the first draw of many seeds against a list of all networks within a budget (chi-squared), and the seconds until
20 networks within a thousandth of a space are found. Bands, tests and intervals: errors of networks are simulated as
fractions of 300 validation images that are wrong, normal with a standard deviation of two points, with an outlier of
20 points in every twentieth network, and on so many images that there are no ties.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections import Counter
from collections.abc import Callable
from itertools import combinations, islice
from pathlib import Path

import numpy as np
from scipy.stats import chisquare, norm

from nasspace import Space, cost
from nasspace.latency.conditions import machine
from nasspace.samplers import pareto
from nasspace.space.budget import WithinBudget
from nasspace.space.tree import all_walks
from nasspace.studies import differences

SPREAD = 0.02  # standard deviation of errors
MIDDLE = 0.1
IMAGES = {"300 images": 300, "no ties": 10**9}
OUTLIERS = 0.05
SIZES = (6, 10, 20, 50)
SPACES = (3, 4)
SHIFTS = (0.005, 0.01, 0.02)
SPREADS = (0.005, 0.01, 0.02)
PERMUTATIONS, RESAMPLES, HALVES = 999, 500, 100  # fewer than in a comparison, which does not change coverage
SPACE = """
name: little
input: [3, 16, 16]
stages:
  - {depth: [1, 2, 3], out: [8, 16], stride: 2, each: {block: [conv: {kernel: [1, 3]}, fire]}}
  - {depth: [1, 2], out: [16, 24, 32], stride: 2, block: [sandglass: {reduction: [2, 4]}, shuffle_v2]}
"""
RARE = {  # budgets that a thousandth of a space or less is within
    "spos": ("flops", (5.6e6, 5.7e6), 32),
    "mnasnet": ("flops", (80e6, 81e6), 224),
    "shuffle": ("flops", (10e6, 11e6), 224),
}
COUNTS = {"flops": lambda one: float(cost(one).flops), "params": lambda one: float(cost(one).params)}


def sample(rng: np.random.Generator, count: int, images: int, shift: float = 0.0) -> np.ndarray:
    """Errors of `count` networks."""
    errors = rng.normal(MIDDLE + shift, SPREAD, count) + 0.2 * (rng.random(count) < OUTLIERS)
    return np.round(errors * images) / images


def distribution(error: np.ndarray, images: int) -> np.ndarray:
    """The distribution function of `sample`."""
    error = error + 0.5 / images
    return (1 - OUTLIERS) * norm.cdf(error, MIDDLE, SPREAD) + OUTLIERS * norm.cdf(error, MIDDLE + 0.2, SPREAD)


def is_within_band(rng: np.random.Generator, count: int, images: int, half: Callable[[np.ndarray], float]) -> bool:
    """Whether a band holds the whole distribution function."""
    errors = np.sort(sample(rng, count, images))
    steps = np.unique(errors)
    after = np.searchsorted(errors, steps, "right") / count
    before = np.append(0.0, after[:-1])
    tick = 1 / images if images < 10**6 else 0.0  # the function is highest at the last image before a jump
    far = max(
        np.abs(after - distribution(steps, images)).max(), np.abs(before - distribution(steps - tick, images)).max()
    )
    return bool(far <= half(errors) + 1e-12)


def draws(lines: list[str]) -> None:
    """Draws against a list, and the time until rare networks are found."""
    space = Space.from_text(SPACE, "little.yaml")
    limits = {"flops": (60e3, 75e3), "params": (2e3, 6e3)}
    within = WithinBudget(space, limits, COUNTS)
    expected = Counter(one.digest for one in all_walks(space.architecture) if within.includes(one))
    seeds = 100 * len(expected)
    found = Counter(next(within.draws(seed))[0].digest for seed in range(seeds))
    total = expected.total()
    test = chisquare([found[one] for one in expected], [seeds * number / total for number in expected.values()])
    lines += [
        "## Draws\n",
        f"A space of {space.size:,} sequences of choices, {total} of them ({len(expected)} networks) within the "
        f"budget; {seeds:,} draws. Chi-squared {test.statistic:.1f} with {len(expected) - 1} degrees of freedom, "
        f"p = {test.pvalue:.2f}; draws outside of the list: {len(found.keys() - expected.keys())}.\n",
        "| space | networks | budget | share of the space, at most | seconds for 20 networks |",
        "| -- | -- | -- | -- | -- |",
    ]
    for name, (objective, ends, resolution) in RARE.items():
        start = time.perf_counter()
        space = Space.load(name, resolution=resolution)
        within = WithinBudget(space, {objective: ends}, COUNTS)
        assert len(list(islice(within.draws(0), 20))) == 20
        seconds = time.perf_counter() - start
        share = within.numbered.count / space.size
        lines.append(
            f"| {name} | {space.size:.1e} | {objective} {ends[0] / 1e6:g}M..{ends[1] / 1e6:g}M | {share:.1e} | "
            f"{seconds:.1f} |"
        )


def bands(lines: list[str], repeats: int) -> None:
    """Coverage of the bands."""
    rng = np.random.default_rng(0)
    lines += [
        "\n## Bands\n",
        "Share of samples whose band holds the whole distribution function (95 % are promised), and half the height. "
        "DKW: the inequality of Dvoretzky, Kiefer and Wolfowitz.\n",
        "| networks | errors | bootstrap | half the height | DKW | half the height |",
        "| -- | -- | -- | -- | -- | -- |",
    ]
    for count in SIZES:
        wide = float(np.sqrt(np.log(40) / 2 / count))
        for label, images in IMAGES.items():
            heights: list[float] = []

            def half(errors: np.ndarray, heights: list[float] = heights) -> float:
                heights.append(differences.band(errors, rng))
                return heights[-1]

            held = np.mean([is_within_band(rng, count, images, half) for _ in range(repeats)])
            dkw = np.mean([is_within_band(rng, count, images, lambda _, wide=wide: wide) for _ in range(repeats)])
            lines.append(f"| {count} | {label} | {held:.1%} | {np.mean(heights):.3f} | {dkw:.1%} | {wide:.3f} |")


def p_values(rng: np.random.Generator, count: int, images: int, repeats: int, paired: bool = False) -> np.ndarray:
    """P-values where there is no difference."""
    compare = differences.paired if paired else differences.unpaired
    pairs = ((sample(rng, count, images), sample(rng, count, images)) for _ in range(repeats))
    return np.array([compare(a, b, rng, 0.05).p_value for a, b in pairs])


def tests(lines: list[str], repeats: int) -> None:
    """Size of the tests."""
    rng = np.random.default_rng(1)
    lines += [
        "\n## Size of the tests\n",
        "Share of comparisons of equal groups with p < 0.05 (5 % are allowed).\n",
        "| networks of each | errors | two spaces | pairs |",
        "| -- | -- | -- | -- |",
    ]
    for count in SIZES:
        for label, images in IMAGES.items():
            found = [np.mean(p_values(rng, count, images, repeats, paired) < 0.05) for paired in (False, True)]
            lines.append(f"| {count} | {label} | {found[0]:.1%} | {found[1]:.1%} |")


def several(lines: list[str], repeats: int) -> None:
    """How often a difference between several spaces is found: among equal ones, and of a better one from all others."""
    rng = np.random.default_rng(4)
    lines += [
        "\n## Several spaces\n",
        "Each pair of spaces, p adjusted by Holm. Equal spaces: share of comparisons in which any p < 0.05 (5 % are "
        "allowed). One better: share in which its difference from every other space is found, for a difference of one "
        "and of two points and a standard deviation of one.\n",
        "| spaces | networks of each | equal, 300 images | equal, no ties | one better by 1 point | by 2 points |",
        "| -- | -- | -- | -- | -- | -- |",
    ]
    for spaces in SPACES:
        for count in (10, 20):

            def equal(images: int, spaces: int = spaces, count: int = count) -> float:
                found = ([sample(rng, count, images) for _ in range(spaces)] for _ in range(repeats))
                return float(np.mean([min(adjusted(errors, rng).values()) < 0.05 for errors in found]))

            def best(shift: float, spaces: int = spaces, count: int = count) -> float:
                middles = [MIDDLE - shift, *[MIDDLE] * (spaces - 1)]
                found = ([rng.normal(middle, 0.01, count) for middle in middles] for _ in range(repeats))
                p_values = (adjusted(errors, rng) for errors in found)
                return float(np.mean([max(p for pair, p in one.items() if 0 in pair) < 0.05 for one in p_values]))

            cells = [f"{equal(images):.1%}" for images in IMAGES.values()] + [f"{best(s):.0%}" for s in (0.01, 0.02)]
            lines.append(f"| {spaces} | {count} | {' | '.join(cells)} |")


def adjusted(errors: list[np.ndarray], rng: np.random.Generator) -> dict[tuple[int, int], float]:
    """The adjusted p-value of each pair of spaces."""
    pairs = list(combinations(range(len(errors)), 2))
    found = [differences.unpaired(errors[a], errors[b], rng, 0.05).p_value for a, b in pairs]
    return dict(zip(pairs, differences.holm(found), strict=True))


def power(lines: list[str], repeats: int) -> None:
    """Power at n = 20 without outliers, and whether the number of networks that is named has its power."""
    rng = np.random.default_rng(2)
    lines += [
        "\n## Power\n",
        "Share of comparisons of 20 networks of each that find a difference, by the standard deviation of the errors "
        "in points; and the networks of each that the comparison would name for a power of 80 %, with their power.\n",
        "| difference, points | standard deviation | power of 20 | networks named | their power |",
        "| -- | -- | -- | -- | -- |",
    ]
    for shift in SHIFTS:
        for spread in SPREADS:

            def found(count: int, shift: float = shift, spread: float = spread) -> float:
                pairs = (
                    (rng.normal(0.1, spread, count), rng.normal(0.1 + shift, spread, count)) for _ in range(repeats)
                )
                return float(np.mean([differences.unpaired(a, b, rng, 0.05).p_value < 0.05 for a, b in pairs]))

            named = differences.needed(float(norm.cdf(shift / spread / np.sqrt(2))), 0.05, 6)
            own = f"{found(named):.0%}" if named and named <= 200 else ""
            lines.append(f"| {100 * shift:g} | {100 * spread:g} | {found(20):.0%} | {named} | {own} |")


def intervals(lines: list[str], repeats: int) -> None:
    """Coverage of the intervals of superiority, of the difference of medians, and of hypervolume."""
    rng = np.random.default_rng(3)

    def points(count: int) -> np.ndarray:
        costs = rng.random(count)
        return np.column_stack([(0.6 - 0.3 * costs + 0.25 * np.abs(rng.normal(size=count))), costs])

    lines += [
        "\n## Intervals\n",
        "Share of samples whose interval holds the value of many networks (95 % are promised), for a difference of one "
        "point and a standard deviation of two.\n",
        "| networks of each | probability of being better | difference of medians | hypervolume |",
        "| -- | -- | -- | -- |",
    ]
    better = float(norm.cdf(0.01 / SPREAD / np.sqrt(2)))
    for count in SIZES:
        expected = np.mean([pareto.hypervolume(points(count), [1, 1]) for _ in range(4 * repeats)])
        held = np.zeros(3)
        for _ in range(repeats):
            found = differences.unpaired(rng.normal(0.1, SPREAD, count), rng.normal(0.11, SPREAD, count), rng, 0.05)
            volume = differences.hypervolume(points(count), rng)
            truths = ((found.superiority, better), (found.error, -0.01), (volume, expected))
            held += [one.low <= truth <= one.high for one, truth in truths]
        shares = " | ".join(f"{one:.1%}" for one in held / repeats)
        lines.append(f"| {count} | {shares} |")


def main() -> None:
    """Run all checks and print or write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000, help="simulated comparisons of each row")
    parser.add_argument("--without-draws", action="store_true", help="check the statistics only")
    parser.add_argument("--out", type=Path, help="write the report there instead of printing it")
    given = parser.parse_args()
    here = machine()
    differences.PERMUTATIONS, differences.RESAMPLES, differences.HALVES = PERMUTATIONS, RESAMPLES, HALVES
    lines = [
        "# The statistics of `nas compare`, by simulation\n",
        f"`python benchmarks/compare.py --repeats {given.repeats}`, {here['processor']} with {here['cores']} cores, "
        f"Python {platform.python_version()}, NumPy {np.__version__}. With {given.repeats} repeats, a share "
        f"of 95 % has a standard error of {100 * np.sqrt(0.95 * 0.05 / given.repeats):.1f} points.\n",
    ]
    if not given.without_draws:
        draws(lines)
    for check in (bands, tests, several, power, intervals):
        check(lines, given.repeats)
    text = "\n".join(lines) + "\n"
    if given.out:
        given.out.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
