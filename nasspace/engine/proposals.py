"""Proposals: new networks within the limits on known values, reproducible after a kill.

If several processes search one study, each stores its proposal in its trial before it reads the other trials. If two
processes propose the same network, at least one of them sees the other's trial; the trial with the higher number is
withdrawn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Mapping
from typing import TYPE_CHECKING, Any

from nasspace import failures
from nasspace.architecture import Architecture
from nasspace.engine.evaluator import violated_limit
from nasspace.samplers.accuracy_belief import quality
from nasspace.samplers.gain_sampler import GainSampler
from nasspace.samplers.observation import Bounds, Observation
from nasspace.samplers.proposers import Proposer, proposer
from nasspace.space.space import Space
from nasspace.studies import storage
from nasspace.studies.study import Study

if TYPE_CHECKING:
    import optuna

MAX_REFUSED = 500  # proposals refused in a row before the space counts as exhausted
PATIENCE = 20  # proposals refused in a row before `gain` replaces an Optuna sampler
WITHDRAWAL_TIMEOUT = 2.0  # seconds to wait for another process to withdraw a duplicate
COMPLETED_BY_GAIN = ("mnasnet",)  # proposers for which `gain` finds what their draws do not
MAX_INFEASIBLE = 6  # rejected trials without a feasible one before `gain` replaces an Optuna sampler


class Proposals:
    """Proposes architectures as trials of the study, one at a time.

    A proposal depends only on the record: the finished trials, their trainings on rungs, and the number of the next
    trial. A resumed search therefore equals an uninterrupted one.
    """

    def __init__(
        self,
        study: Study,
        space: Space,
        sampler: str,
        known: Mapping[str, Callable[[Architecture], float]],
        seed: int,
        options: Mapping[str, Any] | None = None,
    ):
        self.study = study
        self.space = space
        self.sampler = sampler
        self.known = known
        self.seed = seed
        arguments = (space, study.objectives, study.limits, known, seed)
        self.gain = GainSampler(*arguments)
        self.own = self.gain if sampler == "gain" else proposer(sampler, *arguments, **(options or {}))
        self.exhausted = False  # the last call found no new network
        self._labels = space.plan.labels()
        self._architectures: dict[int, Architecture] = {}

    def next(
        self,
        running: Container[int] = (),
        on_new_trial: Callable[[optuna.Trial], None] = lambda trial: None,
        max_trials: int | None = None,
    ) -> tuple[optuna.Trial, Architecture] | None:
        """The next trial and its architecture; None if there is none at present.

        If None and `exhausted` is set, no new network within the known limits is left. `running` holds the numbers of
        this process's trials; `on_new_trial` is called with each new trial before its architecture is drawn. With
        `max_trials`, returns None if that many trials are evaluated, or open and created before this one.
        """
        self.exhausted = False
        for _ in range(MAX_REFUSED):
            if (trial := self.study.interrupted(running) or self._next_trial()) is None:
                break
            with storage.unless_finished():
                on_new_trial(trial)
                architecture = self._suggest(trial)
                trial.set_user_attr("digest", architecture.digest)
                trial.set_user_attr("architecture", architecture.to_json())
                if blocks := {name: self._labels[name][i] for name, i in trial.params.items() if name in self._labels}:
                    trial.set_user_attr("blocks", blocks)  # readable names: the parameter is the block's index
                enough = max_trials is not None and self._count_before(trial) >= max_trials
                reason = (
                    "enough trials are running in other processes" if enough else self._refusal(trial, architecture)
                )
                if self._is_drawn(trial):
                    reason = reason or "another process took the proposal"
                if not reason:
                    return trial, architecture
                trial.set_user_attr("reason", reason)
                self.study.finish_trial(trial, "FAIL")
                if enough:
                    return None
        self.exhausted = True
        return None

    @property
    def accepts_rejections(self) -> bool:
        """Whether many rejected networks in a row do not end the search."""
        return self.own is not None and self.own.accepts_rejections

    def bounds(self) -> Bounds | None:
        """The largest values with which a candidate of this moment is trained; None: the limits."""
        return self.own.bounds(self._plain_observations()) if self.own and self.own.ignores_limits else None

    def end(self) -> str:
        """Why there is no further proposal."""
        return (self.own or self.gain).end(self._plain_observations()) or "no new network can be proposed"

    def observations(self) -> list[Observation]:
        """The evaluated and running trials, as observations for `gain`; running ones have no values.

        The accuracy of a trained network is combined with its log loss, which err differently. Once networks were
        trained further, their accuracies are of trainings of several lengths; then it is the accuracy expected after
        full training, which all of a network's trainings add to.
        """
        trials = [trial for trial in self.study.frozen() if is_taken(trial)]
        # A belief takes longer than a proposal in a large study, so it is not computed without need.
        belief = self.study.belief() if self.study.has_further_trainings else None
        if belief:
            learned = {number: belief.expected(number) for number in belief.numbers}
        else:
            learned = _combined_accuracies(trials, self.study.settings.get("data") or {})
        return [self._observation(trial, learned.get(trial.number)) for trial in trials]

    def _plain_observations(self) -> list[Observation]:
        """The evaluated and running trials with their accuracies as they are."""
        return [self._observation(trial, None) for trial in self.study.frozen() if is_taken(trial)]

    def _observation(self, trial: optuna.trial.FrozenTrial, accuracy: float | None) -> Observation:
        attributes = trial.user_attrs
        interval = attributes.get("latency_interval")
        margin = interval["high_ms"] / interval["median_ms"] if interval else 1.0
        # A process that was killed may have left a trial that has its values but has not ended.
        recorded = {} if trial.state.name in ("RUNNING", "WAITING") else attributes.get("values", {})
        values = {**recorded, **({} if accuracy is None or not recorded else {"accuracy": accuracy})}
        failed = trial.state.name == "FAIL"
        return Observation(self._architecture(trial), values, attributes.get("layers_ms"), margin, failed)

    def _architecture(self, trial: optuna.trial.FrozenTrial) -> Architecture:
        if trial.number not in self._architectures:
            self._architectures[trial.number] = self.space.replay(trial.params)
        return self._architectures[trial.number]

    def _next_trial(self) -> optuna.Trial | None:
        """Ask Optuna for a trial, with the proposal of a proposer enqueued; None if that finds no network."""
        if not self.study.frozen("WAITING") and (source := self._proposer()):
            proposal = self._proposed_by(source)
            if proposal is None and self.sampler in COMPLETED_BY_GAIN:
                proposal = self._proposed_by(self.gain)
            if proposal is None:
                return None
            self.study.record.enqueue_trial(dict(proposal.choices or {}))
        return storage.ask(self.study.record)

    def _is_drawn(self, trial: optuna.Trial) -> bool:
        """Whether Optuna drew a trial at random, since another process asked for the enqueued proposal first."""
        from nasspace.optuna_adapter import enqueued_params

        if not self.study.is_shared or self.own in (None, self.gain):  # for `gain`, a random network is as good
            return False
        return enqueued_params(self.study.record.get_trials(deepcopy=False)[trial.number]) is None

    def _proposed_by(self, source: Proposer) -> Architecture | None:
        observations = self.observations() if source is self.gain else self._plain_observations()
        return source.propose(observations, len(self.study.frozen()))

    def _proposer(self) -> Proposer | None:
        """The study's own sampler if it is a proposer; `gain` if an Optuna sampler finds nothing new or feasible."""
        return self.own or (self.gain if self._uses_gain() else None)

    def _uses_gain(self) -> bool:
        """Whether `gain` replaces an Optuna sampler, which finds nothing new or feasible."""
        trials = self.study.frozen()
        refused = next((i for i, trial in enumerate(reversed(trials)) if trial.state.name != "FAIL"), len(trials))
        infeasible = not self.study.evaluated and self.study.rejected >= MAX_INFEASIBLE
        return infeasible or refused >= PATIENCE

    def _suggest(self, trial: optuna.Trial) -> Architecture:
        return self.space.architecture(lambda name, options: trial.suggest_categorical(name, list(options)))

    def _refusal(self, trial: optuna.Trial, architecture: Architecture) -> str:
        """Why a proposal is refused (a duplicate, or over a known limit); empty if it is not."""
        if (other := self._duplicate(trial, architecture.digest)) is not None:
            return f"the network of trial {other.number}"
        if self.own and self.own.ignores_limits:
            return ""
        try:
            with failures.as_candidate_failures():
                values = {name: count(architecture) for name, count in self.known.items() if name in self.study.limits}
        except failures.CandidateFailed as error:  # a block raised an error
            trial.set_user_attr("traceback", error.traceback)
            return f"failed: {error}"[:500]
        return violated_limit(values, self.study.limits)

    def _duplicate(self, trial: optuna.Trial, digest: str) -> optuna.trial.FrozenTrial | None:
        """Another trial with this network; running ones with a higher number get time to withdraw."""
        end = time.monotonic() + WITHDRAWAL_TIMEOUT
        while True:
            taken = [other for other in self.study.frozen() if other.number != trial.number and is_taken(other)]
            same = [other for other in taken if other.user_attrs["digest"] == digest]
            decided = [other for other in same if other.state.name != "RUNNING" or other.number < trial.number]
            if decided or not same or not self.study.is_shared:  # unshared: `same` will be resumed later
                return next(iter(decided), None)
            if time.monotonic() > end:
                return same[0]
            time.sleep(0.05)

    def _count_before(self, trial: optuna.Trial) -> int:
        """Count the evaluated trials, and the open ones with a lower number than this one."""
        trials = [(other.state.name, other.number < trial.number) for other in self.study.frozen()]
        return sum(state == "COMPLETE" or (state in ("RUNNING", "WAITING") and lower) for state, lower in trials)


def is_taken(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether a trial's network is evaluated, rejected, running, or failed in its evaluation."""
    if trial.state.name == "FAIL":
        return trial.user_attrs.get("reason", "").startswith("failed")
    return "digest" in trial.user_attrs


def _combined_accuracies(trials: list[optuna.trial.FrozenTrial], data: Mapping[str, Any]) -> dict[int, float]:
    """The accuracies of trained networks, each combined with its log loss, by trial number."""
    log_losses = {
        trial.number: trial.user_attrs["training"]["log_loss"]
        for trial in trials
        if "accuracy" in trial.user_attrs.get("values", {}) and trial.user_attrs.get("training", {}).get("log_loss")
    }
    if not log_losses or "validation" not in data:
        return {}
    accuracies = [trial.user_attrs["values"]["accuracy"] for trial in trials if trial.number in log_losses]
    odds = quality(accuracies, list(log_losses.values()), data["validation"])
    return {number: 1 / (1 + math.exp(-one)) for number, one in zip(log_losses, odds, strict=True)}
