"""Shared weights in a search: trained once before the first candidate, then every candidate is judged with its part.

The trained weights are kept in the study, so that a resumed search reads them. A killed training continues from its
checkpoint. No candidate gets weights of its own: networks that the rungs take are trained from the start.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nasspace import failures
from nasspace.architecture import Architecture
from nasspace.engine import machine_lock
from nasspace.engine.devices import device_here
from nasspace.engine.evaluator import Outcome, TrainingEvaluator
from nasspace.engine.latency_evaluator import candidate_seed
from nasspace.errors import InputError, NasspaceError
from nasspace.exporting.weights import load_into, read_safetensors
from nasspace.studies.recipe import Recipe
from nasspace.studies.schema import SHARED_WEIGHTS
from nasspace.studies.study import Study

if TYPE_CHECKING:
    from nasspace.data.loading import DataSet
    from nasspace.engine.problem import Problem
    from nasspace.training.supernet import Supernet, SupernetTraining
    from nasspace.training.trainer import Epoch

SHARE_OF_TIME = 0.5  # largest share of a time budget for the training of shared weights
CHECKPOINT = "supernet.pt"  # of a training that has not ended, in the study's folder of checkpoints


class InheritingEvaluator(TrainingEvaluator):
    """As `TrainingEvaluator`, but a candidate is not trained: its part of the shared weights is evaluated."""

    def __init__(self, recipe: Recipe, data: DataSet, supernet: Supernet, **options: Any):
        super().__init__(recipe, data, **options)
        self.supernet = supernet

    def _find_accuracy(self, architecture: Architecture, values: dict, details: dict, reason: str) -> Outcome:
        """Evaluate the network with inherited weights: it has no epochs of its own."""
        side = min(self.recipe.supernet.resolution, *architecture.input[1:])
        started = time.perf_counter()
        with machine_lock.TrainingLock():
            found = self.supernet.evaluate(
                architecture,
                self.resized(side),
                side,
                self.recipe.training,
                seed=candidate_seed(self.recipe.seed, architecture),
                device=self.recipe.device,
            )
        values["accuracy"] = found.accuracy
        log_loss = found.log_loss if math.isfinite(found.log_loss) else None
        details["training"] = {"seconds": time.perf_counter() - started, "losses": [], "log_loss": log_loss}
        return Outcome(values, reason, details)


def supernet_of(study: Study, problem: Problem, report: Callable[..., None]) -> Supernet:
    """The study's shared weights: read, or trained and kept.

    Reports each epoch. Raises `InputError` if the training failed or diverged, or if the kept weights are not of this
    space, and `NasspaceError` if the machine ran out of memory or lost its device.
    """
    from nasspace.training.supernet import Supernet

    report("finishing", text="building the shared weights of the space")
    store = study.shared_weights
    try:
        with failures.as_candidate_failures():
            supernet = Supernet(problem.space, problem.recipe.seed)
    except failures.CandidateFailed as error:
        raise InputError(
            f"supernet: not every network of '{problem.space.name}' runs: {error}; remove its block from the space"
        ) from error
    if store.path(0) is None:
        if study.is_shared and store.copies is None:
            text = "each process of this storage trains shared weights of its own, which may judge differently"
            report("note", text=f"{text}; with --storage-path, those that start later read the same")
        _train(supernet, study, problem, report)
        if store.path(0) is None:  # another process may have been faster
            store.keep(0, supernet.state_dict())
    path = store.path(0)
    assert path is not None
    try:
        load_into(supernet, read_safetensors(path), str(path))
    except InputError as error:
        copies = f" and its copy in {store.copies}" if store.copies else ""
        raise InputError(f"{error}; delete the file{copies} to train the shared weights again") from None
    (study.folder / "checkpoints" / CHECKPOINT).unlink(missing_ok=True)
    return supernet


def _train(supernet: Supernet, study: Study, problem: Problem, report: Callable[..., None]) -> None:
    """Train the shared weights, and record the training."""
    settings = problem.recipe.supernet
    device = device_here(problem.recipe.device, "the shared weights", report)
    size = f"{settings.resolution}x{settings.resolution}"
    try:
        with failures.as_candidate_failures():
            trained = _trained(supernet, study, problem, device, report)
    except failures.CandidateFailed as error:
        if failures.is_machine_fault(error.__cause__ or error):
            raise NasspaceError(
                f"the training of the shared weights stopped: {error}; free memory or the device, then run `nas resume`"
            ) from error
        raise InputError(
            f"supernet: a network of '{problem.space.name}' cannot be trained at {size}: {error}; remove its block "
            "from the space, or give another supernet.resolution, and search under another --study name"
        ) from error
    if trained.diverged or not all(tensor.isfinite().all() for tensor in supernet.state_dict().values()):
        raise InputError(
            f"the training of the shared weights diverged: the loss of epoch {len(trained.losses)} is not a number; "
            "lower supernet.learning_rate in the recipe, and search under another --study name"
        )
    if (done := len(trained.losses)) < settings.epochs:
        report("note", text=f"the time for the shared weights is used up: {done} of {settings.epochs} epochs")
    record = {"seconds": trained.seconds, "networks": trained.networks, "losses": list(trained.losses)}
    study.record.set_user_attr(SHARED_WEIGHTS, record)


def _trained(
    supernet: Supernet, study: Study, problem: Problem, device: str, report: Callable[..., None]
) -> SupernetTraining:
    """Train the shared weights from the checkpoint of a killed training, if there is one."""
    from nasspace.training.settings import Fidelity
    from nasspace.training.supernet import train_supernet

    recipe, settings, training = problem.recipe, problem.recipe.supernet, problem.recipe.training
    assert problem.data is not None
    if settings.learning_rate is not None:
        lowest = min(training.last_rate, settings.learning_rate)
        training = replace(training, learning_rate=settings.learning_rate, last_rate=lowest)
    with machine_lock.TrainingLock() as lock:

        def after_epoch(epoch: Epoch) -> None:
            lock.yield_to_measurements()
            progress = f"epoch {epoch.number} of {epoch.epochs}, loss {epoch.loss:.3f}"
            report("finishing", text=f"training shared weights: {progress}")

        return train_supernet(
            supernet,
            problem.data,
            Fidelity(settings.resolution, settings.epochs),
            settings,
            training,
            seed=recipe.seed,
            device=device,
            on_epoch=after_epoch,
            checkpoint=study.folder / "checkpoints" / CHECKPOINT,
            deadline=_deadline(study, recipe),
        )


def most_seconds(recipe: Recipe) -> float:
    """The longest training of shared weights that a time budget leaves room for; infinite without one."""
    return math.inf if recipe.time_budget is None else SHARE_OF_TIME * recipe.time_budget


def _deadline(study: Study, recipe: Recipe) -> float:
    """When the training of shared weights ends, in seconds of `time.monotonic()`."""
    if study.deadline is None or recipe.time_budget is None:
        return math.inf
    return study.deadline - recipe.time_budget + most_seconds(recipe)
