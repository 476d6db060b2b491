"""Searches killed at random moments over their whole length: is anything lost, repeated, different or not cleaned up?

    python benchmarks/kills.py [--kills 50] [--seed 0] [--postgresql URL] [--out reports/benchmarks/kills.md]

`nas search --space shuffle --data digits` with a short recipe runs in six ways: in one process (accuracy and FLOPs,
which one seed repeats), in one process with two rungs (killed from the first training of a rung on), the same killed
between rungs (within 0.3 s of the last epoch of a network at a rung), a search with rungs that has ended and goes on
with more trials, on Ray with two workers and measured latency, and with its record in a PostgreSQL database
(`--postgresql URL` of an empty database; left out without one). Each way runs once undisturbed, which takes T seconds.
Then a search of another name is killed (SIGKILL) over and over, each time after a random time of up to T/2, and started
again with `nas resume` (the one with more trials by its own command); moments fall into asking, measuring, training,
the last rung, exports and the writing of tables. On Ray one kill in three hits a worker process. When a search
has ended by itself, the next one starts, until all kills are used up; the last one runs to its end.

Compared after each kill: every trial and every training of a rung that was finished before must be in the record
unchanged (lost), no network may be finished twice (twice). At the end of a search: its exports exist and pass `nas
verify`, no temporary file is left in the study or in the temporary folder, no process of it lives (each way has its own
temporary folder, by which its processes are recognized). In one process the front and the bytes of its files equal
those of the undisturbed search.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from nasspace.errors import InputError, NasspaceError
from nasspace.latency.conditions import machine
from nasspace.studies import study as records
from nasspace.studies.schema import LAST_RUNG, RUNG

RECIPE = """
name: short
trials: 6
sampler: gain
objectives: [accuracy, SECOND]
fidelity: {resolution: 16, epochs: 2, share: 0.5}
"""
RUNGS = """
trials: 12
sampler: random
objectives: [accuracy, flops]
resolution: 32
fidelity: {resolution: 16, epochs: 1, share: 0.5}
rungs: [{epochs: 2, share: 0.5}, {epochs: 4}]
"""
HASHED = ("weights.safetensors", "model.onnx", "preprocessing.json")
LOW_RUNGS = """
trials: 6
sampler: gain
objectives: [accuracy, flops]
resolution: 16
fidelity: {resolution: 8, epochs: 1}
rungs: [{epochs: 2}, {epochs: 4}]
"""
LAST_EPOCH = r"training at .*epoch (\d+) of \1,"  # of a network at a rung
BETWEEN = 0.3  # seconds after that within which a search is killed between rungs
SHARE = 0.5  # of the time of an undisturbed search: the longest that a process may live before it is killed
GRACE_SECONDS = 60.0  # in which processes of a killed search must have ended
PHASES = (  # the first that fits the last line printed before a kill
    ("table, report, end", r"report|evaluated|front"),
    ("training of a rung", r"training at"),
    ("export", r"export|checking|measuring .* again"),
    ("latency", r"latency|measur"),
    ("training or asking", r"trial|epoch"),
)


@dataclass
class Way:
    """One way to run the search, in its own folder and with its own temporary folder."""

    name: str
    folder: Path
    options: list[str]
    second: str
    ray: bool = False
    recipe: str = RECIPE
    after: str = ""  # a kill waits until this pattern was printed, with `within` one to three times
    within: float = 0.0  # seconds after that at which a search is killed at the latest; 0: `SHARE` of the whole search
    more: str = ""  # the search is finished first, and killed when it goes on with so many trials
    kills: Counter = field(default_factory=Counter)
    lost: int = 0
    twice: int = 0
    left: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    searches: int = 0
    seconds: float = 0.0
    known: dict[int, tuple] = field(default_factory=dict)
    known_trainings: dict[str, dict] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.temporary.mkdir(parents=True)
        (self.folder / "short.yaml").write_text(self.recipe.replace("SECOND", self.second))

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    def command(self, study: str) -> list[str]:
        """The command that starts the search, or resumes it if it has a record."""
        nas = [sys.executable, "-W", "ignore", "-m", "nasspace.cli"]
        options = ["--space", "shuffle", "--data", "digits", "--recipe", "short.yaml", "--study", study, *self.options]
        if (self.folder / "reports" / study / "study.yaml").exists():
            return [*nas, "search", *options, "--trials", self.more] if self.more else [*nas, "resume", study]
        return [*nas, "search", *options]

    def start(self, study: str) -> subprocess.Popen:
        environment = {**os.environ, "TMPDIR": str(self.temporary), "NASSPACE_CACHE": str(self.folder / "cache")}
        with (self.folder / "output.txt").open("w") as output:
            return subprocess.Popen(
                self.command(study), cwd=self.folder, env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    def run(self, study: str) -> None:
        """Run a search to its end."""
        for _ in range(2 if self.more else 1):
            start = time.monotonic()
            if status := self.start(study).wait():
                self.wrong.append(f"{study}: exit status {status}: {self.printed()[-500:]}")
            self.seconds = time.monotonic() - start

    def printed(self) -> str:
        return (self.folder / "output.txt").read_text(errors="replace")

    def kill(self, study: str, rng: random.Random, longest: float) -> bool:
        """Start, kill after a random time; False where the search ended before."""
        process = self.start(study)
        count = rng.randint(1, 3) if self.within else 1
        while len(re.findall(self.after, self.printed())) < count and process.poll() is None:
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            if status := process.wait(rng.uniform(0, self.within or longest)):
                self.wrong.append(f"{study}: exit status {status}: {self.printed()[-500:]}")
            return False
        lines = [line for line in self.printed().splitlines() if line.strip()]
        phase = next((name for name, words in PHASES if lines and re.search(words, lines[-1])), "start")
        workers = [pid for pid, name in self.processes().items() if "ray::" in name and "IDLE" not in name]
        if self.ray and workers and rng.random() < 1 / 3:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(workers), signal.SIGKILL)
            self.kills["a worker"] += 1
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(longest)
        else:
            self.kills[phase] += 1
        process.kill()
        process.wait()
        return True

    def check(self, study: str) -> None:
        """What the record holds now, next to what it held."""
        now = self.finished(study)
        self.lost += sum(now.get(number) != trial for number, trial in self.known.items())
        digests = [digest for digest, *_ in now.values()]
        self.twice += len(digests) - len(set(digests))
        self.known = now
        trainings = self.trainings(study)
        self.lost += sum(trainings.get(key) != training for key, training in self.known_trainings.items())
        self.known_trainings = trainings

    def finished(self, study: str) -> dict[int, tuple]:
        try:
            frozen = records.load(self.folder / "reports" / study).frozen("COMPLETE", "PRUNED")
        except InputError:
            return {}
        return {trial.number: (trial.user_attrs["digest"], trial.state.name, trial.values) for trial in frozen}

    def trainings(self, study: str) -> dict[str, dict]:
        """The trainings of rungs that the study records."""
        try:
            attributes = records.load(self.folder / "reports" / study).record.user_attrs
        except InputError:
            return {}
        return {key: value for key, value in attributes.items() if key.startswith((RUNG, LAST_RUNG))}

    def shipped(self, study: str) -> tuple[list, dict[str, str]]:
        """The front, and the digest of every held file of its exports."""
        found = records.load(self.folder / "reports" / study)
        members = [(member["id"], member["digest"], member["accuracy"]) for member in found.document()["front"]]
        paths = [path for path in sorted((found.folder / "exports").rglob("*")) if path.name in HASHED]
        return members, {
            str(path.relative_to(found.folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
        }

    def verify(self, study: str) -> None:
        """Every member of the front has its export, and each passes its checks."""
        members, _ = self.shipped(study)
        folders = sorted((self.folder / "reports" / study / "exports").glob("[!.]*"))
        if not members or len(folders) != len(members):
            self.wrong.append(f"{study}: {len(members)} members, {len(folders)} exports")
        for folder in folders:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-m", "nasspace.cli", "verify", str(folder), "--json"],
                capture_output=True,
                text=True,
            )
            checks = json.loads(done.stdout or "{}").get("checks", ())
            failing = [check["name"] for check in checks if check["ok"] is False]
            if done.returncode or failing:
                self.wrong.append(f"{study}/{folder.name}: {failing or done.stderr[-300:]}")

    def processes(self) -> dict[int, str]:
        """Living processes of this way's searches by their temporary folder, with their command."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"TMPDIR={self.temporary}\0".encode() in (path / "environ").read_bytes():
                    found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:80]
        return found

    def look(self, study: str) -> None:
        """Record what a finished search did not clean up."""
        until = time.monotonic() + GRACE_SECONDS
        while (alive := self.processes()) and time.monotonic() < until:
            time.sleep(0.5)
        self.left += [f"process {text}" for text in alive.values()]
        reports = self.folder / "reports" / study
        hidden = [path for path in reports.rglob(".*") if path.name != ".lock"]
        hidden += (reports / "checkpoints").glob("*")
        locks = f"nasspace-{os.getuid()}"  # the machine's lock, which stays for the next search
        hidden += [path for path in self.temporary.glob("nasspace-*") if path.name != locks]
        hidden += list((self.temporary / "ray").glob("session_2*"))
        self.left += [str(path.relative_to(self.folder)) for path in hidden]

    def row(self, same: str) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kills.most_common())
        total = sum(self.kills.values())
        left = f"{len(self.left)}: {', '.join(sorted(set(self.left))[:3])}" if self.left else "nothing"
        return (
            f"| {self.name} | {total}: {kinds} | {self.searches} | {self.lost} | {self.twice} | {same} | {left} "
            f"| {len(self.wrong)} |"
        )


def campaign(way: Way, kills: int, rng: random.Random) -> str:
    """All kills of a way; its row of the table."""
    way.run("undisturbed")
    way.run("warm")  # with the cache of latencies filled and the disk read
    whole, same = way.seconds, []
    print(f"{way.name}: undisturbed in {whole:.0f} s", flush=True)
    while sum(way.kills.values()) < kills:
        study, way.known, way.known_trainings = f"killed-{way.searches}", {}, {}
        way.searches += 1
        if way.more:
            if status := way.start(study).wait():
                way.wrong.append(f"{study}: exit status {status}: {way.printed()[-500:]}")
            way.check(study)
        ended = False
        while sum(way.kills.values()) < kills and not ended:
            ended = not way.kill(study, rng, SHARE * whole)
            way.check(study)
        if not ended:
            way.run(study)
            way.check(study)
        try:
            way.verify(study)
            same.append(way.shipped(study) == way.shipped("undisturbed"))
        except NasspaceError as error:
            way.wrong.append(f"{study}: {error}")
        print(f"  {study}: {dict(way.kills)}, lost {way.lost}, twice {way.twice}, wrong {way.wrong}", flush=True)
    way.look(study)
    return way.row("-" if way.second == "latency" else f"{sum(same)} of {len(same)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--postgresql")
    parser.add_argument("--only", default="")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rng, start, rows, bad = random.Random(given.seed), time.monotonic(), [], False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ways = [
            Way("one process", folder / "1", ["--objectives", "accuracy,flops"], "flops"),
            Way("two rungs", folder / "4", [], "flops", recipe=RUNGS, after="training at"),
            Way("between rungs", folder / "5", [], "flops", recipe=LOW_RUNGS, after=LAST_EPOCH, within=BETWEEN),
            Way("continued after rungs", folder / "6", [], "flops", recipe=LOW_RUNGS, more="10"),
            Way("two workers on Ray", folder / "2", ["--workers", "2"], "latency", ray=True),
        ]
        if given.postgresql:
            ways.append(Way("PostgreSQL", folder / "3", ["--storage", given.postgresql], "latency"))
        ways = [way for way in ways if given.only in way.name]
        if not ways:
            parser.error(f"--only {given.only} names none of the searches")
        for way in ways:
            rows.append(campaign(way, round(given.kills / len(ways)), rng))
            print(rows[-1], *way.wrong, sep="\n", flush=True)
            bad |= bool(way.lost or way.twice or way.left or way.wrong)
    columns = ("search", "kills, by what it was doing", "searches", "lost", "twice", "as undisturbed", "left", "wrong")
    head = f"| {' | '.join(columns)} |"
    about = f"{time.monotonic() - start:.0f} s; {machine()}."
    text = f"# Kills\n\n{about}\n\n" + "\n".join([head, "| -- " * len(columns) + "|", *rows]) + "\n"
    print(text)
    if given.out:
        given.out.write_text(text)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
