"""Samplers by name: Optuna's own, made repeatable.

Optuna's samplers keep a random generator that advances with every draw, so a resumed search would not repeat an
uninterrupted one. Here each call gets a fresh sampler, seeded by the study's seed, the trial's number and the
parameter's name: a draw depends on these and on the finished trials in the storage only.

A rejected candidate (over a limit, never trained) is recorded as PRUNED with its constraints. `tpe` learns from those;
`nsga2`, `evolution`, and `gp` use completed trials only, so with a tight limit they are slow to find feasible
candidates.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from nasspace.errors import InputError, nearest

if TYPE_CHECKING:
    import optuna

POPULATION = 20  # Optuna's 50 would be larger than most searches here


def optuna_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """A repeatable sampler by name; an unknown name raises `InputError`.

    Those of `proposers` propose outside Optuna, which then only draws at random.
    """
    if name not in SAMPLERS:
        raise InputError(f"'{name}' is not a sampler{nearest(name, SAMPLERS)}")
    return _repeatable()(SAMPLERS[name], seed)


def _random(seed: int) -> optuna.samplers.BaseSampler:
    """Optuna's random sampler."""
    import optuna

    return optuna.samplers.RandomSampler(seed=seed)


def _tpe(seed: int) -> optuna.samplers.BaseSampler:
    """Multivariate TPE with groups, for conditional choices."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of `group`
        # No constant liar: it would make a draw depend on trials that a killed process left running.
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=False)


def _nsga2(seed: int) -> optuna.samplers.BaseSampler:
    """NSGA-II."""
    import optuna

    return optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION)


def _evolution(seed: int) -> optuna.samplers.BaseSampler:
    """Regularized evolution."""
    from nasspace.samplers.evolution import EvolutionSampler

    return EvolutionSampler(seed)


def _gp(seed: int) -> optuna.samplers.BaseSampler:
    """Optuna's Gaussian process."""
    import optuna

    return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)


SAMPLERS: dict[str, Callable[[int], Any]] = {
    "gain": _random,
    "tpe": _tpe,
    "nsga2": _nsga2,
    "evolution": _evolution,
    "gp": _gp,
    "random": _random,
    **dict.fromkeys(("brute-force", "mnasnet", "netadapt", "spos", "uniform"), _random),
}


@cache
def _repeatable() -> type:
    """The class `Repeatable`, defined on first use since Optuna is imported late."""
    from optuna.samplers import BaseSampler

    from nasspace.optuna_adapter import FinishedTrials

    class Repeatable(BaseSampler):
        """Draws as `make(seed)` does, with a fresh sampler and a separate seed for every call."""

        def __init__(self, make: Callable[[int], BaseSampler], seed: int):
            self.make = make
            self.seed = seed

        def _fresh(self, trial: Any, name: str = "") -> BaseSampler:
            """A new sampler for one call."""
            return self.make(zlib.crc32(f"{self.seed}/{trial.number}/{name}".encode()))

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            """See Optuna's `BaseSampler`."""
            return self._fresh(trial).infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
            """See Optuna's `BaseSampler`."""
            # An unfinished trial was left by a killed process and is being resumed: `gp` would count it twice.
            sampler, study = self._fresh(trial), FinishedTrials(study)
            sampler.infer_relative_search_space(study, trial)  # TPE stores its groups here
            return sampler.sample_relative(study, trial, search_space)

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            """See Optuna's `BaseSampler`."""
            return self._fresh(trial, param_name).sample_independent(study, trial, param_name, param_distribution)

        def before_trial(self, study: Any, trial: Any) -> None:
            """See Optuna's `BaseSampler`."""
            self._fresh(trial).before_trial(study, trial)

        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
            """See Optuna's `BaseSampler`."""
            self._fresh(trial).after_trial(study, trial, state, values)

    return Repeatable
