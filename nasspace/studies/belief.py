"""What a study's trainings say of the accuracy of its networks after full training."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from nasspace.samplers import pareto
from nasspace.samplers.accuracy_belief import AccuracyBelief, Look, Prior
from nasspace.studies.schema import ACTIVATIONS, LAST_RUNG, RUNG
from nasspace.training.settings import TrainingSettings

if TYPE_CHECKING:
    import optuna

MIN_NETWORKS = 5  # networks for a rank correlation
MAX_NETWORKS = 200  # of all, evenly spread, which a rank correlation is computed from
DRAWS = 400
FLOPS_ALONE = {"slope": 0.05, "slope_sd": 0.05}  # steeper than beside activations
WITHOUT_EARLY_GAIN = {"early_gain": 0.0, "early_gain_sd": 0.0, "early_drift_sd": 0.0}  # in studies that lack them


class StudyBelief:
    """The belief about a study's evaluated networks, by trial number; None for trials without an accuracy."""

    def __init__(
        self,
        belief: AccuracyBelief,
        numbers: Iterable[int],
        search_accuracy: Mapping[int, float],
        trainings: Mapping[int, Sequence[Mapping[str, Any]]] = MappingProxyType({}),
    ):
        self._belief = belief
        self._index = {number: i for i, number in enumerate(numbers)}
        self._expected, (self._low, self._high) = belief.expected, belief.interval()
        self._search_accuracy = search_accuracy
        self._trainings = trainings
        self._drawn: dict[int, np.ndarray] = {}  # by their number

    @property
    def numbers(self) -> list[int]:
        """The trials that the belief is about."""
        return list(self._index)

    def expected(self, number: int) -> float | None:
        """The expected accuracy of a trial's network after full training."""
        return self._of(self._expected, number)

    def interval(self, number: int) -> tuple[float | None, float | None]:
        """The 95 % interval of the accuracy after full training, on as many new images as the validation split has."""
        return self._of(self._low, number), self._of(self._high, number)

    def _of(self, values: np.ndarray, number: int) -> float | None:
        index = self._index.get(number)
        return None if index is None else float(values[index])

    def tied(self, one: int, other: int) -> bool:
        """Whether two networks cannot be told apart: 0 is in the 95 % interval of their difference."""
        return self._belief.tied(self._index[one], self._index[other])

    def trainings(self, number: int) -> Sequence[Mapping[str, Any]]:
        """The recorded trainings of a trial after the search, the shortest first."""
        # A rung that became the last one when time was up is recorded as both.
        distinct = {str(record["steps"]): record for record in self._trainings.get(number, ())}
        return sorted(distinct.values(), key=lambda record: len(record["steps"]))

    @property
    def has_trainings(self) -> bool:
        """Whether a network was trained, not only judged with shared weights."""
        return any(look.epochs for look in self._belief.looks)

    def learned_prior(self) -> Prior:
        """The prior for another study on the same images."""
        return self._belief.learned_prior()

    def draws(self, count: int = DRAWS) -> np.ndarray:
        """Accuracies drawn from the belief, of shape (count, networks), in the order of `numbers`."""
        if count not in self._drawn:
            self._drawn[count] = self._belief.draws(count)
        return self._drawn[count]

    def probability_of_best(self, members: Iterable[int], others: Iterable[int]) -> float | None:
        """The probability that none of the other trials is more accurate than the best member; None without others."""
        ours, theirs = ([self._index[number] for number in numbers] for numbers in (members, others))
        if not ours or not theirs:
            return None
        drawn = self.draws()
        return float((drawn[:, theirs].max(axis=1) <= drawn[:, ours].max(axis=1)).mean())

    def probabilities_of_front(
        self, costs: Mapping[int, Sequence[float]], least: float = 0.0, of: Collection[int] | None = None
    ) -> dict[int, float]:
        """The probabilities of at least `least` that some trials are on their common front after full training.

        `costs` are values to minimize, by trial number, of the objectives other than accuracy; they count as exact.
        Only the probabilities `of` some of the trials are computed; by default of all.
        """
        numbers = [number for number in costs if number in self._index]
        if not numbers:
            return {}
        errors = -self.draws()[:, [self._index[number] for number in numbers]]
        chosen = [i for i, number in enumerate(numbers) if of is None or number in of]
        values = np.array([costs[number] for number in numbers], float)
        shares = pareto.nondominated_shares(errors, values, least, chosen)
        return {numbers[i]: float(shares[i]) for i in chosen if shares[i] >= least}

    def tau(self) -> dict[str, float] | None:
        """Kendall's tau of the search's accuracies with those after full training, with its 95 % interval.

        None with fewer than five networks: then it is not known.
        """
        compared = [number for number in self._index if number in self._search_accuracy]
        if len(compared) < MIN_NETWORKS:
            return None
        if len(compared) > MAX_NETWORKS:
            chosen = np.linspace(0, len(compared) - 1, MAX_NETWORKS).round().astype(int)
            compared = [compared[i] for i in chosen]
        found = np.array([self._search_accuracy[number] for number in compared])
        drawn = self.draws()[:, [self._index[number] for number in compared]]
        above = np.triu_indices(len(compared), 1)
        signs = np.sign(found[:, None] - found)[above]
        taus = np.array([(np.sign(one[:, None] - one)[above] * signs).mean() for one in drawn])
        low, high = np.quantile(taus, [0.025, 0.975])
        return {"value": round(float(taus.mean()), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def believe(
    settings: Mapping[str, Any], trials: Iterable[optuna.trial.FrozenTrial], attributes: Mapping[str, Any]
) -> StudyBelief | None:
    """The belief from a study's settings, its evaluated trials and its attributes.

    None for studies without a prior in study.yaml: those of earlier versions, and those whose evaluator was a function.
    """
    prior, data = settings.get("belief"), settings.get("data")
    if not prior or not data:
        return None
    records = _records(attributes)
    looks, flops, activations, numbers, found = [], [], [], [], {}
    for trial in trials:
        values = trial.user_attrs["values"]
        if "accuracy" in values:
            looks += _looks(len(numbers), trial, settings, records.get(trial.number, ()))
            numbers.append(trial.number)
            flops.append(values["flops"])
            activations.append(trial.user_attrs.get(ACTIVATIONS))
            found[trial.number] = values["accuracy"]
    if not looks:
        return None
    known = {name: value for name, value in prior.items() if name in Prior.__dataclass_fields__}
    counts = [flops]
    if "activation_slope" in prior:  # not in a study of an earlier version, whose front stays the same
        if None in activations:  # a trial of an earlier version
            known |= FLOPS_ALONE
        else:
            counts.append(activations)
    recipe = settings["recipe"]
    batch = (recipe.get("training") or {}).get("batch_size", TrainingSettings.batch_size)
    belief = AccuracyBelief(
        list(zip(*counts, strict=True)),
        looks,
        recipe["full"]["epochs"],
        data["validation"],
        Prior(**{**WITHOUT_EARLY_GAIN, **known}),
        steps=data["train"] / batch,
    )
    return StudyBelief(belief, numbers, found, records)


def _records(attributes: Mapping[str, Any]) -> dict[int, list[Mapping[str, Any]]]:
    """The trainings after the search by trial number: at the rungs, and the last one."""
    found: dict[int, list[Mapping[str, Any]]] = {}
    for key, record in attributes.items():
        if key.startswith((RUNG, LAST_RUNG)) and record and record.get("steps"):
            found.setdefault(int(key.rpartition(":")[2]), []).append(record)
    return found


def _looks(
    index: int, trial: optuna.trial.FrozenTrial, settings: Mapping[str, Any], records: Iterable[Mapping[str, Any]]
) -> list[Look]:
    """The trainings of one network: of the search, and those after it."""
    fidelity, images = settings["recipe"]["fidelity"], settings["data"]["validation"]
    side = min(json.loads(trial.user_attrs["architecture"])["input"][1:])
    shared = settings["recipe"].get("supernet")
    trained = [(min(fidelity["resolution"], side), fidelity["epochs"], fidelity["share"])]
    searched = {
        "steps": [] if shared else trained,
        "accuracy": trial.user_attrs["values"]["accuracy"],
        "log_loss": (trial.user_attrs.get("training") or {}).get("log_loss"),
    }
    looks: dict[tuple, Look] = {}  # a rung that became the last one when time was up is recorded as both
    for record in (searched, *records):
        epochs = tuple((count * share, size / side) for size, count, share in record["steps"])
        budget = epochs or ("shared weights", min(shared["resolution"], side))
        looks[epochs] = Look(index, budget, epochs, record["accuracy"], images, record.get("log_loss"))
    return list(looks.values())
