"""Compare nasspace's latency protocol with common ones at equal time, on a quiet machine and next to a busy loop.

    python benchmarks/latency_protocols.py [--networks 40] [--seconds 0.3] [--repeats 3] [--out FOLDER]

The ground truth of each network of `mixed` is a measurement ten times as long on the quiet machine: the median of
interleaved rounds, not normalized by a reference network. Then, in each condition and repeat, every network is measured
by one run; the mean of 10 runs; the median of 50 runs, as other tools do; the mean and the median of as many runs as
fit into the time that nasspace takes; and by nasspace. Printed and written: errors relative to the ground truth, the
spread between repeats, Kendall's tau with the ground truth (also for FLOPs), and how often nasspace's 95 % interval
contains the ground truth. nasspace's machine history starts with the session of the ground truth.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from nasspace import Space, build, cost
from nasspace.latency import runtimes
from nasspace.latency.benchmark import measure
from nasspace.latency.cache import LatencyCache
from nasspace.latency.conditions import machine
from nasspace.latency.reference import Reference, load_reference
from nasspace.latency.statistics import History

OURS, ONE = "nasspace", "one run, no warm-up"
CONDITIONS = ("quiet", "busy loop")


def runs(network, count: int = 0, seconds: float = 0.0) -> list[float]:
    """Return milliseconds of `count` consecutive runs, or of the runs within `seconds`."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < count or (not count and time.perf_counter() < end):
        start = time.perf_counter()
        network.run()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def warmed(network, count: int) -> list[float]:
    """Return milliseconds of runs after ten warm-up runs."""
    runs(network, 10)
    return runs(network, count)


PROTOCOLS: dict[str, Callable[[object, float], float]] = {
    ONE: lambda network, _: runs(network, 1)[0],
    "mean of 10": lambda network, _: statistics.mean(warmed(network, 10)),
    "median of 50": lambda network, _: statistics.median(warmed(network, 50)),
    "mean, equal time": lambda network, seconds: statistics.mean(runs(network, seconds=seconds)),
    "median, equal time": lambda network, seconds: statistics.median(runs(network, seconds=seconds)),
}


@contextlib.contextmanager
def condition(name: str) -> Iterator[None]:
    """Run a busy loop on the last core during the body, unless the condition is 'quiet'."""
    if name == "quiet":
        yield
        return
    pin = f"import os; os.sched_setaffinity(0, {{{max(os.sched_getaffinity(0))}}})\n"
    loop = subprocess.Popen([sys.executable, "-c", pin + "while True: pass"])
    try:
        time.sleep(1)
        yield
    finally:
        loop.kill()
        loop.wait()


def row(name: str, found: np.ndarray, truth: np.ndarray) -> list[str]:
    """Format errors and spread in percent, and tau; `found` has shape (repeats, networks) in milliseconds."""
    off = np.log(found / truth)
    spread = 100 * np.median(off.std(axis=0))
    taus = [kendalltau(one, truth).statistic for one in found]
    errors = 100 * np.quantile(np.abs(off), (0.5, 0.9))
    return [name, f"{errors[0]:.1f}", f"{errors[1]:.1f}", f"{spread:.1f}", f"{np.mean(taus):.3f} ± {np.std(taus):.3f}"]


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table."""
    lines = [columns, ["--"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    arguments = parser.parse_args()
    space, rng = Space.load("mixed", classes=10), random.Random(7)
    architectures = [space.sample(rng) for _ in range(arguments.networks)]
    networks = {
        str(i): runtimes.get("onnxruntime")().load(build(one), one.input) for i, one in enumerate(architectures)
    }
    with tempfile.TemporaryDirectory() as folder:
        known = load_reference(1, "cpu", LatencyCache(Path(folder) / "latency.db")).network
    alone = measure(networks, reference=Reference(known), seconds=10 * arguments.seconds, precision=0)
    truth = np.array([statistics.median(one.samples_ms) for one in alone.values()])
    history = History(tuple(one.reading for one in alone.values())[:1])
    contended = sum(one.contended for one in alone.values())
    parts = [
        f"# Latency protocols\n\n{arguments.networks} networks of `mixed` ({truth.min():.2f} to"
        f" {truth.max():.2f} ms), ONNX Runtime {runtimes.versions('onnxruntime')['onnxruntime']}, one thread, batch 1,"
        f" {arguments.repeats} repeats. {machine()}. Ground truth: {10 * arguments.seconds:g} s per network, quiet;"
        f" {contended} contended. Errors and spread in percent.\n"
    ]
    flops = kendalltau([cost(one).flops for one in architectures], truth).statistic
    for name in CONDITIONS:
        found: dict[str, list[list[float]]] = {protocol: [] for protocol in (*PROTOCOLS, OURS)}
        held = seen = slow = 0
        with condition(name):
            for repeat in range(arguments.repeats):
                start = time.perf_counter()
                ours = measure(networks, reference=Reference(known, history), seconds=arguments.seconds, seed=repeat)
                each = (time.perf_counter() - start) / len(networks)  # seconds, including the reference
                found[OURS].append([one.median_ms for one in ours.values()])
                held += sum(one.low_ms <= t <= one.high_ms for one, t in zip(ours.values(), truth, strict=True))
                seen, slow = seen + len(networks), slow + sum(one.contended for one in ours.values())
                for protocol, measure_once in PROTOCOLS.items():
                    found[protocol].append([measure_once(network, each) for network in networks.values()])
        rows = [row(protocol, np.array(values), truth) for protocol, values in found.items()]
        rows.append(["FLOPs", "", "", "", f"{flops:.3f}"])
        columns = ["protocol", "median error", "90 % of errors", "spread of repeats", "tau with the ground truth"]
        parts.append(f"## {name}\n\n{table(columns, rows)}\n")
        parts.append(
            f"nasspace took {each:.2f} s per network in the last repeat; its 95 % interval contained the ground truth"
            f" in {100 * held / seen:.0f} % of {seen} cases; {slow} of them were marked as contended.\n"
        )
        print("\n".join(parts[-2:]), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "latency-protocols.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
