"""Real Ray clusters on this machine, and searches on them in separate processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nasspace
from nasspace.engine import loop

os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15: beside other tests, its processes would hardly get a core

SPACE = """
name: little
input: [3, 32, 32]
stem: [{block: conv, out: 16}]
stages:
  - {depth: [1, 2, 3], out: [16, 32], stride: 2, each: {block: [shuffle_v2: {kernel: [3, 5]}, conv]}}
  - {depth: [1, 2], out: [32, 64], stride: 2, each: {block: [sandglass, fire: {squeeze: [0.125, 0.5]}]}}
"""
SCRIPT = (
    f"SPACE = {SPACE!r}\n"
    + """
import os, random, signal, sys, time
from pathlib import Path

import nasspace
from nasspace import cost

FOLDER = Path.cwd()


def flops(architecture):
    return cost(architecture).flops


def scored(architecture):
    noise, counted = random.Random(architecture.digest), cost(architecture)
    accuracy = 0.5 + 0.04 * len(architecture.layers) + 0.05 * noise.random()
    return {"accuracy": accuracy, "latency": counted.memory_access / 1e5 + noise.random(), "flops": counted.flops}


def evaluated(architecture):
    import ray

    node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "here"
    with open(FOLDER / "log.txt", "a") as log:
        log.write(f"{architecture.digest} {os.getpid()} {node}\\n")
    while (FOLDER / "hold").exists():
        time.sleep(0.05)
    time.sleep(SLEEP)
    return scored(architecture)


def search(**settings):
    space = nasspace.Space.from_text(SPACE, "little.yaml")
    settings = {"trials": 10, "evaluator": evaluated, "known": {"flops": flops}, "sampler": "random", **settings}
    return nasspace.search(space, **settings)

SLEEP = 0.2
"""
)


class Searches:
    """Run Python code after SCRIPT in a folder."""

    def __init__(self, folder: Path, forked: Callable[..., Any]) -> None:
        self.folder = folder
        self.processes: list[Any] = []
        self._forked = forked

    def start(self, code: str) -> Any:
        self.processes.append(self._forked(SCRIPT + code, folder=self.folder))
        return self.processes[-1]

    def run(self, code: str, timeout: float = 500) -> subprocess.CompletedProcess:
        process = self.start(code)
        output, _ = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(code, process.returncode, "", output)

    def log(self) -> list[list[str]]:
        """Return digest, process, and node of every evaluation started."""
        path = self.folder / "log.txt"
        return [line.split() for line in path.read_text().splitlines()] if path.is_file() else []

    def wait_for(self, count: int, timeout: float = 500) -> None:
        """Wait until `count` evaluations have started."""
        self.wait_until(lambda log: len(log) >= count, f"{count} evaluations started", timeout)

    def wait_until(self, holds: Callable[[list[list[str]]], bool], what: str, timeout: float = 500) -> None:
        """Wait until the log meets a condition; fail immediately if the last search has ended."""
        end = time.monotonic() + timeout
        while not holds(self.log()):
            process = self.processes[-1]
            if process.poll() is not None and not holds(self.log()):
                pytest.fail(f"the search ended before {what}: {process.output()}")
            assert time.monotonic() < end, f"not within {timeout} s: {what}; {len(self.log())} evaluations started"
            time.sleep(0.05)


@pytest.fixture
def searches(tmp_path, forked) -> Searches:
    return Searches(tmp_path, forked)


@pytest.fixture(scope="module")
def rungs_here(tmp_path_factory) -> Path:
    """A folder with the study `here`, whose networks climbed a rung without Ray, and `before`, the same without that.

    The weights of the search are on this node only.
    """
    folder = tmp_path_factory.mktemp("rungs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        nasspace.search(
            nasspace.Space.from_text(SPACE, "little.yaml"),
            **{"data": "digits", "trials": 6, "sampler": "random", "objectives": ["accuracy", "flops"]},
            **{"resolution": 8, "fidelity": {"resolution": 8, "epochs": 1}},
            **{"rungs": [{"epochs": 4}, {"epochs": 1}], "study": "here", "deliver": False},
        )
        shutil.copytree("reports/here", "reports/before")
        loop.resume("here")
    return folder / "reports"


@pytest.fixture
def rungs_there(searches, rungs_here) -> Searches:
    """Searches in a folder with the study `there`, whose networks are yet to climb a rung.

    As long as its file `hold` exists, trainings on a cluster wait at each checkpoint (`test_clusters.resumed`).
    """
    shutil.copytree(rungs_here / "before", searches.folder / "reports" / "there")
    return searches


@contextlib.contextmanager
def started(*nodes: dict) -> Iterator[Any]:
    """Run a cluster with these nodes."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **nodes[0]})
    try:
        for node in nodes[1:]:
            cluster.add_node(**node)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture
def own_cluster() -> Iterator[Any]:
    """A cluster of one core that a test may stop."""
    with started({"num_cpus": 1}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def one_node() -> Iterator[Any]:
    """A node that reports four cores and a GPU; tests check how Ray shares them."""
    with started({"num_cpus": 4, "num_gpus": 1}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory) -> Iterator[Any]:
    """A node for training and one for measuring; the latter has its own cache, `cluster.cache`."""
    cache = tmp_path_factory.mktemp("measuring")
    measuring = {"num_cpus": 1, "resources": {"latency": 1}, "env_vars": {"NASSPACE_CACHE": str(cache)}}
    with started({"num_cpus": 1}, measuring) as cluster:
        cluster.cache = cache
        yield cluster
