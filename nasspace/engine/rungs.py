"""The rungs after the search: networks that it chose are trained further, at last at their deployment resolution.

Each rung continues with the weights of the one before it. The last rung is at the deployment resolution; its weights
are exported.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace.architecture import Architecture
from nasspace.engine import machine_lock
from nasspace.engine.int8_accuracy import with_int8_accuracy
from nasspace.engine.latency_evaluator import candidate_seed
from nasspace.errors import NasspaceError
from nasspace.failures import CandidateFailed, as_candidate_failures, is_machine_fault
from nasspace.studies.recipe import Recipe
from nasspace.training.settings import Fidelity, TrainingSettings

if TYPE_CHECKING:
    from torch import Tensor

    from nasspace.data.loading import DataSet
    from nasspace.training.trainer import Epoch

SHARE = 0.5  # share of the epochs before it that the last rung trains, if the recipe has no rung at this resolution
STEP_SHARE = 0.5  # share of a rung's epochs that is trained at each resolution in between
RATE = 0.5  # factor of the learning rate, since the weights are pretrained
UNFIT = "a checkpoint was dropped: {reason}; the training starts with the weights of the rung before"
OnEpoch = Callable[[int, int, float], None]


class Diverged(CandidateFailed):
    """The loss of a training is not finite, or the training raised an error."""


@dataclass(frozen=True)
class Climbed:
    """Weights of a network trained at a rung.

    `accuracy` is a fraction of the validation images at the rung's resolution, `log_loss` is of the same images after
    temperature scaling. `epochs` counts those of this training, `seconds` is its time. `steps` are all trainings of
    the weights so far. `float_accuracy` is that of the float network, if `accuracy` is that of the int8 one.
    """

    state: Mapping[str, Tensor]
    accuracy: float
    log_loss: float
    epochs: int
    seconds: float
    steps: tuple[Fidelity, ...]
    float_accuracy: float | None = None

    def to_json(self) -> dict[str, Any]:
        """What a study records of it."""
        document = {
            "resolution": self.steps[-1].resolution,
            "epochs": self.epochs,
            "seconds": round(self.seconds, 3),
            "accuracy": self.accuracy,
            "log_loss": self.log_loss if math.isfinite(self.log_loss) else None,
            "steps": plain(self.steps),
        }
        return document if self.float_accuracy is None else {**document, "float_accuracy": self.float_accuracy}


def plain(steps: Iterable[Fidelity]) -> list[list[float]]:
    """Trainings as a study records them.

    >>> plain([Fidelity(32, 8), Fidelity(64, 3)])
    [[32, 8, 1.0], [64, 3, 1.0]]
    """
    return [[step.resolution, step.epochs, step.share] for step in steps]


def ladder(fidelity: Fidelity, resolution: int, rungs: Sequence[Fidelity] = ()) -> list[list[Fidelity]]:
    """The trainings of each rung after a search's fidelity; those of the last end at the deployment resolution.

    `rungs` are those of the recipe. If none of them is at the deployment resolution, one is added. Where the resolution
    grows by more than twice, it doubles in steps.

    >>> ladder(Fidelity(32, 8), 128)
    [[Fidelity(resolution=64, epochs=2, share=1.0), Fidelity(resolution=128, epochs=4, share=1.0)]]
    >>> ladder(Fidelity(32, 4), 64, [Fidelity(64, 3), Fidelity(64, 6)])
    [[Fidelity(resolution=64, epochs=3, share=1.0)], [Fidelity(resolution=64, epochs=6, share=1.0)]]
    """
    before, targets = fidelity, [replace(rung, resolution=min(rung.resolution, resolution)) for rung in rungs]
    if not targets or targets[-1].resolution < resolution:
        epochs = (targets[-1] if targets else fidelity).epochs
        targets.append(Fidelity(resolution, max(2, math.ceil(SHARE * epochs))))
    result = []
    for target in targets:
        between, size = [], 2 * before.resolution
        while size < target.resolution:
            between.append(Fidelity(size, max(1, math.ceil(STEP_SHARE * target.epochs)), target.share))
            size *= 2
        result.append([*between, target])
        before = target
    return result


def fidelity_of(recipe: Recipe, architecture: Architecture) -> Fidelity:
    """The fidelity that a search trains a network with: its resolution is at most the network's own."""
    return replace(recipe.fidelity, resolution=min(recipe.fidelity.resolution, *architecture.input[1:]))


def climb(
    architecture: Architecture,
    recipe: Recipe,
    data: DataSet,
    start: Mapping[str, Tensor] | None,
    *,
    steps: Sequence[Fidelity],
    done: int,
    checkpoints: Path,
    device: str = "cpu",
    on_epoch: OnEpoch = lambda *_: None,
    on_checkpoint: Callable[[Path], None] | None = None,
    on_unfit: Callable[[str], None] = lambda _: None,
) -> Climbed:
    """Train a network from the weights of the rung before to the end of a rung.

    `steps` are all trainings from the search's own to the end of this rung; `start` has the weights after the first
    `done` of them. Without `start` they are repeated first. `data` has the deployment resolution. `checkpoints` is a
    folder: a killed training continues from there and ends with the same weights; `on_checkpoint` is called with each
    file that was saved. A checkpoint that is damaged or does not fit (another version of PyTorch, another device) is
    removed, and `on_unfit` is called with the reason. Raises `Diverged`, also if a block raises at this resolution, and
    `NasspaceError` if the machine ran out of memory or lost its device.
    """
    try:
        with as_candidate_failures():
            return _climb(
                architecture,
                recipe,
                data,
                start,
                steps,
                done,
                checkpoints,
                device,
                on_epoch,
                on_checkpoint,
                on_unfit,
            )
    except Diverged:
        raise
    except CandidateFailed as error:
        if is_machine_fault(error.__cause__ or error):  # not recorded: it may succeed later
            raise stopped(str(error)) from error
        raise Diverged(f"the training failed: {error}", error.traceback) from error


def stopped(reason: str) -> NasspaceError:
    """The error of a training that the machine could not do at this time: the search ends, and can be resumed."""
    return NasspaceError(f"a training of the front stopped: {reason}; free memory or the device, then run `nas resume`")


def _climb(
    architecture: Architecture,
    recipe: Recipe,
    data: DataSet,
    start: Mapping[str, Tensor] | None,
    steps: Sequence[Fidelity],
    done: int,
    checkpoints: Path,
    device: str,
    on_epoch: OnEpoch,
    on_checkpoint: Callable[[Path], None] | None,
    on_unfit: Callable[[str], None],
) -> Climbed:
    from nasspace.network import build
    from nasspace.training.checkpoints import UnfitCheckpoint
    from nasspace.training.trainer import train

    seed = candidate_seed(recipe.seed, architecture)
    model = build(architecture, seed=seed)
    if start is not None and _shapes(start) != _shapes(model.state_dict()):
        start = None  # a study of an earlier version, whose block had other shapes
    if start is not None:
        model.load_state_dict(dict(start))
    first = 0 if start is None else done
    left = list(enumerate(steps))[first:]
    total, epochs, seconds = sum(step.epochs for _, step in left), 0, 0.0
    with machine_lock.TrainingLock() as turn:
        for i, step in left:

            def step_on_epoch(epoch: Epoch, before: int = epochs) -> None:
                turn.yield_to_measurements()
                on_epoch(before + epoch.number, total, epoch.loss)

            training = partial(
                train,
                model,
                data,
                step,
                recipe.training if i == 0 else with_lower_rate(recipe.training),
                seed=seed + i,  # a step has the same seed whether or not those before it are repeated
                device=device,
                on_epoch=step_on_epoch,
                checkpoint=checkpoints / _checkpoint_name(architecture, steps[: i + 1]),
                on_checkpoint=on_checkpoint,
            )
            try:
                trained = training()
            except UnfitCheckpoint as error:  # read before the weights change
                if not error.path.is_file():
                    raise
                error.path.unlink()
                on_unfit(error.reason)
                trained = training()
            epochs, seconds = epochs + step.epochs, seconds + trained.seconds
            if trained.diverged:
                epoch = epochs - step.epochs + len(trained.losses)
                at = f"epoch {epoch} of {total} at {step.resolution}x{step.resolution}"
                raise Diverged(f"the training diverged: the loss of {at} is not a number")
        judged = with_int8_accuracy(trained, model, data, steps[-1].resolution, recipe)
    seconds += judged.seconds - trained.seconds
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    in_float = None if judged is trained else trained.accuracy
    return Climbed(state, judged.accuracy, judged.log_loss, total, seconds, tuple(steps), in_float)


def with_lower_rate(settings: TrainingSettings) -> TrainingSettings:
    """The settings of a training whose weights are pretrained."""
    return replace(settings, learning_rate=RATE * settings.learning_rate, last_rate=RATE * settings.last_rate)


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _checkpoint_name(architecture: Architecture, steps: Sequence[Fidelity]) -> str:
    """The name of the checkpoint of the last of these trainings; other trainings before it give another name."""
    key = hashlib.sha256(repr(plain(steps)).encode()).hexdigest()[:8]
    return f"{architecture.digest}-{len(steps) - 1}-{key}.pt"


def read_checkpoints(folder: Path, architecture: Architecture) -> dict[str, bytes]:
    """The checkpoint files of an unfinished training by name; one that cannot be read raises `UnfitCheckpoint`."""
    from nasspace.training.checkpoints import UnfitCheckpoint

    found = {}
    for path in _checkpoint_paths(folder, architecture):
        try:
            found[path.name] = path.read_bytes()
        except OSError as error:
            raise UnfitCheckpoint(path, f"cannot be read ({error.strerror or error})") from None
    return found


def remove_checkpoints(folder: Path, architecture: Architecture) -> None:
    """Remove the checkpoints of a finished training."""
    for path in _checkpoint_paths(folder, architecture):
        path.unlink(missing_ok=True)


def _checkpoint_paths(folder: Path, architecture: Architecture) -> list[Path]:
    return sorted(folder.glob(f"{architecture.digest}-*.pt"))
