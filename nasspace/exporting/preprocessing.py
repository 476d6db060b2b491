"""preprocessing.json of an export, and its copies in the metadata of model.onnx and the constants of model.py."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace import files
from nasspace.architecture import Architecture
from nasspace.data import predict
from nasspace.errors import InputError, nearest

if TYPE_CHECKING:
    from nasspace.data.images import DataSet

NAME = "preprocessing.json"
PROGRAM = "predict.py"
METADATA = ("preprocessing", "classes", "digest")  # of model.onnx
WHITE = [255, 255, 255]


def complete(
    architecture: Architecture,
    card: Mapping[str, Any],
    preprocessing: Mapping[str, Any] | None = None,
    data: DataSet | None = None,
) -> dict[str, Any]:
    """The content of preprocessing.json: the data's, else `preprocessing` completed by `default`.

    A specification that does not fit the network raises `InputError`.
    """
    given = dict(preprocessing or {}) if data is None else data.preprocessing
    for key in given:
        if key not in predict.KEYS:
            raise InputError(f"preprocessing: '{key}' is not a key of {NAME}{nearest(key, predict.KEYS)}")
    spec = _plain({**default(architecture, card), **given})
    if problem := next(problems(spec, architecture), None):
        raise InputError(f"preprocessing: {problem}")
    return spec


def default(architecture: Architecture, card: Mapping[str, Any]) -> dict[str, Any]:
    """The default: resize to the input's shorter side and crop, or resize to an input that is not square.

    Mean, standard deviation and class names are the card's, else 0, 1 and numbers.
    """
    channels, height, width = architecture.input
    return {
        "input": [channels, height, width],
        "orientation": "exif",
        "color": "L" if channels == 1 else "RGB",
        "background": WHITE,
        "draft": None,
        "range": None,
        "resize": {"shorter_side": height} if height == width else {"size": [height, width]},
        "interpolation": "bilinear",
        "crop": [height, width] if height == width else None,
        "mean": card.get("mean", [0.0] * channels),
        "std": card.get("std", [1.0] * channels),
        "classes": card.get("classes", [str(i) for i in range(architecture.classes)]),
    }


def problems(spec: Mapping[str, Any], architecture: Architecture) -> Iterator[str]:
    """Yield what does not fit the network in a specification, or is invalid."""
    channels, *size = architecture.input
    if "input" in spec and spec["input"] != list(architecture.input):
        yield f"input is {spec['input']}, but the network takes {list(architecture.input)}"
    wrong = list(predict.problems(spec))
    yield from wrong
    if wrong:
        return
    if channels in (1, 3) and (spec["color"] == "L") != (channels == 1):
        yield f"color {spec['color']!r} does not give {channels} channels"
    if len(spec["classes"]) != architecture.classes:
        yield f"{len(spec['classes'])} classes, but the network has {architecture.classes}"
    resize, crop = spec["resize"], spec["crop"]
    if (crop or resize.get("size")) != size:
        yield f"resize and crop do not give {size[0]}x{size[1]} pixels"
    elif crop and min(resize.get("size") or [resize["shorter_side"]]) < max(crop):
        yield "crop is larger than what resize leaves"


def write(folder: Path, spec: Mapping[str, Any], *, program: bool) -> None:
    """Write preprocessing.json and, with `program`, predict.py, a copy of the module `data.predict`."""
    # In ASCII, since the name of a class may be invalid UTF-8.
    files.write_text(folder / NAME, json.dumps(spec, indent=1) + "\n")
    if program:
        files.write_text(folder / PROGRAM, Path(predict.__file__).read_text(encoding="utf-8"))


def read(folder: Path) -> dict[str, Any]:
    """Read preprocessing.json; a missing, damaged or incomplete file raises `InputError`."""
    try:
        return predict.read_spec(folder)
    except ValueError as error:
        raise InputError(str(error)) from None


def read_for(folder: Path, architecture: Architecture) -> dict[str, Any]:
    """Read the preprocessing of an earlier export for the same network, which may have another resolution."""
    return at_another_size(read(folder), architecture)


def at_another_size(spec: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    """Adapt a specification to the network's input: its sizes are dropped if it was written for another one."""
    if list(spec["input"]) == list(architecture.input):
        return {key: spec[key] for key in predict.KEYS if key in spec}
    kept = {key: spec[key] for key in predict.KEYS if key in spec and key not in ("input", "resize", "crop")}
    large = [2 * size for size in architecture.input[1:]]  # as in training: JPEG files are decoded at twice the size
    return {**kept, "draft": large if spec.get("draft") else None}


def metadata(spec: Mapping[str, Any], digest: str) -> dict[str, str]:
    """The metadata of model.onnx: the specification, the classes again for simple readers, the network's digest."""
    return {"preprocessing": json.dumps(spec), "classes": json.dumps(spec["classes"]), "digest": digest}


def differences_in_metadata(found: Mapping[str, str], spec: Mapping[str, Any], digest: str) -> list[str]:
    """The keys that differ in the metadata of model.onnx: of `METADATA` or of preprocessing.json."""
    try:
        stated = {key: json.loads(found[key]) for key in ("preprocessing", "classes")}
    except (KeyError, ValueError, RecursionError):
        return ["metadata missing or damaged"]
    wrong = _differences(stated["preprocessing"], spec)
    wrong += ["classes"] if stated["classes"] != spec["classes"] and "classes" not in wrong else []
    return wrong + (["digest"] if found.get("digest") != digest else [])


def constants(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The constants of model.py by name."""
    return {key.upper(): spec[key] for key in predict.KEYS}


def differences_in_source(tree: ast.Module, spec: Mapping[str, Any]) -> list[str]:
    """The keys whose constants differ in model.py; the program is parsed, not run."""
    expected = constants(spec)
    found: dict[str, Any] = {}
    for statement in [one for one in tree.body if isinstance(one, ast.Assign)]:
        for target in statement.targets:
            if isinstance(target, ast.Name) and target.id in expected:
                try:
                    value = _plain(ast.literal_eval(statement.value))
                except (ValueError, TypeError, MemoryError, RecursionError):
                    value = NotImplemented
                found[target.id] = NotImplemented if target.id in found else value  # assigned twice
    return [name.lower() for name, value in expected.items() if found.get(name, NotImplemented) != value]


def differences(spec: Mapping[str, Any], data: DataSet) -> list[str]:
    """The keys in which a specification differs from that of a data set."""
    return _differences(spec, _plain(data.preprocessing))


def _differences(found: Any, spec: Mapping[str, Any]) -> list[str]:
    if not isinstance(found, dict):
        return ["preprocessing"]
    return [key for key in predict.KEYS if key not in found or found[key] != spec[key]]


def _plain(value: Any) -> Any:
    """A value as JSON returns it: lists for tuples."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def in_words(spec: Mapping[str, Any]) -> str:
    """The steps as one sentence for the model card."""
    steps = ["decoded"]
    if spec["orientation"] == "exif":
        steps.append("turned upright according to its EXIF data")
    if spec["range"]:
        low, high = spec["range"]
        steps.append(f"scaled so that {low:g} becomes 0 and {high:g} becomes 255 if it has more than eight bits")
    red, green, blue = spec["background"]
    white = spec["background"] == WHITE
    steps.append(f"put on {'white' if white else f'the color ({red}, {green}, {blue})'} where it is transparent")
    steps.append("converted to gray" if spec["color"] == "L" else f"converted to {spec['color']}")
    resize = spec["resize"]
    if "size" in resize:
        goal = f"{resize['size'][0]}x{resize['size'][1]} pixels (height x width)"
    else:
        goal = f"a shorter side of {resize['shorter_side']} pixels"
    steps.append(f"resized to {goal} ({spec['interpolation']})")
    if spec["crop"]:
        steps.append(f"cropped to {spec['crop'][0]}x{spec['crop'][1]} pixels at the center")
    mean, std = (", ".join(f"{value:.6g}" for value in spec[key]) for key in ("mean", "std"))
    steps.append(f"divided by 255, minus the mean ({mean}), divided by the standard deviation ({std}) of each channel")
    return f"An image is {'; '.join(steps)}."
