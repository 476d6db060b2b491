"""Recipes: all settings of a search, validated before it starts."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from nasspace import files
from nasspace.documents import Document
from nasspace.errors import InputError, nearest
from nasspace.studies.objectives import OBJECTIVES
from nasspace.training.settings import Fidelity, SupernetSettings, TrainingSettings, with_current_names

UNITS = {
    "latency": {"us": 1e-3, "ms": 1.0, "s": 1e3},  # to milliseconds
    "count": {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9},
    "time": {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0},  # to seconds
    # To bytes; 1 KB of memory is 1024 bytes, as in data sheets of microcontrollers.
    "memory": {"B": 1.0, "KB": 2.0**10, "KiB": 2.0**10, "MB": 2.0**20, "MiB": 2.0**20, "GB": 2.0**30, "GiB": 2.0**30},
}
EXAMPLES = {"latency": "20ms", "count": "150M", "time": "30m", "memory": "512KB"}
RANGES = {"latency": "10ms..20ms", "count": "40M..60M", "memory": "256KB..512KB"}
Kind = Literal["latency", "count", "time", "memory"]
SHOWN = 60  # largest number of characters of a wrong value in messages
LEAST_RESOLUTION = 8  # pixels per side of images for search and training
UNBOUNDED = 1_000_000  # trials, if only time ends the search
NOT_NUMBERS = {  # settings that are True or False, or text
    setting.name
    for kind in (TrainingSettings, SupernetSettings)
    for setting in dataclasses.fields(kind)
    if any(word in str(setting.type) for word in ("bool", "str"))
}
INT8_OBJECTIVE = "accuracy_int8"
OPTIONS_OF = {"mnasnet": "reward", "netadapt": "netadapt", "uniform": "uniform"}  # parts with the options of samplers
WHOLE = ("start", "budget")  # mappings that are one value: the choices of a network, a budget


def quantity(text: Any, kind: Kind) -> float:
    """Parse '20ms' to milliseconds, '150M' to a count, '30m' to seconds, '512KB' to bytes; only counts need no unit.

    Upper and lower case of units are the same.

    >>> quantity("20ms", "latency"), quantity("0.02s", "latency"), quantity("150M", "count"), quantity("30m", "time")
    (20.0, 20.0, 150000000.0, 1800.0)
    >>> quantity("512KB", "memory"), quantity("1MB", "memory")
    (524288.0, 1048576.0)
    """
    units = UNITS[kind]
    example = EXAMPLES[kind]
    match = re.fullmatch(r"\s*([+-]?[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-zµ]*)\s*", str(text))
    if not match:
        raise ValueError(f"{text!r} is not an amount such as {example}")
    number, unit = float(match[1]), match[2].replace("µ", "u")
    unit = next((known for known in units if known.lower() == unit.lower()), unit)  # nobody means milli-FLOPs by "m"
    if unit not in units:
        known = ", ".join(u for u in units if u)
        missing = "has no unit" if not unit else f"has the unknown unit '{unit}'"
        raise ValueError(f"{text!r} {missing}; write it with one of {known}, such as {example}")
    if not 0 < number * units[unit] < 1e18:
        raise ValueError(f"{text!r} must be above 0, such as {example}")
    return number * units[unit]


def _amount(kind: Kind) -> BeforeValidator:
    return BeforeValidator(lambda value: value if value is None else quantity(value, kind))


def _objective(name: str) -> str:
    if name not in OBJECTIVES:
        raise ValueError(f"{name!r} is not an objective{nearest(name, (*OBJECTIVES, INT8_OBJECTIVE))}")
    return name


def _current_training(value: Any) -> Any:
    """Rename training settings from files of earlier versions."""
    return with_current_names(value) if isinstance(value, Mapping) else value


def _without_booleans(value: Any) -> Any:
    """Refuse True and False where a part of a recipe has a number; other settings check themselves."""
    for key, one in value.items() if isinstance(value, Mapping) else ():
        each = one if isinstance(one, list | tuple) else [one]
        if key not in NOT_NUMBERS and any(isinstance(part, bool) for part in each):
            raise ValueError(f"{key} is {short(one)}, not a number")
    return value


def _given_as(kinds: type | UnionType, example: str) -> BeforeValidator:
    """Refuse a value of another kind with an example."""

    def checked(value: Any) -> Any:
        if not isinstance(value, kinds):
            raise ValueError(example)
        return value

    return BeforeValidator(checked)


def _rungs(value: Any) -> Any:
    """Refuse what is not a list of mappings, with an example."""
    if not isinstance(value, list | tuple) or not all(isinstance(rung, Mapping | Rung) for rung in value):
        raise ValueError("rungs are a list such as [{epochs: 6}, {epochs: 12}]")
    return value


def _start(value: Any) -> Any:
    """Refuse what names no network, with an example."""
    if value == "" or not isinstance(value, str | Mapping | None):
        raise ValueError("the first network is an architecture such as STUDY:ID, or a mapping of choices")
    return value


def between(text: Any, kind: Kind) -> tuple[float, float]:
    """Parse '40M..60M', two amounts with units, or a pair of numbers in milliseconds, counts or bytes.

    >>> between("40M..60M", "count"), between("2ms..5ms", "latency"), between([1e6, 2e6], "count")
    ((40000000.0, 60000000.0), (2.0, 5.0), (1000000.0, 2000000.0))
    """
    ends = text.split("..") if isinstance(text, str) else text
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        raise ValueError(f"{short(text)} is not a range such as {RANGES[kind]}")
    own = {"latency": "ms", "memory": "B"}.get(kind, "")  # the unit of plain numbers
    low, high = (quantity(end if isinstance(end, str) else f"{end!r}{own}", kind) for end in ends)
    if low > high:
        raise ValueError(f"{short(text)}: the first amount is above the second")
    return low, high


def _budget(value: Any) -> Any:
    """Parse the amounts of a budget; refuse what is no cost."""
    if not isinstance(value, Mapping):
        raise ValueError("a budget is a mapping such as {flops: 40M..60M}")
    costs = [name for name, objective in OBJECTIVES.items() if not objective.is_maximized]
    if unknown := [name for name in value if name not in costs]:
        raise ValueError(f"{short(unknown[0])} is not a cost{nearest(unknown[0], costs)}")
    return {name: between(ends, OBJECTIVES[name].kind) for name, ends in value.items()}


ObjectiveName = Annotated[str, AfterValidator(_objective)]


class Strict(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse True and False where a number stands; Pydantic takes them for 1 and 0."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and {int, float} & {kind, *get_args(kind)}:
            raise ValueError(f"{value!r} is not a number")
        return value


class Limits(Strict):
    """Limits of a network, None without one; written with units, stored in milliseconds, counts and bytes."""

    latency: Annotated[float | None, _amount("latency")] = None
    flops: Annotated[float | None, _amount("count")] = None
    params: Annotated[float | None, _amount("count")] = None
    peak_memory: Annotated[float | None, _amount("memory")] = None
    flash: Annotated[float | None, _amount("memory")] = None

    def given(self) -> dict[str, float]:
        """The limits that are set, in milliseconds, counts and bytes."""
        return {name: value for name, value in self if value is not None}


class Rung(Strict):
    """A further training of the most promising networks, with the weights of the one before; see `Recipe.rungs`."""

    epochs: int = Field(ge=1, le=100_000)
    resolution: int | None = Field(None, ge=LEAST_RESOLUTION, le=8192)  # None: the deployment's
    share: float = Field(1.0, gt=0, le=1)


class Full(Strict):
    """A full training, at the deployment resolution with the package's own settings: what intervals speak of."""

    epochs: int = Field(25, ge=1, le=100_000)


class Reward(Strict):
    """The reward of the sampler `mnasnet`: accuracy x (cost / limit) ** exponent.

    The hard form has the factor only over the limit, where networks are not trained. With the soft form, networks over
    the limit are trained, too. Without an exponent it is the paper's: -1 (hard) or -0.07 (soft).
    """

    form: Literal["hard", "soft"] = "hard"
    exponent: float | None = Field(None, ge=-100, le=0)


class NetAdapt(Strict):
    """The steps of the sampler `netadapt`.

    `reduction` is the part of the first network's latency by which each step is faster at least, `proposals` the most
    networks that a step trains. `start` is the first network: an architecture of the space, as `nas show` takes it, or
    its choices; without it, the largest of the space.
    """

    reduction: float = Field(0.01, gt=0, lt=1)
    proposals: int = Field(8, ge=1, le=100_000)
    start: Annotated[Any, BeforeValidator(_start)] = None


class Uniform(Strict):
    """What the sampler `uniform` draws.

    `budget` is the smallest and the largest value by objective, such as {flops: 40M..60M}, stored in milliseconds,
    counts and bytes. With `vary`, a pattern of choices such as stages.*.kernel, all that match have `option`; with the
    same seed, the draws of different options are equal otherwise.
    """

    budget: Annotated[dict[str, tuple[float, float]], BeforeValidator(_budget)] = {}
    vary: str = ""
    option: Any = None


class Recipe(Strict):
    """The settings of a search; the fields are the keys of `search/*.yaml`."""

    name: str = "recipe"
    description: str = ""
    trials: int = Field(12, ge=1, le=UNBOUNDED)
    time_budget: Annotated[float | None, _amount("time")] = None
    sampler: str = "gain"
    reward: Annotated[Reward, _given_as(Mapping | BaseModel, "a reward is a mapping such as {form: soft}")] = Reward()
    netadapt: Annotated[NetAdapt, _given_as(Mapping | BaseModel, "netadapt is a mapping such as {reduction: 0.02}")] = (
        NetAdapt()
    )
    uniform: Annotated[Uniform, _given_as(Mapping | BaseModel, "uniform is a mapping such as {budget: {...}}")] = (
        Uniform()
    )
    objectives: Annotated[
        tuple[ObjectiveName, ...], _given_as(list | tuple, "objectives are a list such as [accuracy, latency]")
    ] = ("accuracy", "latency", "flops")
    accuracy_of: Literal["float32", "int8"] = "float32"  # int8: the objective `accuracy_int8`
    limits: Limits = Limits()
    data: str = "digits"
    data_dir: str | None = None
    held_out: float = Field(0.2, gt=0, lt=1)
    skip_broken: StrictBool = False
    resolution: int | None = Field(None, ge=LEAST_RESOLUTION, le=8192)
    runtime: str = "onnxruntime"
    threads: int = Field(1, ge=1, le=1024)
    batch_size: int = Field(1, ge=1, le=4096)
    device: str = "cpu"
    latency_device: str = "local"
    seed: int = Field(0, ge=0, lt=2**32)
    workers: int = Field(1, ge=1, le=100_000)
    ray: Annotated[str | None, BeforeValidator(lambda value: None if value == "none" else value)] = None
    gpus: float | None = Field(None, ge=0, le=64)
    retries: int = Field(3, ge=0, le=1000)
    trial_timeout: Annotated[float | None, _amount("time")] = None
    storage_path: str | None = None
    fidelity: Annotated[Fidelity, BeforeValidator(_without_booleans)] = Fidelity(resolution=32, epochs=8)
    rungs: Annotated[tuple[Rung, ...], BeforeValidator(_rungs)] = ()
    full: Annotated[Full, _given_as(Mapping | BaseModel, "a full training is a mapping such as {epochs: 25}")] = Full()
    supernet: Annotated[
        SupernetSettings | None,
        BeforeValidator(_without_booleans),
        _given_as(Mapping | SupernetSettings | None, "a supernet is a mapping such as {epochs: 100}"),
    ] = None
    training: Annotated[TrainingSettings, BeforeValidator(_without_booleans), BeforeValidator(_current_training)] = (
        TrainingSettings()
    )

    @model_validator(mode="before")
    @classmethod
    def _time_alone(cls, value: Any) -> Any:
        """With a time budget and without a number of trials, time alone ends the search."""
        if isinstance(value, dict) and value.get("time_budget") is not None and "trials" not in value:
            return {**value, "trials": UNBOUNDED}
        return value

    @model_validator(mode="before")
    @classmethod
    def _accuracy_in_int8(cls, value: Any) -> Any:
        """The objective `accuracy_int8` is the accuracy of the int8 network."""
        given = value.get("objectives") if isinstance(value, dict) else None
        if isinstance(given, list | tuple) and INT8_OBJECTIVE in given:
            plain = ["accuracy" if name == INT8_OBJECTIVE else name for name in given]
            if plain.count("accuracy") > given.count("accuracy") > 0:
                raise ValueError(f"accuracy and {INT8_OBJECTIVE} exclude each other; name one of them")
            return {**value, "objectives": plain, "accuracy_of": "int8"}
        return value

    @model_validator(mode="after")
    def _sensible(self) -> Recipe:
        if len(set(self.objectives)) != len(self.objectives) or not self.objectives:
            raise ValueError(f"objectives must be some of {', '.join((*OBJECTIVES, INT8_OBJECTIVE))}, each once")
        return self

    @property
    def is_bounded(self) -> bool:
        """Whether a number of trials ends the search, not only time."""
        return self.time_budget is None or self.trials < UNBOUNDED

    @property
    def sampler_options(self) -> dict[str, Any]:
        """The options of the sampler."""
        return getattr(self, OPTIONS_OF[self.sampler]).model_dump() if self.sampler in OPTIONS_OF else {}

    def without_effect(self) -> list[str]:
        """A line on each setting that is not the default and changes nothing in this search."""
        lines = [
            f"{part}: without effect, since the sampler is '{self.sampler}'; it is for {sampler}"
            for sampler, part in OPTIONS_OF.items()
            if sampler != self.sampler and getattr(self, part) != type(self).model_fields[part].default
        ]
        return [*lines, *self.training.without_effect()]

    @property
    def budget(self) -> dict[str, tuple[float, float]]:
        """The smallest and largest values that candidates may have, if the sampler draws within a budget."""
        return self.uniform.budget if self.sampler == "uniform" else {}

    @property
    def distributed(self) -> bool:
        """Whether Ray runs the candidates: in parallel, elsewhere, or in a process that can be stopped."""
        return self.ray is not None or self.workers > 1 or self.trial_timeout is not None

    def with_changes(self, changes: Mapping[str, Any]) -> Recipe:
        """Replace some settings; None keeps a setting, a dictionary is merged into the recipe's.

        A `time_budget` without `trials` also replaces the number of trials: time alone ends the search.
        """
        own = self.as_written()
        if changes.get("time_budget") is not None:
            own.pop("trials")
        if changes.get("objectives") is not None:
            own.pop("accuracy_of")  # it follows from the objectives
        changes = {**changes, "training": _current_training(changes.get("training"))}
        return read_value(_merged(own, changes), Document({}, ""))

    def as_written(self) -> dict[str, Any]:
        """Plain values as in a recipe's file, amounts with their units; `read` returns the same recipe."""
        units = {"latency": "ms", "peak_memory": "B", "flash": "B"}
        limits = {
            name: f"{amount!r}{units[name]}" if name in units else amount
            for name, amount in self.limits.given().items()
        }
        times = {name: getattr(self, name) for name in ("time_budget", "trial_timeout")}
        times = {name: None if seconds is None else f"{seconds!r}s" for name, seconds in times.items()}
        return {**self.model_dump(mode="json"), "limits": limits, **times}


def _merged(value: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(value)
    for key, change in changes.items():
        own = result.get(key)
        if isinstance(change, Mapping) and (own is None or isinstance(own, Mapping)) and key not in WHOLE:
            result[key] = _merged(own or {}, change)
        elif change is not None:
            result[key] = change
    return result


def load(name: str | os.PathLike) -> Recipe:
    """Load a recipe by name or path; a mistake raises `InputError` with file, line and remedy."""
    path = files.find("search", name)
    recipe = read(files.load_yaml(path))
    return recipe if recipe.name != "recipe" else recipe.model_copy(update={"name": Path(path).stem})


def read(document: Document) -> Recipe:
    """Validate a parsed document as a recipe."""
    if not isinstance(document.value, dict):
        raise document.error((), "a recipe is a mapping, such as {trials: 12}")
    return read_value(document.value, document)


def read_value(value: Any, document: Document) -> Recipe:
    """Validate plain values as a recipe; `document` gives the places for errors."""
    try:
        recipe = TypeAdapter(Recipe).validate_python(value)
    except ValidationError as error:
        misspelt = [e for e in error.errors() if e["type"] in ("extra_forbidden", "unexpected_keyword_argument")]
        first = (misspelt or error.errors())[0]
        keys = tuple(first["loc"])
        if misspelt:
            message = f"{short(keys[-1])} is not a setting{nearest(keys[-1], _settings(keys[:-1]))}"
        else:
            message = first["msg"].removeprefix("Value error, ")
            value_text = short(first["input"])
            if not message.startswith(value_text.removesuffix("...")) and not isinstance(first["input"], dict):
                message = f"{value_text} is not allowed: {message[0].lower()}{message[1:]}"
        raise document.error(keys, message) from None
    except InputError as error:  # of a fidelity or of training settings, whose messages start with the key
        place, _, message = str(error).partition(": ")
        raise document.error(tuple(place.split(".")), message) from None
    return recipe


def short(value: Any) -> str:
    """A wrong value as messages show it, at most about 60 characters long."""
    try:
        text = repr(value)
    except ValueError:  # a number with more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _settings(keys: tuple[str | int, ...]) -> Mapping[str, Any]:
    """The keys that a recipe, or its part at `keys`, can have."""
    parts = {
        **{"limits": Limits, "fidelity": Fidelity, "training": TrainingSettings, "rungs": Rung, "full": Full},
        **{"reward": Reward, "netadapt": NetAdapt, "uniform": Uniform, "supernet": SupernetSettings},
    }
    part: Any = parts.get(keys[0] if keys else "", Recipe)
    return part.model_fields if issubclass(part, BaseModel) else part.__dataclass_fields__
