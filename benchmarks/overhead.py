"""How much of the workers' time is work: trials of a known length on Ray, beside the same through bare Ray Tune.

    python benchmarks/overhead.py [--seconds 1 10] [--workers 2] [--trials 12] [--samplers random gain]

A trial sleeps for so many seconds. Printed: the share of the workers' time between the first trial's begin and the last
one's end that was such sleep, at full use (the last trials, when some workers find nothing left, count until the first
worker is idle for good); and the seconds from the call to the first trial's begin. Bare Ray Tune runs a function
trainable with a random search, once as it comes (a process a trial) and once as a class whose processes are reused.
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
    """Begin and end of every trial."""
    return sorted(tuple(map(float, line.split())) for line in path.read_text().splitlines())


def slept(path: Path, seconds: float) -> None:
    began = time.time()
    time.sleep(seconds)
    with path.open("a") as log:
        log.write(f"{began} {time.time()}\n")


def share(found: Spans, workers: int) -> float:
    """Of the time of all workers, from the first begin until one of them has nothing more to do."""
    first, last = found[0][0], sorted(end for _, end in found)[-workers]
    work = sum(min(end, last) - begin for begin, end in found if begin < last)
    return work / (workers * (last - first))


def ours(path: Path, seconds: float, workers: int, trials: int, sampler: str, folder: Path) -> None:
    def evaluated(architecture: Architecture) -> dict[str, float]:
        slept(path, seconds)
        accuracy = 0.5 + int(architecture.digest, 16) / 16**12 / 3
        return {"accuracy": accuracy, "latency": cost(architecture).memory_access / 1e5}

    known = {"flops": lambda architecture: cost(architecture).flops}
    settings = {"trials": trials, "workers": workers, "sampler": sampler, "study": folder / path.stem}
    nasspace.search(Space.from_text(SPACE, "little.yaml"), evaluator=evaluated, known=known, **settings)


def bare(path: Path, seconds: float, workers: int, trials: int, reused: bool, folder: Path) -> None:
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1, 10])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--samplers", nargs="+", default=["random", "gain"])
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(f"{given.workers} workers, {given.trials} trials each, {os.cpu_count()} cores\n")
    print("| trial | run by | share that is work | until the first trial began |\n| -- | -- | -- | -- |", flush=True)
    with tempfile.TemporaryDirectory() as name:
        for seconds in given.seconds:
            runs = [(f"nasspace, {sampler}", ours, sampler) for sampler in given.samplers]
            runs += [("bare Ray Tune", bare, False), ("bare Ray Tune, processes reused", bare, True)]
            for label, run, how in runs:
                path = Path(name) / f"{run.__name__}-{how}-{seconds:g}.log"
                began = time.time()
                run(path, seconds, given.workers, given.trials, how, Path(name))
                found = spans(path)
                work = f"{100 * share(found, given.workers):.1f} %"
                print(f"| {seconds:g} s | {label} | {work} | {found[0][0] - began:.1f} s |", flush=True)


if __name__ == "__main__":
    main()
