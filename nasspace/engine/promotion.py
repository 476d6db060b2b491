"""Successive halving after the search: which networks climb to which rung, and their trainings.

Every decision is recorded in the study before it is acted on, and every training when it ends, so that a killed
delivery continues with the same networks.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace.engine import duration, rungs
from nasspace.exporting.weights import read_safetensors
from nasspace.samplers import halving
from nasspace.studies import paths
from nasspace.studies.front import search_fidelity
from nasspace.studies.recipe import Recipe
from nasspace.studies.schema import DEPLOYED, LAST_RUNG, RUNG, RUNGS, SHARED_WEIGHTS
from nasspace.studies.study import Study
from nasspace.training.settings import Fidelity

if TYPE_CHECKING:
    from nasspace.engine.study_data import StudyData

EPOCHS_IN_TIME = (3, 6, 12)  # of rungs in a time budget, at the deployment resolution; about 25 with the search's
EXPORTED_MEMBERS = 6  # members whose export, check and re-measurement the rungs leave time for
EXPORTED_SHARE = 0.5  # of the time left after the search, which that takes at most, except for one export
MOST_NAMED = 4  # networks in a line about trainings on Ray
SPARE = 2  # times the planned networks: a search keeps the weights of so many, since the order may change
DEPLOYMENT = 10**6  # pixels: above any deployment resolution


def plan(study: Study, recipe: Recipe, seconds: float) -> list[dict[str, Any]]:
    """The recipe's rungs, or those that time allows if only time ends the search; with the number of networks.

    `seconds` are those left for trainings, infinite without a time budget.
    """
    networks = len(study.candidates())
    if not networks or not study.has_last_rung or not study.settings.get("belief"):
        return []
    if recipe.rungs or math.isinf(seconds) or recipe.is_bounded:
        planned = [rung.model_dump() for rung in recipe.rungs]
        counts = halving.counts(networks, len(planned))
    else:
        epoch = _epoch_seconds(study, recipe)
        planned = [{"resolution": None, "epochs": epochs, "share": 1.0} for epochs in EPOCHS_IN_TIME]
        durations = [epochs * (epoch or math.inf) for epochs in EPOCHS_IN_TIME]
        if recipe.supernet is not None:  # the search trained no network, so the first rung starts with its training
            fidelity, side = recipe.fidelity, study.settings["task"]["resolution"]
            durations[0] += (epoch or math.inf) * fidelity.epochs * fidelity.share * (fidelity.resolution / side) ** 2
        counts = halving.counts_in_time(max(0.0, seconds), durations, networks, _parallel(study, recipe))
    return [{**rung, "count": count, "networks": None} for rung, count in zip(planned, counts, strict=False)]


def kept_weights(study: Study, recipe: Recipe) -> set[int]:
    """The trials that the first rung would take if the search ended with these networks, and as many again."""
    left = recipe.time_budget / 2 if recipe.time_budget else math.inf  # at most what the search reserves
    exports = time_for_exports(left, duration.EXPORTED * duration.slowdown(study))
    planned = plan(study, recipe, left - exports)
    if not planned:
        return set()
    (at_end,) = halving.counts(recipe.trials, 1) if recipe.is_bounded else (0,)
    return set(study.promotion_order(count=SPARE * max(at_end, planned[0]["count"])))


def time_for_exports(left: float, seconds: float) -> float:
    """The part of the seconds left that is kept for exports, if one takes `seconds`; for one export in any case."""
    return min(EXPORTED_MEMBERS * seconds, max(EXPORTED_SHARE * left, min(seconds, left)))


def _epoch_seconds(study: Study, recipe: Recipe) -> float | None:
    """The mean seconds of an epoch at the deployment resolution, from the trainings of the search."""
    if shared := study.record.user_attrs.get(SHARED_WEIGHTS):
        return _epoch_seconds_of_shared(shared, study, recipe)
    found = []
    for trial in study.frozen("COMPLETE"):
        seconds = (trial.user_attrs.get("training") or {}).get("seconds")
        if seconds:
            architecture = study.architecture(trial.number)
            fidelity = rungs.fidelity_of(recipe, architecture)
            scale = (min(architecture.input[1:]) / fidelity.resolution) ** 2
            found.append(seconds / (fidelity.epochs * fidelity.share) * scale)
    return sum(found) / len(found) if found else None


def _epoch_seconds_of_shared(shared: Mapping[str, Any], study: Study, recipe: Recipe) -> float:
    """The mean seconds of an epoch at the deployment resolution, from the training of shared weights.

    That ran alone: several networks trained at a time may take longer.
    """
    batches = max(1, round(study.settings["data"]["train"] / recipe.training.batch_size))
    scale = (study.settings["task"]["resolution"] / search_fidelity(recipe.as_written())["resolution"]) ** 2
    return shared["seconds"] / shared["networks"] * batches * scale


def _parallel(study: Study, recipe: Recipe) -> int:
    """How many networks are trained at a time: as many as in the search, which may be fewer than `workers`.

    The seconds of an epoch, too, are those of a training next to so many others.
    """
    if recipe.workers == 1:
        return 1
    trials = [trial for trial in study.frozen("COMPLETE") if trial.datetime_start and trial.datetime_complete]
    changes = [(trial.datetime_complete, -1) for trial in trials] + [(trial.datetime_start, 1) for trial in trials]
    at_once = itertools.accumulate(change for _, change in sorted(changes))
    return max(1, min(recipe.workers, max(at_once, default=1)))


class Promotion:
    """The rungs of one study after its search."""

    def __init__(self, study: Study, data: StudyData, report: Callable[..., None]):
        self.study = study
        self.data = data
        self.recipe = data.recipe
        self.report = report
        self._left = math.inf if study.deadline is None else max(0.0, study.deadline - time.monotonic())
        self._slowdown = 1.0 if study.deadline is None else duration.slowdown(study)
        self._exports: list[float] = []  # seconds of each export so far

    def climb_planned(self) -> None:
        """Train the networks that each rung keeps; the choice is recorded before the first is trained."""
        study = self.study
        study.report_missing_rungs()
        planned = copy.deepcopy(study.planned_rungs)
        if planned is None:
            planned = self._plan()
            study.record.set_user_attr(RUNGS, planned)
        for index, rung in enumerate(planned):
            if self.is_time_used_up:
                return  # the next rung's networks are chosen by all trainings of this one
            if rung["networks"] is None:
                before = planned[index - 1]["networks"] if index else None
                rung["networks"] = self._chosen(rung["count"], before)
                study.record.set_user_attr(RUNGS, planned)
            self._climb_all([number for number in rung["networks"] if self._is_to_climb(number, index)], index)

    def _is_to_climb(self, number: int, index: int) -> bool:
        """Whether a chosen network still needs this rung, which is not its last."""
        known = number in self.study.undeployable() or number in self.study.deployed()
        return self.next_rung(number) == index and not known and not self.is_next_the_last(number)

    def _climb_all(self, numbers: list[int], index: int) -> None:
        """Train networks at a rung: one after the other, or several at a time on Ray."""
        if (self.recipe.ray is not None or self.recipe.workers > 1) and len(numbers) > 1:
            return self._climb_on_ray(numbers, index)
        for i, number in enumerate(numbers):
            if not self.is_time_used_up:
                self.climb(number, index, f"{i + 1} of {len(numbers)}")
        return None

    def _climb_on_ray(self, numbers: list[int], index: int) -> None:
        """Train networks on the cluster, those of one resolution together, and record each when it ends."""
        from nasspace.engine.ray import climbing

        study, done = self.study, 0

        def on_epoch(epochs: dict[int, tuple[int, int]]) -> None:
            named = [f"trial {number} epoch {at} of {total}" for number, (at, total) in epochs.items()][:MOST_NAMED]
            more = f", {len(epochs) - MOST_NAMED} more" if len(epochs) > MOST_NAMED else ""
            text = f"training {len(numbers)} networks further on Ray, {done} done; {', '.join(named)}{more}"
            self.report("finishing", text=text)

        command = f"nas resume {paths.as_argument(study.folder)}"
        by_side: dict[int, list[int]] = {}
        for number in numbers:
            by_side.setdefault(min(study.architecture(number).input[1:]), []).append(number)
        for together in by_side.values():
            data = self.data.of(study.architecture(together[0]))
            self.report("finishing", text=f"training {len(numbers)} networks further on Ray, {done} done")
            for number, result in climbing.climb(
                together,
                lambda number: self._job(number, index),
                self.recipe,
                data,
                checkpoints=study.folder / "checkpoints",
                resume_command=command,
                is_over=lambda: self.is_time_used_up,
                on_epoch=on_epoch,
                on_note=lambda text: self.report("note", text=text),
            ):
                if isinstance(result, rungs.Diverged):
                    self._record_failure(number, result)
                else:
                    self._record(number, index, result)
                done += 1
                text = f"training {len(numbers)} networks further on Ray, {done} done (trial {number})"
                self.report("finishing", text=text)

    def _job(self, number: int, index: int) -> Any:
        from nasspace.engine.ray import climbing

        start, steps, done = self._start(number, index)
        architecture = self.study.architecture(number)
        return climbing.Job(
            number,
            architecture.to_json(),
            weights=start.read_bytes() if start else None,
            steps=tuple(steps),
            done=done,
            checkpoints=rungs.read_checkpoints(self.study.folder / "checkpoints", architecture),
        )

    @property
    def is_time_used_up(self) -> bool:
        """Whether the time budget leaves time for exports only."""
        return self._seconds_left() <= 0

    def record_export(self, seconds: float) -> None:
        """Take the time of an export into account for those that follow."""
        self._exports.append(seconds)

    @property
    def export_seconds(self) -> float:
        """Estimated seconds to export, check, evaluate and remeasure a network, from the exports so far."""
        if not self._exports:
            return duration.EXPORTED * self._slowdown
        return sum(self._exports) / len(self._exports) + duration.MEASURED * self._slowdown

    @property
    def is_time_for_export(self) -> bool:
        """Whether another network can be exported before the time budget ends."""
        return self.study.deadline is None or time.monotonic() + self.export_seconds <= self.study.deadline

    @property
    def _kept(self) -> float:
        """Seconds of the time budget that are kept for exports."""
        return time_for_exports(self._left, self.export_seconds)

    def _seconds_left(self) -> float:
        """Seconds of the time budget that are left for trainings."""
        if self.study.deadline is None:
            return math.inf
        kept = self._kept if self.study.planned_rungs else 0.0
        return self.study.deadline - kept - time.monotonic()

    def _plan(self) -> list[dict[str, Any]]:
        """Plan the rungs, and report those that follow from a time budget."""
        seconds = math.inf if self.study.deadline is None else self.study.deadline - self._kept - time.monotonic()
        planned = plan(self.study, self.recipe, seconds)
        if planned and not self.recipe.rungs:
            listed = ", ".join(f"{rung['count']} for {rung['epochs']} epochs" for rung in planned)
            self.report("note", text=f"networks trained further at the deployment resolution: {listed}")
        return planned

    def _chosen(self, count: int, before: list[int] | None) -> list[int]:
        """The networks that a rung trains: those expected to add most to the front, among those of the rung before.

        Networks already trained at their deployment resolution, before a search went on, take no place.
        """
        return self.study.promotion_order(before, count)

    def _rung_settings(self) -> list[Fidelity]:
        """The planned rungs as training budgets; a resolution above the deployment's stands for that."""
        return [
            Fidelity(rung["resolution"] or DEPLOYMENT, rung["epochs"], rung["share"])
            for rung in self.study.planned_rungs or ()
        ]

    def ladder(self, number: int) -> list[list[Fidelity]]:
        """The trainings of each rung of a trial's network; the last ones end at its deployment resolution."""
        architecture = self.study.architecture(number)
        fidelity = rungs.fidelity_of(self.recipe, architecture)
        return rungs.ladder(fidelity, min(architecture.input[1:]), self._rung_settings())

    def next_rung(self, number: int) -> int:
        """The index of the rung that a trial has not reached; that of the last one at most.

        A search that goes on may plan other rungs: a training that is not one of the planned ones does not count.
        """
        ladder = self.ladder(number)
        steps = [rungs.fidelity_of(self.recipe, self.study.architecture(number))]
        for index, rung in enumerate(ladder[:-1]):
            steps += rung
            record = self.study.rung(index, number)
            if record is None or record.get("steps") != rungs.plain(steps):
                return index
        return len(ladder) - 1

    def is_next_the_last(self, number: int) -> bool:
        """Whether a trial's next rung is the last, or must be because time is used up."""
        if self.is_time_used_up and self.is_shippable(number):
            return True
        return self.next_rung(number) >= len(self.ladder(number)) - 1

    def is_shippable(self, number: int) -> bool:
        """Whether a trial has weights of a rung that were trained at its deployment resolution."""
        index, side = self.next_rung(number), min(self.study.architecture(number).input[1:])
        if not index or self.study.rung(index - 1, number)["resolution"] != side:
            return False
        return self.study.rung_weights(index - 1).path(number) is not None

    def climb(self, number: int, index: int, position: str) -> None:
        """Train a trial at a rung before the last, and record it."""
        climbed = self._train_or_fail(number, index, position)
        if climbed is not None:
            self._record(number, index, climbed)

    def _record(self, number: int, index: int, climbed: rungs.Climbed) -> None:
        """Keep the weights of a rung, record its training, and drop the weights of the rung before."""
        study = self.study
        study.rung_weights(index).keep(number, climbed.state)
        study.record.set_user_attr(f"{RUNG}{index}:{number}", climbed.to_json())
        study.report_rung(number, climbed.to_json())
        rungs.remove_checkpoints(study.folder / "checkpoints", study.architecture(number))
        if index:
            study.rung_weights(index - 1).drop([number])

    def _train_or_fail(self, number: int, index: int, position: str) -> rungs.Climbed | None:
        """Train a trial to the end of a rung; a failure is recorded, and None returned."""
        try:
            return self._train(number, index, position)
        except rungs.Diverged as error:
            self._record_failure(number, error)
            return None

    def _record_failure(self, number: int, error: rungs.Diverged) -> None:
        study, architecture = self.study, self.study.architecture(number)
        side = min(architecture.input[1:])
        study.record.set_user_attr(f"{DEPLOYED}{number}", {"resolution": side, **error.to_json()})
        rungs.remove_checkpoints(study.folder / "checkpoints", architecture)
        remedy = f" (`nas show {paths.as_argument(study.folder, number)}` has its traceback)" if error.traceback else ""
        self.report("note", text=f"trial {number} leaves the front: {error}{remedy}")

    def train_last(self, number: int, position: str) -> bool:
        """Train a trial at the last rung, record the training and keep the weights; False if it failed.

        If time is used up, the weights of a rung at the deployment resolution are the last ones.
        """
        study, index = self.study, self.next_rung(number)
        if self.is_time_used_up and self.is_shippable(number):
            record = study.rung(index - 1, number)
            state = read_safetensors(study.rung_weights(index - 1).path(number))
        else:
            climbed = self._train_or_fail(number, index, position)
            if climbed is None:
                return False
            record, state = climbed.to_json(), climbed.state
        self._record_last(number, record)
        study.deployed_weights.keep(number, state)
        return True

    def _record_last(self, number: int, training: Mapping[str, Any]) -> None:
        data = self.data.of(self.study.architecture(number))
        # Class names are in the study's settings.
        preprocessing = {key: value for key, value in data.preprocessing.items() if key != "classes"}
        self.study.record.set_user_attr(f"{LAST_RUNG}{number}", {**training, "preprocessing": preprocessing})
        self.study.report_rung(number, training)

    def _start(self, number: int, index: int) -> tuple[Path | None, list[Fidelity], int]:
        """The weights that a rung starts with, all trainings to its end, and how many of them the weights had."""
        study, ladder = self.study, self.ladder(number)
        start = study.rung_weights(index - 1).path(number) if index else study.search_weights.path(number)
        searched = rungs.fidelity_of(self.recipe, study.architecture(number))
        before = [searched, *(step for steps in ladder[:index] for step in steps)]
        return start, [*before, *ladder[index]], len(before)

    def _train(self, number: int, index: int, position: str) -> rungs.Climbed:
        """Train a trial from the rung before to the end of a rung."""
        architecture = self.study.architecture(number)
        start, steps, done = self._start(number, index)
        side = steps[-1].resolution

        def on_epoch(epoch: int, epochs: int, loss: float) -> None:
            progress = f"epoch {epoch} of {epochs}, loss {loss:.3f}"
            self.report("finishing", text=f"training at {side}x{side}, {position} (trial {number}): {progress}")

        return rungs.climb(
            architecture,
            self.recipe,
            self.data.of(architecture),
            read_safetensors(start) if start else None,
            steps=steps,
            done=done,
            checkpoints=self.study.folder / "checkpoints",
            device=self.data.device,
            on_epoch=on_epoch,
            on_unfit=lambda reason: self.report("note", text=f"trial {number}: {rungs.UNFIT.format(reason=reason)}"),
        )
