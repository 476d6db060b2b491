"""The text of `model.py`: one network as a file that needs PyTorch alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nasspace import blocks, counting
from nasspace.architecture import Architecture, Layer
from nasspace.network import Network
from nasspace.outputs.gather import gather

RESERVED = {name: name for name in ("Model", "load", "CLASSES", "MEAN", "STD")} | {"torch": torch, "Path": Path}
HEAD = (
    '    """The layers in order; behind each, the shape of its output for one image."""\n',
    "    def __init__(self):",
    "        super().__init__(",
)
LOAD = '''def load(weights: str | Path | None = None) -> Model:
    """The network with its weights (those of `weights.pt` beside this file unless given), ready to predict."""
    model = Model()
    path = Path(__file__).with_name("weights.pt") if weights is None else weights
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()'''


def model_source(
    architecture: Architecture,
    *,
    title: str = "",
    note: str = "",
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> str:
    """A program with `Model`, whose state dictionary is that of `nasspace.build`'s network, and `load()`.

    It imports PyTorch and the standard library only. `note` is a sentence for its first docstring; `classes`, `mean`
    and `std` become constants. A block whose source cannot be had is an `InputError` that names it.
    """
    gathered = gather(dict.fromkeys(layer.block for layer in architecture.layers), Network, RESERVED)
    imports = sorted({*gathered.imports, "import torch", "from pathlib import Path"}, key=_import_order)
    constants = {"CLASSES": classes, "MEAN": mean, "STD": std}
    parts = [
        _docstring(architecture, title, note),
        "from __future__ import annotations\n\n" + "\n".join(_merged(imports)),
        "\n".join(f"{name} = {_tuple(value)}" for name, value in constants.items() if value is not None),
        *gathered.definitions,
        _model(architecture, gathered.names),
        LOAD,
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
    """The standard library first, then PyTorch; `import x` before `from x import y`."""
    module = line.split()[1]
    return module.partition(".")[0] == "torch", line.startswith("from"), module


def _merged(lines: list[str]) -> Iterator[str]:
    """One line for each module that names are imported from, and an empty line before PyTorch."""
    names: dict[str, list[str]] = {}
    for line in lines:
        start, _, name = line.partition(" import ")
        names.setdefault(start if name else line, []).append(name)
    before = ""
    for start, found in names.items():
        top = start.split()[1].partition(".")[0]
        if top == "torch" != before:
            yield ""
        before = top
        yield f"{start} import {', '.join(sorted(found))}" if found[0] else start


def _tuple(values: Sequence[Any]) -> str:
    """The values as a tuple, a line each if they are many."""
    shown = [_literal(value) for value in values]
    if len(", ".join(shown)) < 90:
        return f"({', '.join(shown)}{',' if len(shown) == 1 else ''})"
    return "(\n" + "".join(f"    {value},\n" for value in shown) + ")"


def _model(architecture: Architecture, names: Mapping[str, str]) -> str:
    """The class `Model`: one constructor line a layer, with the shape that comes out of it."""
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
    stride = [str(layer.stride)] if layer.stride != 1 else []
    options = [f"{key}={_literal(value)}" for key, value in layer.options.items()]
    return f"{name}({', '.join([str(channels), str(layer.out or channels), *stride, *options])})"


def _literal(value: Any) -> str:
    """As Python writes it, words in double quotes where that needs no escapes."""
    text = repr(value)
    return text if not isinstance(value, str) or "'" in value or '"' in value else f'"{text[1:-1]}"'


def _joined(parts: Iterator[str]) -> str:
    """Two empty lines around functions and classes, one between the rest; constants stand together."""
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
