"""The last rung: train a network that the search chose at a low fidelity at its deployment resolution."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace.architecture import Architecture
from nasspace.engine import machine_lock
from nasspace.engine.latency_evaluator import candidate_seed
from nasspace.errors import NasspaceError
from nasspace.failures import CandidateFailed, as_candidate_failures, is_machine_fault
from nasspace.studies.recipe import Recipe
from nasspace.training.settings import Fidelity, TrainingSettings

if TYPE_CHECKING:
    from torch import Tensor

    from nasspace.data.loading import DataSet

SHARE = 0.5  # share of the fidelity's epochs that is trained at the deployment resolution
STEP_SHARE = 0.25  # of the fidelity's epochs, trained at each resolution in between
RATE = 0.5  # factor of the learning rate, since the weights are pretrained
OnEpoch = Callable[[int, int, float], None]


class Diverged(CandidateFailed):
    """The loss of a training is not finite, or the training raised an error."""


@dataclass(frozen=True)
class Deployed:
    """Weights of a network trained at its deployment resolution.

    `accuracy` is a fraction of the validation images at that resolution; `epochs` counts all steps, and `seconds` is
    their training time.
    """

    state: Mapping[str, Tensor]
    accuracy: float
    epochs: int
    seconds: float


def rungs(fidelity: Fidelity, resolution: int) -> list[Fidelity]:
    """The training steps from a search's fidelity to the deployment resolution; the resolution doubles at each step.

    >>> rungs(Fidelity(32, 8), 128)
    [Fidelity(resolution=64, epochs=2, share=1.0), Fidelity(resolution=128, epochs=4, share=1.0)]
    >>> rungs(Fidelity(32, 8), 32)
    [Fidelity(resolution=32, epochs=4, share=1.0)]
    """
    between = []
    size = 2 * fidelity.resolution
    while size < resolution:
        between.append(Fidelity(size, max(1, math.ceil(STEP_SHARE * fidelity.epochs))))
        size *= 2
    return [*between, Fidelity(resolution, max(2, math.ceil(SHARE * fidelity.epochs)))]


def fidelity_of(recipe: Recipe, architecture: Architecture) -> Fidelity:
    """The fidelity that a search trains a network with: its resolution is at most the network's own."""
    return replace(recipe.fidelity, resolution=min(recipe.fidelity.resolution, *architecture.input[1:]))


def train_deployed(
    architecture: Architecture,
    recipe: Recipe,
    data: DataSet,
    start: Mapping[str, Tensor] | None,
    *,
    checkpoints: Path,
    device: str = "cpu",
    on_epoch: OnEpoch = lambda *_: None,
) -> Deployed:
    """Train a network from the search's weights to its deployment resolution, in steps.

    `data` has that resolution. Without `start` the search's own training is repeated first. `checkpoints` is a folder:
    a killed training continues from there and ends with the same weights. Raises `Diverged`, also if a block raises at
    this resolution, and `NasspaceError` if the machine ran out of memory or lost its device.
    """
    try:
        with as_candidate_failures():
            return _train_deployed(architecture, recipe, data, start, checkpoints, device, on_epoch)
    except Diverged:
        raise
    except CandidateFailed as error:
        if is_machine_fault(error.__cause__ or error):  # not recorded: it may succeed later
            raise NasspaceError(
                f"a training of the front stopped: {error}; free memory or the device, then run `nas resume`"
            ) from error
        raise Diverged(f"the training failed: {error}", error.traceback) from error


def _train_deployed(
    architecture: Architecture,
    recipe: Recipe,
    data: DataSet,
    start: Mapping[str, Tensor] | None,
    checkpoints: Path,
    device: str,
    on_epoch: OnEpoch,
) -> Deployed:
    from nasspace.network import build
    from nasspace.training.trainer import train

    seed, fidelity = candidate_seed(recipe.seed, architecture), fidelity_of(recipe, architecture)
    model = build(architecture, seed=seed)
    steps: list[tuple[Fidelity, TrainingSettings]] = []
    if start is not None and _shapes(start) != _shapes(model.state_dict()):
        start = None  # a study of an earlier version, whose block had other shapes
    if start is None:
        steps.append((fidelity, recipe.training))
    else:
        model.load_state_dict(dict(start))
    reduced = replace(
        recipe.training,
        learning_rate=RATE * recipe.training.learning_rate,
        last_rate=RATE * recipe.training.last_rate,
    )
    steps += [(rung, reduced) for rung in rungs(fidelity, data.resolution)]
    total, done, seconds = sum(rung.epochs for rung, _ in steps), 0, 0.0
    with machine_lock.TrainingLock() as turn:
        first = 0 if start is None else 1  # so that a step has the same seed whether or not the search's is repeated
        for i, (rung, settings) in enumerate(steps, first):

            def step_on_epoch(epoch: int, _: int, loss: float, before: int = done) -> None:
                turn.yield_to_measurements()
                on_epoch(before + epoch, total, loss)

            trained = train(
                model,
                data,
                rung,
                settings,
                seed=seed + i,
                device=device,
                on_epoch=step_on_epoch,
                checkpoint=checkpoints / f"{architecture.digest}-{i}.pt",
            )
            done, seconds = done + rung.epochs, seconds + trained.seconds
            if trained.diverged:
                epoch = done - rung.epochs + len(trained.losses)
                at = f"epoch {epoch} of {total} at {rung.resolution}x{rung.resolution}"
                raise Diverged(f"the training diverged: the loss of {at} is not a number")
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    return Deployed(state, trained.accuracy, total, seconds)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def remove_checkpoints(folder: Path, architecture: Architecture) -> None:
    """Remove the checkpoints of a finished training."""
    for path in folder.glob(f"{architecture.digest}-*.pt"):
        path.unlink(missing_ok=True)


def summary(recipe: Recipe, architecture: Architecture) -> dict[str, Any]:
    """The `fidelity` of the documents: the training budget of the search accuracy."""
    fidelity = fidelity_of(recipe, architecture)
    return {"resolution": fidelity.resolution, "epochs": fidelity.epochs, "share": fidelity.share}
