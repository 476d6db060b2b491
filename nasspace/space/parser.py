"""Parse and check the YAML of a space into a `Plan`.

A list is a choice, everything else is fixed. Keys directly in a stage are chosen once for the stage, keys under `each`
separately for every layer. Every value is checked when the file is read, so a walk of the plan cannot fail on a mistake
in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nasspace import blocks
from nasspace.architecture import MAX_LAYERS, MAX_SIZE, MAX_STRIDE, MAX_WIDTH, whole_number
from nasspace.blocks.layers import make_divisible
from nasspace.blocks.registry import one_option
from nasspace.documents import Document, Keys
from nasspace.errors import InputError, nearest
from nasspace.space.tree import Alternative, Blocks, Parts, Plan, Stage, Value

MAX_DEPTH = 100
MAX_MULTIPLIER = 16.0
MAX_DIVISOR = 512
SPACE_KEYS = ("name", "description", "input", "resolution", "width", "divisor", "stem", "stages", "head")
STAGE_KEYS = ("depth", "out", "stride", "block", "each")


def read(document: Document, classes: int, resolution: int | tuple[int, ...] | None, channels: int | None) -> Plan:
    """Parse a space; for a mistake, raises `InputError` with file, line, place and remedy."""
    space = document.value
    if not isinstance(space, dict):
        raise document.error((), "a space is a mapping with 'input' and 'stages'")
    for key in space:
        if key not in SPACE_KEYS:
            raise document.error((key,), f"'{key}' is not a key of a space{nearest(key, SPACE_KEYS)}")
    for key in ("input", "stages"):
        if key not in space:
            raise document.error((), f"a space needs '{key}'")
    whole_number(classes, 2, MAX_WIDTH, Document({}, "classes"), ())
    top = _top(document, space, resolution)
    parts: dict[str, Sequence[Any]] = {
        "stem": [_layer(document, ("stem", i)) for i in _sequence(document, "stem")],
        "stages": [_stage(document, ("stages", i)) for i in _sequence(document, "stages")],
        "head": _head([_layer(document, ("head", i)) for i in _sequence(document, "head")], classes, document),
    }
    if not parts["stages"]:
        raise document.error(("stages",), "a space needs at least one stage")
    _check_classes(document, parts, classes)
    divisor = whole_number(space.get("divisor", 4), 1, MAX_DIVISOR, document, ("divisor",))
    _check_extremes(document, parts, max(top.get("width", Value((1,))).options), divisor)
    order = [key for key in space if key in top or key in parts]
    order += [key for key in (*top, "head") if key not in order]
    return Plan(
        name=_text(document, "name") or Path(document.source).stem,
        description=_text(document, "description"),
        input=_input(document, channels),
        divisor=divisor,
        top=top,
        parts=parts,
        order=tuple(order),
    )


def _check_classes(document: Document, parts: Mapping[str, Sequence[Any]], classes: int) -> None:
    """Refuse auxiliary classifiers of other classes than those of the data."""
    for key, layers in parts.items():
        for i, part in enumerate(layers):
            given = {**part.direct.parts, **part.each.parts} if isinstance(part, Stage) else part.parts
            for alternative in _alternatives(Parts(given)):
                named = {**given, **alternative.options}.get("classes")
                wrong = isinstance(named, Value) and named.options != (classes,)
                if wrong and blocks.get(alternative.block).classifies:
                    raise document.error(
                        (key, i), f"{alternative.block} has the {classes} classes of the data; leave out 'classes'"
                    )


def _check_extremes(document: Document, parts: Mapping[str, Sequence[Any]], widest: float, divisor: int) -> None:
    """Refuse a space whose widest or deepest network exceeds the limits of an architecture."""
    parsed = [(("stem", i), layer) for i, layer in enumerate(parts["stem"])]
    parsed += [(("stages", i), part) for i, stage in enumerate(parts["stages"]) for part in (stage.direct, stage.each)]
    for keys, part in parsed:
        out = max(part.parts.get("out", Value((1,))).options)
        if make_divisible(out * widest, divisor) > MAX_WIDTH:
            raise document.error((*keys, "out"), f"{out} x width {widest:g} is more than {MAX_WIDTH} channels")
    deepest = sum(max(stage.direct.parts["depth"].options) for stage in parts["stages"])
    if deepest + len(parts["stem"]) + len(parts["head"]) > MAX_LAYERS:
        raise document.error(("stages",), f"the deepest network has more than {MAX_LAYERS} layers")


def _text(document: Document, key: str) -> str:
    """The string at a key, empty by default."""
    text = document.value.get(key, "")
    if not isinstance(text, str):
        raise document.error((key,), f"{text!r} is not a string")
    return text


def _input(document: Document, channels: int | None) -> tuple[int, int, int]:
    """[channels, height, width], with the task's channels if given."""
    size = document.value["input"]
    if not isinstance(size, list) or len(size) != 3:
        raise document.error(("input",), f"{size!r} must be [channels, height, width]")
    for i, part in enumerate(size):
        whole_number(part, 1, MAX_SIZE, document, ("input", i))
    if channels is not None:
        size = [whole_number(channels, 1, MAX_SIZE, Document({}, "channels"), ()), *size[1:]]
    return (size[0], size[1], size[2])


def _top(document: Document, space: dict[str, Any], resolution: int | tuple[int, ...] | None) -> dict[str, Value]:
    """Parse `resolution` (the task's takes precedence) and `width`, if given."""
    top = {}
    if "resolution" in space:
        top["resolution"] = _value(document, ("resolution",), _whole(1, MAX_SIZE))
    if resolution is not None:
        task = Document({}, "resolution")
        sizes = resolution if isinstance(resolution, tuple) else (resolution,)
        top["resolution"] = Value(tuple(whole_number(size, 1, MAX_SIZE, task, ()) for size in sizes))
    if "width" in space:
        top["width"] = _value(document, ("width",), _multiplier)
    return top


Check = Callable[[Document, Keys, Any], Any]  # check(document, keys, value) returns the value or raises `InputError`


def _whole(low: int, high: int) -> Check:
    """A check for a whole number from `low` to `high`."""
    return lambda document, keys, value: whole_number(value, low, high, document, keys)


def _multiplier(document: Document, keys: Keys, value: Any) -> Any:
    """Check a width multiplier."""
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or not 0 < value <= MAX_MULTIPLIER:
        limits = f"above 0 and at most {MAX_MULTIPLIER:g}"
        raise document.error(keys, f"{value!r} is not allowed: a width multiplier must be {limits}")
    return value


def _value(document: Document, keys: Keys, check: Check) -> Value:
    """Parse a value or a list of options and check each; refuse an empty list and equal options."""
    raw = _at(document, keys)
    if not isinstance(raw, list):
        check(document, keys, _scalar(document, keys, raw))
        return Value((raw,))
    if not raw:
        raise document.error(keys, "an empty list leaves no choice; give at least one option")
    seen = []
    for i, option in enumerate(raw):
        checked = check(document, (*keys, i), _scalar(document, (*keys, i), option))
        if checked in seen:
            raise document.error((*keys, i), f"the option {option!r} is in this list twice; remove one")
        seen.append(checked)
    return Value(tuple(raw))


def _scalar(document: Document, keys: Keys, value: Any) -> Any:
    """Refuse a list or a mapping."""
    if isinstance(value, dict | list):
        raise document.error(keys, f"{value!r} is not allowed here: an option is a number or a word")
    return value


def _at(document: Document, keys: Keys) -> Any:
    """The document's value at `keys`."""
    value = document.value
    for key in keys:
        value = value[key]
    return value


def _sequence(document: Document, key: str) -> range:
    """The indices of a list of layers or stages."""
    value = document.value.get(key, [])
    if not isinstance(value, list):
        raise document.error((key,), f"'{key}' must be a list of layers" if key != "stages" else "must be a list")
    return range(len(value))


def _mapping(document: Document, keys: Keys) -> dict[str, Any]:
    """The mapping at `keys`."""
    value = _at(document, keys)
    if not isinstance(value, dict):
        raise document.error(keys, f"{value!r} must be a mapping, such as {{block: conv, out: 24}}")
    return value


def _layer(document: Document, keys: Keys) -> Parts:
    """Parse a layer of the stem or the head: `block`, `out`, `stride` and the block's options."""
    layer = _mapping(document, keys)
    if "block" not in layer:
        raise document.error(keys, "a layer needs 'block'")
    known = _blocks(document, (*keys, "block"))
    for name in ("depth", "each"):
        if name in layer:
            raise document.error((*keys, name), f"'{name}' belongs to a stage, not to a layer")
    _check_required(document, keys, known, set(layer))
    return Parts({key: known if key == "block" else _part(document, (*keys, key), known) for key in layer})


def _part(document: Document, keys: Keys, known: Blocks) -> Value:
    """Parse `out`, `stride`, `depth`, or an option that every alternative of `known` must have."""
    fixed = {"out": _whole(1, MAX_WIDTH), "stride": _whole(1, MAX_STRIDE), "depth": _whole(1, MAX_DEPTH)}
    key = str(keys[-1])
    if key in fixed:
        return _value(document, keys, fixed[key])
    for alternative in known.alternatives:
        if key in alternative.options:
            raise document.error(keys, f"'{key}' is set twice: here and in {alternative.block}; remove one")
        value = _value(document, keys, _option(document, keys, alternative.block))
    return value


def _option(document: Document, keys: Keys, block: str) -> Check:
    """A check for a block's option, named by the last of `keys`."""
    described, option = blocks.get(block), str(keys[-1])
    if option not in described.types:
        remedy = nearest(option, (*described.types, *STAGE_KEYS))
        raise document.error(keys, f"'{option}' is not an option of {block}{remedy}")
    return lambda document, keys, value: one_option(described, option, value, document, keys)


def _blocks(document: Document, keys: Keys) -> Blocks:
    """Parse `block`: one block or a list of alternatives."""
    raw = _at(document, keys)
    if not isinstance(raw, list):
        return Blocks((_alternative(document, keys, raw, ""),))
    if not raw:
        raise document.error(keys, "an empty list leaves no choice; give at least one block")
    names = [_block_name(document, (*keys, i), part) for i, part in enumerate(raw)]
    labels = [f".{i}" if names.count(name) > 1 else "" for i, name in enumerate(names)]
    parts = [_alternative(document, (*keys, i), part, labels[i]) for i, part in enumerate(raw)]
    for i, part in enumerate(parts):
        if any(part.block == other.block and part.options == other.options for other in parts[:i]):
            raise document.error(
                (*keys, i), f"the block {part.block} is in this list twice with equal options; remove one"
            )
    return Blocks(tuple(parts))


def _block_name(document: Document, keys: Keys, raw: Any) -> str:
    """The name of a known block in `conv` or in `conv: {kernel: 3}`."""
    if isinstance(raw, dict) and len(raw) != 1:
        raise document.error(keys, "a block with options is written 'name: {option: value}'")
    name = next(iter(raw)) if isinstance(raw, dict) else raw
    try:
        return blocks.get(name).name
    except InputError as error:
        raise document.error(keys, str(error)) from None


def _alternative(document: Document, keys: Keys, raw: Any, position: str) -> Alternative:
    """Parse one block with its options; `position` follows its name in the label."""
    name = _block_name(document, keys, raw)
    options: dict[str, Value] = {}
    if isinstance(raw, dict) and raw[name] is not None:
        inner = (*keys, name)
        for option in _mapping(document, inner):
            place = (*inner, option)
            options[option] = _value(document, place, _option(document, place, name))
    return Alternative(name, name + position, options)


def _stage(document: Document, keys: Keys) -> Stage:
    """Parse a stage."""
    stage = _mapping(document, keys)
    each = _mapping(document, (*keys, "each")) if "each" in stage else {}
    for key in each:
        if key in stage:
            raise document.error(
                (*keys, "each", key), f"'{key}' is set twice: in the stage and under 'each'; remove one"
            )
    for key in ("depth", "stride"):
        if key in each:
            raise document.error((*keys, "each", key), f"'{key}' belongs to the stage, not under 'each'")
    if ("block" in stage) == ("block" in each):
        raise document.error(keys, "a stage needs 'block', directly or under 'each'")
    place = (*keys, "block") if "block" in stage else (*keys, "each", "block")
    known = _blocks(document, place)

    def part(key: str, *parent: str) -> Value | Blocks:
        """Parse a key of the stage, or of `each`."""
        return known if key == "block" else _part(document, (*keys, *parent, key), known)

    direct = {key: part(key) for key in stage if key != "each"}
    order = tuple(stage)
    if "depth" not in stage:
        direct, order = {"depth": Value((1,)), **direct}, ("depth", *order)
    _check_required(document, keys, known, {*direct, *each})
    return Stage(Parts(direct), Parts({key: part(key, "each") for key in each}), order)


def _check_required(document: Document, keys: Keys, known: Blocks, given: set[str]) -> None:
    """Refuse a layer or stage that lacks an option without a default."""
    for alternative in known.alternatives:
        for option, default in blocks.get(alternative.block).defaults.items():
            if default is blocks.REQUIRED and option not in given | alternative.options.keys():
                raise document.error(keys, f"{alternative.block} needs the option '{option}'")


def _head(head: list[Parts], classes: int, document: Document) -> list[Parts]:
    """Complete the head with global pooling, dropout and the classifier where they are missing."""
    names = [{alternative.block for alternative in _alternatives(layer)} for layer in head]

    def fixed(block: str, **values: int) -> Parts:
        """A layer without choices."""
        only = Blocks((Alternative(block, block, {}),))
        return Parts({"block": only, **{key: Value((value,)) for key, value in values.items()}})

    def missing(*required: str) -> bool:
        """Whether no layer of the head can be any of these blocks."""
        return not any(name in required for known in names for name in known)

    classifier = _classifier(head, names, classes, document)
    body = head if classifier is None else head[:-1]
    ends = next((i for i, known in enumerate(names[: len(body)]) if known & {"dropout", "linear"}), len(body))
    pool = [fixed("global_pool")] if missing("global_pool", "flatten") else []
    dropout = [fixed("dropout")] if missing("dropout") else []
    last = fixed("linear", out=classes) if classifier is None else classifier
    return [*body[:ends], *pool, *body[ends:], *dropout, last]


def _alternatives(layer: Parts) -> tuple[Alternative, ...]:
    """The blocks that a layer can be."""
    block = layer.parts["block"]
    assert isinstance(block, Blocks)
    return block.alternatives


def _classifier(head: list[Parts], names: list[set[str]], classes: int, document: Document) -> Parts | None:
    """The head's last layer if it is a `linear`, with the number of classes as `out`; None otherwise."""
    if not head or names[-1] != {"linear"}:
        return None
    out = head[-1].parts.get("out", Value((classes,)))
    assert isinstance(out, Value)
    if out.options != (classes,):
        place = ("head", len(head) - 1, "out")
        raise document.error(place, f"the last layer's out must be the {classes} classes of the data; leave out 'out'")
    return Parts({**head[-1].parts, "out": out})
