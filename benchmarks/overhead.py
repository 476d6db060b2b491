"""Share of the workers' time spent in trials of known length on Ray, compared with plain Ray Tune.

    python benchmarks/overhead.py [--seconds 1 10] [--workers 2] [--trials 12] [--samplers random gain]

A trial sleeps for the given seconds. Printed: the share of the workers' time that was spent in trials, from the start
of the first trial until the first worker stays idle; and the seconds from the call to the start of the first trial.
Plain Ray Tune runs a random search, once with a function trainable (one process per trial) and once with a class whose
processes are reused.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from pathlib import Path

import nasspace
from nasspace import Architecture, Space, cost

SPACE = """
name: little
input: [3, 32, 32]
stem: [{block: conv, out: 16}]
stages:
  - {depth: [1, 2, 3], out: [16, 32], stride: 2, each: {block: [shuffle_v2: {kernel: [3, 5]}, conv]}}
  - {depth: [1, 2], out: [32, 64], stride: 2, each: {block: [sandglass, fire: {squeeze: [0.125, 0.5]}]}}
"""
Spans = list[tuple[float, float]]


def spans(path: Path) -> Spans:
    """Return start and end of every trial."""
    return sorted(tuple(map(float, line.split())) for line in path.read_text().splitlines())


def slept(path: Path, seconds: float) -> None:
    """Sleep, and append start and end to a file."""
    start = time.time()
    time.sleep(seconds)
    with path.open("a") as log:
        log.write(f"{start} {time.time()}\n")


def share(found: Spans, workers: int) -> float:
    """Return the share of the workers' time spent in trials, until the first worker has nothing left to do."""
    first, last = found[0][0], sorted(end for _, end in found)[-workers]
    work = sum(min(end, last) - start for start, end in found if start < last)
    return work / (workers * (last - first))


def ours(path: Path, seconds: float, workers: int, trials: int, sampler: str, folder: Path) -> None:
    """Run the trials with nasspace."""

    def evaluated(architecture: Architecture) -> dict[str, float]:
        slept(path, seconds)
        accuracy = 0.5 + int(architecture.digest, 16) / 16**12 / 3
        return {"accuracy": accuracy, "latency": cost(architecture).memory_access / 1e5}

    known = {"flops": lambda architecture: cost(architecture).flops}
    settings = {"trials": trials, "workers": workers, "sampler": sampler, "study": folder / path.stem}
    nasspace.search(Space.from_text(SPACE, "little.yaml"), evaluator=evaluated, known=known, **settings)


def plain(path: Path, seconds: float, workers: int, trials: int, reused: bool, folder: Path) -> None:
    """Run the trials with plain Ray Tune."""
    import ray
    from ray import tune

    class Reused(tune.Trainable):
        def reset_config(self, _: dict) -> bool:
            return True

        def step(self) -> dict:
            slept(path, seconds)
            return {"accuracy": 0.5, "done": True}

        def save_checkpoint(self, _: str) -> None:
            return None

    def function(_: dict) -> None:
        slept(path, seconds)
        tune.report({"accuracy": 0.5})

    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        tune.Tuner(
            Reused if reused else function,
            param_space={"x": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(num_samples=trials, reuse_actors=reused),
            run_config=tune.RunConfig(storage_path=str(folder), name=path.stem, verbose=0),
        ).fit()
    finally:
        ray.shutdown()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1, 10])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--samplers", nargs="+", default=["random", "gain"])
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(f"{arguments.workers} workers, {arguments.trials} trials each, {os.cpu_count()} cores\n")
    print(
        "| trial | run by | share of time in trials | until the first trial started |\n| -- | -- | -- | -- |",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as name:
        for seconds in arguments.seconds:
            runs = [(f"nasspace, {sampler}", ours, sampler) for sampler in arguments.samplers]
            runs += [("plain Ray Tune", plain, False), ("plain Ray Tune, processes reused", plain, True)]
            for label, run, option in runs:
                path = Path(name) / f"{run.__name__}-{option}-{seconds:g}.log"
                start = time.time()
                run(path, seconds, arguments.workers, arguments.trials, option, Path(name))
                found = spans(path)
                work = f"{100 * share(found, arguments.workers):.1f} %"
                print(f"| {seconds:g} s | {label} | {work} | {found[0][0] - start:.1f} s |", flush=True)


if __name__ == "__main__":
    main()
