"""Fault injection: searches killed at random moments, in one process, on Ray, and on a cluster of two nodes.

    python benchmarks/faults.py [--kills 50] [--seed 0] [--out reports/benchmarks/faults.md]

A fifth of the kills: the process of a search without Ray; two fifths each: the driver or the worker of a search on Ray
with one worker; a node, the driver or a worker of a cluster with two. Every kill is SIGKILL, at a random moment,
about every two seconds; a killed driver is restarted, a node is replaced. Counted at every kill of a driver and at the
end: finished trials that are no longer in the record (lost), and networks that finished twice (twice). Also printed:
whether the searches with one worker end in the same study and front as an undisturbed one.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import nasspace
from nasspace import Architecture, Space, cost
from nasspace.errors import InputError
from nasspace.latency.conditions import machine
from nasspace.studies import study as records

SPACE = """
name: little
input: [3, 32, 32]
stem: [{block: conv, out: 16}]
stages:
  - {depth: [1, 2, 3], out: [16, 32], stride: 2, each: {block: [shuffle_v2: {kernel: [3, 5]}, conv]}}
  - {depth: [1, 2], out: [32, 64], stride: 2, each: {block: [sandglass, fire: {squeeze: [0.125, 0.5]}]}}
"""
TRIALS = 40
SECONDS = 0.5  # of one trial
LOG = "log.txt"


def search(name: str, address: str, workers: int) -> None:
    """Run a search in the working folder; called in a separate process."""
    log = Path.cwd() / LOG

    def evaluated(architecture: Architecture) -> dict[str, float]:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(SECONDS)
        noise = random.Random(architecture.digest)
        accuracy = 0.5 + 0.04 * len(architecture.layers) + 0.05 * noise.random()
        return {"accuracy": accuracy, "latency": cost(architecture).memory_access / 1e5 + noise.random()}

    known = {"flops": lambda architecture: cost(architecture).flops}
    settings = {"ray": address or None, "workers": workers, "trials": TRIALS, "sampler": "gain", "study": name}
    settings |= {"retries": 1000, "on_event": print_note}  # a candidate may be killed many times
    nasspace.search(Space.from_text(SPACE, "little.yaml"), evaluator=evaluated, known=known, **settings)


def print_note(kind: str, **about: object) -> None:
    """Print the notes of the search to standard error."""
    if kind == "note":
        print(about["text"], file=sys.stderr, flush=True)


@dataclass
class Campaign:
    """A search that is killed repeatedly, in its own folder."""

    name: str
    folder: Path
    kinds: tuple[str, ...]
    address: str = ""
    workers: int = 1
    cluster: object = None
    process: subprocess.Popen | None = None
    known: dict[int, str] = field(default_factory=dict)
    kills: Counter = field(default_factory=Counter)
    lost: int = 0
    twice: int = 0

    def begin(self) -> None:
        self.folder.mkdir(exist_ok=True)
        command = [sys.executable, "-W", "ignore", __file__, "--search", self.name, self.address, str(self.workers)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (self.folder / "errors.txt").open("a") as errors:
            self.process = subprocess.Popen(command, cwd=self.folder, stderr=errors, env=environment)

    def finished(self) -> dict[int, str]:
        """Number and digest of the trials that the record holds as finished."""
        try:
            study = records.load(self.folder / "reports" / self.name)
        except InputError:
            return {}
        return {trial.number: trial.user_attrs["digest"] for trial in study.frozen("COMPLETE", "PRUNED")}

    def check(self) -> None:
        now = self.finished()
        self.lost += sum(now.get(number) != digest for number, digest in self.known.items())
        self.twice += len(now) - len(set(now.values()))
        self.known = now

    def kill(self, rng: random.Random) -> bool:
        """Wait for a random moment and kill; returns False if the search ended first."""
        started, kind = self._count_started(), rng.choice(self.kinds)
        while self._count_started() <= started and self.process.poll() is None:
            time.sleep(0.02)  # wait for a new trial to start
        time.sleep(rng.uniform(0, 3 * SECONDS))
        if self.process.poll() is not None:
            return False
        if kind == "driver":
            self.process.kill()
            self.process.wait()
            self.check()
            self.begin()
        elif kind == "worker":
            os.kill(int((self.folder / LOG).read_text().split()[-1]), signal.SIGKILL)
        else:
            self.cluster.remove_node(self.cluster.list_all_nodes()[-1], allow_graceful=False)
            self.cluster.add_node(num_cpus=1)
        self.kills[kind] += 1
        return True

    def _count_started(self) -> int:
        path = self.folder / LOG
        return len(path.read_text().split()) if path.is_file() else 0

    def run(self, kills: int, rng: random.Random) -> None:
        """Kill the search `kills` times, then let it run to its end."""
        while sum(self.kills.values()) < kills:
            if self.process is None:
                self.begin()
            if not self.kill(rng):
                break
        if self.process.wait(timeout=600):
            print((self.folder / "errors.txt").read_text()[-3000:], file=sys.stderr)
        self.check()

    def row(self, same: str) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kills.items()) or "none"
        return f"| {self.name} | {kinds} | {len(self.known)} of {TRIALS} | {self.lost} | {self.twice} | {same} |"


def outcome(campaign: Campaign) -> list[tuple]:
    """What a study found: its trials in order, and its front."""
    study = records.load(campaign.folder / "reports" / campaign.name)
    trials = [(row.digest, row.accuracy, row.latency_ms) for row in study.trials().itertuples()]
    return [*trials, *((row.digest, row.accuracy) for row in study.front().itertuples())]


def main() -> None:
    if sys.argv[1:2] == ["--search"]:
        logging.disable(logging.WARNING)
        return search(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rng, began = random.Random(given.seed), time.monotonic()
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        undisturbed = Campaign("undisturbed", folder / "0", ())
        undisturbed.begin()
        undisturbed.run(0, rng)
        rows = [undisturbed.row("-")]
        one = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        two = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        two.add_node(num_cpus=1)
        campaigns = [
            (Campaign("one process", folder / "1", ("driver",)), 0.2),
            (Campaign("one worker on Ray", folder / "2", ("driver", "worker"), one.address), 0.4),
            (Campaign("two nodes", folder / "3", ("node", "driver", "worker"), two.address, 2, two), 0.4),
        ]
        done = 0
        try:
            for campaign, part in campaigns:
                campaign.run(round(part * given.kills), rng)
                same = outcome(campaign) == outcome(undisturbed) if campaign.workers == 1 else "-"
                rows.append(campaign.row({True: "yes", False: "NO"}.get(same, same)))
                done += sum(campaign.kills.values())
                print(rows[-1], flush=True)
        finally:
            one.shutdown()
            two.shutdown()
    head = "| search | kills | finished | lost | twice | as undisturbed |\n| -- | -- | -- | -- | -- | -- |"
    about = f"{done} kills in {time.monotonic() - began:.0f} s; trials of {SECONDS} s; {machine()}."
    text = f"# Faults\n\n{about}\n\n" + "\n".join([head, *rows]) + "\n"
    print(text)
    if given.out:
        given.out.write_text(text)
    return None


if __name__ == "__main__":
    main()
