"""The source of `model.py`: one network as a file that needs only PyTorch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nasspace import blocks, counting
from nasspace.architecture import Architecture, Layer
from nasspace.data import predict
from nasspace.exporting.preprocessing import constants as constants_of
from nasspace.exporting.source_bundler import bundle
from nasspace.network import Network, fold, folds

CONSTANTS = tuple(key.upper() for key in predict.KEYS)  # INPUT, COLOR, RESIZE, MEAN, CLASSES, ...
RESERVED = {name: name for name in ("Model", "load", "preprocess", "predict", *CONSTANTS)} | {
    "fold": fold,
    "torch": torch,
    "Path": Path,
}
HEAD = (
    '    """The layers in order, each with the shape of its output for one image."""\n',
    "    def __init__(self):",
    "        super().__init__(",
)
LOAD = '''def load(weights: str | Path | None = None) -> Model:
    """Load the network in evaluation mode; the weights default to `weights.pt` next to this file."""
    model = Model()
    path = Path(__file__).with_name("weights.pt") if weights is None else weights
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()'''
LOAD_FOLDED = LOAD.replace("in evaluation mode", "for inference, its blocks folded").replace(
    "return model.eval()", "return fold(model.eval())"
)
PREPROCESS = '''def preprocess(images: torch.Tensor) -> torch.Tensor:
    """Turn decoded images, uint8 [N, C, H, W] or [C, H, W] of any size, into the network's input, float32 [N, C, H, W].

    The images are upright and have the channels of COLOR. `predict.py` also decodes files, and resizes with Pillow.
    """
    images = images if images.dim() == 4 else images[None]
    height, width = images.shape[-2:]
    size = tuple(RESIZE.get("size", ()))
    if not size:
        side, shorter = RESIZE["shorter_side"], min(height, width)
        size = (round(height * side / shorter), round(width * side / shorter))
    if size != (height, width):
        mode = "bicubic" if INTERPOLATION == "bicubic" else "bilinear"
        images = torch.nn.functional.interpolate(images.float(), size, mode=mode, antialias=True).round().clamp(0, 255)
    if CROP:
        top, left = (images.shape[-2] - CROP[0]) // 2, (images.shape[-1] - CROP[1]) // 2
        images = images[..., top : top + CROP[0], left : left + CROP[1]]
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std'''
PREDICT = '''def predict(images: torch.Tensor, network: torch.nn.Module | None = None) -> list[tuple[str, float]]:
    """Classify decoded images, uint8 [N, C, H, W] or [C, H, W]: the class and its probability for each."""
    network = load() if network is None else network
    with torch.inference_mode():
        probabilities = network(preprocess(images)).softmax(1)
    values, best = probabilities.max(1)
    return [(CLASSES[i], value) for i, value in zip(best.tolist(), values.tolist(), strict=True)]'''


def model_source(
    architecture: Architecture,
    *,
    title: str = "",
    note: str = "",
    preprocessing: Mapping[str, Any] | None = None,
) -> str:
    """Write a program with the class `Model` and the function `load()`.

    It imports only PyTorch and the standard library. The state dictionary of `Model` is that of `nasspace.build`'s
    network; `load()` folds the blocks that fold. `note` is added to the module's docstring. The values of
    `preprocessing`, the content of preprocessing.json, become constants for `preprocess()` and `predict()`. A block
    whose source is unavailable is an `InputError`.
    """
    bundled = bundle(dict.fromkeys(layer.block for layer in architecture.layers), Network, RESERVED)
    imports = sorted({*bundled.imports, "import torch", "from pathlib import Path"}, key=_import_order)
    constants = constants_of(preprocessing) if preprocessing else {}
    parts = [
        _docstring(architecture, title, note),
        "from __future__ import annotations\n\n" + "\n".join(_merged(imports)),
        "\n".join(f"{name} = {_value(value)}" for name, value in constants.items()),
        *bundled.definitions,
        _model(architecture, bundled.names),
        *([inspect.getsource(fold).rstrip(), LOAD_FOLDED] if folds(architecture) else [LOAD]),
        *((PREPROCESS, PREDICT) if preprocessing else ()),
    ]
    return _joined(part for part in parts if part)


def _docstring(architecture: Architecture, title: str, note: str) -> str:
    size = ", ".join(map(str, architecture.input))
    name = title or architecture.name or f"Network {architecture.digest}"
    text = f"""{name}: images of shape (batch, {size}) to scores of shape (batch, {architecture.classes}).

`load()` gives the network with its weights.\n{note}""".rstrip()
    quoted = text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    return f'"""{quoted}\n"""'


def _import_order(line: str) -> tuple[bool, bool, str]:
    """Sort key: the standard library before PyTorch, `import x` before `from x import y`."""
    module = line.split()[1]
    return module.partition(".")[0] == "torch", line.startswith("from"), module


def _merged(lines: list[str]) -> Iterator[str]:
    """One import line per module, with an empty line before PyTorch."""
    names: dict[str, list[str]] = {}
    for line in lines:
        start, _, name = line.partition(" import ")
        names.setdefault(start if name else line, []).append(name)
    previous = ""
    for start, found in names.items():
        top = start.split()[1].partition(".")[0]
        if top == "torch" != previous:
            yield ""
        previous = top
        yield f"{start} import {', '.join(sorted(found))}" if found[0] else start


def _value(value: Any) -> str:
    """Write a value of JSON as Python, with tuples for lists."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_value(each)}" for key, each in value.items()) + "}"
    return _tuple(value) if isinstance(value, list | tuple) else _literal(value)


def _tuple(values: Sequence[Any]) -> str:
    """Write values as a tuple, one per line if they are long."""
    shown = [_literal(value) for value in values]
    if len(", ".join(shown)) < 90:
        return f"({', '.join(shown)}{',' if len(shown) == 1 else ''})"
    return "(\n" + "".join(f"    {value},\n" for value in shown) + ")"


def _model(architecture: Architecture, names: Mapping[str, str]) -> str:
    """Write the class `Model`: one constructor call per layer, with the shape of its output."""
    channels = architecture.input[0]
    calls, shapes = [], []
    for layer, counted in zip(architecture.layers, counting.cost(architecture).layers, strict=True):
        if getattr(blocks.get(layer.block).cls, "flattens", False):
            channels = counted.in_shape[0] * counted.in_shape[1] * counted.in_shape[2]
        calls.append(f"            {_call(names[layer.block], layer, channels)},")
        shapes.append(" x ".join(map(str, counted.out_shape)))
        channels = layer.out or channels
    width = max(map(len, calls))
    lines = [f"{call:<{width}}  # {shape}" for call, shape in zip(calls, shapes, strict=True)]
    return "\n".join([f"class Model({names['']}):", *HEAD, *lines, "        )"])


def _call(name: str, layer: Layer, channels: int) -> str:
    parameter = inspect.signature(blocks.get(layer.block).cls).parameters["stride"]
    stride = [] if parameter.default == layer.stride else [str(layer.stride)]
    options = [f"{key}={_literal(value)}" for key, value in layer.options.items()]
    return f"{name}({', '.join([str(channels), str(layer.out or channels), *stride, *options])})"


def _literal(value: Any) -> str:
    """Write a literal, with double quotes where they need no escapes."""
    text = repr(value)
    return text if not isinstance(value, str) or "'" in value or '"' in value else f'"{text[1:-1]}"'


def _joined(parts: Iterator[str]) -> str:
    """Join parts with two empty lines around functions and classes, and one between others."""
    text = ""
    block_before = False
    for part in parts:
        block = part.lstrip("@#").startswith(("class ", "def ", "async "))
        first = not text
        if not first:
            text += "\n\n\n" if block or block_before else "\n\n"
        text += part
        block_before = block
    return text + "\n"
