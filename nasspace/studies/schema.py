"""The schema of study.yaml and of the attributes in a study's database, checked when they are read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from nasspace.documents import Document, dotted
from nasspace.errors import InputError
from nasspace.studies import recipe
from nasspace.studies.objectives import COUNTED, LIMITED
from nasspace.studies.recipe import short
from nasspace.studies.storage import REMEDY

if TYPE_CHECKING:
    import optuna

VERSION = 1
RUNGS = "rungs"  # study attribute: the rungs between the search and the last rung, with the networks promoted to each
RUNG = "rung:"  # study attribute, followed by a rung's index and a trial's number, as in rung:0:12: its training there
ACTIVATIONS = "activations"  # trial attribute: elements of the outputs of convolutions and linear layers
LAST_RUNG = "last_rung:"  # study attribute, followed by a trial's number: its training at the deployment resolution
DEPLOYED = (
    "deployed:"  # study attribute, followed by a trial's number: the accuracy of its exported file, or why it failed
)
EXPLAINED = "explained:"  # study attribute, followed by a trial's number: what the guidelines find in its network
REMEASURED = "latency_again"  # study attribute: latencies of the front, measured again from the exported files
SHARED_WEIGHTS = "shared_weights"  # study attribute: the training of the weights that all networks share
ENERGY = "energy_joules"  # study attribute: energy of the searching machine's processor, of all runs
PREDICTOR = "latency_predictor"  # study attribute: how well latencies are predicted from the other measured networks

Number = Annotated[float, Field(allow_inf_nan=False)]
Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
LogOdds = Annotated[float, Field(ge=-20, le=20)]
Deviation = Annotated[float, Field(ge=1e-6, le=20)]  # a standard deviation in log odds
DeviationOrNone = Annotated[float, Field(ge=0, le=20)]
Step = Annotated[float, Field(ge=1e-9, le=1e9)]  # the resolution, epochs, or share of a training


class _Part(BaseModel):
    """A strict model that keeps unknown keys, which a later version of nasspace may have written."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


class SpacePart(_Part):
    """The search space."""

    name: str
    description: str = ""
    size: str = ""
    source: str | None = None  # what `--space` took; None for a space without a file
    document: dict[str, Any]


class TaskPart(_Part):
    """What the networks take and return."""

    classes: Count
    channels: Count
    resolution: Count | None = None


class Preprocessing(_Part):
    """Preprocessing; `exporting.preprocessing` checks its values with the network."""

    input: Annotated[list[Count], Field(min_length=3, max_length=3)]
    classes: list[str] = []


class DataPart(_Part):
    """The data set and its splits."""

    name: str
    classes: list[str]
    train: Count
    validation: Count
    mean: list[Number]
    std: list[Number]
    fingerprint: str
    preprocessing: Preprocessing | None = None


class BeliefPart(_Part):
    """What was expected of accuracies before the search: `samplers.accuracy_belief.Prior`, in log odds.

    The bounds are far outside of what trainings show; beyond them the arithmetic of the belief fails.
    """

    level: LogOdds
    level_sd: Deviation
    slope: LogOdds
    slope_sd: Deviation
    activation_slope: LogOdds = 0.0  # not used in studies of earlier versions
    activation_slope_sd: DeviationOrNone = 0.0
    spread: Deviation
    spread_factor: Annotated[float, Field(ge=1.01, le=100)]
    gain: LogOdds
    gain_sd: Deviation
    early_gain: LogOdds = 0.0  # none in studies of earlier versions
    early_gain_sd: DeviationOrNone = 0.0
    early_drift_sd: DeviationOrNone = 0.0
    gap_sd: Deviation
    drift_sd: Deviation
    seed_sd: Deviation
    shared: Fraction
    inherited: Annotated[float, Field(ge=0.01, le=0.99)] = 0.3
    resolution_power: Annotated[float, Field(ge=0, le=10)]


class StartPart(_Part):
    """The network whose weights candidates start from: what the user named, its choices, a hash of the weights."""

    source: str
    choices: dict[str, Any]
    fingerprint: str


class StudyPart(_Part):
    """study.yaml; fields with a default were added after the first version. `recipe` is validated separately."""

    nasspace_study: int
    name: str
    identity: str = ""
    created: str = ""
    space: SpacePart
    task: TaskPart
    resolution_why: str | None = None
    data: DataPart | None = None
    accuracy_is_of: str = "held-out training images"
    belief: BeliefPart | None = None
    start_from: StartPart | None = None
    recipe: dict[str, Any]
    limits: dict[str, Amount]
    evaluator: str | None = None
    storage: str | None = None
    machine: dict[str, str | int | float | None] = {}
    versions: dict[str, str] = {}


def study_settings(document: Document) -> dict[str, Any]:
    """Validate the content of study.yaml, and add defaults for fields of later versions.

    The first mistake raises `InputError` with its line, its field and the remedy.
    """
    value = document.value
    version = value.get("nasspace_study") if isinstance(value, dict) else None
    if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
        raise document.error(
            (), f"a study of version {version}; this nasspace reads version {VERSION}: update nasspace"
        )
    if version != VERSION or isinstance(version, bool):
        raise document.error(
            (),
            f"a study of version {short(version)}; this nasspace reads version {VERSION}; {REMEDY}",
        )
    try:
        StudyPart.model_validate(value)
    except ValidationError as error:
        keys, message = _first_error(error)
        raise document.error(keys, f"{message}; the file is damaged: {REMEDY}") from None
    if unknown := sorted(set(value["limits"]) - set(LIMITED)):
        raise document.error(("limits",), f"{short(unknown[0])} is not a limit; the file is damaged: {REMEDY}")
    try:
        settings = recipe.read(_at(document, "recipe"))
    except InputError as error:
        raise InputError(f"{error}; the file is damaged: {REMEDY}") from None
    filled = {name: field.default for name, field in StudyPart.model_fields.items() if not field.is_required()}
    return {**filled, **value, "recipe": settings.as_written()}


def _at(document: Document, key: str) -> Document:
    """A part of a document, with its line numbers."""
    lines = {keys[1:]: line for keys, line in document.lines.items() if keys[:1] == (key,)}
    return Document(document.value[key], document.source, lines)


def _first_error(error: ValidationError) -> tuple[tuple[str | int, ...], str]:
    """The keys and the message of the first error."""
    first = error.errors(include_url=False)[0]
    keys = tuple(key for key in first["loc"] if isinstance(key, str | int))
    if first["type"] == "missing":
        return keys[:-1], f"{short(keys[-1])} is missing"
    message = first["msg"].removeprefix("Value error, ")
    return keys, f"{short(first['input'])} is not allowed: {message[0].lower()}{message[1:]}"


def _architecture(text: str) -> str:
    """Validate the parts of an architecture's JSON that tables read; building the network checks the rest."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    size = value.get("input") if isinstance(value, dict) else None
    sized = isinstance(size, list) and len(size) == 3 and all(type(part) is int and part > 0 for part in size)
    if not sized or "nasspace" not in value or not isinstance(value.get("layers"), list):
        raise ValueError("not an architecture")
    for layer in value["layers"]:
        if not isinstance(layer, dict) or not isinstance(layer.get("block"), str):
            raise ValueError("not an architecture: a layer has no block")
    return text


class Interval(_Part):
    """A latency with its confidence interval."""

    median_ms: Amount
    low_ms: Amount
    high_ms: Amount
    contended: bool
    machine: dict[str, str | int | float | None] = {}


class Training(_Part):
    """The training of a trial at the search's fidelity."""

    seconds: Number | None = None
    losses: list[float] = []
    log_loss: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class TrialPart(_Part):
    """The attributes of a trial that was evaluated or rejected."""

    digest: str
    architecture: Annotated[str, AfterValidator(_architecture)]
    values: dict[str, Number]
    reason: str = ""
    seconds: Number | None = None
    latency_interval: Interval | None = None
    layers_ms: list[Number] | None = None
    activations: Annotated[int, Field(ge=0)] | None = None
    training: Training | None = None


class RungPart(_Part):
    """The training of a trial at a rung; `steps` are the (resolution, epochs, share) of all trainings so far."""

    resolution: Count
    epochs: Count
    seconds: Number
    accuracy: Fraction
    log_loss: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    steps: list[Annotated[list[Step], Field(min_length=3, max_length=3)]] = []
    float_accuracy: Fraction | None = None


class LastRung(RungPart):
    """The training of a trial at the deployment resolution."""

    preprocessing: Preprocessing


class PlannedRung(_Part):
    """A rung, and the networks that were promoted to it, once that is decided."""

    resolution: Count | None
    epochs: Count
    share: Annotated[float, Field(gt=0, le=1)]
    count: Count
    networks: list[int] | None = None


class Deployed(_Part):
    """The accuracy of a trial's exported file."""

    resolution: Count
    epochs: Count | None = None
    seconds: Number | None = None
    accuracy: Fraction
    accuracy_int8: Fraction | None = None


class Undeployable(_Part):
    """Why the last rung of a trial failed."""

    failed: str


class FoundPart(_Part):
    """A guideline's finding: the saving predicted, with its uncertainty."""

    guideline: str
    layers: list[Annotated[int, Field(ge=0)]]
    text: str
    change: str
    saving_ms: Number
    plus_minus_ms: Number


class Explained(_Part):
    """What the guidelines find in a network, and its latency in that session."""

    latency_ms: Amount
    low_ms: Amount
    high_ms: Amount
    contended: bool
    findings: list[FoundPart]


class SharedWeights(_Part):
    """The training of shared weights: its seconds, the networks that were trained on a batch each, mean losses."""

    seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    networks: Count
    losses: list[Number] = []


class Predictor(_Part):
    """How well latencies were predicted."""

    networks: int
    median_error: Number
    error_90: Number
    tau: Number | None
    sentence: str | None = None


def check_trials(trials: Iterable[optuna.trial.FrozenTrial], objectives: Iterable[str], place: str) -> None:
    """Refuse trials that tables and samplers cannot read; `place` names the database."""
    for i, trial in enumerate(trials):
        if trial.number != i:
            raise _damaged(place, f"the trial after {i - 1} has the number {trial.number}")
        if trial.state.name not in ("COMPLETE", "PRUNED"):
            continue
        try:
            TrialPart.model_validate(trial.user_attrs)
        except ValidationError as error:
            raise _damaged(place, _message(error, f"trial {i}")) from None
        known = trial.user_attrs["values"]
        missing = [name for name in objectives if name not in known] if trial.state.name == "COMPLETE" else []
        if missing:
            raise _damaged(place, f"trial {i} has no {missing[0]}")
        accuracy = known.get("accuracy", 0.0)
        if not 0 <= accuracy <= 1:
            raise _damaged(place, f"trial {i}: the accuracy {short(accuracy)} is not a fraction")
        for name in COUNTED:
            if known.get(name, 0.0) < 0:
                raise _damaged(place, f"trial {i}: {short(known[name])} is not a number of {name}")


def check_attributes(attributes: Mapping[str, Any], trials: int, place: str) -> None:
    """Refuse attributes of a study that the last rung, the tables and the report cannot read."""
    for key, value in attributes.items():
        kind = _kind_of(key, value)
        if kind is None:
            continue
        try:
            checked = TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            raise _damaged(place, _message(error, key)) from None
        if key.startswith((LAST_RUNG, DEPLOYED, EXPLAINED, RUNG)) and not _is_of_trial(key, trials):
            raise _damaged(place, f"{short(key)} belongs to no trial")
        planned = checked if key == RUNGS else ()
        for number in (number for rung in planned for number in rung.networks or ()):
            if not 0 <= number < trials:
                raise _damaged(place, f"{key}: trial {short(number)} does not exist")


def _is_of_trial(key: str, trials: int) -> bool:
    """Whether an attribute's key ends with the number of a trial, after a rung's index if it is of a rung."""
    match = re.fullmatch(rf"(?:{RUNG}\d{{1,9}}:|{LAST_RUNG}|{DEPLOYED}|{EXPLAINED})(\d{{1,18}})", key, re.ASCII)
    return match is not None and int(match[1]) < trials


def _kind_of(key: str, value: Any) -> Any:
    """The type of a study's attribute; None for attributes that are not read, or were reset."""
    if key.startswith(LAST_RUNG):
        return LastRung
    if key.startswith(RUNG):
        return RungPart
    if key.startswith(EXPLAINED):
        return Explained
    if key == RUNGS:
        return None if value is None else list[PlannedRung]
    if key.startswith(DEPLOYED):
        return None if value is None else Undeployable if isinstance(value, dict) and "failed" in value else Deployed
    kinds = {REMEASURED: dict[str, Interval], PREDICTOR: Predictor, SHARED_WEIGHTS: SharedWeights, ENERGY: Amount}
    return kinds.get(key)


def _message(error: ValidationError, name: str) -> str:
    """The first error of a validation as text."""
    keys, message = _first_error(error)
    return f"{name}: {dotted(keys)}: {message}" if keys else f"{name}: {message}"


def _damaged(place: str, message: str) -> InputError:
    return InputError(f"{place}: {message}; the database is damaged: {REMEDY}")
