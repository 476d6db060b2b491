"""Whether a latency target is kept on real data: an easy target, and one that about a tenth of the space meets.

    python benchmarks/targets.py [TRIALS] [SPACE]

For each data set, `nas search` runs from the command line; then every exported file of the front is measured again in a
new process that uses ONNX Runtime without nasspace (median of 200 runs). Data sets whose files are not found next to
the checkout are skipped with a message.
"""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from nasspace import Space, measure_latency
from nasspace.latency.conditions import machine

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
DATA = {
    "digits": "digits",
    "clothing10": f"imagefolder:{SHARED / 'clothing10'}",
    "cifar10-12k": f"parquet:{SHARED / 'cifar10-12k' / 'train.parquet'}",
}
SCRIPT = """
import json, sys, time, numpy, onnxruntime
options = onnxruntime.SessionOptions(); options.intra_op_num_threads = 1; options.inter_op_num_threads = 1
result = []
for path in sys.argv[1:]:
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name, shape = session.get_inputs()[0].name, session.get_inputs()[0].shape
    image = numpy.zeros([size if isinstance(size, int) else 1 for size in shape], "float32")
    times = []
    for i in range(250):
        start = time.perf_counter(); session.run(None, {name: image}); times.append(time.perf_counter() - start)
    result.append(1000 * float(numpy.median(times[50:])))
print(json.dumps(result))
"""


def tight_target(space: str, networks: int = 50) -> float:
    """Return the tenth percentile of the latency of random networks, in milliseconds."""
    rng, drawn = random.Random(7), Space.load(space, classes=10)
    return float(np.quantile([measure_latency(drawn.sample(rng)).median_ms for _ in range(networks)], 0.1))


def search(space: str, data: str, target: float, trials: int, folder: Path) -> dict:
    """Run a search and return its JSON document with exit status and seconds."""
    command = [sys.executable, "-m", "nasspace.cli", "search", "--space", space, "--latency-target", f"{target:.4f}ms"]
    command += ["--data", data, "--trials", str(trials), "--study", str(folder), "--json"]
    start = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if ended.returncode:
        return {"status": ended.returncode, "message": ended.stderr.strip().splitlines()[-1], "seconds": seconds}
    return {**json.loads(ended.stdout), "status": 0, "seconds": seconds}


def measure_again(paths: list[Path]) -> list[float]:
    """Measure files in a new process and return medians in milliseconds."""
    ended = subprocess.run([sys.executable, "-c", SCRIPT, *map(str, paths)], capture_output=True, text=True, check=True)
    return json.loads(ended.stdout)


def main(trials: int = 6, space: str = "shuffle") -> None:
    """Run the benchmark."""
    print(machine())
    tight = tight_target(space)
    with tempfile.TemporaryDirectory() as folder:
        for name, data in DATA.items():
            if name != "digits" and not Path(data.partition(":")[2]).exists():
                print(f"{name}: not found, skipped")
                continue
            for label, target in (("easy", 20.0), ("tight", tight)):
                study = Path(folder) / f"{name}-{label}"
                found = search(space, data, target, trials, study)
                head = f"{name}, {label} target {target:.3g} ms, {found['seconds']:.0f} s"
                if found["status"]:
                    print(f"{head}: exit status {found['status']}: {found['message']}")
                    continue
                again = measure_again(
                    [study / "exports" / str(member["id"]) / "model.onnx" for member in found["front"]]
                )
                inside = sum(value <= target for value in again)
                with open(study / "trials.csv", encoding="utf-8") as file:
                    rejected = [row for row in csv.DictReader(file) if row["state"] == "rejected"]
                assert not any(row["accuracy"] for row in rejected), "candidates over the limit must not be trained"
                print(
                    f"{head}: {found['evaluated']} evaluated, {found['rejected']} rejected untrained; "
                    f"front of {len(again)}, {inside} within the target when remeasured (largest {max(again):.3g} ms), "
                    f"best accuracy {max(member['accuracy'] for member in found['front']):.4f}",
                    flush=True,
                )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:3])
