"""Networks counted per second: cold, warm, and compared with fvcore on whole networks.

    python benchmarks/counting.py [SPACE] [NETWORKS]

Prints CPU time, which other load disturbs less than wall time, and wall time.
"""

from __future__ import annotations

import random
import sys
import time
import warnings

from nasspace import Space, build, cost
from nasspace.counting import layer_cost
from nasspace.latency.conditions import machine


def timed(work) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def fvcore_count(architecture) -> int:
    import torch
    from fvcore.nn import FlopCountAnalysis

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        analysis = FlopCountAnalysis(build(architecture).eval(), torch.zeros(1, *architecture.input))
        by_operator = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
    return sum(by_operator[name] for name in ("conv", "linear", "addmm", "matmul") if name in by_operator)


def main(name: str = "mixed", networks: int = 1000) -> None:
    print(machine())
    for repeat in range(3):
        once(Space.load(name), random.Random(repeat), networks)


def once(space: Space, rng: random.Random, networks: int) -> None:
    drawn = [space.sample(rng) for _ in range(networks)]
    cost(drawn[0])
    for count in (networks // 5, networks):
        layer_cost.cache_clear()
        wall, cpu = timed(lambda: [cost(architecture) for architecture in drawn[:count]])  # noqa: B023  (run at once)
        distinct = layer_cost.cache_info().misses
        print(
            f"{space.name}, first {count}, cold: {count / wall:.0f}/s ({count / cpu:.0f} per CPU s), {distinct} blocks"
        )
    wall, cpu = timed(lambda: [cost(architecture) for architecture in drawn])
    print(f"{space.name}, {networks}, warm: {networks / wall:.0f}/s ({networks / cpu:.0f} per CPU s)")
    few = drawn[:6]
    wall, _ = timed(lambda: [fvcore_count(architecture) for architecture in few])
    equal = all(fvcore_count(a) == cost(a).flops for a in few)
    print(f"fvcore on whole networks: {len(few) / wall:.1f}/s; counts equal: {equal}")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
