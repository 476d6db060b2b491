"""Successive halving on networks that were all trained in full: what a part of the epochs finds of their front.

    python benchmarks/promotions.py [--table FILE] [--subsets 200]

Reads the trainings of `benchmarks/fidelities.py` and trains nothing. Every network of a set is trained briefly; some of
them are trained in full, and only these are found. The best front is that of all networks, whose truth is the mean
accuracy of their full trainings over validation and test images; the share of its hypervolume is what counts. Its
reference point lies a tenth of the range beyond the worst accuracy and the largest FLOPs, as in the rungs. As many
networks are trained in full as 40 % of the epochs of all full trainings allow; an epoch at a quarter of the pixels
counts a quarter.

Ways to choose them: `together`, as the rungs of nasspace do, the networks that together are expected to dominate the
most; `alone`, the best by expected accuracy; `low front`, the front of the short trainings, then the next one, until
there are enough; `FLOPs`, spread evenly over their order, which needs no short training; `random`. `rungs` is what a
search does: a third of the networks at each rung, with the weights that they have, then all that are expected on the
front at the last one. It trains nothing in full: its last rung is the longest training. The gain per doubling of the
training is taken from the other sets, as in belief.py.

Means and 95 % intervals are of random subsets, three quarters of a set's networks each.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from belief import VALIDATION, long_trainings, look, priors, seed_of, sizes, with_usual_settings
from fidelities import FOLDER, PLAN, accuracy, budget, rows

from nasspace.samplers import halving, pareto
from nasspace.samplers.accuracy_belief import AccuracyBelief, Look, Prior

SHORT = ("32x4", "32x8")
ALLOWED = 0.4  # of the epochs of all full trainings
MARGIN = halving.MARGIN  # of the range of each axis, to the reference point
PART = 0.75  # of the networks in a subset
DRAWS = 200
RANDOM = 20  # random choices in each subset


@dataclass(frozen=True)
class Networks:
    """The networks of a set or of a subset: FLOPs, truth, and their rows by budget."""

    name: str
    numbers: list[int]
    sizes: np.ndarray
    truth: np.ndarray
    prior: Prior

    def subset(self, rng: np.random.Generator) -> Networks:
        """Random ones of the networks, in their order."""
        kept = np.sort(rng.choice(len(self.numbers), round(PART * len(self.numbers)), replace=False))
        numbers = [self.numbers[i] for i in kept]
        return Networks(self.name, numbers, self.sizes[kept], self.truth[kept], self.prior)

    def share(self, chosen: list[int]) -> float:
        """The share of the hypervolume of all networks that the chosen ones have."""
        points = np.column_stack([-self.truth, self.sizes])
        reference = points.max(axis=0) + MARGIN * np.ptp(points, axis=0)
        return pareto.hypervolume(points[chosen], reference) / pareto.hypervolume(points, reference)


def epochs_of(text: str, side: int) -> float:
    """The epochs of a budget at the deployment resolution that cost as much."""
    return float(sum(count * (size / side) ** 2 for size, count in budget(text).parts))


def believed(networks: Networks, looks: list[Look]) -> AccuracyBelief:
    name = networks.name
    full = PLAN[name].long.parts[0][1]
    return AccuracyBelief(sizes(name, networks.numbers), looks, full, VALIDATION[name], networks.prior)


def promising(networks: Networks, looks: list[Look], count: int, left: list[int] | None = None) -> list[int]:
    """The networks, of those that are `left`, that are promoted after these looks."""
    left = list(range(len(networks.numbers))) if left is None else left
    drawn = believed(networks, looks).draws(DRAWS)[:, left]
    return [left[i] for i in halving.most_promising(drawn, networks.sizes[left, None], count)]


def low_fronts(accuracies: np.ndarray, sizes: np.ndarray, count: int) -> list[int]:
    """The front of the short trainings, then that of the others, and so on; the most accurate of the last one."""
    chosen: list[int] = []
    left = np.arange(len(sizes))
    while len(chosen) < count:
        members = left[pareto.front(np.column_stack([-accuracies[left], sizes[left]]))]
        chosen += sorted(members.tolist(), key=lambda i: -accuracies[i])[: count - len(chosen)]
        left = np.setdiff1d(left, members)
    return chosen


def spread(sizes: np.ndarray, count: int) -> list[int]:
    """Networks spread evenly over the order of their FLOPs, with the smallest and the largest."""
    order = np.argsort(sizes)
    return [int(order[i]) for i in np.linspace(0, len(order) - 1, count).round().astype(int)]


def choices(networks: Networks, rows_of: dict[int, dict], text: str, rng: np.random.Generator) -> Iterator[tuple]:
    """Yield each way to choose with its share of the hypervolume and the epochs that it takes."""
    side, full = PLAN[networks.name].resolution, PLAN[networks.name].long.parts[0][1]
    everything, short = len(networks.numbers) * full, len(networks.numbers) * epochs_of(text, side)
    count = int((ALLOWED * everything - short) / full)
    looks = [look(i, networks.name, text, rows_of[number]) for i, number in enumerate(networks.numbers)]
    found = np.array([float(rows_of[number]["validation_accuracy"]) for number in networks.numbers])
    expected = believed(networks, looks).expected
    spent = (short + count * full) / everything
    yield "together", networks.share(promising(networks, looks, count)), spent
    yield "alone", networks.share(np.argsort(-expected)[:count].tolist()), spent
    yield "low front", networks.share(low_fronts(found, networks.sizes, count)), spent
    free = int(ALLOWED * len(networks.numbers))
    yield "FLOPs", networks.share(spread(networks.sizes, free)), free * full / everything
    for _ in range(RANDOM):
        chosen = rng.choice(len(networks.numbers), free, replace=False).tolist()
        yield "random", networks.share(chosen), free * full / everything


def climbed(networks: Networks, held: dict, steps: list[str], seed: str) -> tuple[float, float]:
    """The share and the epochs of a search's rungs: fewer networks at each, then what is expected on the front."""
    side, full = PLAN[networks.name].resolution, PLAN[networks.name].long.parts[0][1]
    everyone = range(len(networks.numbers))
    reached = dict.fromkeys(everyone, 0)  # the step of each network
    looks = [seen(networks, held, steps[0], seed, i) for i in everyone]

    def climb(network: int, step: int) -> None:
        looks.extend(seen(networks, held, steps[at], seed, network) for at in range(reached[network] + 1, step + 1))
        reached[network] = step

    left = list(everyone)
    for step, count in enumerate(halving.counts(len(left), len(steps) - 2), start=1):
        left = promising(networks, looks, count, left)
        for network in left:
            climb(network, step)
    last = len(steps) - 1
    while True:
        expected = believed(networks, looks).expected
        front = np.flatnonzero(pareto.front(np.column_stack([-expected, networks.sizes]))).tolist()
        if all(reached[network] == last for network in front):
            break
        for network in front:
            climb(network, last)
    spent = sum(epochs_of(steps[step], side) for step in reached.values())
    return networks.share(front), spent / (full * len(networks.numbers))


def seen(networks: Networks, held: dict, text: str, seed: str, network: int) -> Look:
    """What a search sees of a network after a step of its training."""
    return look(network, networks.name, text, held[networks.name, text, seed][networks.numbers[network]])


def report(table: list[dict], subsets: int) -> None:
    """Print a table for each set."""
    held, own = with_usual_settings(table), priors(table)
    for name, task in PLAN.items():
        long = long_trainings(table, name)
        steps = [one.name for one in task.budgets[0][0].prefixes]
        print(f"## {name}: {task.networks} networks of `{task.space}`\n")
        print(
            "| trained briefly | then in full | epochs | share of the hypervolume in % (95 %) |\n| -- | -- | -- | -- |"
        )
        for text in (*SHORT, " ".join(steps)):
            is_ladder = " " in text
            seed = seed_of(table, name, steps[-1] if is_ladder else text)
            rows_of = held.get((name, steps[-1] if is_ladder else text, seed), {})
            numbers = sorted(number for number in rows_of if long[number])
            if len(numbers) < task.networks:
                print(f"| {steps[-1] if is_ladder else text} | not trained yet for all networks | | |")
                continue
            truth = np.array([np.mean([accuracy(row, name) for row in long[number]]) for number in numbers])
            sizes = np.array([float(rows_of[number]["flops"]) for number in numbers])
            networks, rng = Networks(name, numbers, sizes, truth, own[name]), np.random.default_rng(0)
            found: dict[str, list[tuple[float, float]]] = {}
            for _ in range(subsets):
                some = networks.subset(rng)
                if is_ladder:
                    found.setdefault("rungs", []).append(climbed(some, held, steps, seed))
                else:
                    for way, *values in choices(some, rows_of, text, rng):
                        found.setdefault(way, []).append(tuple(values))
            label = steps[-1] if is_ladder else text
            for way, values in found.items():
                shares, epochs = 100 * np.array(values).T
                low, high = np.quantile(shares, [0.025, 0.975])
                print(f"| {label} | {way} | {epochs.mean():.0f} % | {shares.mean():.1f} ({low:.1f} to {high:.1f}) |")
        print()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, default=FOLDER / "trainings.csv")
    parser.add_argument("--subsets", type=int, default=200)
    arguments = parser.parse_args()
    report(rows(arguments.table), arguments.subsets)


if __name__ == "__main__":
    main()
