"""Start-up time: `nas --help`, the verbs that build no network, and the first trial of `nas search`.

    python benchmarks/startup.py [REPEATS [VERB...]]

Also printed: the start-up time of Python alone, in the same run. Python compiles each module once into a folder of the
run's own, in a first run that is not counted, even where PYTHONDONTWRITEBYTECODE is set: compiling takes longer than
everything else. The study of `nas front` and `nas report` is the one in tests/recorded.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECORDED = Path(__file__).parents[1] / "tests" / "recorded" / "study"
READING = (["spaces"], ["zoo"], ["front", "real"], ["front", "real", "--csv"], ["report", "real"])


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


def restore_study(folder: Path) -> None:
    """Write the recorded study below a folder, as 'real'."""
    folder.mkdir(parents=True)
    shutil.copy(RECORDED / "study.yaml", folder)
    connection = sqlite3.connect(folder / "study.db")
    connection.executescript((RECORDED / "study.sql").read_text(encoding="utf-8"))
    connection.close()


def main(repeats: int = 5, *verbs: str) -> None:
    nas = [sys.executable, "-m", "nasspace.cli"]
    search = [*nas, "search", "--space", "shuffle", "--latency-target", "20ms"]
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = str(Path(folder) / "bytecode")
        restore_study(Path(folder) / "reports" / "real")

        def time_verb(label: str, command: list[str]) -> None:
            options = {"cwd": folder, "env": environment}
            show(label, [seconds(command, **options) for _ in range(repeats + 1)][1:])

        time_verb("python -c pass", [sys.executable, "-c", "pass"])
        for verb in (["--help"], *READING):
            if not verbs or verb[0] in verbs:
                time_verb(f"nas {' '.join(verb)}", [*nas, *verb])
        if verbs and "search" not in verbs:
            return
        times = []
        for i in range(repeats + 1):
            own = Path(folder) / f"search-{i}"
            own.mkdir()
            times.append(seconds(search, "trial 0", cwd=own, env={**environment, "NASSPACE_CACHE": str(own / "cache")}))
        show("nas search, first trial started", times[1:])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5, *sys.argv[2:])
