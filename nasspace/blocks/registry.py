"""Registry of blocks: names, and the types and defaults of options, read from the constructor's signature."""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pydantic
from torch import nn

from nasspace.documents import Document, Keys
from nasspace.errors import InputError, NasspaceError, nearest

ENTRY_POINTS = "nasspace.blocks"
REQUIRED = inspect.Parameter.empty  # default of an option that must be given
POSITIONAL = ("in_channels", "out_channels", "stride")
LARGEST = 1e15  # largest number as an option
LATER_OPTIONS = {  # options added to a block after studies had recorded digests of networks with it
    "conv": frozenset({"se", "skip"}),
    "avg_pool": frozenset({"size"}),
    "inverted_residual": frozenset({"linear"}),
    "shuffle_v1": frozenset({"shuffle"}),
    "shuffle_v2": frozenset({"shuffle"}),
}
_CLASSES: dict[str, type[nn.Module]] = {}


@dataclass(frozen=True)
class Block:
    """A registered block: its class, the types of its options, their defaults."""

    name: str
    cls: type[nn.Module]
    types: Mapping[str, pydantic.TypeAdapter[Any]]
    defaults: Mapping[str, Any]  # `REQUIRED` where an option must be given

    @property
    def flattens(self) -> bool:
        """Whether `in_channels` is the size of the whole map (`flatten`)."""
        return getattr(self.cls, "flattens", False)

    @property
    def classifies(self) -> bool:
        """Whether it classifies in training; its option `classes` is the number of the network's classes."""
        return getattr(self.cls, "classifies", False)

    @property
    def later_options(self) -> frozenset[str]:
        """Options added later: a digest leaves out their defaults, so that recorded digests stay valid."""
        return LATER_OPTIONS.get(self.name, frozenset())

    @property
    def formula(self) -> str:
        """The first line of the block's docstring."""
        return (inspect.getdoc(self.cls) or "").split("\n")[0]


def register(name: str, cls: type[nn.Module]) -> type[nn.Module]:
    """Register `cls` as `name`; a second class with that name raises `InputError`."""
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise InputError(f"block '{name}': {cls!r} is not a class of nn.Module")
    parameters = tuple(inspect.signature(cls).parameters)
    if parameters[:2] != POSITIONAL[:2] or "stride" not in parameters[2:3]:
        raise InputError(
            f"block '{name}': {cls.__name__}{inspect.signature(cls)} must begin with "
            "(in_channels, out_channels, stride)"
        )
    reserved = sorted({"block", "out"} & set(parameters))
    if reserved:
        raise InputError(f"block '{name}': an option cannot be called '{reserved[0]}', a key of every layer")
    if hasattr(cls, "settle"):
        remedy = "write it as resolve(in_channels, out_channels, stride, **options), see nasspace.blocks"
        raise InputError(f"block '{name}': {cls.__name__}.settle is no longer called; {remedy}")
    if _CLASSES.get(name, cls) is not cls:
        raise InputError(f"block '{name}' is registered already; choose another name")
    _CLASSES[name] = cls
    return cls


@functools.cache
def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    """Blocks of other installed packages, by name."""
    return {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def known() -> list[str]:
    """Names of all blocks, sorted."""
    return sorted(_CLASSES.keys() | _entry_points().keys())


def own_blocks() -> dict[str, type[nn.Module]]:
    """Classes registered from outside nasspace, by name."""
    return {name: cls for name, cls in _CLASSES.items() if cls.__module__.partition(".")[0] != "nasspace"}


def get(name: str) -> Block:
    """Return the block called `name`; an unknown name raises `InputError` with the nearest known one."""
    if not isinstance(name, str):
        raise InputError(f"{name!r} is not the name of a block")
    if name not in _CLASSES:
        if name not in _entry_points():
            raise InputError(f"'{name}' is not a block{nearest(name, known())}")
        try:
            register(name, _entry_points()[name].load())
        except NasspaceError:
            raise
        except Exception as error:
            raise InputError(f"block '{name}' of {_entry_points()[name].value} fails to load: {error}") from error
    return _described(name, _CLASSES[name])  # type: ignore[arg-type]  # mypy: a class with __hash__ is not Hashable


@functools.cache
def _described(name: str, cls: type[nn.Module]) -> Block:
    """Read the options of a class from its signature."""
    parameters = list(inspect.signature(cls).parameters.values())[len(POSITIONAL) :]
    options = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    try:
        hints = typing.get_type_hints(cls.__init__, include_extras=True)
    except Exception:  # unreadable annotations in a user's class: use the types of the defaults
        hints = {}
    return Block(
        name=name,
        cls=cls,
        types={option: _adapter(hints.get(option), p.default) for option, p in options.items()},
        defaults={option: p.default for option, p in options.items()},
    )


def _adapter(hint: Any, default: Any) -> pydantic.TypeAdapter[Any]:
    """The validator of an option from its annotation, else from its default's type."""
    if hint is None:
        hint = type(default) if isinstance(default, bool | int | float | str) else Any
    try:
        return pydantic.TypeAdapter(hint, config=pydantic.ConfigDict(strict=True))
    except pydantic.errors.PydanticUserError:
        return pydantic.TypeAdapter(Any)


def validated(name: str, options: Mapping[str, Any], document: Document, keys: Keys) -> dict[str, Any]:
    """Convert the options to their types; an `InputError` names the place in `document` of what is not allowed."""
    block = get(name)
    result = {}
    for option, value in options.items():
        if option not in block.types:
            remedy = nearest(option, (*block.types, "out", "stride"))
            raise document.error((*keys, option), f"'{option}' is not an option of {name}{remedy}")
        result[option] = one_option(block, option, value, document, (*keys, option))
    missing = [o for o, default in block.defaults.items() if default is REQUIRED and o not in options]
    if missing:
        raise document.error(keys, f"{name} needs the option '{missing[0]}'")
    return result


def one_option(block: Block, option: str, value: Any, document: Document, keys: Keys) -> Any:
    """Check one value of one option against the block's signature and convert it."""
    if isinstance(value, list | dict | tuple | set):
        raise document.error(keys, f"{value!r} is not allowed: an option is a number, a word, true or false")
    if isinstance(value, int | float) and not abs(value) < LARGEST:
        raise document.error(keys, f"{str(value)[:20]} is not allowed: it is too large a number, or none")
    try:
        return block.types[option].validate_python(value)
    except pydantic.ValidationError as error:
        raise document.error(keys, f"{value!r} {explain(error, value)}") from None


def explain(error: pydantic.ValidationError, value: Any) -> str:
    """Phrase a validation error of one value as a predicate: 'is not allowed: ...'."""
    first = error.errors()[0]
    context = first.get("ctx", {})
    if first["type"] == "literal_error":
        allowed = context["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        return "is not allowed here" + nearest(value, allowed)
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return "is not allowed: it " + message


def resolve(name: str, in_channels: int, out_channels: int, stride: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return every option as the block uses it at these widths: with defaults, then changed by its own `resolve`."""
    block = get(name)
    full = {**block.defaults, **options}
    if hasattr(block.cls, "resolve"):
        full |= block.cls.resolve(in_channels, out_channels, stride, **full)
    return full


def resolve_if_possible(
    name: str, in_channels: int, out_channels: int, stride: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Like `resolve`, but return the options with defaults where a user's `resolve` raises.

    An architecture whose block does not run can thus be described and recorded; building it raises the error.
    """
    try:
        return resolve(name, in_channels, out_channels, stride, options)
    except Exception:  # a user's `resolve` may raise anything; building the block raises it again
        return {**get(name).defaults, **options}
