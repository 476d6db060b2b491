"""The next candidate: new, inside every limit that is known beforehand, and the same after a kill as without one."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from nasspace.architecture import Architecture
from nasspace.space import Space
from nasspace.studies.evaluate import broken
from nasspace.studies.gain import ExpectedGain, Seen
from nasspace.studies.study import Study

if TYPE_CHECKING:
    import optuna

REFUSED = 500  # considered in a row before no new network is thought to be left
PATIENCE = 20  # considered in a row before an Optuna sampler's proposals give way to ours
SEARCHING = 6  # rejected, with none inside the limits yet, before the way to smaller figures is taken


class Candidates:
    """Asks the study's sampler for candidates, one after the other.

    What is asked depends on the record alone: on its finished trials and the number of the next one. So a search
    that was killed goes on as it would have gone.
    """

    def __init__(
        self,
        study: Study,
        space: Space,
        sampler: str,
        known: Mapping[str, Callable[[Architecture], float]],
        seed: int,
    ):
        self.study = study
        self.space = space
        self.sampler = sampler
        self.known = known
        self.seed = seed
        self.gain = ExpectedGain(space, study.objectives, study.limits, known, seed)
        self._architectures: dict[int, Architecture] = {}

    def next(self) -> tuple[optuna.Trial, Architecture] | None:
        """The next trial and its architecture; None when no new one is left that the known limits allow."""
        for _ in range(REFUSED):
            if (trial := self.study.unfinished() or self._asked()) is None:
                break
            architecture = self._suggested(trial)
            reason = self._excluded(architecture)
            if not reason:
                trial.set_user_attr("digest", architecture.digest)
                trial.set_user_attr("architecture", architecture.to_json())
                return trial, architecture
            trial.set_user_attr("reason", reason)
            self.study.told(trial, "FAIL")
        return None

    def seen(self) -> list[Seen]:
        """What is finished, as a sampler sees it; a candidate whose training failed has no figures."""
        trials = self.study.frozen("COMPLETE", "PRUNED", "FAIL")
        return [self._seen(trial) for trial in trials if "digest" in trial.user_attrs]

    def _seen(self, trial: optuna.trial.FrozenTrial) -> Seen:
        said = trial.user_attrs
        interval = said.get("latency_interval")
        margin = interval["high_ms"] / interval["median_ms"] if interval else 1.0
        return Seen(self._replayed(trial), said.get("values", {}), said.get("layers_ms"), margin)

    def _replayed(self, trial: optuna.trial.FrozenTrial) -> Architecture:
        if trial.number not in self._architectures:
            self._architectures[trial.number] = self.space.replay(trial.params)
        return self._architectures[trial.number]

    def _asked(self) -> optuna.Trial | None:
        if not self.study.frozen("WAITING") and self._ours():
            proposal = self.gain.propose(self.seen(), len(self.study.frozen()))
            if proposal is None:
                return None
            self.study.record.enqueue_trial(dict(proposal.choices))
        return self.study.record.ask()

    def _ours(self) -> bool:
        """Whether the project's own sampler proposes: the study's is that one, or finds nothing new or allowed."""
        if self.sampler == "gain":
            return True
        trials = self.study.frozen()
        considered = next((i for i, trial in enumerate(reversed(trials)) if trial.state.name != "FAIL"), len(trials))
        lost = not self.study.evaluated and self.study.rejected >= SEARCHING
        return lost or considered >= PATIENCE

    def _suggested(self, trial: optuna.Trial) -> Architecture:
        return self.space.architecture(lambda name, options: trial.suggest_categorical(name, list(options)))

    def _excluded(self, architecture: Architecture) -> str:
        """Why a proposal is only considered: evaluated already, or over a limit that is known without measuring."""
        for trial in self.study.frozen("COMPLETE", "PRUNED", "FAIL"):
            if trial.user_attrs.get("digest") == architecture.digest:
                return f"the network of trial {trial.number}"
        limited = {name: count(architecture) for name, count in self.known.items() if name in self.study.limits}
        return broken(limited, self.study.limits)


def cheapest(space: Space, name: str, count: Callable[[Architecture], float], seed: int) -> tuple[Architecture, float]:
    """About the smallest network of a space in one known figure: the best of 200 at random, then downhill."""
    rng = random.Random(seed)
    best = min((space.sample(rng) for _ in range(200)), key=count)
    for _ in range(100):
        better = min(space.neighbours(best), key=count, default=best)
        if count(better) >= count(best):
            break
        best = better
    return best, count(best)
