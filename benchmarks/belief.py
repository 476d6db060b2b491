"""How often the interval of the accuracy after full training holds, and how the belief ranks networks.

    python benchmarks/belief.py [--table FILE] [--drifts 0.02,0.03 | --powers 0.7,1 | --counts | --cells | --candidates]

Reads the trainings of `benchmarks/fidelities.py` and trains nothing. For each set and each budget, the networks are
believed in as after a search that trained all of them with this budget (and, for several rungs, looked at them after
each); the long trainings are the truth. The gain per doubling, the constant that matters most, is taken from the other
sets: no set is judged by what was fitted to it. The other constants are those of `Prior`.

Columns: networks; how many test accuracies of long trainings lie in the 95 % interval; mean width of the interval and
mean error of the expected accuracy, in points; Kendall's tau with the truth (mean accuracy of the long trainings over
validation and test images) of the accuracy of the last look, of its log loss, and of the expected accuracy; and the
accuracy in points that is given up by taking the network with the highest expected accuracy. Last, what a search would
say itself of its ranking by accuracy: the tau that the belief expects with the true quality, and that times the tau of
the true quality with this truth, which comes from two trainings and has noise of its own.

The second table has tau as the mean of the sets, also of counts, which need no training (`scores.csv`), and of accuracy
and log loss together, which the sampler `gain` learns from.

`--drifts` compares values of `Prior.drift_sd` instead: the log likelihood of all looks, short and long, minus that of
the default, and the mean tau of the expected accuracy over the sets after 4 and 8 epochs at 32 pixels. `--powers` does
so for `Prior.resolution_power`, how much less an epoch counts at a lower resolution, and `--counts` for the counts that
the belief expects accuracies by: FLOPs alone, as until November 2026, or activations, too.
`--cells` compares these on cells of NAS-Bench-201, which the constants were not chosen by: samples of 20 cells above
50 (CIFAR-100) and 85 % (CIFAR-10), believed in after their 12 epochs.

`--candidates` compares trainings that cost at most as much as the first `quick`: changed settings, resolutions, fewer
channels, two seeds; to choose one by the networks of even number, and to judge it by those of odd number.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from fidelities import EQUAL, FOLDER, PLAN, Task, accuracy, budget, narrower, networks_of, rows
from samplers import TABLE
from scipy.stats import kendalltau

from nasspace.counting import cost
from nasspace.samplers.accuracy_belief import AccuracyBelief, Look, Prior, missing_doublings, quality
from nasspace.studies.belief import StudyBelief

VALIDATION = {"cifar10-12k": 2000, "fashion-10k": 2000, "clothing10": 341}
LEAST = 5  # networks
SCORES = FOLDER.parent / "scores.csv"
COUNTS = ("flops", "activations", "units")
CRITERIA = ("accuracy", "log loss", "both", "expected")
ALMOST_ZERO = 1e-9
SHORT_AND_FULL = ("val_e12", "test_e200")
STEM, CONVOLUTION = 53_000, 143_360  # activations of a cell network without its cells, and of an edge in all 15 cells
BY_COUNTS = {  # changes of the prior
    "FLOPs": {"slope": 0.05, "slope_sd": 0.05, "activation_slope": 0.0, "activation_slope_sd": ALMOST_ZERO},
    "activations": {"slope": 0.0, "slope_sd": ALMOST_ZERO, "activation_slope": 0.1, "activation_slope_sd": 0.08},
    "**both**": {},
}


def epochs_of(name: str, text: str) -> tuple[tuple[float, float], ...]:
    """The epochs and relative resolutions of a budget's parts."""
    share = float(text.split("share=")[1].split()[0]) if "share=" in text else 1.0
    side = PLAN[name].resolution
    return tuple((count * share, size / side) for size, count in budget(text.split()[0]).parts)


def short_trainings(table: list[dict]) -> dict[tuple[str, str, str], dict[int, dict]]:
    """The rows of short trainings by set, budget and seed, and then by network."""
    found: dict[tuple[str, str, str], dict[int, dict]] = defaultdict(dict)
    for row in table:
        if row["budget"] != PLAN[row["set"]].long.name:
            found[row["set"], row["budget"], row["seed"]][int(row["network"])] = row
    return found


def with_usual_settings(table: list[dict]) -> dict[tuple[str, str, str], dict[int, dict]]:
    """Those of `short_trainings` without changed settings, one seed of each budget, of all networks if there is one."""
    found = {
        (name, text, seed): each
        for (name, text, seed), each in short_trainings(table).items()
        if all(word.startswith("share=") for word in text.split()[1:])
    }
    return {key: each for key, each in found.items() if key[2] == seed_of(table, *key[:2])}


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


def look(network: int, name: str, text: str, row: dict) -> Look:
    """What a search sees of a training: `network` is the place of the network among those that are believed in."""
    found = float(row["validation_accuracy"]), VALIDATION[name], float(row["validation_log_loss"])
    return Look(network, text, epochs_of(name, text), *found)


@dataclass(frozen=True)
class Judged:
    """The networks of a set after one short training each: what it says of them, and the truth."""

    numbers: list[int]
    values: dict[str, np.ndarray]  # by criterion
    low: np.ndarray
    high: np.ndarray
    tests: list[list[float]]  # test accuracies of the long trainings
    truth: np.ndarray
    tau: float  # of the accuracies with the true quality, as the belief expects it


def judged(
    table: list[dict], name: str, text: str, seeds: Sequence[str], prior: Prior, among: Sequence[int] | None = None
) -> Judged | None:
    """Believe in the networks of a set, or `among` some, after one budget with each seed; None for fewer than `LEAST`.

    Of several seeds, accuracies and log losses are means.
    """
    held, long = short_trainings(table), long_trainings(table, name)
    numbers = sorted(
        number
        for number in (range(PLAN[name].networks) if among is None else among)
        if long[number] and all(number in held[name, text, seed] for seed in seeds)
    )
    if len(numbers) < LEAST:
        return None
    steps = [text] if " " in text else [one.name for one in budget(text).prefixes]
    looks = [
        look(i, name, step, row)
        for step in steps
        for i, number in enumerate(numbers)
        for seed in seeds
        if (row := held.get((name, step, seed), {}).get(number))
    ]

    def means(column: str) -> np.ndarray:
        return np.array([np.mean([float(held[name, text, seed][n][column]) for seed in seeds]) for n in numbers])

    belief = AccuracyBelief(sizes(name, numbers), looks, PLAN[name].long.parts[0][1], VALIDATION[name], prior)
    values = {
        "accuracy": means("validation_accuracy"),
        "log loss": -means("validation_log_loss"),
        "expected": belief.expected,
    }
    values["both"] = quality(values["accuracy"], list(-values["log loss"]), VALIDATION[name])
    own = StudyBelief(belief, numbers, dict(zip(numbers, values["accuracy"], strict=True))).tau()
    low, high = belief.interval()
    tests = [[float(row["test_accuracy"]) for row in long[number]] for number in numbers]
    truth = np.array([np.mean([accuracy(row, name) for row in long[number]]) for number in numbers])
    return Judged(numbers, values, low, high, tests, truth, own["value"] if own else np.nan)


def counts(name: str) -> dict[str, dict[int, float]]:
    """The counts of a set's networks by name and network: what `benchmarks/scores.py` recorded."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    with SCORES.open(newline="") as file:
        for row in csv.DictReader(file):
            if (row["set"], row["images"], row["seed"]) == (name, "32", "0"):
                found[row["score"]][int(row["network"])] = float(row["value"])
    return found


def sizes(name: str, numbers: Sequence[int]) -> list[list[float]]:
    """FLOPs and activations of networks of a set."""
    found = counts(name)
    return [[found["flops"][number], found["activations"][number]] for number in numbers]


def priors(table: list[dict]) -> dict[str, Prior]:
    """For each set, the prior with the gain per doubling of the other sets."""
    prior = Prior()
    gained = gains(table, prior)
    listed = ", ".join(f"{name} {value:.2f}" for name, value in sorted(gained.items()))
    print(f"gain in log odds per doubling of the training: {listed}; prior {prior.gain} +- {prior.gain_sd}\n")
    others = {name: [gained[other] for other in gained if other != name] for name in PLAN}
    return {name: replace(prior, gain=float(np.mean(each))) if each else prior for name, each in others.items()}


def report(table: list[dict]) -> None:
    """Print a row for each budget, and how often the intervals hold."""
    own = priors(table)
    print(
        "| set | budget | networks | inside | width | error | tau accuracy | log loss | expected | given up |", end=""
    )
    print(" true quality | with noise |\n|" + " -- |" * 12)
    inside, total = 0, 0
    ceilings = {name: ceiling(table, name) for name in PLAN}
    for name, text, seed in sorted(with_usual_settings(table)):
        if not (found := judged(table, name, text, [seed], own[name])):
            continue
        hits = [low <= one <= high for low, high, each in zip(found.low, found.high, found.tests, strict=True)
                for one in each]  # fmt: skip
        inside, total = inside + sum(hits), total + len(hits)
        expected, truth = found.values["expected"], found.truth
        figures = [
            f"{sum(hits)} of {len(hits)}",
            f"{100 * (found.high - found.low).mean():.1f}",
            f"{100 * (expected.mean() - np.mean([one for each in found.tests for one in each])):+.1f}",
            *(f"{tau(found.values[criterion], truth):.2f}" for criterion in ("accuracy", "log loss", "expected")),
            f"{100 * (truth.max() - truth[expected.argmax()]):.1f}",
            f"{found.tau:.2f}",
            f"{found.tau * ceilings[name]:.2f}",
        ]
        print(f"| {name} | {text} | {len(found.numbers)} | " + " | ".join(figures) + " |")
    print(f"\n{inside} of {total} test accuracies of full trainings lie in their interval ({inside / total:.1%})\n")
    pooled(table, own)


def tau(values: np.ndarray, truth: np.ndarray) -> float:
    """Kendall's tau-b; 0 if one of them is constant."""
    return float(np.nan_to_num(kendalltau(values, truth).statistic))


def pooled(table: list[dict], own: dict[str, Prior]) -> None:
    """Print tau as the mean of the sets, for budgets that all of them have: even networks, odd ones, and all."""
    print(
        "Tau as the mean of the sets, over networks of even number, of odd number, and all with its 95 % interval "
        "(bootstrap over networks). Cost: epochs times pixels relative to `32x8`, as the mean of the sets.\n"
    )
    print("| trained | cost | ranked by | even | odd | all (95 %) |\n| -- | -- | -- | -- | -- | -- |")
    counted = {name: counts(name) for name in PLAN}
    for count in COUNTS:
        pairs = []
        for name in PLAN:
            long = sorted(long_trainings(table, name).items())
            truth = np.array([np.mean([accuracy(row, name) for row in each]) for _, each in long])
            pairs.append((np.array([counted[name][count][number] for number, _ in long]), truth))
        print_row("nothing", 0, f"`{count}`", pairs)
    ladders = {name: [one.name for one in PLAN[name].budgets[0][0].prefixes] for name in PLAN}
    texts = {
        "8 epochs at 32 pixels, the first `quick`": dict.fromkeys(PLAN, "32x8"),
        **{f"`quick` and {step} of its rungs" if step else "4 epochs at 32 pixels, `quick` now":
           {name: each[step] for name, each in ladders.items()} for step in range(4)},
    }  # fmt: skip
    for label, by_set in texts.items():
        sets = {
            name: judged(table, name, text, [seed_of(table, name, text)], own[name]) for name, text in by_set.items()
        }
        if any(each is None or len(each.numbers) < PLAN[name].networks for name, each in sets.items()):
            print(f"| {label} | not trained yet for all networks | | | | |")
            continue
        cost = float(np.mean([pixels(text) / pixels("32x8") for text in by_set.values()]))
        for criterion in CRITERIA:
            print_row(label, cost, criterion, [(each.values[criterion], each.truth) for each in sets.values()])
    ceilings = {name: ceiling(table, name) for name in PLAN}
    each = ", ".join(f"{name} {value:.2f}" for name, value in ceilings.items())
    print(f"\nTau of the true quality with this truth: {each}; mean {np.mean(list(ceilings.values())):.2f}")


def print_row(label: str, cost: float, criterion: str, pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Print tau as the mean of the sets, each with what ranks its networks and their truth."""
    halves = [np.mean([tau(values[i::2], truth[i::2]) for values, truth in pairs]) for i in (0, 1)]
    low, high = np.quantile(resampled(pairs), [0.025, 0.975])
    every = np.mean([tau(*pair) for pair in pairs])
    cells = (label, f"{cost:.2f}", criterion, *(f"{one:.2f}" for one in halves))
    print("| " + " | ".join(cells) + f" | {every:.2f} ({low:.2f} to {high:.2f}) |")


def pixels(text: str) -> float:
    """Epochs times pixels of an image: what a training costs, up to a factor that the network decides."""
    return float(sum(count * size**2 for size, count in budget(text).parts))


def seed_of(table: list[dict], name: str, text: str) -> str:
    """The seed with which most networks were trained with a budget; empty if none was."""
    seeds = [row["seed"] for row in table if (row["set"], row["budget"]) == (name, text)]
    return max(sorted(set(seeds)), key=seeds.count, default="")


def resampled(pairs: list[tuple[np.ndarray, np.ndarray]], draws: int = 1000) -> np.ndarray:
    """The mean tau of the sets for bootstrap samples of their networks."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        chosen = [rng.integers(len(truth), size=len(truth)) for _, truth in pairs]
        found.append(np.mean([tau(v[c], t[c]) for c, (v, t) in zip(chosen, pairs, strict=True)]))
    return np.array(found)


def ceiling(table: list[dict], name: str) -> float:
    """The tau that perfect knowledge of the true quality would have with the mean of the long trainings.

    From the variance of that mean between networks and the variance between two trainings of a network: for normal
    values of correlation r, tau is 2 / pi * arcsin(r).
    """
    long = long_trainings(table, name).values()
    each = np.array([[accuracy(row, name) for row in trainings] for trainings in long])
    noise = each.var(1, ddof=1).mean() / each.shape[1]
    return float(2 / np.pi * np.arcsin(np.sqrt(max(0.0, 1 - noise / each.mean(1).var(ddof=1)))))


def compare(table: list[dict], what: str, priors_by_label: dict[str, dict[str, float]]) -> None:
    """Print how likely the looks are, and how the networks are ranked, with each prior (its changes, by label)."""
    own = priors(table)
    default = likelihood(table, Prior())
    print(f"| {what} | log likelihood | tau after 4 epochs: even, odd | after 8: even, odd |\n| -- | -- | -- | -- |")
    for label, changes in priors_by_label.items():
        row = [label, f"{likelihood(table, replace(Prior(), **changes)) - default:+.1f}"]
        for text in ("32x4", "32x8"):
            sets = [
                judged(table, name, text, [seed_of(table, name, text)], replace(own[name], **changes)) for name in PLAN
            ]
            halves = [
                np.mean([tau(one.values["expected"][i::2], one.truth[i::2]) for one in sets if one]) for i in (0, 1)
            ]
            row.append(", ".join(f"{half:.2f}" for half in halves))
        print(f"| {' | '.join(row)} |")


def likelihood(table: list[dict], prior: Prior) -> float:
    """The log likelihood of the short trainings of each budget together with the long ones, summed over all."""
    total = 0.0
    for (name, text, _), short in with_usual_settings(table).items():
        long = long_trainings(table, name)
        numbers = sorted(number for number in short if long[number])
        if len(numbers) < LEAST or "+" in text:
            continue
        after = PLAN[name].long.name
        looks = [look(i, name, text, short[number]) for i, number in enumerate(numbers)]
        looks += [look(i, name, after, row) for i, number in enumerate(numbers) for row in long[number]]
        belief = AccuracyBelief(sizes(name, numbers), looks, PLAN[name].long.parts[0][1], VALIDATION[name], prior)
        scaled = np.linalg.solve(belief._factor, belief._terms.residual)
        total += float(-0.5 * scaled @ scaled - np.log(np.diag(belief._factor)).sum())
    return total


def compare_candidates(table: list[dict]) -> None:
    """Print how trainings rank networks that cost at most as much as the first `quick`."""
    own = priors(table)
    kinds = [(one.name, seeds) for one in EQUAL for seeds in (["10"], ["10", "11"])]
    print("| trained | cost | networks |" + "".join(f" {criterion} |" for criterion in CRITERIA) + "\n|" + " -- |" * 7)
    for half, first in (("even", 0), ("odd", 1)):
        for text, seeds in kinds:
            sets = [
                judged(table, name, text, seeds, own[name], range(first, task.networks, 2))
                for name, task in PLAN.items()
            ]
            whole = [one for one, task in zip(sets, PLAN.values(), strict=True) if one and is_half(one, task)]
            if len(whole) < len(PLAN):  # not trained yet
                continue
            pairs = [[(one.values[criterion], one.truth) for one in whole] for criterion in CRITERIA]
            label = text + (", two seeds" if len(seeds) > 1 else "")
            print(f"| {label} | {len(seeds) * expense(text):.2f} | {half} | " + " | ".join(map(taus, pairs)) + " |")


def is_half(found: Judged, task: Task) -> bool:
    """Whether half of a set's networks were judged."""
    return len(found.numbers) == task.networks // 2


def taus(pairs: list[tuple[np.ndarray, np.ndarray]]) -> str:
    """Tau as the mean of the sets, with the 95 % interval of the bootstrap over networks."""
    low, high = np.quantile(resampled(pairs), [0.025, 0.975])
    return f"{np.mean([tau(*pair) for pair in pairs]):.2f} ({low:.2f} to {high:.2f})"


def expense(text: str) -> float:
    """Multiply-adds of a training relative to those of `32x8`, as the mean of the sets."""
    share = 1.0
    if match := re.search(r"width=([\d.]+)", text):
        shares = []
        for name in PLAN:
            networks = networks_of(name, 1 if name == "fashion-10k" else 3)
            shares += [cost(narrower(one, float(match[1]))).flops / cost(one).flops for one in networks]
        share = float(np.mean(shares))
    return share * pixels(text.split()[0]) / pixels("32x8")


def compare_on_cells(samples: int = 150, networks: int = 20) -> None:
    """Print tau after 12 of 200 epochs with each of `BY_COUNTS`, over samples of cells of NAS-Bench-201."""
    with gzip.open(TABLE, "rt") as file:
        cells = list(csv.DictReader(file))
    convolutions = np.array([sum(cell[f"op{i}"] in ("2", "3") for i in range(6)) for cell in cells])
    each = np.column_stack([[float(cell["macs"]) for cell in cells], STEM + CONVOLUTION * convolutions])
    rng, epochs = np.random.default_rng(0), ((12.0, 1.0),)
    print("| images | expected by | tau | minus that of FLOPs |\n| -- | -- | -- | -- |")
    for images, least in (("cifar10", 0.85), ("cifar100", 0.5)):
        short, full = (np.array([float(cell[f"{images}_{when}"]) / 100 for cell in cells]) for when in SHORT_AND_FULL)
        usable = np.flatnonzero((full > least) & (short > 0.15))
        found = defaultdict(list)
        for _ in range(samples):
            chosen = rng.choice(usable, networks, replace=False)
            looks = [Look(i, epochs, epochs, short[cell], 5000) for i, cell in enumerate(chosen)]
            for label, changes in BY_COUNTS.items():
                belief = AccuracyBelief(each[chosen], looks, 200, 10_000, replace(Prior(), **changes))
                found[label].append(tau(belief.expected, full[chosen]))
        for label, values in found.items():
            change = np.array(values) - found["FLOPs"]
            error = 1.96 * change.std() / np.sqrt(samples)
            print(f"| {images} | {label} | {np.mean(values):.3f} | {change.mean():+.3f} +- {error:.3f} |")


def floats(text: str) -> list[float]:
    """The numbers of a list with commas."""
    return [float(each) for each in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, default=FOLDER / "trainings.csv")
    parser.add_argument("--drifts", type=floats)
    parser.add_argument("--powers", type=floats)
    parser.add_argument("--counts", action="store_true")
    parser.add_argument("--cells", action="store_true")
    parser.add_argument("--candidates", action="store_true")
    arguments = parser.parse_args()
    table = rows(arguments.table)
    if arguments.drifts:
        compare(table, "drift_sd", {f"{drift:g}": {"drift_sd": drift} for drift in arguments.drifts})
    elif arguments.powers:
        compare(table, "resolution_power", {f"{power:g}": {"resolution_power": power} for power in arguments.powers})
    elif arguments.cells:
        compare_on_cells()
    elif arguments.candidates:
        compare_candidates(table)
    elif arguments.counts:
        compare(table, "expected by", BY_COUNTS)
    else:
        report(table)


if __name__ == "__main__":
    main()
