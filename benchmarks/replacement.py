"""Seconds until a killed worker is replaced, and the share of the workers' time spent in finished trials.

    python benchmarks/replacement.py [--workers 4] [--kills 2] [--seconds 1.5] [--trials 100]

A search on Ray whose trials sleep, so that cores do not matter. The first kill (SIGKILL, of a worker in the middle of
a trial) comes when every worker has started its second trial, the next ones five seconds apart. Printed are the seconds
from each kill to the first trial of a process that had none before, and the share: seconds of finished trials over
workers times seconds from the first kill to the last trial's end.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

SPACE = """
name: little
input: [3, 32, 32]
stem: [{block: conv, out: 16}]
stages:
  - {depth: [1, 2, 3], out: [16, 32], stride: 2, each: {block: [shuffle_v2: {kernel: [3, 5]}, conv]}}
  - {depth: [1, 2], out: [32, 64], stride: 2, each: {block: [sandglass, fire: {squeeze: [0.125, 0.5]}]}}
"""
LOG = "log.txt"
BETWEEN = 5.0  # seconds between two kills


def search(workers: int, seconds: float, trials: int) -> None:
    """Run the search in the working folder; called in a separate process."""
    import nasspace
    from nasspace import Architecture, Space, cost

    log = Path.cwd() / LOG

    def evaluated(architecture: Architecture) -> dict[str, float]:
        for event in ("begin", "end"):
            with log.open("a") as file:
                file.write(f"{time.time()} {os.getpid()} {event}\n")
            if event == "begin":
                time.sleep(seconds)
        return {"accuracy": random.Random(architecture.digest).random()}

    settings = {"workers": workers, "trials": trials, "sampler": "random", "retries": 10}
    known = {"flops": lambda architecture: cost(architecture).flops}
    settings["objectives"] = ["accuracy", "flops"]

    def scored(architecture: Architecture) -> dict[str, float]:
        return {**evaluated(architecture), "flops": cost(architecture).flops}

    nasspace.search(Space.from_text(SPACE, "little.yaml"), evaluator=scored, known=known, study="s", **settings)


def events(folder: Path) -> list[tuple[float, int, str]]:
    """Time, process and kind of what the workers logged."""
    path = folder / LOG
    lines = [line.split() for line in path.read_text().splitlines()] if path.is_file() else []
    return [(float(when), int(process), event) for when, process, event in lines]


def killed(folder: Path, process: subprocess.Popen, workers: int, kills: int) -> list[tuple[float, int]]:
    """Kill workers; returns the times and process ids."""
    while process.poll() is None:
        started = Counter(pid for _, pid, event in events(folder) if event == "begin")
        if len(started) >= workers and min(started.values()) >= 2:
            break
        time.sleep(0.05)
    done: list[tuple[float, int]] = []
    while len(done) < kills and process.poll() is None:
        last = {pid: event for _, pid, event in events(folder)}
        at_work = [pid for pid, event in last.items() if event == "begin" and pid not in {pid for _, pid in done}]
        if at_work:
            os.kill(at_work[0], signal.SIGKILL)
            done.append((time.time(), at_work[0]))
            time.sleep(BETWEEN)
    return done


def main() -> None:
    if sys.argv[1:2] == ["--search"]:
        return search(int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--trials", type=int, default=100)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = [str(given.workers), str(given.seconds), str(given.trials)]
        command = [sys.executable, "-W", "ignore", __file__, "--search", *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, cwd=folder, env=environment)
        try:
            kills = killed(folder, process, given.workers, given.kills)
            process.wait()
        finally:
            process.kill()
            process.wait()
        seen = events(folder)
    first = {pid: when for when, pid, event in reversed(seen) if event == "begin"}
    new = sorted(when for when in first.values() if kills and when > kills[0][0])
    for i, (when, pid) in enumerate(kills):
        after = f"{new[i] - when:.1f} s later a new one was at work" if i < len(new) else "none replaced it"
        print(f"worker {pid} killed at {when - seen[0][0]:.1f} s; {after}")
    since = kills[0][0] if kills else seen[0][0]
    wall = seen[-1][0] - since
    useful = sum(min(given.seconds, when - since) for when, _, event in seen if event == "end" and when > since)
    print(
        f"{useful:.0f} s of finished trials in {wall:.1f} s on {given.workers} workers: share "
        f"{useful / wall / given.workers:.2f}; Ray {__import__('ray').__version__}"
    )
    return None


if __name__ == "__main__":
    main()
