"""The next candidate: new, inside every limit that is known beforehand, and the same after a kill as without one.

Where several processes ask at once, each writes what it was given into its trial before it looks at the trials of the
others. So of two that were given the same network one sees the other at least, and gives way; if both do, the one with
the larger number.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Container, Mapping
from typing import TYPE_CHECKING

from nasspace import failures
from nasspace.architecture import Architecture
from nasspace.engine.evaluator import broken
from nasspace.samplers.expected_hypervolume import ExpectedGain, Seen
from nasspace.space.space import Space
from nasspace.studies import storage
from nasspace.studies.study import Study

if TYPE_CHECKING:
    import optuna

REFUSED = 500  # considered in a row before no new network is thought to be left
PATIENCE = 20  # considered in a row before an Optuna sampler's proposals give way to ours
SETTLING = 2.0  # seconds in which a process that has seen that it must give way does so
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
        self.exhausted = False  # no new network was found when last asked
        self._labels = space.plan.labels()
        self._architectures: dict[int, Architecture] = {}

    def next(
        self,
        under_way: Container[int] = (),
        begin: Callable[[optuna.Trial], None] = lambda trial: None,
        most: int | None = None,
    ) -> tuple[optuna.Trial, Architecture] | None:
        """The next trial and its architecture; None when there is none at present.

        None too, and `exhausted`, when no new one is left that the known limits allow. `under_way` are numbers of
        trials that this process works on; `begin` is called with a trial before anything else. With `most`, no more
        than so many trials are evaluated or ahead of this one in other processes.
        """
        self.exhausted = False
        for _ in range(REFUSED):
            if (trial := self.study.interrupted(under_way) or self._asked()) is None:
                break
            with storage.unless_finished():
                begin(trial)
                architecture = self._suggested(trial)
                trial.set_user_attr("digest", architecture.digest)
                trial.set_user_attr("architecture", architecture.to_json())
                if named := {name: self._labels[name][i] for name, i in trial.params.items() if name in self._labels}:
                    trial.set_user_attr("blocks", named)  # for people: the parameter is the block's index
                enough = most is not None and self._ahead(trial) >= most
                reason = "enough are under way in other processes" if enough else self._excluded(trial, architecture)
                if not reason:
                    return trial, architecture
                trial.set_user_attr("reason", reason)
                self.study.finish_trial(trial, "FAIL")
                if enough:
                    return None
        self.exhausted = True
        return None

    def _ahead(self, trial: optuna.Trial) -> int:
        """How many trials are evaluated, or may be, of those that were there when this one was made."""
        open_ones = ("RUNNING", "WAITING")
        others = [(other.state.name, other.number < trial.number) for other in self.study.frozen()]
        return sum(state == "COMPLETE" or (state in open_ones and earlier) for state, earlier in others)

    def seen(self) -> list[Seen]:
        """What is finished or under way, as a sampler sees it; what failed or still runs has no figures."""
        return [self._seen(trial) for trial in self.study.frozen() if is_taken(trial)]

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
        return storage.ask(self.study.record)

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

    def _excluded(self, trial: optuna.Trial, architecture: Architecture) -> str:
        """Why a proposal is only considered: another trial's network, or over a limit known without measuring."""
        if (other := self._rival(trial, architecture.digest)) is not None:
            return f"the network of trial {other.number}"
        try:
            with failures.of_candidates():
                limited = {name: count(architecture) for name, count in self.known.items() if name in self.study.limits}
        except failures.CandidateFailed as error:  # one of its blocks does not run
            trial.set_user_attr("traceback", error.traceback)
            return f"failed: {error}"[:500]
        return broken(limited, self.study.limits)

    def _rival(self, trial: optuna.Trial, digest: str) -> optuna.trial.FrozenTrial | None:
        """The trial that has this network; one asked later gives way in a moment, if it has seen this one."""
        end = time.monotonic() + SETTLING
        while True:
            taken = [other for other in self.study.frozen() if other.number != trial.number and is_taken(other)]
            rivals = [other for other in taken if other.user_attrs["digest"] == digest]
            decided = [r for r in rivals if r.state.name != "RUNNING" or r.number < trial.number]
            if decided or not rivals or not self.study.is_shared:  # else one that is taken up again after this one
                return next(iter(decided), None)
            if time.monotonic() > end:
                return rivals[0]
            time.sleep(0.05)


def is_taken(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether a trial's network is evaluated, being evaluated, or cannot be: its training failed."""
    if trial.state.name == "FAIL":
        return trial.user_attrs.get("reason", "").startswith("failed")
    return "digest" in trial.user_attrs


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
