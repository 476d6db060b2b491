"""Cost of a dynamic batch size in ONNX Runtime: networks exported with a fixed and with a dynamic batch.

    python benchmarks/dynamic_batch.py [--rounds 30] [--repeats 6] [--resolution 224] [NAME ...]

Each round runs the dynamic file and two sessions of the fixed file in a new random order, for about 20 ms each. Ratios
are taken within a round, between the dynamic file and the mean of the two sessions; the ratio of the two sessions shows
the machine's own variation. Each repeat loads the files again in a random order, since the memory that a session is
given affects its speed too. One thread, batch 1. The output is a Markdown table.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from nasspace import build, zoo
from nasspace.latency.conditions import machine
from nasspace.latency.convert import to_onnx
from nasspace.latency.runtimes import OnnxRuntime, library_versions

NAMES = (
    *("squeezenet_1.1", "resnet18", "mobilenet_v1_0.5", "mobilenet_v2_0.5", "mnasnet_small", "mobilenet_v3_small_1.0"),
    *("mobilenext_0.5", "shufflenet_v1_g3_0.5", "shufflenet_v2_0.5", "shufflenet_v2_1.0"),
)
ROUND = 0.02  # seconds


def timed(run: Callable[[], None], runs: int) -> float:
    """Return the mean milliseconds of a run."""
    start = time.perf_counter()
    for _ in range(runs):
        run()
    return 1000 * (time.perf_counter() - start) / runs


def rounds(networks: dict[str, OnnxRuntime], count: int, seed: int) -> dict[str, list[float]]:
    """Return milliseconds of each network in each round."""
    for network in networks.values():
        timed(network.run, 10)
    runs = max(1, round(1000 * ROUND / timed(networks["fixed"].run, 10)))
    order, shuffle = list(networks), random.Random(seed).shuffle
    found: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(count):
        shuffle(order)
        for name in order:
            found[name].append(timed(networks[name].run, runs))
    return found


def ratios(found: dict[str, list[float]]) -> tuple[list[float], list[float]]:
    """Return two ratios per round: dynamic to the mean of both fixed sessions, and second to first fixed session."""
    each = list(zip(found["dynamic"], found["fixed"], found["again"], strict=True))
    return [2 * free / (one + other) for free, one, other in each], [other / one for _, one, other in each]


def shown(values: list[list[float]]) -> str:
    """Format the median of all rounds, and the smallest and largest median of a repeat."""
    medians = sorted(statistics.median(repeat) for repeat in values)
    return f"{statistics.median(itertools.chain(*values)):.4f} ({medians[0]:.4f} to {medians[-1]:.4f})"


def optimized(path: Path) -> Counter:
    """Count the operators that ONNX Runtime runs after its optimizations."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def measured(name: str, resolution: int, count: int, repeats: int, folder: Path) -> tuple[str, float, float]:
    """Return a row of the table, and the median ratios of the dynamic file and of the second fixed session."""
    architecture = zoo.load(name, resolution=resolution)
    network = build(architecture).eval()
    fixed = to_onnx(network, architecture.input, folder / "fixed.onnx")
    dynamic = to_onnx(network, architecture.input, folder / "dynamic.onnx", dynamic_batch=True)
    one, other = optimized(fixed), optimized(dynamic)
    same = "the same" if one == other else f"{(other - one).total()} more, {(one - other).total()} fewer"
    free, control, times = [], [], []
    paths = {"fixed": fixed, "dynamic": dynamic, "again": fixed}
    for repeat in range(repeats):
        order = random.Random(repeat).sample(list(paths), len(paths))
        found = rounds({key: OnnxRuntime().load(paths[key]) for key in order}, count, repeat)
        for values, new in zip((free, control), ratios(found), strict=True):
            values.append(new)
        times += found["fixed"]
    row = f"| {name} | {statistics.median(times):.3g} | {one.total()} | {same} | {shown(free)} | {shown(control)} |"
    return row, statistics.median(itertools.chain(*free)), statistics.median(itertools.chain(*control))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--resolution", type=int, default=224)
    arguments = parser.parse_args()
    print(f"{machine()}; {library_versions(('onnxruntime', 'torch'))}; one thread, batch 1, ", end="")
    print(f"{arguments.resolution} pixels; {arguments.repeats} repeats of {arguments.rounds} rounds.\n")
    print("| network | fixed, ms | operators, fixed | dynamic | dynamic / fixed | fixed again / fixed |")
    print("| -- | -- | -- | -- | -- | -- |", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.names:
            row, *medians = measured(name, arguments.resolution, arguments.rounds, arguments.repeats, Path(folder))
            print(row, flush=True)
            rows.append(medians)
    free, control = np.exp(np.log(np.array(rows)).mean(0))
    print(f"\nGeometric mean: dynamic / fixed {free:.4f}, fixed again / fixed {control:.4f}.")


if __name__ == "__main__":
    main()
