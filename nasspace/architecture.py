"""`Architecture`: the frozen description of a network as a chain of layers, its JSON and its digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from nasspace import blocks, files
from nasspace.documents import Document, Keys
from nasspace.errors import InputError, nearest

VERSION = 1
MAX_WIDTH = 65536
MAX_STRIDE = 32
MAX_SIZE = 8192
MAX_LAYERS = 2000
KEYS = ("nasspace", "name", "input", "classes", "layers")


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: a block's name, its output width, its stride, and the given options.

    `options` are resolved: a `groups` that does not divide the widths is replaced by the one that the block uses.
    `out` is None only from a `flatten` to the next layer that has a width.
    """

    block: str
    out: int | None
    stride: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    if TYPE_CHECKING:
        _key: tuple[Any, ...] = field(init=False)
        _hash: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))
        options = tuple((key, value, type(value)) for key, value in sorted(self.options.items()))
        object.__setattr__(self, "_key", (self.block, self.out, self.stride, options))  # with types: 1 is not True
        object.__setattr__(self, "_hash", hash(self._key))  # layers are cache keys, hashed far more often than created

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layer) and self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        return (Layer, (self.block, self.out, self.stride, dict(self.options)))

    def to_dict(self, in_channels: int | None = None) -> dict[str, Any]:
        """Return the JSON object, without `out` if it is the input's width and without `stride` if it is 1."""
        implied = self.out is None or (self.out == in_channels and not blocks.get(self.block).flattens)
        out = {} if implied else {"out": self.out}
        stride = {} if self.stride == 1 else {"stride": self.stride}
        return {"block": self.block, **out, **stride, **self.options}


@dataclass(frozen=True)
class Architecture:
    """A network: input (channels, height, width), number of classes, layers.

    Two spellings of one network are equal and have the same `digest`; the name and the choices made in a space do not
    count. Create one with `Architecture.of`, `from_json` or a `Space`, which check every part.
    """

    input: tuple[int, int, int]
    classes: int
    layers: tuple[Layer, ...]
    name: str = field(default="", compare=False)
    choices: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @classmethod
    def of(
        cls,
        layers: Iterable[Mapping[str, Any]],
        *,
        input: Iterable[int] = (3, 224, 224),
        classes: int | None = None,
        name: str = "",
        choices: Mapping[str, Any] | None = None,
        document: Document | None = None,
    ) -> Architecture:
        """Create an architecture from layers as dictionaries, checked and resolved.

        `classes` must be the last layer's `out`, which auxiliary classifiers get, too; `document` gives the places for
        errors.
        """
        if fault := files.unfit_name(name):
            raise (document or Document({})).error(("name",), fault)
        document = document or Document({}, name)
        size = _checked_input(list(input), document)
        checked = tuple(_checked_layers(layers, size[0], document))
        if not checked:
            raise document.error(("layers",), "there are no layers")
        out = checked[-1].out
        if out is None:
            place = ("layers", len(checked) - 1)
            raise document.error(place, "the last layer needs 'out', the number of classes")
        if classes is not None and classes != out:
            raise document.error(("classes",), f"{classes} classes, but the last layer's out is {out}")
        return cls(size, out, tuple(_with_classes(checked, out, document)), name, choices)

    @classmethod
    def from_json(cls, text: str, source: str = "") -> Architecture:
        """Read the JSON of `to_json`; an `InputError` names the place of what is wrong."""
        return cls.from_document(files.parse_json(text, source))

    @classmethod
    def from_document(cls, document: Document) -> Architecture:
        """Create an architecture from a parsed document."""
        value = document.value
        if not isinstance(value, dict):
            raise document.error((), "an architecture is an object with 'nasspace', 'input', 'classes', 'layers'")
        for key in value:
            if key not in KEYS:
                raise document.error((key,), f"'{key}' is not a key of an architecture{nearest(key, KEYS)}")
        if value.get("nasspace") != VERSION or isinstance(value["nasspace"], bool):
            raise document.error(("nasspace",), f"{value.get('nasspace')!r} is not version {VERSION} of this format")
        for key in ("input", "layers"):
            if not isinstance(value.get(key), list):
                raise document.error((key,), f"'{key}' must be a list")
        classes = value.get("classes")
        if classes is not None:
            whole_number(classes, 1, 10_000_000, document, ("classes",))
        name = value.get("name", "")
        if not isinstance(name, str):
            raise document.error(("name",), f"{name!r} is not a name")
        return cls.of(value["layers"], input=value["input"], classes=classes, name=name, document=document)

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values of the JSON."""
        layers: list[Any] = []
        channels: int | None = self.input[0]
        for layer in self.layers:
            layers.append(layer.to_dict(channels))
            channels = layer.out
        # Members are named after their study's folder, whose name may not be allowed in a document.
        name = {"name": self.name} if self.name and not files.unfit_name(self.name) else {}
        return {
            "nasspace": VERSION,
            **name,
            "input": list(self.input),
            "classes": self.classes,
            "layers": layers,
        }

    def to_json(self) -> str:
        """Return the JSON text, one line per layer."""
        document = self.to_dict()
        layers = ",\n  ".join(json.dumps(layer) for layer in document.pop("layers"))
        return json.dumps(document)[:-1] + ',\n "layers": [\n  ' + layers + "]}\n"

    @cached_property
    def digest(self) -> str:
        """12 hex digits of the canonical form: with defaults, options resolved, keys sorted, no name."""
        layers: list[Any] = []
        channels: int | None = self.input[0]
        for layer in self.layers:
            layers.append(_canonical_text(layer, channels))
            channels = layer.out
        text = json.dumps([VERSION, self.input, self.classes, layers])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def with_input(self, channels: int | None = None, resolution: int | None = None) -> Architecture:
        """Return the same layers with another number of input channels or another square resolution."""
        height, width = self.input[1:] if resolution is None else (resolution, resolution)
        size = (channels or self.input[0], height, width)
        if size == self.input:
            return self
        if size[0] == self.input[0]:
            return replace(self, input=_checked_input(list(size), Document({})))
        layers = self.to_dict()["layers"]
        return Architecture.of(layers, input=size, classes=self.classes, name=self.name, choices=self.choices)

    def with_resolution(self, resolution: int) -> Architecture:
        """Return the same layers at another square resolution."""
        return self.with_input(resolution=resolution)

    def with_classes(self, classes: int) -> Architecture:
        """Return the same layers with classifiers for another number of classes.

        The classifier is the last layer that sets a width: in SqueezeNet, a convolution before the pooling. Auxiliary
        classifiers get the number as well.
        """
        if classes == self.classes:
            return self
        layers = self.to_dict()["layers"]
        last = max(i for i, layer in enumerate(layers) if "out" in layer)
        layers[last] = {**layers[last], "out": classes}
        for layer in layers:
            if blocks.get(layer["block"]).classifies:
                layer["classes"] = classes
        return Architecture.of(layers, input=self.input, name=self.name, choices=self.choices)

    def with_name(self, name: str) -> Architecture:
        """Return the same network with another name."""
        return replace(self, name=name)


def canonical(layer: Layer, in_channels: int | None) -> dict[str, Any]:
    """Return every option of the layer's block, with defaults and resolved at these widths."""
    if in_channels is None or layer.out is None:
        return {**blocks.get(layer.block).defaults, **layer.options}
    return blocks.resolve_if_possible(layer.block, in_channels, layer.out, layer.stride, layer.options)


@lru_cache(maxsize=100_000)
def _canonical_text(layer: Layer, in_channels: int | None) -> str:
    """The text of a layer that enters the digest."""
    block, options = blocks.get(layer.block), canonical(layer, in_channels)
    options = {k: v for k, v in options.items() if not (k in block.later_options and v == block.defaults[k])}
    return json.dumps([layer.block, layer.out, layer.stride, options], sort_keys=True, default=_default_text)


def _default_text(value: Any) -> str:
    """Name a default that is not a plain value, such as `nn.ReLU` in a user's block: the same in every run."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def load(path: str | Path) -> Architecture:
    """Load the architecture in a JSON file."""
    return Architecture.from_document(files.load_json(Path(path)))


def whole_number(value: Any, low: int, high: int, document: Document, keys: Keys) -> int:
    """Return `value` if it is a whole number from `low` to `high`, else raise an `InputError` at its place."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise document.error(keys, f"{value!r} is not allowed: it must be a whole number from {low} to {high}")
    if not low <= value <= high:
        raise document.error(keys, f"{value} is not allowed: it must be from {low} to {high}")
    return value


def _checked_input(size: list[Any], document: Document) -> tuple[int, int, int]:
    """Check [channels, height, width]."""
    if len(size) != 3:
        raise document.error(("input",), f"{size} must be [channels, height, width]")
    for i, part in enumerate(size):
        whole_number(part, 1, MAX_SIZE, document, ("input", i))
    return (size[0], size[1], size[2])


def _checked_layers(layers: Iterable[Mapping[str, Any]], channels: int | None, document: Document) -> Iterator[Layer]:
    """Check and resolve a chain of layers that starts with `channels`."""
    for i, layer in enumerate(layers):
        if i >= MAX_LAYERS:
            raise document.error(("layers",), f"more than {MAX_LAYERS} layers")
        keys = ("layers", i)
        if not isinstance(layer, Mapping) or not isinstance(layer.get("block"), str):
            raise document.error(keys, "a layer is an object with the key 'block', the name of a block")
        try:
            checked = checked_layer(layer, channels)
        except (InputError, TypeError):  # check again for the place; TypeError: a value that cannot be a cache key
            checked = _checked_layer(layer, channels, document, keys)
        yield checked
        channels = checked.out


def _with_classes(layers: Iterable[Layer], classes: int, document: Document) -> Iterator[Layer]:
    """The layers with the network's classes in auxiliary classifiers that do not name them; refuse other classes."""
    for i, layer in enumerate(layers):
        if not blocks.get(layer.block).classifies:
            yield layer
            continue
        given = layer.options.get("classes", classes)
        if given != classes:
            raise document.error(
                ("layers", i, "classes"), f"{given} classes, but the network has {classes}; leave 'classes' out"
            )
        yield Layer(layer.block, layer.out, layer.stride, {**layer.options, "classes": classes})


def checked_layer(layer: Mapping[str, Any], channels: int | None) -> Layer:
    """Check and resolve one layer whose input has `channels`; equal layers are the same object."""
    return _cached_layer(tuple((key, value, type(value)) for key, value in layer.items()), channels)


@lru_cache(maxsize=100_000)
def _cached_layer(items: tuple[tuple[str, Any, type], ...], channels: int | None) -> Layer:
    """Check each distinct layer once; thousands of sampled networks have few distinct layers.

    The types are part of the cache key, since True and 1.0 equal 1 but may not be allowed.
    """
    return _checked_layer({key: value for key, value, _ in items}, channels, Document({}), ())


def _checked_layer(layer: Mapping[str, Any], channels: int | None, document: Document, keys: Keys) -> Layer:
    """Check and resolve one layer; an `InputError` names its place."""
    options = {key: value for key, value in layer.items() if key not in ("block", "out", "stride")}
    try:
        block = blocks.get(layer["block"])
    except InputError as error:
        raise document.error((*keys, "block"), str(error)) from None
    options = blocks.validated(block.name, options, document, keys)
    stride = whole_number(layer.get("stride", 1), 1, MAX_STRIDE, document, (*keys, "stride"))
    out = None if block.flattens else channels
    if "out" in layer:
        out = whole_number(layer["out"], 1, MAX_WIDTH, document, (*keys, "out"))
    if channels is not None and out is not None and not block.flattens:
        full = blocks.resolve_if_possible(block.name, channels, out, stride, options)
        options = _resolved(block, options, full)
    return Layer(block.name, out, stride, options)


def _resolved(block: blocks.Block, options: dict[str, Any], full: dict[str, Any]) -> dict[str, Any]:
    """The given options as resolved in `full`, and each whole number (`groups`) whose default was changed there."""
    changed = {
        key for key, default in block.defaults.items() if type(default) is int and full[key] not in (None, default)
    }
    given = {key: options.get(key, full[key]) for key in (*options, *sorted(changed - options.keys()))}
    return {key: value if full[key] is None else full[key] for key, value in given.items()}
