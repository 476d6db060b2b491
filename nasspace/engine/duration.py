"""How long a search is likely to take, from a few training steps of random networks of its space."""

from __future__ import annotations

import contextlib
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nasspace import failures
from nasspace.architecture import Architecture
from nasspace.engine import last_rung, machine_lock
from nasspace.engine.evaluator import needs_latency
from nasspace.studies.recipe import Recipe

if TYPE_CHECKING:
    from nasspace.engine.problem import Problem

NETWORKS = 3  # random ones that are timed
BATCH = 32
MEMBERS = (3, 6)  # of a front, and those that are promoted in place of others: few and many
MEASURED = 3.0  # seconds that a latency takes, with its profile
LONGEST = 15.0  # seconds that the timing may take
EXPORTED = 8.0  # seconds to export, check, judge and measure a member again


@dataclass(frozen=True)
class Duration:
    """Seconds that the search, and the last rung with the exports, are likely to take: (few, many)."""

    search: tuple[float, float]
    delivery: tuple[float, float]

    bounded: bool = True  # False where time alone ends the search: its own part is then of one trial

    @property
    def mean_delivery(self) -> float:
        """Seconds of the last rung with the exports, between few and many members."""
        return sum(self.delivery) / 2

    @property
    def last_rung(self) -> str:
        """The last rung and its time in words."""
        return f"{_span(*self.delivery)} to train the front in the end and to export it"

    def __str__(self) -> str:
        if not self.bounded:
            return f"a trial is likely to take {_span(*self.search)}, and {self.last_rung}"
        low, high = (a + b for a, b in zip(self.search, self.delivery, strict=True))
        return f"likely to take {_span(low, high)} in all: {self.last_rung}"


def estimate(problem: Problem) -> Duration | None:
    """The duration of a whole search on this machine; None where a function evaluates.

    Where others train, the last rung still runs here; the search's own part is then of one worker like this machine.
    """
    recipe, data = problem.recipe, problem.data
    if data is None or "accuracy" not in recipe.objectives:
        return None
    rng = random.Random(0)
    timed = []
    start = time.perf_counter()
    with machine_lock.Training():
        for _ in range(NETWORKS):
            network = problem.space.sample(rng)
            with contextlib.suppress(failures.CandidateFailed), failures.of_candidates():  # one that cannot be trained
                timed.append(_timed(network, recipe, len(data.train.labels)))
            if time.perf_counter() - start > LONGEST:
                break
    if not timed:
        return None
    trial, member = (sum(part) / len(timed) for part in zip(*timed, strict=True))
    trial += MEASURED if needs_latency(recipe) else 0.0
    bounded = recipe.is_bounded
    search = trial * recipe.trials if bounded else trial
    few, many = MEMBERS
    delivery = few * (member + EXPORTED), many * (1.4 * member + EXPORTED)
    return Duration((0.7 * search, 1.4 * search), delivery, bounded)


def _timed(network: Architecture, recipe: Recipe, images: int) -> tuple[float, float]:
    """Seconds to train a network in the search, and in the last rung."""
    fidelity = last_rung.fidelity_of(recipe, network)
    trial = fidelity.epochs * fidelity.share * images * _seconds(network, fidelity.resolution, recipe)
    rungs = last_rung.rungs(fidelity, min(network.input[1:]))
    return trial, sum(rung.epochs * images * _seconds(network, rung.resolution, recipe) for rung in rungs)


def _seconds(network: Architecture, resolution: int, recipe: Recipe) -> float:
    """Seconds that one image takes in training: forward, backward and the step."""
    import torch
    from torch.nn import functional

    from nasspace.network import build
    from nasspace.training.depthwise import fast_tiny_maps
    from nasspace.training.trainer import threads

    device = recipe.device
    model = build(network, seed=0).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, nesterov=True)
    shape = (BATCH, network.input[0], resolution, resolution)
    images = torch.zeros(shape, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(BATCH, dtype=torch.int64, device=device)
    taken = []
    with threads(recipe.training.threads), fast_tiny_maps(model, device):
        for _ in range(3):  # the first one warms up
            start = time.perf_counter()
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            taken.append(time.perf_counter() - start)
    return min(taken) / BATCH


def _span(low: float, high: float) -> str:
    if high < 90:
        return f"{low:.0f} to {high:.0f} s"
    if high < 5400:
        return f"{max(1, round(low / 60))} to {round(high / 60)} min"
    return f"{low / 3600:.1f} to {high / 3600:.1f} h"
