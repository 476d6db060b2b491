"""Estimate of a search's duration from a few training steps of random networks of its space."""

from __future__ import annotations

import contextlib
import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nasspace import failures
from nasspace.architecture import Architecture
from nasspace.engine import machine_lock, rungs
from nasspace.engine.evaluator import needs_latency
from nasspace.samplers import halving
from nasspace.studies.recipe import Recipe
from nasspace.training.settings import Fidelity

if TYPE_CHECKING:
    from nasspace.engine.problem import Problem
    from nasspace.studies.study import Study

NETWORKS = 3  # random networks that are timed, fewer if that takes long
BATCH = 32
MEMBERS = (3, 6)  # networks on the last rung: few and many (members of the front and their replacements)
MEASURED = 3.0  # seconds of a latency measurement with its profile
LONGEST = 15.0  # limit of the timing in seconds
SHARE = 0.02  # no further network is timed once the timing took this share of the search
RANGE, WIDE = (0.7, 1.4), (0.5, 2.0)  # ends of the range around the estimate: from NETWORKS networks, from fewer
INHERITED = 2.0  # seconds to evaluate a candidate with shared weights
EXPORTED = 8.0  # seconds to export, check, evaluate and remeasure a member


@dataclass(frozen=True)
class Duration:
    """Estimated seconds of the search, and of the last rung with the exports: (low, high) of each."""

    search: tuple[float, float]
    delivery: tuple[float, float]

    bounded: bool = True  # False if only time ends the search; `search` then holds the seconds of one trial
    shared: tuple[float, float] = (0.0, 0.0)  # of the training of shared weights, before the search

    @property
    def longest(self) -> float:
        """The high estimate of all seconds."""
        return self.search[1] + self.delivery[1] + self.shared[1]

    @property
    def mean_delivery(self) -> float:
        """Mean seconds of the last rung with the exports."""
        return sum(self.delivery) / 2

    @property
    def last_rung(self) -> str:
        """The estimated time of the last rung, as text."""
        return f"{_format_range(*self.delivery)} for the final training and export of the front"

    @property
    def outside_the_search(self) -> str:
        """The estimated time before and after the trials, as text."""
        before = f"{_format_range(*self.shared)} to train the shared weights, " if self.shared[1] else ""
        return before + self.last_rung

    def __str__(self) -> str:
        if not self.bounded:
            return f"estimated time: {_format_range(*self.search)} for each trial, {self.outside_the_search}"
        low, high = map(sum, zip(self.search, self.delivery, self.shared, strict=True))
        return f"estimated time: {_format_range(low, high)} in total, of which {self.outside_the_search}"


def estimate_duration(problem: Problem) -> Duration | None:
    """Estimate the duration of a whole search on this machine; None if a user's function evaluates candidates.

    With several workers, the search is estimated for one worker like this machine; they share the rungs before the
    last, which runs here.
    """
    recipe, data = problem.recipe, problem.data
    if data is None or "accuracy" not in recipe.objectives:
        return None
    rng = random.Random(0)
    timed: list[tuple[float, list[float]]] = []
    found = None
    _warm_up()
    start = time.perf_counter()
    with machine_lock.TrainingLock():
        for _ in range(NETWORKS):
            network = problem.space.sample(rng)
            with (
                contextlib.suppress(failures.CandidateFailed),
                failures.as_candidate_failures(),
            ):  # networks that cannot be trained
                timed.append(_time_network(network, recipe, len(data.train.labels)))
                found = _duration(timed, recipe)
            limit = min(LONGEST, SHARE * found.longest) if found and found.bounded else LONGEST
            if time.perf_counter() - start > limit:
                break
    return found


def _duration(timed: Sequence[tuple[float, list[float]]], recipe: Recipe) -> Duration:
    """The duration of a search whose networks take as long as those that were timed."""
    trial = sum(seconds for seconds, _ in timed) / len(timed)
    low, high = RANGE if len(timed) >= NETWORKS else WIDE
    shared = (0.0, 0.0)
    if recipe.supernet is not None:
        training = trial * _shared_epochs(recipe)
        shared, trial = (low * training, high * training), INHERITED
    trial += MEASURED if needs_latency(recipe) else 0.0
    bounded = recipe.is_bounded
    search = trial * recipe.trials if bounded else trial
    counts = halving.counts(recipe.trials if bounded else 1, len(recipe.rungs))
    (few, few_seconds), (many, many_seconds) = (
        (n, _climbing_seconds(timed, counts, n, recipe.workers)) for n in MEMBERS
    )
    delivery = few_seconds + few * EXPORTED, RANGE[1] * many_seconds + many * EXPORTED
    return Duration((low * search, high * search), delivery, bounded, shared)


def _warm_up() -> None:
    """Import what trains networks, and run PyTorch once: both are slow the first time, and no part of the timing."""
    import torch

    from nasspace.training.trainer import threads

    with threads(1):
        torch.nn.functional.conv2d(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3))


def _shared_epochs(recipe: Recipe) -> float:
    """How many times longer the training of shared weights is than that of one network in a search without them."""
    settings, fidelity = recipe.supernet, recipe.fidelity
    networks = settings.networks + (2 if settings.sampling == "sandwich" else 0)
    scale = (settings.resolution / fidelity.resolution) ** 2
    return settings.epochs * networks * scale / (fidelity.epochs * fidelity.share)


def _climbing_seconds(
    timed: Sequence[tuple[float, list[float]]], counts: Sequence[int], members: int, workers: int = 1
) -> float:
    """Mean seconds of all rungs; those before the last train their planned networks, at least the members.

    Planned networks are trained by `workers` at a time, all others one after the other.
    """
    turns = [math.ceil(count / workers) + max(0, members - count) for count in counts]
    totals = [
        members * last + sum(turn * rung for turn, rung in zip(turns, before, strict=False))
        for _, (*before, last) in timed
    ]
    return sum(totals) / len(totals)


def slowdown(study: Study) -> float:
    """How many times longer than on an idle machine a network of the search took besides its training; at least 1.

    1 with several workers, which wait for each other to measure.
    """
    recipe, found = study.settings["recipe"], []
    for trial in study.frozen("COMPLETE"):
        training = (trial.user_attrs.get("training") or {}).get("seconds")
        if training and trial.user_attrs.get("seconds"):
            found.append(trial.user_attrs["seconds"] - training)
    if not found or recipe.get("ray") or recipe.get("workers", 1) > 1:
        return 1.0
    return max(1.0, statistics.median(found) / MEASURED)


def _time_network(network: Architecture, recipe: Recipe, images: int) -> tuple[float, list[float]]:
    """Return the seconds to train a network in the search, and at each rung."""
    fidelity = rungs.fidelity_of(recipe, network)
    trial = fidelity.epochs * fidelity.share * images * _seconds_per_image(network, fidelity.resolution, recipe)
    side = min(network.input[1:])
    further = [Fidelity(rung.resolution or side, rung.epochs, rung.share) for rung in recipe.rungs]
    ladder = rungs.ladder(fidelity, side, further)
    sizes = {step.resolution for rung in ladder for step in rung}
    seconds = {size: _seconds_per_image(network, size, recipe) for size in sizes}
    climbs = [sum(step.epochs * step.share * images * seconds[step.resolution] for step in r) for r in ladder]
    if recipe.supernet is not None:  # the search trains no network, so the first rung starts with its training
        climbs[0] += trial
    return trial, climbs


def _seconds_per_image(network: Architecture, resolution: int, recipe: Recipe) -> float:
    """Return the seconds that one image takes in training: forward, backward and optimizer step."""
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
    times = []
    with threads(recipe.training.threads), fast_tiny_maps(model, device):
        for _ in range(3):  # the first one warms up
            start = time.perf_counter()
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.perf_counter() - start)
    return min(times) / BATCH


def _format_range(low: float, high: float) -> str:
    """Format a range of seconds."""
    if high < 90:
        return f"{low:.0f} to {high:.0f} s" if round(low) < round(high) else f"about {max(1, round(high))} s"
    if high < 5400:
        return f"{max(1, round(low / 60))} to {round(high / 60)} min"
    return f"{low / 3600:.1f} to {high / 3600:.1f} h"
