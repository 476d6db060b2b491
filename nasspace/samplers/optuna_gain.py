"""The sampler `gain` for any Optuna study of categorical parameters.

    study = optuna.create_study(directions=["maximize", "minimize"], sampler=GainSampler(seed=0))
    study.optimize(objective, n_trials=50)

Like Optuna itself, this module is imported late.
"""

from __future__ import annotations

from nasspace.samplers import gain_sampler
from nasspace.samplers.learned_space import LearnedSpace
from nasspace.samplers.optuna_proposer import Figures, ProposerSampler
from nasspace.samplers.proposers import Proposer


class GainSampler(ProposerSampler):
    """Proposes the parameters with the highest expected hypervolume improvement.

    The first objective is uncertain, like an accuracy; the others are costs, predicted from the trials or `known`.
    Constraints are those of `Trial.set_constraint`; a trial that violates one may be pruned without values. What is
    drawn at random, and `known`: see `ProposerSampler`.
    """

    def proposer(self, space: LearnedSpace, figures: Figures) -> Proposer:
        """`gain` on the learned space."""
        known = self.known_figures(figures)
        return gain_sampler.GainSampler(space, figures.names, figures.limits, known, self.seed)
