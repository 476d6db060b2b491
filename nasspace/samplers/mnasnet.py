"""The sampler `mnasnet`: a policy gradient on one reward of accuracy and cost (Tan et al. 2019, section 3).

The reward is ACC x (LAT / T)^w, where the target T is a limit of the search. The hard form has w = 0 within the target
and -1 over it, the soft form w = -0.07 on both sides. What differs from the paper:

- The controller has independent logits for every choice of the space instead of an RNN. They are updated by PPO, as the
  paper's.
- A batch is 5 networks instead of some hundreds, since searches here are much shorter. An advantage is the rank of a
  reward among all so far instead of its difference from a baseline: in a small batch, one very bad network would
  outweigh the others. Advantages are divided by their standard deviation in the batch.
- No network is evaluated twice: draws are repeated until one is new, each with more choices from the uniform
  distribution than the one before, so that a policy that has converged still explores around its best network.
- In the hard form, a network over a limit is rejected before it is trained, as in every search of nasspace. Its reward
  has the mean accuracy of the trained networks so far. In the soft form it is trained.
- With several limits the reward has a factor for each. A latency counts with the upper end of its interval.

The policy is computed again from the recorded trials for each proposal, so that a killed search resumes unchanged.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nasspace.samplers.known_figures import KnownFigures
from nasspace.samplers.observation import Bounds, Observation

if TYPE_CHECKING:
    from nasspace.architecture import Architecture

EXPONENTS = {"hard": -1.0, "soft": -0.07}  # of LAT / T; within the target, the hard form has 0
BATCH = 5  # networks between two updates of the policy
STEPS, RATE, CLIP = 20, 0.5, 0.5  # of PPO: gradient steps on a batch, learning rate, largest change of a probability
TRIES = 2_000  # draws before the policy has nothing new


class MnasNetSampler:
    """Draws each choice from a policy that is trained by the rewards of the batches before.

    `form` and `exponent` are those of the reward; None is the paper's exponent.
    """

    def __init__(
        self,
        space: Any,
        objectives: Sequence[str],
        limits: Mapping[str, float],
        known: Mapping[str, Callable[[Architecture], float]],
        seed: int,
        form: Literal["hard", "soft"] = "hard",
        exponent: float | None = None,
    ):
        self.space = space
        self.limits = dict(limits)
        self.seed = seed
        self.form = form
        self.exponent = EXPONENTS[form] if exponent is None else exponent
        self.ignores_limits = form == "soft"
        self.accepts_rejections = False
        self._known = KnownFigures(known, {} if self.ignores_limits else limits)

    def propose(self, observations: Sequence[Observation], number: int) -> Architecture | None:
        """A new architecture drawn from the policy; None if none is found in `TRIES` draws."""
        probabilities = self.policy(observations).probabilities()
        rng = random.Random(f"{self.seed}/{number}")
        taken = {trial.architecture.digest for trial in observations}
        for i in range(TRIES):

            def choose(name: str, options: Sequence[Any], uniform: float = i / TRIES) -> Any:
                is_uniform = rng.random() < uniform
                return rng.choice(options) if is_uniform else rng.choices(options, probabilities[name])[0]

            architecture = self.space.architecture(choose)
            if architecture.digest not in taken and self._known.meets_limits(architecture):
                return architecture
            taken.add(architecture.digest)
        return None

    def bounds(self, observations: Sequence[Observation]) -> Bounds:
        """None of its own: in the soft form every network is trained."""
        return Bounds({})

    def end(self, observations: Sequence[Observation]) -> str:
        """Why `propose` has nothing more."""
        return "no new network within the limits is left"

    def policy(self, observations: Sequence[Observation]) -> Policy:
        """The policy after all complete batches of finished trials."""
        policy = Policy(self.space.options)
        finished = [trial for trial in observations if trial.values]
        rewards = self.rewards(finished)
        for end in range(BATCH, len(finished) + 1, BATCH):
            batch = slice(end - BATCH, end)
            chosen = [trial.architecture.choices or {} for trial in finished[batch]]
            policy.update(chosen, _ranks(rewards[batch], rewards[:end]) - 0.5)
        return policy

    def rewards(self, observations: Sequence[Observation]) -> np.ndarray:
        """The rewards of finished trials, of shape (trials,)."""
        rewards, accuracies = [], []
        for trial in observations:
            if "accuracy" in trial.values:
                accuracies.append(trial.values["accuracy"])
            mean = sum(accuracies) / len(accuracies) if accuracies else 1.0
            rewards.append(trial.values.get("accuracy", mean) * self._cost_factor(trial))
        return np.array(rewards)

    def _cost_factor(self, trial: Observation) -> float:
        """The product of (cost / target)^w over the limits whose cost is known."""
        factor = 1.0
        for name, target in self.limits.items():
            ratio = trial.limited_value(name) / target
            if name in trial.values and (ratio > 1 or self.form == "soft"):
                factor *= max(ratio, 1e-9) ** self.exponent
        return factor


def _ranks(some: np.ndarray, every: np.ndarray) -> np.ndarray:
    """The rank of some rewards among all, from 0 to 1; equal rewards share one."""
    ordered = np.sort(every)
    below, up_to = np.searchsorted(ordered, some, "left"), np.searchsorted(ordered, some, "right")
    return (below + up_to) / (2 * len(every))


class Policy:
    """Independent softmax distributions, one for each choice of a space."""

    def __init__(self, options: Mapping[str, Sequence[Any]]):
        self.options = {name: tuple(values) for name, values in options.items()}
        counts = [len(values) for values in self.options.values()]
        self.logits = np.zeros(sum(counts))  # of all options, in their order
        self._starts = dict(zip(self.options, itertools.accumulate(counts, initial=0), strict=False))
        self._choice = np.repeat(np.arange(len(counts)), counts)  # of each logit

    def probabilities(self) -> dict[str, list[float]]:
        """The probabilities of the options of every choice."""
        every = self._softmax().tolist()
        return {name: every[start : start + len(self.options[name])] for name, start in self._starts.items()}

    def update(self, chosen: Sequence[Mapping[str, Any]], advantages: np.ndarray) -> None:
        """Clipped policy gradient steps (PPO, Schulman et al. 2017) on the choices of a batch and their advantages."""
        spread = float(np.std(advantages))
        if not (spread > 0 and math.isfinite(spread)):
            return
        scaled = advantages / spread
        taken, reached = self._encoded(chosen)
        before = self._log_probabilities(taken)
        for _ in range(STEPS):
            ratio = np.exp(self._log_probabilities(taken) - before)
            free = np.where(scaled > 0, ratio < 1 + CLIP, ratio > 1 - CLIP)
            weights = np.where(free, scaled * ratio, 0.0)
            if not weights.any():
                return
            self.logits += RATE * (weights @ (taken - reached * self._softmax())) / len(chosen)

    def _softmax(self) -> np.ndarray:
        """The probabilities of all options."""
        return np.exp(self._log_softmax())

    def _log_softmax(self) -> np.ndarray:
        """The logarithms of the probabilities of all options."""
        if not len(self.logits):
            return self.logits
        starts = list(self._starts.values())
        shifted = self.logits - np.maximum.reduceat(self.logits, starts)[self._choice]
        return shifted - np.log(np.add.reduceat(np.exp(shifted), starts))[self._choice]

    def _encoded(self, chosen: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        """For each network and option: whether it was chosen, and whether its choice was reached."""
        taken = np.zeros((len(chosen), len(self.logits)))
        reached = np.zeros_like(taken)
        for row, choices in enumerate(chosen):
            for name, option in choices.items():
                start, values = self._starts[name], self.options[name]
                taken[row, start + values.index(option)] = 1
                reached[row, start : start + len(values)] = 1
        return taken, reached

    def _log_probabilities(self, taken: np.ndarray) -> np.ndarray:
        """The logarithm of each network's probability."""
        return taken @ self._log_softmax()
