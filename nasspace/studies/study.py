"""The record of a search: an Optuna study in a database, and the files next to it.

The Optuna state of a trial shows what happened to a candidate. COMPLETE: its accuracy was evaluated. PRUNED: it was
rejected at a limit after a measurement and never trained. FAIL: the sampler only considered it, its training failed,
or its process died. RUNNING: it is in progress, or was when its process ended, and will be continued. All figures of a
trial are in its user attributes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nasspace import files
from nasspace.documents import Document
from nasspace.errors import InputError
from nasspace.samplers import pareto
from nasspace.studies import front as fronts
from nasspace.studies import storage
from nasspace.studies.belief import StudyBelief, believe
from nasspace.studies.energy import EnergyMeter
from nasspace.studies.front import Front, Member
from nasspace.studies.objectives import OBJECTIVES, directions
from nasspace.studies.paths import COMPARISON, as_argument, folder_of, known_studies
from nasspace.studies.schema import (
    DEPLOYED,
    ENERGY,
    EXPLAINED,
    LAST_RUNG,
    PREDICTOR,
    REMEASURED,
    RUNG,
    RUNGS,
    check_attributes,
    check_trials,
)
from nasspace.studies.schema import study_settings as checked_settings
from nasspace.studies.storage import errors_of_storage
from nasspace.studies.trial_table import TRIAL_COLUMNS, listed, machine_of, row, ties
from nasspace.studies.weight_store import StudyWeights, Weights

if TYPE_CHECKING:
    import optuna
    import pandas

    from nasspace.architecture import Architecture
    from nasspace.data.loading import DataSet
    from nasspace.studies.sqlite_reader import RecordedStudy

SEARCHED = "searched"  # study attribute: the search has ended; the last rung and the exports remain
FINISHED = "finished"  # study attribute: the search and its exports are complete
ENDED = "ended"  # study attribute: why the search ended before its trials were used up
SETTINGS = "nasspace_settings"  # study attribute in a shared storage: study.yaml, for processes that join
PROMOTION_DRAWS = 64  # from the belief, for what networks are expected to add to the front
PROBABILITY_FLOOR = 0.05  # of a place on the front: no network below it is named, however improbable the members are
LEAST_PROBABLE = 0.2  # of a place on the front; at 0.05, a search with short trainings lists a third of its networks
JOIN_TIMEOUT = 10.0  # seconds to wait for the settings of a study that another process is creating


class Study:
    """One search and its results in `folder`: the settings in `study.yaml`, the trials in the database.

    The methods that record something need the record of Optuna, which `create` and `load` open.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], record: optuna.Study | RecordedStudy):
        self.folder = folder
        self.settings = settings
        self.record = record
        self.name = folder.resolve().name
        self.data: DataSet | None = None  # the data set, once this process has loaded it
        self._belief: tuple[Any, StudyBelief | None] | None = None  # the latest one, after what it follows from
        self.deadline: float | None = None  # when the time budget of this process ends, as `time.monotonic()`

    @property
    def objectives(self) -> tuple[str, ...]:
        """The names of the objectives."""
        return tuple(self.settings["recipe"]["objectives"])

    @property
    def limits(self) -> dict[str, float]:
        """The limits in milliseconds and counts."""
        return dict(self.settings["limits"])

    @property
    def origin(self) -> dict[str, Any] | None:
        """The data of the search, as exports record it; None without images."""
        return fronts.origin(self.settings)

    @property
    def has_last_rung(self) -> bool:
        """Whether members of the front are trained at the deployment resolution before they are reported."""
        return fronts.has_last_rung(self.settings)

    @property
    def is_shared(self) -> bool:
        """Whether other processes may search it at the same time: its storage is a URL."""
        return self.settings.get("storage") is not None

    @property
    def is_writable(self) -> bool:
        """Whether the folder can be written; a finished study can be read on a read-only disk."""
        return os.access(self.folder, os.W_OK)

    @property
    def is_out_of_time(self) -> bool:
        """Whether the time budget of this process is used up."""
        return self.deadline is not None and time.monotonic() > self.deadline

    # Trials

    def frozen(self, *states: str) -> list[optuna.trial.FrozenTrial]:
        """Trials in the order of their creation, optionally only those in the given states."""
        trials = self.record.get_trials(deepcopy=False)
        return [trial for trial in trials if not states or trial.state.name in states]

    def interrupted(self, in_progress: Container[int] = ()) -> optuna.Trial | None:
        """A trial that a killed process left running; None in a shared study, see `heartbeat`.

        `in_progress` are the trials that this process is working on.
        """
        from nasspace.optuna_adapter import reopened_trial

        running = () if self.is_shared else self.frozen("RUNNING")
        left = next((trial for trial in running if trial.number not in in_progress), None)
        return None if left is None else reopened_trial(self.record, left)

    def finish_trial(self, trial: optuna.Trial | int, state: str, values: list[float] | None = None) -> bool:
        """Record that a trial finished: COMPLETE with the values of its objectives, PRUNED or FAIL.

        Returns False if another process finished it first.
        """
        import optuna

        try:
            self.record.tell(trial, values, state=None if values else optuna.trial.TrialState[state])
        except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
            number = trial if isinstance(trial, int) else trial.number
            recorded = self.record.get_trials(deepcopy=False)[number]
            if not (self.is_shared and recorded.state.is_finished()):
                raise
            # Equal values: the first attempt was stored, but the connection broke before its reply.
            return recorded.state.name == state and recorded.values == values
        return True

    def requeue(self, trial: optuna.trial.FrozenTrial) -> None:
        """Mark a trial as FAIL after its process died, and enqueue its parameters; has an effect only once."""
        if self.finish_trial(trial.number, "FAIL"):
            storage.requeue(self.record, trial)

    @property
    def evaluated(self) -> int:
        """The number of evaluated candidates."""
        return len(self.frozen("COMPLETE"))

    @property
    def rejected(self) -> int:
        """The number of candidates rejected at a limit after a measurement."""
        return len(self.frozen("PRUNED"))

    def latency(self, trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
        """The latency of a trial as `Latency.to_json` gives it; empty if none was measured."""
        return trial.user_attrs.get("latency_interval") or {}

    def remeasured(self) -> dict[str, Any]:
        """Latencies of the exported files, measured in a fresh process; the keys are trial numbers as text."""
        return self.record.user_attrs.get(REMEASURED, {})

    def explained(self) -> set[int]:
        """The trials whose networks were explained while nothing else competed for the processor."""
        found = {key: value for key, value in self.record.user_attrs.items() if key.startswith(EXPLAINED)}
        return {int(key.removeprefix(EXPLAINED)) for key, value in found.items() if not value["contended"]}

    @contextlib.contextmanager
    def recording_energy(self) -> Iterator[None]:
        """Add the energy of a run to the study at its end, also of an interrupted one, if RAPL can be read.

        Nothing is recorded where several processes or machines search, which one machine's counters do not show.
        """
        if self.is_shared or self.settings["recipe"].get("ray"):
            yield
            return
        with EnergyMeter() as meter:
            try:
                yield
            finally:
                if used := meter.joules():
                    self.record.set_user_attr(ENERGY, self.record.user_attrs.get(ENERGY, 0.0) + used)

    def latency_machine(self) -> dict[str, Any] | None:
        """The machine that measured the study's first latency; None before."""
        return machine_of(self.frozen())

    def over_limit(self, trial: optuna.trial.FrozenTrial) -> float:
        """The largest share of a limit by which a trial exceeds it; 0 or less if it is within all limits."""
        values = dict(trial.user_attrs.get("values", {}))
        if latency := self.latency(trial):
            values["latency"] = latency["high_ms"]  # the upper end of the interval decides
        over = [values[name] / limit - 1 for name, limit in self.limits.items() if name in values]
        return max(over, default=0.0)

    def search_accuracy(self, number: int) -> float | None:
        """The accuracy of a trial at the search's own fidelity; None if there is none."""
        values = next((t.user_attrs.get("values", {}) for t in self.frozen() if t.number == number), {})
        return values.get("accuracy")

    def fidelity(self, number: int) -> dict[str, Any] | None:
        """The training budget of a trial's search accuracy; None if the evaluator was a function.

        With shared weights, it is their training, and says so.
        """
        if not self.settings.get("data"):
            return None
        return fronts.search_fidelity(self.settings["recipe"], json.loads(self._recorded(number))["input"])

    def failure(self, number: int) -> dict[str, Any] | None:
        """Why a trial failed, in the search or later at its deployment resolution; None for others.

        Keys: `study`, `id`, `failure`, `traceback`, `digest`, `architecture`, and `state` (FAIL, or COMPLETE for a
        failure at the deployment resolution).
        """
        trial = next((trial for trial in self.frozen() if trial.number == number), None)
        if trial is None:
            return None
        attributes = trial.user_attrs
        if trial.state.name == "FAIL" and str(attributes.get("reason", "")).startswith("failed"):
            why, traceback = str(attributes["reason"]), attributes.get("traceback")
        elif "failed" in (later := self._by_number(DEPLOYED).get(number, {})):
            size = f" {later['resolution']}x{later['resolution']}" if later.get("resolution") else ""
            why, traceback = f"failed at the deployment resolution{size}: {later['failed']}", later.get("traceback")
        else:
            return None
        texts = {
            "digest": str(attributes.get("digest") or ""),
            "traceback": str(traceback or ""),
            "architecture": str(attributes.get("architecture") or ""),
        }
        return {"study": self.name, "id": number, "state": trial.state.name, "failure": why, **texts}

    # Architectures and weights

    def architecture(self, number: int) -> Architecture:
        """The architecture of a trial; an unknown number raises `InputError`."""
        from nasspace.architecture import Architecture  # imports PyTorch; tables work without it

        architecture = Architecture.from_json(self._recorded(number), f"{self.name}:{number}")
        return architecture.with_name(f"{self.name}-{number}")

    def _named(self, number: int) -> str:
        """The JSON of a trial's architecture with its name, as `Architecture.to_json` writes it."""
        document = json.loads(self._recorded(number))
        layers = ",\n  ".join(json.dumps(layer) for layer in document.pop("layers"))
        document = {"nasspace": document.pop("nasspace"), "name": f"{self.name}-{number}", **document}
        return json.dumps(document)[:-1] + ',\n "layers": [\n  ' + layers + "]}\n"

    def _recorded(self, number: int) -> str:
        """The recorded JSON of a trial's architecture; an unknown number raises `InputError`."""
        for trial in self.frozen("COMPLETE", "PRUNED"):
            if trial.number == number:
                return trial.user_attrs["architecture"]
        if failure := self.failure(number):
            remedy = f"`nas show {as_argument(self.folder, number)}` has its traceback"
            raise InputError(f"trial {number} of study '{self.name}' {failure['failure']}; {remedy}")
        known = [trial.number for trial in self.frozen("COMPLETE", "PRUNED")]
        raise InputError(f"study '{self.name}' has no trial {number}; it has {listed(known)}")

    def weights(self, number: int) -> Path | None:
        """The trained weights of a trial: of the last rung if there are any, else of the search."""
        return self.weight_stores.path(number, number in self.deployed())

    @property
    def weight_stores(self) -> StudyWeights:
        """Stores of trained weights: in the folder, with copies at the recipe's `storage_path`."""
        stores = (self._store("weights"), self._store("weights/deployed"))
        return StudyWeights(*stores, self.folder / "exports")

    def _store(self, name: str) -> Weights:
        place = self.settings["recipe"].get("storage_path")
        # Names are not unique in a storage of several users.
        unique = f"{self.settings['name']}-{self.settings.get('identity', '')}".rstrip("-")
        return Weights(self.folder / name, place and f"{place.rstrip('/')}/{unique}/{name}")

    @property
    def search_weights(self) -> Weights:
        """The store of the weights that the search trained."""
        return self.weight_stores.search

    @property
    def deployed_weights(self) -> Weights:
        """The store of the weights that the last rung trained at the deployment resolution."""
        return self.weight_stores.deployed

    @property
    def shared_weights(self) -> Weights:
        """The store of the weights that all networks share, under the number 0."""
        return self._store("weights/shared")

    @property
    def start_weights(self) -> Weights:
        """The store of the weights that candidates start from, under the number 0."""
        return self._store("weights/start")

    # Progress of the search

    @property
    def is_searched(self) -> bool:
        """Whether the search has ended but its delivery has not: no more trials are created."""
        attributes = self.record.user_attrs
        return bool(attributes.get(SEARCHED)) and not attributes.get(FINISHED)

    @property
    def is_finished(self) -> bool:
        """Whether the search and its exports are complete."""
        return bool(self.record.user_attrs.get(FINISHED))

    def record_search_end(self) -> None:
        """Record that the search has ended and its last rung starts; others may still search a shared study."""
        if self.settings.get("data") and not self.is_shared:
            self.record.set_user_attr(SEARCHED, True)

    def record_early_end(self, why: str) -> None:
        """Record why a search ended before its trials were used up; an empty text clears the reason."""
        if self.ended_early != why:
            self.record.set_user_attr(ENDED, why)

    @property
    def ended_early(self) -> str:
        """Why the search ended before its trials were used up; empty if it did not."""
        why = self.record.user_attrs.get(ENDED)
        return why if isinstance(why, str) else ""

    # The last rung

    def deployed(self) -> dict[int, dict[str, Any]]:
        """Results of the last rung by trial number: `accuracy` of the exported file, `resolution`, `epochs`, ..."""
        return {number: found for number, found in self._by_number(DEPLOYED).items() if "accuracy" in found}

    def undeployable(self) -> dict[int, str]:
        """Reasons of failed last rungs by trial number; these trials are in no front."""
        return {number: found["failed"] for number, found in self._by_number(DEPLOYED).items() if "failed" in found}

    def last_rung(self, number: int) -> dict[str, Any] | None:
        """Result of the last rung's training, recorded before the export: `accuracy` in training, `resolution`, ..."""
        return self.record.user_attrs.get(f"{LAST_RUNG}{number}")

    def rung(self, index: int, number: int) -> dict[str, Any] | None:
        """Result of a trial's training at a rung before the last: `accuracy`, `resolution`, `steps`, ..."""
        return self.record.user_attrs.get(f"{RUNG}{index}:{number}")

    def report_rung(self, number: int, training: Mapping[str, Any]) -> None:
        """Record the accuracy of a further training, also the last, as the trial's value after so many epochs.

        Only `optuna-dashboard` reads it. `training` is what `rung` or `last_rung` returns.
        """
        epochs = sum(step[1] for step in training.get("steps", ()))
        if epochs:
            storage.report_finished(self.record, self.frozen()[number], training["accuracy"], round(epochs))

    def report_missing_rungs(self) -> None:
        """Record the accuracies of further trainings that a killed process left out of the intermediate values."""
        trials = self.frozen()
        for key, training in self.record.user_attrs.items():
            number = key.rpartition(":")[2]
            if training and key.startswith((RUNG, LAST_RUNG)) and number.isdecimal():
                epochs = round(sum(step[1] for step in training.get("steps", ())))
                if epochs not in trials[int(number)].intermediate_values:
                    self.report_rung(int(number), training)

    def rung_weights(self, index: int) -> Weights:
        """The store of the weights that a rung before the last trained."""
        return self._store(f"weights/rung-{index}")

    @property
    def rung_stores(self) -> list[Weights]:
        """The stores of the weights of all rungs before the last that were trained, also of those planned no more."""
        indices = {int(key.split(":")[1]) for key in self.record.user_attrs if key.startswith(RUNG)}
        return [self.rung_weights(index) for index in sorted(indices)]

    @property
    def planned_rungs(self) -> list[dict[str, Any]] | None:
        """The rungs before the last, each with its `networks` once these are chosen; None until that is decided."""
        return self.record.user_attrs.get(RUNGS)

    @property
    def has_further_trainings(self) -> bool:
        """Whether a network was trained further after the search, on a rung."""
        attributes = self.record.user_attrs
        return any(value and "steps" in value for key, value in attributes.items() if key.startswith((RUNG, LAST_RUNG)))

    def belief(self) -> StudyBelief | None:
        """What the trainings say of accuracies after full training; None without a prior in study.yaml."""
        trials, attributes = self.frozen("COMPLETE"), self.record.user_attrs
        trained = {key: value for key, value in attributes.items() if key.startswith((RUNG, LAST_RUNG))}
        basis = ([trial.number for trial in trials], trained, self.settings)
        if self._belief is None or self._belief[0] != basis:
            self._belief = basis, believe(self.settings, trials, attributes)
        return self._belief[1]

    def candidates(self) -> list[int]:
        """The evaluated trials within the limits that can still climb: not trained at their deployment resolution."""
        deployed = self.deployed()
        return [trial.number for trial in self._feasible() if trial.number not in deployed]

    def promotion_order(self, among: Container[int] | None = None, count: int | None = None) -> list[int]:
        """The candidates in the order in which rungs take them, or the first `count`; of those in `among`, if given.

        Each is expected to add the most to the front of those before it and of the networks that are trained already.
        Empty in studies without a belief, which have no rungs before the last.
        """
        from nasspace.samplers.halving import most_promising

        belief, deployed = self.belief(), self.deployed()
        trials = [t for t in self._feasible() if t.number in deployed or among is None or t.number in among]
        if belief is None or not trials:
            return []
        places = {number: i for i, number in enumerate(belief.numbers)}
        columns = [places[trial.number] for trial in trials]
        names = [name for name in self.objectives if name != "accuracy"]
        figures = [self._figures(trial) for trial in trials]
        costs = np.array([[values[name] for name in names] for values in figures])
        trained = [i for i, trial in enumerate(trials) if trial.number in deployed]
        drawn = belief.draws(PROMOTION_DRAWS)[:, columns]
        order = most_promising(drawn, costs, len(trials) if count is None else count, trained)
        return [trials[i].number for i in order]

    def _by_number(self, prefix: str) -> dict[int, dict[str, Any]]:
        """The study's attributes of one kind by trial number, without those reset to None."""
        found = self.record.user_attrs.items()
        return {int(key[len(prefix) :]): value for key, value in found if key.startswith(prefix) and value}

    # The front

    def front_numbers(self) -> list[int]:
        """The trials on the front. Once trials are trained at the deployment resolution, only those are compared.

        Accuracies are compared by what is believed of the full training, in studies that have a belief.
        """
        return self._front_numbers(self.belief())

    def _front_numbers(self, belief: StudyBelief | None) -> list[int]:
        candidates, deployed = self._feasible(), self.deployed()
        if not self.has_last_rung or not (deployed or self.undeployable()):
            return self._front_of(candidates, _expected(belief))
        reported = [trial for trial in candidates if trial.number in deployed]
        accuracies = {number: found["accuracy"] for number, found in deployed.items()}
        return self._front_of(reported, {**accuracies, **_expected(belief)})

    def promoted(self) -> list[int]:
        """The trials to train at the deployment resolution next; empty once the front is stable.

        These are the untrained trials that no member of the front and no other untrained trial dominates, by what is
        believed of the full training; in studies without a belief, by the results of the search. When a member leaves
        the front, trials that only it dominated are promoted.
        """
        return self._promoted(self.belief())

    def _promoted(self, belief: StudyBelief | None) -> list[int]:
        if not self.has_last_rung:
            return []
        deployed, members = self.deployed(), set(self._front_numbers(belief))
        rivals = [trial for trial in self._feasible() if trial.number in members or trial.number not in deployed]
        return [number for number in self._front_of(rivals, _expected(belief)) if number not in deployed]

    def beyond_layers(self, count: int) -> set[int]:
        """Evaluated trials that exceed a limit or are not in the first `count` nondominated layers.

        Accuracies are those expected after full training, as for the front; of the search in studies without a belief.
        """
        evaluated = {trial.number for trial in self.frozen("COMPLETE")}
        left, expected = self._feasible(), _expected(self.belief())
        for _ in range(count):
            layer = set(self._front_of(left, expected))
            left = [trial for trial in left if trial.number not in layer]
            evaluated -= layer
        return evaluated

    def _feasible(self) -> list[optuna.trial.FrozenTrial]:
        """Evaluated trials within the limits, also when measured again, whose last rung did not fail."""
        remeasured = self.remeasured()
        failed = self.undeployable() if self.has_last_rung else ()
        evaluated = [trial for trial in self.frozen("COMPLETE") if trial.number not in failed]
        return [t for t in evaluated if self.over_limit(t) <= 0 and self._meets_limit(remeasured.get(str(t.number)))]

    def _meets_limit(self, remeasured: Mapping[str, Any] | None) -> bool:
        """Whether an exported file meets the latency limit; a contended measurement is ignored."""
        limit = self.limits.get("latency")
        return limit is None or remeasured is None or remeasured["contended"] or remeasured["median_ms"] <= limit

    def _front_of(self, trials: list[optuna.trial.FrozenTrial], accuracy: Mapping[int, float]) -> list[int]:
        """The nondominated trials; `accuracy` overrides the accuracy of the search by trial number."""
        if not trials:
            return []
        figures = [self._figures(trial) for trial in trials]
        for trial, values in zip(trials, figures, strict=True):
            if trial.number in accuracy:
                values["accuracy"] = accuracy[trial.number]
        points = [[OBJECTIVES[name].to_minimize(values[name]) for name in self.objectives] for values in figures]
        return [trial.number for trial, member in zip(trials, pareto.front(points), strict=True) if member]

    def _figures(self, trial: optuna.trial.FrozenTrial) -> dict[str, float]:
        """A trial's values by objective, with its latency as measured."""
        values = dict(trial.user_attrs["values"])
        if "latency" in values and (latency := self.latency(trial)):
            values["latency"] = latency["median_ms"]
        return values

    # Results

    def snapshot(self) -> Front:
        """An immutable snapshot of the front and of everything that tables, report and exports need."""
        belief = self.belief()
        rows, numbers = self._rows(belief), set(self._front_numbers(belief))
        members = fronts.ordered([row for row in rows if row["id"] in numbers], self.objectives)
        tied, attributes = ties(members), self.record.user_attrs
        return Front(
            name=self.name,
            folder=self.folder,
            settings=self.settings,
            members=tuple(
                self._member(row, attributes, ids, _ties(belief, row["id"], members))
                for row, ids in zip(members, tied, strict=True)
            ),
            trials=tuple(rows),
            weights=self.weight_stores,
            machine=self.latency_machine() or self.settings["machine"],
            latency_predictor=attributes.get(PREDICTOR),
            untrained=len(self._promoted(belief)),
            fidelity_tau=belief and belief.tau(),
            largest_is_best=belief and self._largest_is_best(belief, numbers),
            may_belong=self._may_belong(belief, numbers),
            energy_joules=attributes.get(ENERGY),
            is_finished=self.is_finished,
            ended_early=self.ended_early,
        )

    def _largest_is_best(self, belief: StudyBelief, front: set[int]) -> float | None:
        """The probability that no evaluated network slower than the front is more accurate after full training."""
        latencies = {trial.number: self._figures(trial).get("latency", 0.0) for trial in self._feasible()}
        slowest = max((latencies[number] for number in front if number in latencies), default=math.inf)
        return belief.probability_of_best(front, [number for number, one in latencies.items() if one > slowest])

    def _may_belong(self, belief: StudyBelief | None, front: set[int]) -> dict[int, float] | None:
        """Trials that are not on the front but may be after full training, with the probability, the highest first.

        The probability is at least `LEAST_PROBABLE`. If it is that of no network, half of the probability of the least
        probable member is enough, as where many cost the same. All evaluated trials within the limits are compared,
        also those that are not trained at their deployment resolution. None without accuracy among the objectives or
        without a belief.
        """
        if belief is None or "accuracy" not in self.objectives:
            return None
        others = [OBJECTIVES[name] for name in self.objectives if name != "accuracy"]
        figures = {trial.number: self._figures(trial) for trial in self._feasible()}
        costs = {number: [one.to_minimize(values[one.name]) for one in others] for number, values in figures.items()}
        found = belief.probabilities_of_front(costs, LEAST_PROBABLE)
        if found.keys() <= front:
            members = belief.probabilities_of_front(costs, of=front)
            least = max(PROBABILITY_FLOOR, min(members.values(), default=1.0) / 2)
            found = belief.probabilities_of_front(costs, least) if least < LEAST_PROBABLE else {}
        likely = [number for number in found if number not in front]
        return {number: found[number] for number in sorted(likely, key=lambda number: (-found[number], number))}

    def member(self, number: int) -> Member:
        """A trial with its results, on the front or not; an unknown number raises `InputError`."""
        self._recorded(number)
        rows = self._rows(self.belief())
        return self._member(next(row for row in rows if row["id"] == number), self.record.user_attrs)

    def _member(
        self,
        row: Mapping[str, Any],
        attributes: Mapping[str, Any],
        tied: tuple[int, ...] = (),
        accuracy_ties: tuple[int, ...] | None = None,
    ) -> Member:
        """A row of trials.csv as a member; `attributes` are the study's, read once."""
        number = row["id"]
        deployed = attributes.get(f"{DEPLOYED}{number}") or {}
        return Member(
            study=self.name,
            id=number,
            row=row,
            architecture=self._named(number),
            ties=tied,
            accuracy_ties=accuracy_ties,
            remeasured=attributes.get(REMEASURED, {}).get(str(number), {}),
            fidelity=self.fidelity(number),
            last_rung=attributes.get(f"{LAST_RUNG}{number}"),
            deployed=deployed if "accuracy" in deployed else None,
            explained=attributes.get(f"{EXPLAINED}{number}"),
        )

    def _rows(self, belief: StudyBelief | None) -> list[dict[str, Any]]:
        """The rows of trials.csv."""
        deployed, last_rung = self.deployed(), self.has_last_rung
        return [
            row(trial, self.latency(trial), deployed.get(trial.number), last_rung, belief)
            for trial in self.frozen("COMPLETE", "PRUNED")
        ]

    def trials(self) -> pandas.DataFrame:
        """Every evaluated and rejected candidate, one per row, in the order of the search."""
        import pandas

        return pandas.DataFrame(self._rows(self.belief()), columns=TRIAL_COLUMNS)

    def front(self) -> pandas.DataFrame:
        """The Pareto front of the evaluated candidates within the limits, best accuracy first.

        Accuracy is that of the exported files. Until a member is trained at its deployment resolution, the front is
        that of the search, with `search_accuracy` only. Members whose exported files exceed the latency limit when
        measured again are removed. `print` shows the columns that fit, never `architecture` (JSON).
        """
        return self.snapshot().frame()

    def document(self) -> dict[str, Any]:
        """The JSON document of `search`, `resume` and `front`."""
        return self.snapshot().document()


def _expected(belief: StudyBelief | None) -> dict[int, float]:
    """The expected accuracies after full training by trial number; empty without a belief."""
    return {} if belief is None else {number: belief.expected(number) for number in belief.numbers}


def _ties(belief: StudyBelief | None, number: int, members: Sequence[Mapping[str, Any]]) -> tuple[int, ...] | None:
    """The other members whose accuracy cannot be told from a trial's; None without a belief."""
    if belief is None:
        return None
    return tuple(one["id"] for one in members if one["id"] != number and belief.tied(number, one["id"]))


def create(folder: Path, settings: dict[str, Any], sampler: Any) -> Study:
    """Create a study in `folder`, or join the study of this name in a shared storage with its settings.

    The caller holds the folder's lock (`paths.alone`).
    """
    if set("?%#") & set(str(folder.resolve())):
        raise InputError(f"{folder}: a study's path cannot hold ?, % or #; choose another name or folder")
    if settings["storage"] is None:  # the database first: study.yaml without a database would look damaged
        _create_database(folder, settings)
        files.write_yaml(folder / "study.yaml", settings)
        with errors_of_storage(folder):
            return _connect(folder, settings, sampler)
    with errors_of_storage(folder):
        study = _create_or_join(folder, settings, sampler)
    files.write_yaml(folder / "study.yaml", study.settings)
    return study


def _create_database(folder: Path, settings: Mapping[str, Any]) -> None:
    """Create the folder's empty database atomically."""
    path = folder / "study.db"
    if path.exists() and (path.stat().st_size == 0 or storage.count_trials(path)):
        raise InputError(
            f"{folder}: study.db is there, but study.yaml is missing; restore it, or choose another --study name"
        )
    with errors_of_storage(folder):
        storage.create(path, settings["name"], _directions(settings), list(settings["recipe"]["objectives"]))


def _create_or_join(folder: Path, settings: dict[str, Any], sampler: Any) -> Study:
    """Create the study in a shared storage, or join the existing one with its settings.

    If several processes start at once, one creates it and the others wait for its settings.
    """
    import optuna

    try:
        study = _connect(folder, settings, sampler, new=True)
    except optuna.exceptions.DuplicatedStudyError:
        study = _connect(folder, settings, sampler)
        end = time.monotonic() + JOIN_TIMEOUT
        while time.monotonic() < end:
            if earlier := study.record.user_attrs.get(SETTINGS):
                # An earlier version may have written them, under its own names.
                document = Document(earlier, f"--storage {storage.without_password(settings['storage'])}")
                return Study(folder, {**checked_settings(document), "storage": settings["storage"]}, study.record)
            time.sleep(0.2)
        if study.frozen() or [direction.name.lower() for direction in study.record.directions] != _directions(settings):
            raise  # a study of other software
    study.record.set_user_attr(SETTINGS, {**settings, "storage": None})  # a URL may hold a password
    return study  # an existing one if its creator was killed between two writes


def load(name: str | Path, sampler: Any = None) -> Study:
    """Load the study of a name or folder; a missing, damaged or foreign one raises `InputError`."""
    return _load(*_settings_of(name), sampler)


def read(name: str | Path) -> Study:
    """Load a study for its results: nothing can be recorded with it. Errors are those of `load`.

    A SQLite file in the study's folder is read without Optuna, whose import takes longer.
    """
    folder, settings = _settings_of(name)
    if settings["storage"] is None and (found := storage.read_file(folder / "study.db", settings["name"])):
        study = Study(folder, settings, found)
        _check(study)
        return study
    return _load(folder, settings)


def published_without_database(name: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """The folder and the settings of a study of which only small files were published; None if its database is there.

    A missing or damaged study.yaml raises `InputError`.
    """
    folder, settings = _read_settings(name)
    return None if settings["storage"] is not None or (folder / "study.db").exists() else (folder, settings)


def _read_settings(name: str | Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a study and the content of its study.yaml."""
    folder = folder_of(name)
    path = folder / "study.yaml"
    if not path.is_file():
        if (folder / COMPARISON).is_file():
            parts = ", ".join(as_argument(one.parent) for one in sorted(folder.glob("*/study.yaml")))
            raise InputError(f"{folder}: a comparison, not a study; its studies are {parts or 'not there yet'}")
        raise InputError(f"there is no study '{name}' ({path} is missing){known_studies(folder.parent)}")
    try:
        document = files.load_yaml(path)
    except InputError as error:
        raise InputError(f"{error}; {storage.REMEDY}") from None  # neither text nor YAML
    return folder, checked_settings(document)


def _settings_of(name: str | Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a study and the content of its study.yaml; its database is there if it is a file."""
    folder, settings = _read_settings(name)
    if settings["storage"] is None and not (folder / "study.db").is_file():
        if any((folder / part).exists() for part in ("trials.csv", "weights", "exports")):
            raise InputError(f"{folder / 'study.db'} is missing: the study's trials are gone; {storage.REMEDY}")
        _create_database(folder, settings)  # an older version was killed between study.yaml and study.db
    return folder, settings


def _load(folder: Path, settings: dict[str, Any], sampler: Any = None) -> Study:
    with errors_of_storage(folder):
        study = _connect(folder, settings, sampler)
        _check(study)
    return study


def _check(study: Study) -> None:
    """Refuse a database that cannot be read or was not written by a search."""
    place = storage.without_password(study.settings["storage"] or str(study.folder / "study.db"))
    with storage.errors_of_reading(place):
        trials, attributes, record = study.frozen(), study.record.user_attrs, study.record
        found = [direction.name.lower() for direction in record.directions]
    if found != _directions(study.settings):
        raise InputError(
            f"{study.folder}: the objectives of study.yaml ({', '.join(study.objectives)}) differ from those of its "
            f"database; {storage.REMEDY}"
        )
    check_trials(trials, study.objectives, place)
    check_attributes(attributes, len(trials), place)
    _check_resolution(study)


def _check_resolution(study: Study) -> None:
    """Refuse a study.yaml whose deployment resolution is not that of the networks in the database."""
    given = study.settings["task"].get("resolution")
    is_fixed = study.settings["recipe"]["resolution"] is not None
    chosen = not is_fixed and isinstance(study.settings["space"]["document"].get("resolution"), list)
    trials = study.frozen("COMPLETE", "PRUNED")
    sizes = [json.loads(trial.user_attrs["architecture"])["input"][1] for trial in (trials if chosen else trials[:1])]
    if given is not None and sizes and (max(sizes) > given or not (chosen or given in sizes)):
        raise InputError(
            f"{study.folder / 'study.yaml'}: task.resolution is {given}, but networks of the database take images of "
            f"{max(sizes)}x{max(sizes)}; the file was changed: write {max(sizes)} there, or {storage.REMEDY}"
        )


def _connect(folder: Path, settings: Mapping[str, Any], sampler: Any, new: bool = False) -> Study:
    """Open the database; with `new`, create the study in a shared storage."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # nasspace prints its own progress
    name, url = settings["name"], settings.get("storage")
    database = storage.connect(url) if url else storage.open_file(folder / "study.db")
    if not new:
        place = f"--storage {storage.without_password(url)}" if url else str(folder / "study.db")
        try:
            with storage.errors_of_reading(place):
                return Study(folder, settings, optuna.load_study(study_name=name, storage=database, sampler=sampler))
        except KeyError:
            raise InputError(f"{place} no longer holds the study '{name}'; {storage.REMEDY}") from None
    record = optuna.create_study(study_name=name, storage=database, sampler=sampler, directions=_directions(settings))
    storage.name_objectives(record, list(settings["recipe"]["objectives"]))
    return Study(folder, settings, record)


def _directions(settings: Mapping[str, Any]) -> list[str]:
    """The directions of a study's objectives, as Optuna takes them."""
    return directions(settings["recipe"]["objectives"])


def extend(study: Study, settings: dict[str, Any]) -> None:
    """Continue a finished or stopped study with another number of trials."""
    study.record.set_user_attr(FINISHED, False)
    study.record.set_user_attr(SEARCHED, False)
    study.record.set_user_attr(RUNGS, None)  # the new trials may be promoted, too
    files.write_yaml(study.folder / "study.yaml", settings)
    study.settings = settings


def write_tables(study: Study) -> Front:
    """Write `trials.csv`, `front.csv` and `front.json` together, and return the front that they show."""
    front = study.snapshot()
    texts = {
        "trials.csv": front.trials_csv(),
        "front.csv": front.csv(),
        "front.json": files.json_text(front.document()),
    }
    files.write_together({study.folder / name: text for name, text in texts.items()})
    return front
