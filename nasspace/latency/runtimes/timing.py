"""Timing of a loaded network: warm-up, and rounds of consecutive runs with detection of contention."""

from __future__ import annotations

import contextlib
import glob
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CONTENTION_RATIO = 1.15  # a round whose wall time exceeds its CPU time by this factor counts as disturbed
WARM_UP_SECONDS = 0.5
ROUND_SECONDS = 0.02


def _queue_seconds() -> float:
    """Return the total seconds that threads of this process waited for a core.

    On systems other than Linux: the time in which the whole process used less than one core.
    """
    waited = 0
    for path in glob.glob("/proc/self/task/*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError), open(path, encoding="ascii") as file:
            waited += int(file.read().split()[1])
    return waited / 1e9 if waited else time.perf_counter() - time.process_time()


def _stolen_seconds() -> float:
    """Return the steal time of this virtual machine in seconds; 0 if unavailable."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/stat", encoding="ascii") as file:
        return int(file.readline().split()[8]) / os.sysconf("SC_CLK_TCK")
    return 0.0


@dataclass(frozen=True)
class Clocks:
    """Clocks in seconds: wall time, CPU time of the calling thread, time waited for a core, steal time."""

    wall: Callable[[], float] = time.perf_counter
    cpu: Callable[[], float] = time.thread_time
    queue: Callable[[], float] = _queue_seconds
    stolen: Callable[[], float] = _stolen_seconds


CLOCKS = Clocks()


@dataclass(frozen=True)
class Round:
    """Several consecutive runs of one network, summarized as one value in milliseconds."""

    value_ms: float
    contended: bool


def _time_runs(network: Any, clocks: Clocks, seconds: float) -> tuple[list[float], list[float]]:
    """Return wall and CPU seconds of each run; at least two runs, for about `seconds`."""
    walls, cpus = [], []
    while len(walls) < 2 or sum(walls) < seconds:
        cpu, wall = clocks.cpu(), clocks.wall()
        network.run()
        walls.append(clocks.wall() - wall)
        cpus.append(clocks.cpu() - cpu)
    return walls, cpus


def time_round(network: Any, clocks: Clocks = CLOCKS) -> Round:
    """Run for about 20 ms and return the median run, or the best estimate if the round was disturbed.

    A round is disturbed if its wall time exceeds the thread's CPU time by 15 %; with several threads, if they waited
    for a core for 15 % of the time. Contention is not detected on devices other than the CPU. The estimate for a
    disturbed round uses the CPU time of its runs, with several threads its fastest run.
    """
    several = network.threads > 1
    before = clocks.queue() if several else 0.0
    walls, cpus = _time_runs(network, clocks, ROUND_SECONDS)
    if network.device != "cpu":
        contended = False
    elif several:
        contended = clocks.queue() - before > (CONTENTION_RATIO - 1) * sum(walls)
    else:
        contended = sum(walls) > CONTENTION_RATIO * sum(cpus)
    if contended:
        walls = [min(walls)] if several else [min(pair) for pair in zip(walls, cpus, strict=True)]
    return Round(1e3 * statistics.median(walls), contended)


def warm_up(network: Any, clocks: Clocks = CLOCKS) -> None:
    """Run until the fastest run improves by less than 2 % from one group of runs to the next, at most half a second."""
    network.run()
    end, fastest = clocks.wall() + WARM_UP_SECONDS, float("inf")
    while clocks.wall() < end:
        walls, _ = _time_runs(network, clocks, ROUND_SECONDS / 2)
        if min(walls) > 0.98 * fastest:
            return
        fastest = min(walls)
