"""Shared weights in a search: trained once before the first candidate, then every candidate is judged with its part.

The trained weights are kept in the study, so that a resumed search reads them. A killed training continues from its
checkpoint. No candidate gets weights of its own: networks that the rungs take are trained from the start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nasspace.architecture import Architecture
from nasspace.engine import machine_lock
from nasspace.engine.evaluator import Outcome, TrainingEvaluator
from nasspace.engine.latency_evaluator import candidate_seed
from nasspace.errors import InputError
from nasspace.exporting.weights import load_into, read_safetensors
from nasspace.studies.recipe import Recipe
from nasspace.studies.schema import SHARED_WEIGHTS
from nasspace.studies.study import Study

if TYPE_CHECKING:
    from nasspace.data.loading import DataSet
    from nasspace.engine.problem import Problem
    from nasspace.training.supernet import Supernet

CHECKPOINT = "supernet.pt"  # of a training that has not ended, in the study's folder of checkpoints


class InheritingEvaluator(TrainingEvaluator):
    """As `TrainingEvaluator`, but a candidate is not trained: its part of the shared weights is evaluated."""

    def __init__(self, recipe: Recipe, data: DataSet, supernet: Supernet, **options: Any):
        super().__init__(recipe, data, **options)
        self.supernet = supernet

    def _find_accuracy(self, architecture: Architecture, values: dict, details: dict, reason: str) -> Outcome:
        """Evaluate the network with inherited weights; its own training has no epochs."""
        side = min(self.recipe.supernet.resolution, *architecture.input[1:])
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
        details["training"] = {"seconds": None, "losses": [], "log_loss": found.log_loss}
        return Outcome(values, reason, details)


def supernet_of(study: Study, problem: Problem, report: Callable[..., None]) -> Supernet:
    """The study's shared weights: read, or trained and kept.

    Reports each epoch. Raises `InputError` if the training diverged, or if the kept weights are not of this space.
    """
    from nasspace.training.supernet import Supernet

    report("finishing", text="building the shared weights of the space")
    supernet = Supernet(problem.space, problem.recipe.seed)
    store = study.shared_weights
    if path := store.path(0):
        try:
            load_into(supernet, read_safetensors(path), str(path))
        except InputError as error:
            raise InputError(f"{error}; delete the file to train the shared weights again") from None
        return supernet
    _train(supernet, study, problem, report)
    store.keep(0, supernet.state_dict())
    (study.folder / "checkpoints" / CHECKPOINT).unlink(missing_ok=True)
    return supernet


def _train(supernet: Supernet, study: Study, problem: Problem, report: Callable[..., None]) -> None:
    """Train the shared weights, and record the training."""
    from nasspace.training.settings import Fidelity
    from nasspace.training.supernet import train_supernet

    recipe, settings = problem.recipe, problem.recipe.supernet
    assert problem.data is not None
    training = recipe.training
    if settings.learning_rate is not None:
        lowest = min(training.last_rate, settings.learning_rate)
        training = replace(training, learning_rate=settings.learning_rate, last_rate=lowest)
    with machine_lock.TrainingLock() as lock:

        def after_epoch(epoch: int, epochs: int, loss: float) -> None:
            lock.yield_to_measurements()
            report("finishing", text=f"training shared weights: epoch {epoch} of {epochs}, loss {loss:.3f}")

        trained = train_supernet(
            supernet,
            problem.data,
            Fidelity(settings.resolution, settings.epochs),
            settings,
            training,
            seed=recipe.seed,
            device=recipe.device,
            on_epoch=after_epoch,
            checkpoint=study.folder / "checkpoints" / CHECKPOINT,
        )
    if trained.diverged:
        raise InputError(
            f"the training of the shared weights diverged: the loss of epoch {len(trained.losses)} is not a number; "
            "lower supernet.learning_rate in the recipe"
        )
    record = {"seconds": trained.seconds, "networks": trained.networks, "losses": list(trained.losses)}
    study.record.set_user_attr(SHARED_WEIGHTS, record)
