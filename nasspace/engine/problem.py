"""Search problem: the space at the data's classes and channels, the recipe, the data, and the evaluator."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace import files
from nasspace.architecture import Architecture
from nasspace.engine.arch_reference import resolve_arch
from nasspace.engine.evaluator import FunctionEvaluator
from nasspace.engine.resolution import Deployment, choose_deployment
from nasspace.engine.rungs import ladder
from nasspace.errors import InputError, nearest
from nasspace.latency.runtimes import library_versions
from nasspace.samplers.accuracy_belief import Prior, missing_doublings
from nasspace.space.space import Space
from nasspace.studies import schema
from nasspace.studies.recipe import NetAdapt, Recipe, Rung, short
from nasspace.training.settings import Fidelity

if TYPE_CHECKING:
    from nasspace.data.loading import DataSet
    from nasspace.engine.starting_weights import Donor

PACKAGES = ("nasspace", "torch", "optuna", "onnxruntime", "numpy", "scikit-learn")
LONGER = 0.5  # doublings by which a front's networks may be trained for longer than the full training says
EvaluatorFunction = Callable[[Architecture], Mapping[str, float]]
KnownObjectives = Mapping[str, Callable[[Architecture], float]]


@dataclass(frozen=True)
class Problem:
    """What a search solves: networks of `space`, trained on `data` as `recipe` says.

    `evaluator` is None until the search starts, unless the user passed a function. `deployment` is None with such a
    function. `notes` are messages for the user. `belief` is what an earlier study shows of short trainings on these
    images, as study.yaml holds it. `donor` has the weights that candidates start from.
    """

    recipe: Recipe
    space: Space
    data: DataSet | None = None
    evaluator: Any = None
    deployment: Deployment | None = None
    notes: tuple[str, ...] = ()
    belief: Mapping[str, Any] | None = None
    donor: Donor | None = None

    @classmethod
    def from_data(cls, recipe: Recipe, space: Space | str | Path) -> Problem:
        """Load the recipe's data set, and fit the space and the fidelity to it."""
        recipe = recipe.model_copy(
            update={
                "data": with_absolute_path(recipe.data),
                "data_dir": recipe.data_dir and str(Path(recipe.data_dir).expanduser().absolute()),
            }
        )
        space = space if isinstance(space, Space) else Space.load(space)
        told: list[str] = []
        data = data_of(
            recipe, lambda native: choose_deployment(recipe.resolution, space.plan, native).resolution, told.append
        )
        deployment = choose_deployment(recipe.resolution, space.plan, data.native)
        fitted = Space(space.document, classes=len(data.classes), resolution=deployment.sizes, channels=data.channels)
        given = {"fidelity": recipe.fidelity.resolution}
        if recipe.supernet is not None:
            given["supernet"] = recipe.supernet.resolution or recipe.fidelity.resolution
        given |= {f"rungs.{i}": rung.resolution for i, rung in enumerate(recipe.rungs) if rung.resolution}
        notes = (
            *told,
            *recipe.without_effect(),
            *(
                f"{key}.resolution {size} is lowered to the deployment's {deployment.resolution}"
                for key, size in given.items()
                if size > deployment.resolution
            ),
        )
        fidelity = replace(recipe.fidelity, resolution=min(recipe.fidelity.resolution, deployment.resolution))
        rungs = tuple(rung.model_copy(update={"resolution": _lowered(rung, deployment)}) for rung in recipe.rungs)
        update = {"fidelity": fidelity, "rungs": rungs, "netadapt": _with_start_resolved(recipe, fitted)}
        if recipe.supernet is not None:
            side = min(given["supernet"], deployment.resolution)
            update["supernet"] = replace(recipe.supernet, resolution=side)
        recipe = recipe.model_copy(update=update)
        notes += tuple(_short_full_training(recipe, deployment.resolution))
        return cls(recipe, fitted, data, deployment=deployment, notes=notes)

    @classmethod
    def from_function(
        cls, recipe: Recipe, space: Space | str | Path, function: EvaluatorFunction, known: KnownObjectives | None
    ) -> Problem:
        """Evaluate with the user's function of an architecture instead of training."""
        if recipe.supernet is not None:
            raise InputError("supernet: the evaluator takes the place of shared weights; leave one of them out")
        if recipe.accuracy_of == "int8":
            raise InputError("objectives: with an evaluator, accuracy is what it returns; write accuracy")
        space = space if isinstance(space, Space) else Space.load(space)
        if recipe.resolution:
            channels = space.plan.input[0]
            space = Space(space.document, classes=space.classes, resolution=recipe.resolution, channels=channels)
        recipe = recipe.model_copy(update={"netadapt": _with_start_resolved(recipe, space)})
        evaluator = FunctionEvaluator(function, known, recipe.objectives, recipe.limits.given(), recipe.budget)
        return cls(recipe, space, evaluator=evaluator, notes=tuple(recipe.without_effect()))

    def settings(self, name: str, storage: str | None) -> dict[str, Any]:
        """The content of study.yaml: everything needed to run the search again."""
        from nasspace.latency.conditions import machine

        recipe, space, data = self.recipe, self.space, self.data
        return {
            "nasspace_study": schema.VERSION,
            "name": name,
            "identity": uuid.uuid4().hex[:8],
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "space": {
                "name": space.name,
                "description": space.description,
                "size": str(space.size),
                "source": _source(space),
                "document": space.document.value,
            },
            "task": {"classes": space.classes, "channels": space.plan.input[0], "resolution": self._resolution},
            "resolution_why": self.deployment and self.deployment.why,
            "data": data and {
                "name": recipe.data,
                "classes": list(data.classes),
                "train": len(data.train.labels),
                "validation": len(data.validation.labels),
                "mean": [round(value / 255, 6) for value in data.mean],
                "std": [round(value / 255, 6) for value in data.std],
                "fingerprint": data.fingerprint,
                "preprocessing": data.preprocessing,
            },
            "accuracy_is_of": self._accuracy_is_of(),
            "belief": (self.belief or asdict(Prior())) if data and "accuracy" in recipe.objectives else None,
            "start_from": self.donor and self.donor.record,
            "recipe": recipe.as_written(),
            "limits": recipe.limits.given(),
            "evaluator": None if data else getattr(self.evaluator.function, "__qualname__", "function"),
            "storage": storage,
            "machine": machine(),
            "versions": library_versions(PACKAGES),
        }  # fmt: skip

    @property
    def _resolution(self) -> int | tuple[int, ...] | None:
        """The deployment resolution; the largest one if the space has several."""
        return self.deployment.resolution if self.deployment else self.space.resolution

    def _accuracy_is_of(self) -> str:
        """What the reported accuracy was measured on, for captions."""
        if self.deployment is None:
            return "the evaluator given"
        sizes = " or ".join(f"{size}x{size}" for size in self.deployment.sizes)
        return f"the exported file on {self.data.validated_on} at {sizes}"


def _with_start_resolved(recipe: Recipe, space: Space) -> NetAdapt:
    """The settings of `netadapt` with the choices of its first network, so that a resumed study needs no other one."""
    settings = recipe.netadapt
    if recipe.sampler != "netadapt" or settings.start is None:
        return settings
    try:
        if not isinstance(settings.start, str):
            _check_choices(space, settings.start)
            return settings
        choices = choices_in(space, resolve_arch(settings.start).architecture)
    except InputError as error:
        raise InputError(f"netadapt.start: {error}") from None
    return settings.model_copy(update={"start": choices})


def _check_choices(space: Space, choices: Mapping[str, Any]) -> None:
    """Refuse choices and options that the space does not have, and choices that are missing or not reached."""
    for name, option in choices.items():
        if name not in space.options:
            raise InputError(f"'{name}' is not a choice of the space '{space.name}'{nearest(name, space.options)}")
        if not any(option == known and type(option) is type(known) for known in space.options[name]):
            known = ", ".join(map(str, space.options[name]))
            raise InputError(f"{short(option)} is not an option of '{name}'; known: {known}")
    reached = space.replay(choices).choices or {}
    for name in [*reached, *choices]:
        if name not in choices:
            raise InputError(f"the choice '{name}' is missing; name the choices of a whole network")
        if name not in reached:
            raise InputError(f"the other choices never reach '{name}'; leave it out")


def choices_in(space: Space, architecture: Architecture) -> dict[str, Any]:
    """The choices of a network in a space, after it was fitted to the classes, channels and resolution of the space."""
    side, searched = architecture.input[1], space
    if sizes := space.options.get("resolution"):
        side = side if side in sizes else max(sizes)
    else:  # choices do not depend on the resolution, but strides of the stem do
        channels = space.plan.input[0]
        searched = Space(space.document, classes=space.classes, resolution=side, channels=channels)
    try:
        found = searched.choices_of(architecture.with_input(space.plan.input[0], side).with_classes(space.classes))
    except InputError as error:
        raise InputError(f"{error}; name a network of the space, such as STUDY:ID of an earlier search") from None
    return dict(space.replay(found).choices or {})  # those that the network reaches, as `_check_choices` wants them


def _short_full_training(recipe: Recipe, resolution: int) -> Iterator[str]:
    """A note where a front's networks are trained for much longer than the full training that intervals speak of."""
    if "accuracy" not in recipe.objectives:
        return
    targets = [Fidelity(rung.resolution or resolution, rung.epochs, rung.share) for rung in recipe.rungs]
    steps = [recipe.fidelity, *(step for rung in ladder(recipe.fidelity, resolution, targets) for step in rung)]
    epochs = tuple((step.epochs * step.share, step.resolution / resolution) for step in steps)
    if missing_doublings(epochs, recipe.full.epochs, Prior()) < -LONGER:
        listed = " + ".join(f"{step.epochs}" for step in steps)
        yield (
            f"full.epochs {recipe.full.epochs}: the networks of the front are trained for longer, {listed} epochs; "
            "their accuracies may be above the intervals, which are those of a full training"
        )


def _lowered(rung: Rung, deployment: Deployment) -> int | None:
    """The resolution of a rung; None, the deployment's, if that is not larger."""
    return None if (rung.resolution or deployment.resolution) >= deployment.resolution else rung.resolution


def data_of(
    recipe: Recipe, resolution: int | Callable[[int], int], report: Callable[[str], None] | None = None
) -> DataSet:
    """Load a recipe's data set at a resolution, which may be a function of the images' own size.

    `report` is called with a line of text if the images are read from the disk.
    """
    from nasspace.data.loading import load_data

    return load_data(
        recipe.data,
        resolution=resolution,
        data_dir=recipe.data_dir,
        seed=recipe.seed,
        held_out=recipe.held_out,
        skip_broken=recipe.skip_broken,
        report=report,
    )


def _source(space: Space) -> str | None:
    """What `--space` takes for a space: the name or the path of its file; None for a space without a file."""
    path = Path(space.document.source)
    if not space.document.source or not path.is_file():
        return None
    known = {file.resolve(): name for name, file in files.names("spaces").items()}
    return known.get(path.resolve(), str(path))


def with_absolute_path(data: str) -> str:
    """Make the path in `imagefolder:DIR` or `parquet:FILE` absolute, so that a study resumes from any folder."""
    kind, colon, path = data.partition(":")
    if colon and path and kind in ("imagefolder", "parquet"):
        return f"{kind}:{Path(path).expanduser().absolute()}"
    return data
