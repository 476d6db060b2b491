"""The model card, README.md of an export: the network, its cost, and how to load each file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nasspace import counting
from nasspace.architecture import Architecture
from nasspace.errors import InputError, nearest
from nasspace.exporting import photo_onnx
from nasspace.exporting.preprocessing import in_words
from nasspace.exporting.targets import BY_FILE, LITERT_INT8
from nasspace.formatting import escape_markdown, kilobytes, significant
from nasspace.network import folds

KEYS = (  # facts of a card that do not follow from the network itself
    "title",
    "classes",  # their names
    "mean",  # of each channel, of pixels scaled to 0..1
    "std",
    "accuracy",  # a fraction
    "accuracy_is_of",  # 'held-out training images at 32x32', 'validation images at 32x32'
    "search_accuracy",  # at the search's own fidelity
    "search_fidelity",  # its training budget: a text, or a mapping such as {"resolution", "epochs", "share"}
    "accuracy_expected",  # after full training, on new images
    "accuracy_low",  # the 95 % interval
    "accuracy_high",
    "full_epochs",  # epochs of the full training
    "resolution_why",  # why the network takes images of this size
    "latency_ms",
    "latency_low_ms",
    "latency_high_ms",
    "runtime",
    "threads",
    "batch_size",
    "machine",  # a text, or a dictionary of texts
    "study",
    "space",
    "data",
    "id",
)
FILES = {
    "architecture.json": "the network, layer by layer",
    "model.py": "the network as PyTorch code; imports torch and the standard library only",
    "weights.pt": "state dictionary, for `torch.load(..., weights_only=True)`",
    "weights.safetensors": "the same weights as safetensors",
    "model.onnx": "the network with its weights as ONNX, batch norm folded in; metadata: preprocessing, classes",
    "model.int8.onnx": "the network, quantized: weights in int8, activations in uint8",
    photo_onnx.NAME: "the network with the preprocessing inside: a decoded image in, probabilities out",
    **{target.file: target.about for target in BY_FILE.values()},
    "model.openvino.bin": "its weights",
    "preprocessing.json": "how images are preprocessed, and the names of the classes",
    "predict.py": "classifies image files; needs onnxruntime, numpy and Pillow",
    "export.json": "the content of this card for programs; `nas verify` checks the folder with it",
}


def checked(card: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    """Validate a card and drop values that are None or NaN; one that does not fit raises `InputError`."""
    card = {key: value for key, value in card.items() if value is not None and value == value}
    for key in card:
        if key not in KEYS:
            raise InputError(f"card: '{key}' is not a key of a model card{nearest(key, KEYS)}")
    for key in ("mean", "std"):
        if key in card:
            card[key] = [float(value) for value in card[key]]
            if len(card[key]) != architecture.input[0]:
                raise InputError(f"card: {key} has {len(card[key])} values for {architecture.input[0]} channels")
    for key in ("accuracy", "search_accuracy", "accuracy_expected", "accuracy_low", "accuracy_high"):
        if not 0 <= card.get(key, 0) <= 1:
            raise InputError(f"card: {key} {card[key]} is not a fraction, such as 0.93")
    if "classes" in card:
        card["classes"] = [_text(name) for name in card["classes"]]
        if len(card["classes"]) != architecture.classes:
            raise InputError(f"classes: {len(card['classes'])} names for {architecture.classes} classes")
    return card


def title(architecture: Architecture, card: Mapping[str, Any]) -> str:
    """The title of the card."""
    return _text(card.get("title") or architecture.name or f"Network {architecture.digest}")


def trained_at(resolution: int) -> str:
    """The note on weights that are exported at another resolution."""
    return f"the weights were trained at {resolution}x{resolution}"


def never_trained(seed: int) -> str:
    """The warning on a network without trained weights."""
    return f"It was never trained: its weights are the initial ones of seed {seed}, and its scores mean nothing."


def readme(
    architecture: Architecture, record: Mapping[str, Any], spec: Mapping[str, Any], checks: Sequence[Any]
) -> str:
    """Render the card as Markdown; `record` is the content of export.json, `spec` that of preprocessing.json."""
    card = record["card"]
    size = " x ".join(map(str, architecture.input))
    parts = [f"# {escape_markdown(title(architecture, card))}"]
    network = f"A convolutional network for images of {size} (channels, height, width)"
    parts.append(f"{network} and {architecture.classes} classes{_origin(card)}.")
    if not record["trained"]:
        parts.append(f"**{never_trained(record['seed'])}**")
    parts.append(_table(("", ""), _facts(architecture, card)))
    if record["accuracy"]:
        parts.append("## Accuracy\n\n" + _accuracies(record, checks))
    if "classes" in card:
        rows = [(str(i), escape_markdown(name)) for i, name in enumerate(card["classes"])]
        parts.append("## Classes\n\n" + _table(("output", "class"), rows))
    parts.append("## Preprocessing\n\n" + escape_markdown(in_words(spec)))
    parts.append("## Use\n\n" + "\n\n".join(_loading(architecture, record)))
    files = [(f"`{name}`", FILES[name]) for name in FILES if name in record["files"]]
    parts.append("## Files\n\n" + _table(("file", "content"), files))
    parts.append("## Checked at export\n\n" + _table(("check", "", "found", "limit"), map(_checked_row, checks)))
    return "\n\n".join(parts) + "\n"


def _checked_row(check: Any) -> tuple[str, str, str, str]:
    if check.ok is None:
        return escape_markdown(check.name), "not run", escape_markdown(check.why), ""
    return escape_markdown(check.name), "ok" if check.ok else "FAILED", _figure(check.value), _figure(check.limit)


def _accuracies(record: Mapping[str, Any], checks: Sequence[Any]) -> str:
    """The accuracy of each file, and on how many images it differs from the training pipeline."""
    differing = {check.name: check.value for check in checks}
    rows = []
    for name, value in record["accuracy"].items():
        others = differing.get(f"decisions of {name} that differ")
        rows.append((f"`{name}`", f"{value:.2%}", "" if others is None else str(others)))
    data = f"On the validation images of {escape_markdown(record['data']['name'])}, " if record["data"] else ""
    how = "each file through preprocessing.json, `weights.safetensors` in the training pipeline:"
    table = _table(("file", "accuracy", "images that differ from the pipeline"), rows)
    made = _int8("model.int8.onnx", record.get("int8")) + _int8(LITERT_INT8.file, record.get("int8_litert"))
    return f"{data}{how}\n\n{table}{made}"


def _int8(name: str, how: Any) -> str:
    """How an int8 file was made and what it loses, as a paragraph; empty without one."""
    if not isinstance(how, Mapping):
        return ""
    weights, ranges = (escape_markdown(how.get(key)) for key in ("weights", "ranges"))
    text = f"\n\n`{name}` has weights {weights} and ranges by {ranges}"
    if nodes := how.get("float_nodes"):
        text += f"; {len(nodes)} operations stay in float: {escape_markdown(', '.join(map(str, nodes)))}"
    if layers := how.get("float_layers"):
        text += f"; operations of layers {escape_markdown(', '.join(map(str, layers)))} stay in float"
    if isinstance(loss := how.get("loss"), Mapping):
        value, low, high = (f"{100 * loss[key]:.2f}" for key in ("value", "low", "high"))
        text += f". It loses {value} points of accuracy ({low} to {high}) on the same {loss['images']:,} images"
    if isinstance(tuning := how.get("fine_tuning"), Mapping) and tuning.get("kept"):
        epochs = escape_markdown(tuning.get("epochs"))
        text += f". It has weights of its own, those of the other files trained for {epochs} epochs as int8 computes"
    return f"{text}."


def _origin(card: Mapping[str, Any]) -> str:
    labels = {"study": "study", "id": "candidate", "space": "space", "data": "data"}
    known = [f"{word} {escape_markdown(card[key])}" for key, word in labels.items() if key in card]
    return f", found by nasspace ({', '.join(known)})" if known else ""


def _facts(architecture: Architecture, card: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    cost = counting.cost(architecture)
    shape = ", ".join(map(str, architecture.input))
    yield "Input", f"float32, (batch, {shape}){_normalization(card)}"
    if "resolution_why" in card:
        yield "Resolution", escape_markdown(card["resolution_why"])
    yield "Output", f"scores before softmax, (batch, {architecture.classes})"
    folded = " with its blocks folded for inference; the files of weights keep their branches"
    yield "Parameters", f"{cost.params:,}{folded if folds(architecture) else ''}"
    yield "FLOPs", f"{cost.flops:,} multiply-adds of convolutions and linear layers for one image"
    yield "Memory access", f"{cost.memory_access:,} elements read and written (ShuffleNet V2's MAC)"
    yield (
        "Peak memory",
        f"{kilobytes(cost.peak_memory)} of tensors at one time, float32, one image, without weights",
    )
    yield "Flash", f"{kilobytes(cost.flash)} of weights in float32, batch norm folded"
    if "accuracy" in card:
        yield "Accuracy", f"{card['accuracy']:.2%} of {escape_markdown(card.get('accuracy_is_of', 'unknown images'))}"
    if "search_accuracy" in card:
        yield "Accuracy in the search", f"{card['search_accuracy']:.2%}{_fidelity(card.get('search_fidelity'))}"
    if "accuracy_low" in card and "accuracy_high" in card:
        yield "Accuracy after full training", _full_training(card)
    if "latency_ms" in card:
        yield "Latency", _latency(architecture, card)
    yield "Digest", f"`{architecture.digest}`"


def _full_training(card: Mapping[str, Any]) -> str:
    """Where the accuracy of a full training on new images is expected."""
    expected = f"{card['accuracy_expected']:.2%} expected, " if "accuracy_expected" in card else ""
    epochs = f" ({card['full_epochs']} epochs)" if "full_epochs" in card else ""
    return f"{expected}95 % interval {card['accuracy_low']:.2%} to {card['accuracy_high']:.2%} on new images{epochs}"


def _fidelity(fidelity: Any) -> str:
    if isinstance(fidelity, Mapping):
        fidelity = ", ".join(f"{key} {value}" for key, value in fidelity.items())
    return f" ({escape_markdown(fidelity)})" if fidelity else ""


def _normalization(card: Mapping[str, Any]) -> str:
    if "mean" not in card or "std" not in card:
        return ""
    mean, std = (", ".join(f"{value:.6g}" for value in card[key]) for key in ("mean", "std"))
    return f"; pixels scaled to 0..1, minus each channel's mean ({mean}), divided by its standard deviation ({std})"


def _latency(architecture: Architecture, card: Mapping[str, Any]) -> str:
    text = f"{significant(card['latency_ms'])} ms"
    if "latency_low_ms" in card and "latency_high_ms" in card:
        low, high = significant(card["latency_low_ms"]), significant(card["latency_high_ms"])
        text += f" (confidence interval {low} to {high} ms)"
    threads = card.get("threads")
    machine = card.get("machine")
    if isinstance(machine, Mapping):
        machine = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in machine.items() if value is not None)
    height, width = architecture.input[1:]
    circumstances = [
        card.get("runtime"),
        f"{threads} thread{'s' if threads != 1 else ''}" if threads else None,
        f"batch {card.get('batch_size', 1)} at {height}x{width}",
        machine,
    ]
    return text + "; " + ", ".join(escape_markdown(part) for part in circumstances if part)


def _loading(architecture: Architecture, record: Mapping[str, Any]) -> Iterator[str]:
    batch = record["batch_size"]
    shape = ", ".join(map(str, (1 if batch == "dynamic" else batch, *architecture.input)))
    if "predict.py" in record["files"]:
        yield """Classify image files (needs onnxruntime, numpy and Pillow; `nas predict . photo.jpg` does the same):

```sh
python predict.py photo.jpg
```"""
    if "model.py" in record["files"]:
        yield f"""With PyTorch alone (`predict(images)` gives class and probability of decoded images, uint8):

```python
import torch
from model import load, predict

network = load()
scores = network(torch.zeros({shape}))
predictions = predict(torch.zeros({", ".join(map(str, architecture.input))}, dtype=torch.uint8))
```"""
    if "model.onnx" in record["files"]:
        yield f"""With ONNX Runtime (the batch is {"of any size" if batch == "dynamic" else f"of {batch}"}):

```python
import numpy
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(scores,) = session.run(None, {{"input": numpy.zeros(({shape}), numpy.float32)}})
```"""
    if photo_onnx.NAME in record["files"]:
        yield f"""With the preprocessing inside (one image, uint8, of any size, upright):

```python
import numpy
import onnxruntime

session = onnxruntime.InferenceSession("{photo_onnx.NAME}")
(probabilities,) = session.run(None, {{"image": numpy.zeros((480, 640, {architecture.input[0]}), numpy.uint8)}})
```"""
    for target in BY_FILE.values():
        if target.file in record["files"]:
            lines = target.use.format(shape=shape)
            yield f"With {target.title}:\n\n```python\n{target.imports}\n\n{lines}\n```"
    yield """With nasspace:

```python
from pathlib import Path

import nasspace
from safetensors.torch import load_file

network = nasspace.build(nasspace.Architecture.from_json(Path("architecture.json").read_text()))
network.load_state_dict(load_file("weights.safetensors"))
network.eval()
```

`nas verify .` checks all files again, with `--data SPEC` also their accuracy."""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]] | Iterator[Sequence[str]]) -> str:
    lines = [head, ["--"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else escape_markdown(value)


def _text(value: Any) -> str:
    """Text on one line in valid UTF-8; names of files may hold other bytes."""
    return " ".join(str(value).split()).encode("utf-8", "replace").decode()
