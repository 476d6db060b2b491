"""Start-up time: `nas --help`, and the first trial of `nas search`.

    python benchmarks/startup.py [REPEATS]

Also printed: the start-up time of Python alone, in the same run.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def seconds(command: list[str], until: str = "", **kwargs) -> float:
    began = time.perf_counter()
    if not until:
        subprocess.run(command, check=True, capture_output=True, **kwargs)
        return time.perf_counter() - began
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **kwargs) as process:
        for line in process.stderr:
            if until in line:
                break
        taken = time.perf_counter() - began
        process.kill()
    return taken


def show(label: str, times: list[float]) -> None:
    print(f"{label}: median {statistics.median(times):.2f} s, {min(times):.2f} to {max(times):.2f}, {len(times)} runs")


def main(repeats: int = 5) -> None:
    nas = [sys.executable, "-m", "nasspace.cli"]
    show("python -c pass", [seconds([sys.executable, "-c", "pass"]) for _ in range(repeats)])
    show("nas --help", [seconds([*nas, "--help"]) for _ in range(repeats)])
    search = [*nas, "search", "--space", "shuffle", "--latency-target", "20ms"]
    times = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "NASSPACE_CACHE": str(Path(folder) / "cache")}
            times.append(seconds(search, "trial 0", cwd=folder, env=environment))
    show("nas search, first trial started", times)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
