"""Accuracy of latency predictions from 50 measured networks, in ONNX Runtime on one thread.

    python benchmarks/predictor.py [SPACE...] [--seconds 0.4] [--out FOLDER]

For each space (`mixed` and `shuffle`), the 50 most informative of 400 random networks are measured with profiles of
their layers, then 100 other random networks. Printed and written: how many of the latter are predicted within 5 %
(goal: 90 %) and within 10 % (99 %, nn-Meter's figure), and Kendall's tau, compared with that of FLOPs and of the sum of
separately measured blocks (for 40 of the 100). The same without profiles, and with 50 networks chosen at random.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

from nasspace import Architecture, Space, build, cost
from nasspace.latency import layerwise, runtimes
from nasspace.latency.benchmark import Latency, measure
from nasspace.latency.cache import LatencyCache
from nasspace.latency.conditions import machine
from nasspace.latency.predictor import Predictor, cross_validate, select_informative
from nasspace.latency.reference import load_reference, record_rounds

POOL, TRAIN, TEST, SUMMED, GROUP = 400, 50, 100, 40, 10


def measured(architectures: list[Architecture], seconds: float, cache: LatencyCache) -> list[Latency]:
    """Measure networks in turn, in groups of ten."""
    found: list[Latency] = []
    for first in range(0, len(architectures), GROUP):
        some = architectures[first : first + GROUP]
        networks = {str(i): runtimes.get("onnxruntime")().load(build(one), one.input) for i, one in enumerate(some)}
        latencies = measure(networks, reference=load_reference(1, "cpu", cache), seconds=seconds)
        found += latencies.values()
        if not any(one.contended for one in latencies.values()):
            record_rounds(latencies["0"].reference_ms, 1, "cpu", cache)
    return found


def summed(architectures: list[Architecture], cache: LatencyCache) -> np.ndarray:
    """Return, for each network, the sum of the times of its layers, each measured separately."""
    parts_by_network = [
        [
            (layer, part.in_shape)
            for layer, part in zip(one.layers, cost(one).layers, strict=True)
            if len(part.in_shape) == 3
        ]
        for one in architectures
    ]
    distinct = sorted({part for parts in parts_by_network for part in parts}, key=str)
    blocks = [Architecture.of([{"out": shape[0], **layer.to_dict()}], input=shape) for layer, shape in distinct]
    times = dict(zip(distinct, (one.median_ms for one in measured(blocks, 0.1, cache)), strict=True))
    return np.array([sum(times[part] for part in parts) for parts in parts_by_network])


def row(name: str, predicted: np.ndarray, truth: np.ndarray, *, errors: bool = True) -> str:
    """Format a row: errors, shares within 5 and 10 %, tau."""
    tau = kendalltau(predicted, truth).statistic
    if not errors:
        return f"| {name} |  |  |  |  | {tau:.3f} |"
    off = np.abs(predicted / truth - 1)
    within = [f"{100 * (off <= share).mean():.0f} %" for share in (0.05, 0.1)]
    quantiles = [f"{100 * value:.1f} %" for value in np.quantile(off, (0.5, 0.9))]
    return f"| {name} | {' | '.join(quantiles + within)} | {tau:.3f} |"


def one_space(name: str, seconds: float, cache: LatencyCache) -> list[str]:
    """Run the benchmark for one space and return paragraphs of the report."""
    start, space, rng = time.perf_counter(), Space.load(name, classes=10), random.Random(11)
    pool, others = ([space.sample(rng) for _ in range(count)] for count in (POOL, TEST))
    chosen = [pool[i] for i in select_informative(pool, TRAIN)]
    trained = measured(chosen, seconds, cache)
    layers = [
        layerwise.measure_layers(one, build(one), latency, cache=cache)
        for one, latency in zip(chosen, trained, strict=True)
    ]
    at_random = pool[:TRAIN]
    plain = measured(at_random, seconds, cache)
    latencies = measured(others, seconds, cache)
    truth = np.array([one.median_ms for one in latencies])
    known = [one.median_ms for one in trained]
    predictor = Predictor(chosen, known, layers)
    mean, deviation = predictor.predict(others)
    ratio = np.sqrt(np.mean(((mean - truth) / deviation) ** 2))
    contended = sum(one.contended for one in (*trained, *latencies))
    rows = [
        row("50 informative, layers profiled", mean, truth),
        row("50 informative, totals only", Predictor(chosen, known).predict(others)[0], truth),
        row(
            "50 random, totals only",
            Predictor(at_random, [one.median_ms for one in plain]).predict(others)[0],
            truth,
        ),
        row("FLOPs", np.array([cost(one).flops for one in others]), truth, errors=False),
        row(f"sum of blocks ({SUMMED} networks)", summed(others[:SUMMED], cache), truth[:SUMMED]),
        row(f"nasspace on these {SUMMED}", mean[:SUMMED], truth[:SUMMED]),
    ]
    head = "| from | median error | 90 % of errors | within 5 % | within 10 % | tau |\n| -- | -- | -- | -- | -- | -- |"
    return [
        f"## {name}\n",
        f"{len(truth)} networks of {truth.min():.2f} to {truth.max():.2f} ms; {contended} measurements contended;"
        f" {time.perf_counter() - start:.0f} s in total.\n",
        "\n".join([head, *rows]),
        f"\nErrors are {ratio:.2f} of the predicted standard deviations (root mean square). Cross-validation on the"
        f" 50: {cross_validate(chosen, known, layers)}.\n",
    ]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spaces", nargs="*", default=["mixed", "shuffle"])
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    arguments = parser.parse_args()
    versions = ", ".join(f"{key} {value}" for key, value in runtimes.versions("onnxruntime").items())
    parts = [f"# Latency prediction\n\n{machine()}; {versions}; one thread, batch 1.\n"]
    with tempfile.TemporaryDirectory() as folder:
        cache = LatencyCache(Path(folder) / "latency.db")
        for name in arguments.spaces:
            parts += one_space(name, arguments.seconds, cache)
            print("\n".join(parts), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "predictor.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
