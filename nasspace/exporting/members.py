"""Export members of a study's front, with their figures on the model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nasspace.counting import cost
from nasspace.errors import InputError
from nasspace.exporting.export import FORMATS, Exported, export
from nasspace.exporting.model_card import trained_at
from nasspace.exporting.preprocessing import at_another_size
from nasspace.studies import paths
from nasspace.studies.front import Front, Member
from nasspace.studies.trial_table import has_value

if TYPE_CHECKING:
    from nasspace.data.images import DataSet


def export_member(
    front: Front,
    member: Member,
    folder: Path,
    *,
    formats: tuple[str, ...] = FORMATS,
    resolution: int | None = None,
    seed: int = 0,
    batch_size: int | Literal["dynamic"] | None = None,
    data: DataSet | None = None,
    replace: bool = True,
) -> Exported:
    """Export one network of a study with its trained weights, if there are any.

    With `data`, the study's own at the network's resolution, every file is judged on the validation images. `replace`
    is as in `export`. Weights that were trained but not kept raise `InputError`.
    """
    own = member.load_architecture()
    architecture = own
    if resolution is not None:
        architecture = own.with_resolution(resolution)
        cost(architecture)  # refuses a network that does not run at this resolution
    weights = front.weights.path(member.id, member.deployed is not None)
    if weights is None and has_value(member.row["search_accuracy"]):
        why = f"the trained weights of trial {member.id} are not kept"
        if front.recipe.get("supernet"):
            why = f"trial {member.id} was judged with shared weights and has none of its own"
        raise InputError(
            f"{front.folder}: {why}; `nas train {paths.as_argument(front.folder, member.id)}` trains it and exports it"
        )
    is_deployed = member.deployed is not None or front.weights.deployed.path(member.id) is not None
    last_rung = (member.last_rung or {}) if is_deployed else {}
    preprocessing = front.data.get("preprocessing")
    if last_rung:
        preprocessing = {**last_rung["preprocessing"], "classes": front.data["classes"]}
    if preprocessing is not None:
        preprocessing = at_another_size(preprocessing, architecture)
    card = {"study": front.name, **{key: front.data.get(key) for key in ("classes", "mean", "std")}}
    at_own_size = architecture.input == own.input
    if at_own_size:
        card |= _latency(front, member)
    if weights and at_own_size:
        # With data, the accuracy in training, which the files must reach.
        reached = last_rung.get("float_accuracy", last_rung.get("accuracy"))
        accuracy = reached if data is not None else member.row["accuracy"]
        card |= {"accuracy": accuracy, **_search(front, member)}
    if weights and front.has_last_rung:
        trained_size = own.input[1] if is_deployed else (member.fidelity or {})["resolution"]
        if trained_size != architecture.input[1]:
            card["resolution_why"] = trained_at(trained_size)
    return export(
        architecture,
        folder,
        weights=weights,
        formats=formats,
        seed=seed,
        card=card,
        batch_size=batch_size,
        preprocessing=preprocessing,
        data=data,
        origin=front.origin if weights else None,
        replace=replace,
    )


def export_front(front: Front, folder: Path, **options: Any) -> list[Exported]:
    """Export each member of a front to a folder of its number; `options` are those of `export_member`."""
    if not front.members:
        raise InputError(
            f"{front.folder}: this study has no front yet; run `nas resume {paths.as_argument(front.folder)}`"
        )
    return [export_member(front, member, folder / str(member.id), **options) for member in front.members]


def _latency(front: Front, member: Member) -> dict[str, Any]:
    """The latency on the card, and how it was measured."""
    figures = {name: member.row[name] for name in ("latency_ms", "latency_low_ms", "latency_high_ms")}
    settings = {name: front.recipe[name] for name in ("runtime", "threads", "batch_size")}
    return {**figures, **settings, "machine": front.machine}


def _search(front: Front, member: Member) -> dict[str, Any]:
    """The facts on the card about the accuracy and the search."""
    return {
        "accuracy_is_of": front.accuracy_is_of,
        "search_accuracy": member.row["search_accuracy"],
        "search_fidelity": member.fidelity,
        **believed_facts(front, member),
        "resolution_why": front.settings.get("resolution_why"),
    }


def believed_facts(front: Front, member: Member) -> dict[str, Any]:
    """The facts on the card about the accuracy after full training; empty without a belief."""
    if not has_value(member.row["accuracy_low"]):
        return {}
    figures = {name: member.row[name] for name in ("accuracy_expected", "accuracy_low", "accuracy_high")}
    return {**figures, "full_epochs": front.recipe["full"]["epochs"]}
