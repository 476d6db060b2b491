"""How often the interval of the accuracy after full training holds, and how the belief ranks networks.

    python benchmarks/belief.py [--table FILE]

Reads the trainings of `benchmarks/fidelities.py` and trains nothing. For each set and each budget, the networks are
believed in as after a search that trained all of them with this budget (and, for several rungs, looked at them after
each); the long trainings are the truth. The gain per doubling, the constant that matters most, is taken from the other
sets: no set is judged by what was fitted to it. The other constants are those of `Prior`.

Columns: networks; how many test accuracies of long trainings lie in the 95 % interval; mean width of the interval and
mean error of the expected accuracy, in points; Kendall's tau with the truth (mean accuracy of the long trainings over
validation and test images) of the accuracy of the last look, of its log loss, and of the expected accuracy; and the
accuracy in points that is given up by taking the network with the highest expected accuracy.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
from fidelities import FOLDER, PLAN, accuracy, budget, rows
from scipy.stats import kendalltau

from nasspace.samplers.accuracy_belief import AccuracyBelief, Look, Prior, missing_doublings

VALIDATION = {"cifar10-12k": 2000, "fashion-10k": 2000, "clothing10": 341}
LEAST = 5  # networks


def epochs_of(name: str, text: str) -> tuple[tuple[float, float], ...]:
    """The epochs and relative resolutions of a budget's parts."""
    share = float(text.split("share=")[1].split()[0]) if "share=" in text else 1.0
    side = PLAN[name].resolution
    return tuple((count * share, size / side) for size, count in budget(text.split()[0]).parts)


def with_usual_settings(table: list[dict]) -> dict[tuple[str, str, str], dict[int, dict]]:
    """The rows of short trainings by set, budget and seed, and then by network; without changed settings."""
    found: dict[tuple[str, str, str], dict[int, dict]] = defaultdict(dict)
    for row in table:
        changed = [word for word in row["budget"].split()[1:] if not word.startswith("share=")]
        if row["budget"] != PLAN[row["set"]].long.name and not changed:
            found[row["set"], row["budget"], row["seed"]][int(row["network"])] = row
    return found


def long_trainings(table: list[dict], name: str) -> dict[int, list[dict]]:
    """The long trainings of a set by network."""
    found: dict[int, list[dict]] = defaultdict(list)
    for row in table:
        if row["set"] == name and row["budget"] == PLAN[name].long.name:
            found[int(row["network"])].append(row)
    return found


def log_odds(share: float) -> float:
    return float(np.log(share / (1 - share)))


def gains(table: list[dict], prior: Prior) -> dict[str, float]:
    """The mean gain in log odds per doubling of the training, by set."""
    found: dict[str, list[float]] = defaultdict(list)
    for (name, text, _), short in with_usual_settings(table).items():
        long = long_trainings(table, name)
        missing = missing_doublings(epochs_of(name, text), PLAN[name].long.parts[0][1], prior)
        if missing > 0.5:
            after = [log_odds(float(row["validation_accuracy"])) for number in short for row in long[number]]
            before = [log_odds(float(row["validation_accuracy"])) for row in short.values()]
            if after:
                found[name].append((np.mean(after) - np.mean(before)) / missing)
    return {name: float(np.mean(values)) for name, values in found.items()}


def report(table: list[dict]) -> None:
    prior = Prior()
    gained = gains(table, prior)
    listed = ", ".join(f"{name} {value:.2f}" for name, value in sorted(gained.items()))
    print(f"gain in log odds per doubling of the training: {listed}; prior {prior.gain} +- {prior.gain_sd}\n")
    print("| set | budget | networks | inside | width | error | tau accuracy | log loss | expected | given up |")
    print("| -- | -- | -- | -- | -- | -- | -- | -- | -- | -- |")
    held = with_usual_settings(table)
    inside, total = 0, 0
    for name, text, seed in sorted(held):
        long = long_trainings(table, name)
        numbers = sorted(number for number in held[name, text, seed] if long[number])
        if len(numbers) < LEAST:
            continue
        passed = [budget(text.split()[0]).prefixes[i].name for i in range(len(text.split()[0].split("+")))]
        own = prior
        if others := [gained[other] for other in gained if other != name]:
            own = replace(prior, gain=float(np.mean(others)))
        looks = [
            Look(i, step, epochs_of(name, step), float(row["validation_accuracy"]), VALIDATION[name],
                 float(row["validation_log_loss"]))
            for step in ([text] if "share=" in text else passed)
            for i, number in enumerate(numbers)
            if (row := held.get((name, step, seed), {}).get(number))
        ]  # fmt: skip
        last = [held[name, text, seed][number] for number in numbers]
        sizes = [float(row["flops"]) for row in last]
        belief = AccuracyBelief(sizes, looks, PLAN[name].long.parts[0][1], VALIDATION[name], own)
        (low, high), expected = belief.interval(), belief.expected
        tests = [[float(row["test_accuracy"]) for row in long[number]] for number in numbers]
        hits = [low[i] <= one <= high[i] for i, found in enumerate(tests) for one in found]
        inside, total = inside + sum(hits), total + len(hits)
        truth = np.array([np.mean([accuracy(row, name) for row in long[number]]) for number in numbers])
        error = 100 * (expected.mean() - np.mean([one for found in tests for one in found]))
        taus = [
            kendalltau(values, truth).statistic
            for values in (
                [float(row["validation_accuracy"]) for row in last],
                [-float(row["validation_log_loss"]) for row in last],
                expected,
            )
        ]
        figures = [
            f"{sum(hits)} of {len(hits)}",
            f"{100 * (high - low).mean():.1f}",
            f"{error:+.1f}",
            *(f"{tau:.2f}" for tau in taus),
            f"{100 * (truth.max() - truth[expected.argmax()]):.1f}",
        ]
        print(f"| {name} | {text} | {len(numbers)} | " + " | ".join(figures) + " |")
    print(f"\n{inside} of {total} test accuracies of full trainings lie in their interval ({inside / total:.1%})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, default=FOLDER / "trainings.csv")
    report(rows(parser.parse_args().table))


if __name__ == "__main__":
    main()
