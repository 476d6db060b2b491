"""Whether latency targets are kept: twenty searches, with every returned network measured independently.

    python benchmarks/promises.py [--searches 20] [--trials 3] [--out FOLDER]

The targets are quantiles from 10 to 90 % of the latencies of random networks of `shuffle` and `mixed`; searches train
briefly on the bundled digits. Afterwards each exported file of each front is measured in a new process that uses ONNX
Runtime without nasspace: the median of 300 runs, repeated until wall time and CPU time agree within 3 %. Printed and
written: how many networks meet their target (goal: 95 %), how far they lie below it, and the largest excess.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from nasspace import Space, measure_latency
from nasspace.latency.conditions import machine

SPACES = ("shuffle", "mixed")
RECIPE = """
name: short
trials: {trials}
sampler: gain
objectives: [accuracy, latency, flops]
fidelity: {{resolution: 32, epochs: 1, share: 0.2}}
"""
SCRIPT = """
import json, sys, time, numpy, onnxruntime
options = onnxruntime.SessionOptions(); options.intra_op_num_threads = 1; options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
name, shape = session.get_inputs()[0].name, session.get_inputs()[0].shape
image = numpy.zeros([size if isinstance(size, int) else 1 for size in shape], "float32")
for i in range(50): session.run(None, {name: image})
best = None
for attempt in range(10):
    times, cpu, wall = [], time.thread_time(), time.perf_counter()
    for i in range(300):
        start = time.perf_counter(); session.run(None, {name: image}); times.append(time.perf_counter() - start)
    share = (time.perf_counter() - wall) / (time.thread_time() - cpu)
    if best is None or share < best[0]:
        best = share, 1000 * float(numpy.median(times))
    if share < 1.03:
        break
print(json.dumps(best))
"""


def targets(count: int) -> list[tuple[str, float, float]]:
    """Return (space, quantile, milliseconds) of each search."""
    measured = {}
    for name in SPACES:
        rng, space = random.Random(3), Space.load(name, classes=10)
        measured[name] = [measure_latency(space.sample(rng), seconds=0.3).median_ms for _ in range(40)]
    quantiles = np.linspace(0.1, 0.9, count)
    names = [SPACES[i % len(SPACES)] for i in range(count)]
    return [(name, at, float(np.quantile(measured[name], at))) for name, at in zip(names, quantiles, strict=True)]


def search(space: str, target: float, seed: int, folder: Path) -> list[dict]:
    """Run a search and return its front, empty if nothing was found."""
    command = [sys.executable, "-m", "nasspace.cli", "search", "--space", space, "--latency-target", f"{target:.4f}ms"]
    command += ["--recipe", "short.yaml", "--seed", str(seed), "--study", f"study-{seed}", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if ended.returncode not in (0, 3):
        raise SystemExit(ended.stderr)
    return json.loads(ended.stdout)["front"] if ended.returncode == 0 else []


def measure_again(path: Path) -> tuple[float, float]:
    """Measure a file in a new process; return wall time over CPU time, and the median in milliseconds."""
    ended = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, check=True)
    return tuple(json.loads(ended.stdout))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=20)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"))
    arguments = parser.parse_args()
    start, lines, shares, disturbed = time.perf_counter(), [], [], 0
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        os.environ["NASSPACE_CACHE"] = str(folder / "cache")
        (folder / "short.yaml").write_text(RECIPE.format(trials=arguments.trials))
        for seed, (space, quantile, target) in enumerate(targets(arguments.searches)):
            front = search(space, target, seed, folder)
            paths = [folder / "reports" / f"study-{seed}" / "exports" / str(one["id"]) / "model.onnx" for one in front]
            again = [measure_again(path) for path in paths]
            disturbed += sum(share >= 1.03 for share, _ in again)
            shares += [value / target for _, value in again]
            listed = ", ".join(f"{value:.3g}" for _, value in again) or "none found"
            lines.append(f"| {seed} | {space} | {quantile:.2f} | {target:.3g} | {listed} |")
            print(lines[-1], flush=True)
    inside = np.mean([share <= 1 for share in shares])
    summary = (
        f"{len(shares)} networks returned, {100 * inside:.1f} % within their target when measured again ({disturbed}"
        f" re-measurements stayed disturbed); latency over target: median {np.median(shares):.3f}, largest"
        f" {max(shares):.3f}. {time.perf_counter() - start:.0f} s."
    )
    head = "| search | space | quantile | target, ms | measured again, ms |\n| -- | -- | -- | -- | -- |"
    text = f"# Latency targets kept\n\n{machine()}.\n\n{summary}\n\n" + "\n".join([head, *lines]) + "\n"
    print(summary)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "promises.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
