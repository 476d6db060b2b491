"""Seconds that the sampler `gain` takes for a proposal, after few and many trials.

    python benchmarks/asks.py [--space mixed] [--resolution 64] [--trials 50 100 500 2000] [--repeats 5]

The trials are random networks of the space with made-up accuracies and latencies; the counts are real. As in a search
with a latency target, accuracy, latency, and FLOPs are the objectives, latency is predicted, and every count is known
for each candidate. The first proposal after a start also counts the networks that set the scales, and is left out.
Seconds are of processor time on one thread: the median of the repeats, the least, and the most.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time

from nasspace.engine.evaluator import counts
from nasspace.samplers.gain_sampler import GainSampler
from nasspace.samplers.observation import Observation
from nasspace.space.space import Space

TARGET_MS = 20.0


def observations(space: Space, count: int) -> list[Observation]:
    """Random networks with their counts, and with accuracies and latencies that grow with FLOPs."""
    rng, known = random.Random(0), counts()
    found = []
    for _ in range(count):
        architecture = space.sample(rng)
        values = {name: figure(architecture) for name, figure in known.items()}
        odds = 0.3 * math.log(values["flops"]) - 4 + 0.2 * rng.gauss(0, 1)
        values["accuracy"] = 1 / (1 + math.exp(-odds))
        values["latency"] = 1e-4 * values["flops"] ** 0.7 * math.exp(0.1 * rng.gauss(0, 1))
        found.append(Observation(architecture, values, None, 1.05, False))
    return found


def seconds(space: Space, trials: list[Observation], repeats: int) -> list[float]:
    """Processor seconds of proposals after these trials, without the first."""
    sampler = GainSampler(space, ("accuracy", "latency", "flops"), {"latency": TARGET_MS}, counts(), seed=0)
    found = []
    for repeat in range(repeats + 1):
        started = time.process_time()
        sampler.propose(trials, len(trials) + repeat)
        found.append(time.process_time() - started)
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="mixed")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--trials", nargs="+", type=int, default=[50, 100, 500, 2000])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    space = Space.load(arguments.space, resolution=arguments.resolution)
    trials = observations(space, max(arguments.trials))
    print(f"{arguments.space} at {arguments.resolution} pixels, {len(space.options)} choices\n")
    print("| trials | seconds a proposal, median | least | most |\n| -- | -- | -- | -- |")
    for count in arguments.trials:
        found = seconds(space, trials[:count], arguments.repeats)
        print(f"| {count:,} | {statistics.median(found):.3f} | {min(found):.3f} | {max(found):.3f} |")


if __name__ == "__main__":
    main()
