"""The samplers `mnasnet` and `spos` for any Optuna study of categorical parameters.

    sampler = MnasNetSampler(seed=0, targets={1: 20.0})
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)

Like Optuna itself, this module is imported late.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from nasspace.samplers import mnasnet, spos
from nasspace.samplers.learned_space import LearnedSpace
from nasspace.samplers.optuna_proposer import Figures, Known, ProposerSampler
from nasspace.samplers.proposers import Proposer


class MnasNetSampler(ProposerSampler):
    """MnasNet's policy gradient on the reward accuracy x (cost / target)^w (Tan et al. 2019, section 3).

    The first objective is maximized and positive, like an accuracy. `targets` maps the index of a minimized, positive
    objective to its target, and `known` to a function of the parameters: in the hard form, parameters whose known cost
    is over its target are not proposed. `form` and `exponent` are those of the reward; None is the paper's exponent.
    Trials without values do not count.
    """

    def __init__(
        self,
        seed: int = 0,
        targets: Mapping[int, float] | None = None,
        known: Known | None = None,
        form: Literal["hard", "soft"] = "hard",
        exponent: float | None = None,
    ):
        super().__init__(seed, known)
        if form not in mnasnet.EXPONENTS:
            raise ValueError(f"form {form!r}: write {' or '.join(map(repr, mnasnet.EXPONENTS))}")
        self.targets = dict(targets or {})
        if wrong := [i for i, target in self.targets.items() if i < 1 or not target > 0]:
            raise ValueError(
                f"targets: objective {wrong[0]} has none; give positive targets of costs, from objective 1"
            )
        self.form, self.exponent = form, exponent

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Raise `ValueError` if the reward is not defined for the study's objectives."""
        first, *costs = study.directions
        if first != StudyDirection.MAXIMIZE:
            raise ValueError("the reward needs a first objective that is maximized, like an accuracy")
        for i in self.targets:
            if i > len(costs) or costs[i - 1] != StudyDirection.MINIMIZE:
                raise ValueError(f"targets: the study has no objective {i} that is minimized")

    def proposer(self, space: LearnedSpace, figures: Figures) -> Proposer:
        """`mnasnet` on the learned space."""
        for i in {0, *self.targets}:
            if figures.lowest[i] < 0:
                raise ValueError(
                    f"the reward needs values of objective {i} that are not negative: {figures.lowest[i]:g}"
                )
        limits = {figures.names[i]: target for i, target in self.targets.items()}
        known = self.known_figures(figures)
        return mnasnet.MnasNetSampler(space, figures.names, limits, known, self.seed, self.form, self.exponent)

    def values(self, figures: Figures, trial: FrozenTrial) -> dict[str, float]:
        """The values of complete trials."""
        return figures.values(trial) if trial.state == TrialState.COMPLETE else {}


class SposSampler(ProposerSampler):
    """The evolution of Single Path One-Shot (Guo et al. 2019, algorithm 1) by the first objective.

    Parents are the best trials that meet all constraints (`Trial.set_constraint`), of all generations before.
    """

    def proposer(self, space: LearnedSpace, figures: Figures) -> Proposer:
        """`spos` on the learned space."""
        return spos.SposSampler(space, figures.names, {}, {}, self.seed)

    def values(self, figures: Figures, trial: FrozenTrial) -> dict[str, float]:
        """The values of trials that meet all constraints."""
        return {} if any(value > 0 for value in trial.constraints.values()) else figures.values(trial)
