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
from optuna.trial import FrozenTrial

from nasspace.samplers import mnasnet, spos
from nasspace.samplers.learned_space import LearnedSpace
from nasspace.samplers.optuna_proposer import Figures, Known, ProposerSampler
from nasspace.samplers.proposers import Proposer


class MnasNetSampler(ProposerSampler):
    """MnasNet's policy gradient on the reward accuracy x (cost / target)^w (Tan et al. 2019, section 3).

    The first objective is maximized, like an accuracy. `targets` maps the index of a minimized objective to its target,
    `known` to a function of the parameters: in the hard form, parameters whose known cost is over its target are not
    proposed while there are others. `form` and `exponent` are those of the reward; None is the paper's exponent.

    Trials without values, with a negative accuracy, or with a negative cost that has a target do not count, and
    constraints have no effect. What is drawn at random: see `ProposerSampler`.
    """

    shifts_costs = False

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
            raise ValueError(f"form: {form!r} is none of {', '.join(map(repr, mnasnet.EXPONENTS))}")
        if exponent is not None and not exponent <= 0:
            raise ValueError(f"exponent: {exponent} rewards cost; write a number up to 0")
        self.targets = {i: float(target) for i, target in (targets or {}).items()}
        if wrong := [i for i, target in self.targets.items() if not target > 0]:
            raise ValueError(f"targets: that of objective {wrong[0]} must be positive")
        self.form, self.exponent = form, exponent

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Raise `ValueError` if the reward is not defined for the study's objectives."""
        super().before_trial(study, trial)
        if study.directions[0] != StudyDirection.MAXIMIZE:
            raise ValueError("the reward needs a first objective that is maximized, like an accuracy")
        for i in self.targets:
            if not 1 <= i < len(study.directions) or study.directions[i] != StudyDirection.MINIMIZE:
                raise ValueError(f"targets: {i} is no objective of the study that is minimized, from 1 on")

    def proposer(self, space: LearnedSpace, figures: Figures) -> Proposer:
        """`mnasnet` on the learned space."""
        limits = {figures.names[i]: target for i, target in self.targets.items()}
        known = self.known_figures(figures)
        return mnasnet.MnasNetSampler(space, figures.names, limits, known, self.seed, self.form, self.exponent)

    def values(self, figures: Figures, trial: FrozenTrial) -> dict[str, float]:
        """The values of trials that have a reward."""
        values = figures.values(trial)
        counted = [values.get("accuracy", -1.0), *(values.get(figures.names[i], -1.0) for i in self.targets)]
        return values if min(counted) >= 0 else {}


class SposSampler(ProposerSampler):
    """The evolution of Single Path One-Shot (Guo et al. 2019, algorithm 1) by the first objective.

    Parents are the best trials that meet all constraints (`Trial.set_constraint`), of all generations of 20 trials
    before. What is drawn at random: see `ProposerSampler`.
    """

    def __init__(self, seed: int = 0):
        super().__init__(seed)

    def proposer(self, space: LearnedSpace, figures: Figures) -> Proposer:
        """`spos` on the learned space."""
        return spos.SposSampler(space, figures.names, {}, {}, self.seed)

    def values(self, figures: Figures, trial: FrozenTrial) -> dict[str, float]:
        """The values of trials that meet all constraints."""
        return figures.values(trial) if all(value <= 0 for value in trial.constraints.values()) else {}
