"""Given weights that the candidates of a search start from: those of a trained network of the same space.

Of each block that both have at the same place, a candidate takes the first channels and the center of the kernel, as
`nasspace.training.supernet` cuts them. Everything else starts from new weights.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace import failures, zoo
from nasspace.architecture import Architecture
from nasspace.engine import data_origin
from nasspace.engine.arch_reference import resolve_arch, settled
from nasspace.engine.evaluator import TrainingEvaluator
from nasspace.engine.problem import choices_in
from nasspace.errors import InputError
from nasspace.exporting.weights import load_into, read_safetensors, read_weights
from nasspace.studies import paths
from nasspace.studies import study as records
from nasspace.studies.recipe import Recipe, short
from nasspace.studies.study import Study

if TYPE_CHECKING:
    from torch import Tensor

    from nasspace.data.loading import DataSet
    from nasspace.engine.problem import Problem
    from nasspace.network import Network
    from nasspace.space.space import Space
    from nasspace.training.supernet import Supernet

CHECKPOINTS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
FLAG = "--start-from"
Report = Callable[[str], None]


@dataclass(frozen=True)
class Donor:
    """A network of the space by its choices, with weights; `source` is what the user named.

    `fingerprint` is that of weights that are gone, in a study whose candidates are all trained.
    """

    source: str
    choices: Mapping[str, Any]
    state: Mapping[str, Tensor]
    fingerprint: str = ""
    built: Supernet | None = field(default=None, compare=False, repr=False)

    @property
    def record(self) -> dict[str, Any]:
        """What study.yaml records."""
        content = hashlib.sha256()
        for name, tensor in sorted(self.state.items()):
            content.update(name.encode() + tensor.contiguous().numpy().tobytes())
        fingerprint = self.fingerprint or content.hexdigest()[:12]
        return {"source": self.source, "choices": dict(self.choices), "fingerprint": fingerprint}

    def placed(self, space: Space, seed: int) -> Donor:
        """With shared weights of the space, of which this network's are given and the others new."""
        from nasspace.training.supernet import Supernet

        try:
            with failures.as_candidate_failures():
                supernet = Supernet(space, seed)
        except failures.CandidateFailed as error:
            raise InputError(
                f"{FLAG} {self.source}: not every network of '{space.name}' runs: {error}; remove its block from the "
                "space"
            ) from error
        supernet.take(space.replay(self.choices), self.state)
        return replace(self, built=supernet)


class StartingEvaluator(TrainingEvaluator):
    """As `TrainingEvaluator`, but a candidate starts from its part of given weights."""

    def __init__(self, recipe: Recipe, data: DataSet, supernet: Supernet, **options: Any):
        super().__init__(recipe, data, **options)
        self.supernet = supernet

    def _initial(self, architecture: Architecture, seed: int) -> Network:
        """The network with its part of the given weights."""
        return self.supernet.network(architecture)


def find(text: str, problem: Problem, report: Report) -> Donor:
    """The network and weights that `text` names: `STUDY:ID`, an export's folder, or a published network's checkpoint.

    `report` gets a line for everything that was adapted. Raises `InputError` if there are no weights, or if the network
    is not one of the space.
    """
    try:
        path = Path(text)
        if (path / "study.yaml").is_file() or (Path("reports") / text / "study.yaml").is_file():
            raise InputError(f"is a study; name one of its trials, as {text}:ID")
        if path.suffix in CHECKPOINTS or (path.suffix != ".json" and path.is_file()):
            return _of_checkpoint(path, problem, report)
        source = resolve_arch(text)
        if source.weights is None and source.study:
            raise InputError("the study did not keep the weights of this trial; name one of its front")
        if source.weights is None:
            raise InputError("has no trained weights; name STUDY:ID, an export's folder, or a checkpoint")
        if note := data_origin.note_on_split(source.weights, problem.data):
            report(note)
        state = read_safetensors(source.weights)
        choices = choices_in(problem.space, source.architecture)
        return _fitted(settled(text), choices, state, data_origin.normalization(source.weights), problem, report)
    except OSError as error:
        raise InputError(f"{FLAG} {text[:100]}: cannot be read ({error.strerror or error})") from None
    except InputError as error:
        raise InputError(f"{FLAG} {text}: {str(error).removeprefix(f'{text}: ')}") from None


def _of_checkpoint(path: Path, problem: Problem, report: Report) -> Donor:
    """A checkpoint of another program: of the first published network with its shapes that the space has."""
    from nasspace.network import build
    from nasspace.training import pretrained

    state = read_weights(path)
    names = pretrained.networks_of(state)
    if not names:
        raise InputError("is of no published network; name STUDY:ID or an export's folder for other weights")
    for name in names:
        architecture = zoo.load(name)
        try:
            choices = choices_in(problem.space, architecture)
        except InputError:
            continue
        fitting = problem.space.replay(choices)
        original = architecture.with_input(fitting.input[0], fitting.input[1]).with_classes(fitting.classes)
        converted, normalization = pretrained.converted(state, build(original), original, str(path), report)
        return _fitted(str(path), choices, converted, normalization, problem, report)
    raise InputError(
        f"is of {names[0]}, which is not a network of the space '{problem.space.name}'; name a space that contains it"
    )


def _fitted(
    text: str,
    choices: Mapping[str, Any],
    state: Mapping[str, Tensor],
    normalization: Any,
    problem: Problem,
    report: Report,
) -> Donor:
    """A donor for the problem's classes and channels.

    The first layer's weights are scaled as images are normalized by another deviation; the mean is left to batch norm.
    """
    import torch

    from nasspace.network import build
    from nasspace.training import pretrained

    assert problem.data is not None
    network = build(problem.space.replay(choices))
    fitting, _ = pretrained.fitted(state, network, text, report)
    load_into(network, fitting, text)
    if normalization:
        _, theirs = pretrained.for_channels(normalization, problem.data.channels)
        factor = torch.tensor([own / 255 / other for own, other in zip(problem.data.std, theirs, strict=True)])
        first = next(part for part in network.modules() if isinstance(part, torch.nn.Conv2d))
        with torch.no_grad():
            first.weight.mul_(factor[:, None, None])
    return Donor(text, choices, network.state_dict())


def keep(study: Study, donor: Donor) -> None:
    """Keep a donor's weights in the study, so that it can be resumed without the file."""
    if study.start_weights.path(0) is None:
        study.start_weights.keep(0, donor.state)


def of_study(study: Study, problem: Problem) -> Donor | None:
    """The donor that a study was started with, as its problem needs it; None without one."""
    recorded = study.settings.get("start_from")
    if not recorded:
        return None
    path = study.start_weights.path(0)
    if path is None and study.is_searched and study.evaluated >= problem.recipe.trials:
        return Donor(recorded["source"], recorded["choices"], {}, recorded["fingerprint"])
    if path is None:
        raise InputError(
            f"{study.folder}: the weights that its networks start from ({recorded['source']}) are not in "
            "weights/start; run the `nas search` command that started it, or search under another --study name"
        )
    donor = Donor(recorded["source"], recorded["choices"], read_safetensors(path))
    return donor if study.is_searched else donor.placed(problem.space, problem.recipe.seed)


def evaluator_of(problem: Problem, **options: Any) -> StartingEvaluator:
    """The evaluator of a problem with a donor."""
    assert problem.donor is not None
    assert problem.donor.built is not None
    assert problem.data is not None
    return StartingEvaluator(problem.recipe, problem.data, problem.donor.built, **options)


def _kept(study: str | Path | None, text: str) -> Donor | None:
    """The donor whose weights a study has kept since it was started with the same `--start-from`, if there is one."""
    if study is None or not (paths.folder_of(study) / "study.yaml").is_file():
        return None
    kept = records.load(study)
    recorded, path = kept.settings.get("start_from") or {}, kept.start_weights.path(0)
    if recorded.get("source") != text or path is None:
        return None
    return Donor(text, recorded["choices"], read_safetensors(path))


def with_donor(problem: Problem, start_from: str | os.PathLike, study: str | Path | None = None) -> Problem:
    """The problem with a donor, from which `netadapt` starts; what was adapted is among its notes.

    If the donor is gone, an existing `study` that was started with it continues with the weights that it kept.
    """
    if not isinstance(start_from, str | os.PathLike):
        raise InputError(f"start_from: {short(start_from)} is neither a path nor STUDY:ID")
    text = os.fspath(start_from)
    if problem.data is None or problem.recipe.supernet or "accuracy" not in problem.recipe.objectives:
        raise InputError(
            f"{FLAG} {text}: this search trains no candidates, which could start from weights; leave it out"
        )
    lines: list[str] = []
    try:
        donor = find(text, problem, lines.append)
    except InputError:
        if (kept := _kept(study, text)) is None:
            raise
        donor = kept
    donor, recipe = donor.placed(problem.space, problem.recipe.seed), problem.recipe
    if recipe.sampler == "netadapt" and recipe.netadapt.start is None:
        steps = recipe.netadapt.model_copy(update={"start": dict(donor.choices)})
        recipe = recipe.model_copy(update={"netadapt": steps})
    return replace(problem, recipe=recipe, donor=donor, notes=(*problem.notes, *lines, f"candidates start from {text}"))
