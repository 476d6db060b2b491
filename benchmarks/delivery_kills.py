"""A search killed at random moments, most of them in the last rung and the exports: is anything lost or different?

    python benchmarks/delivery_kills.py [--kills 10] [--late 6] [--seed 0] [search's own options...]

`nas search --space shuffle --data digits --objectives accuracy,flops` runs once undisturbed. Then the same search,
under another name, is killed (SIGKILL): `--late` times at a random moment after its last rung began, else at a random
moment after its first trial began. At last it ends by itself. Compared are the front (ids, digests, accuracy) and the
bytes of weights.safetensors, model.onnx and preprocessing.json of every member; no temporary file may be left.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from nasspace.studies import study as records

HASHED = ("weights.safetensors", "model.onnx", "preprocessing.json")
LATE = ("training at", "exporting and checking")


def started(name: str, options: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-m", "nasspace.cli", "search", "--space", "shuffle", "--data", "digits"]
    command += ["--objectives", "accuracy,flops", "--study", name, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def killed(name: str, options: list[str], late: bool, rng: random.Random) -> str:
    """Kill a search at a random moment; returns the last line that it printed, or '' if it had ended."""
    process = started(name, options)
    lines: list[str] = []

    def read() -> None:
        for line in process.stdout or ():
            lines.append(line.strip())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    wanted = (rng.choice(LATE),) if late else ("trial",)
    while process.poll() is None and not any(line.startswith(wanted) for line in lines):
        time.sleep(0.05)
    time.sleep(rng.uniform(0, 4 if late else 8))
    ended = process.poll() is not None
    if not ended:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    reader.join()
    return "" if ended else (lines or ["nothing printed"])[-1]


def shipped(name: str) -> tuple[list[tuple[int, str, float]], dict[str, str]]:
    """The front, and the digest of every held file of its exports."""
    study = records.load(name)
    members = [(member["id"], member["digest"], member["accuracy"]) for member in study.document()["front"]]
    paths = [path for path in sorted((study.folder / "exports").rglob("*")) if path.name in HASHED]
    digests = (hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    return members, dict(zip((str(path.relative_to(study.folder)) for path in paths), digests, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--late", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    given, options = parser.parse_known_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        start = time.monotonic()
        started("undisturbed", options).communicate()
        print(f"undisturbed: {time.monotonic() - start:.0f} s, {len(shipped('undisturbed')[0])} members", flush=True)
        kinds = [False] * (given.kills - given.late) + [True] * given.late
        for i, late in enumerate(kinds):
            print(f"kill {i + 1}: {killed('killed', options, late, rng) or 'it had ended before'}", flush=True)
        output = started("killed", options).communicate()[0]
        left = [str(path) for path in Path("reports/killed").rglob(".*") if path.name != ".lock"]
        left += [str(path) for path in Path("reports/killed/checkpoints").glob("*")]
        same = shipped("killed") == shipped("undisturbed")
        print(f"front and files {'equal' if same else 'DIFFER'}; left over: {', '.join(left) or 'nothing'}")
        if not same:
            print(output[-2000:], shipped("killed"), shipped("undisturbed"), sep="\n")
        os.chdir("/")
        return int(not same or bool(left))


if __name__ == "__main__":
    sys.exit(main())
