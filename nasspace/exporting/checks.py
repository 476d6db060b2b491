"""The checks of an export folder: every file says the same network, its figures are right, and it decides the same."""

from __future__ import annotations

import ast
import hashlib
import math
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from nasspace import counting
from nasspace.architecture import Architecture
from nasspace.data import predict
from nasspace.errors import InputError, first_line
from nasspace.exporting import code_runner, judging, preprocessing
from nasspace.exporting.judging import Pipeline
from nasspace.exporting.module_source import allowed
from nasspace.exporting.weights import load_into, read_safetensors, read_state
from nasspace.network import build

if TYPE_CHECKING:
    from nasspace.data.images import DataSet

LIMIT = 5e-4  # of outputs, relative to the largest; rounding reaches 1.5e-4 in an untrained network of all blocks
LEVELS = 2  # of 255, that PyTorch's resizing may differ by from Pillow's
BATCH = 2
INT8 = "model.int8.onnx"
JUDGED = ("model.onnx", INT8, "model.py", "weights.pt")
PIPELINE = "weights.safetensors"  # the network that the others are held to
NO_DATA = "no data given; `nas verify FOLDER --data SPEC` judges it"
COUNTED = ("conv", "linear", "addmm", "matmul", "mm", "bmm", "baddbmm", "einsum")  # fvcore's names of operators


@dataclass(frozen=True)
class Check:
    """One check: what was found, and what it must equal or not exceed; `ok` is None, with `why`, if it did not run."""

    name: str
    ok: bool | None
    value: Any
    limit: Any
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As in the JSON documents: `why` only where there is one."""
        return {key: value for key, value in vars(self).items() if key != "why" or value}


def not_run(name: str, why: str) -> Check:
    """A check that could not run or was not asked for."""
    return Check(name, None, None, None, why)


def run(
    folder: Path,
    architecture: Architecture,
    record: Mapping[str, Any],
    *,
    data: DataSet | None = None,
    code: bool = True,
) -> tuple[list[Check], dict[str, float]]:
    """Check the files that `record` (the content of export.json) names; with `data` also the accuracy of each.

    With `code` model.py is run, in a process of its own that cannot import nasspace, unless it was changed since the
    export. A file that is missing or cannot be read is an `InputError` that names it; a file that says something else
    is a failed check. The second value is the accuracy by file.
    """
    network, weights = build(architecture).eval(), read_safetensors(folder / PIPELINE)
    unchanged = list(_unchanged(folder, record["files"]))
    try:
        load_into(network, weights, PIPELINE)
    except InputError as error:  # nothing else can be asked
        fits = Check("weights.safetensors fits the network", False, str(error), "")
        return [_trained(record), fits, *unchanged], {}
    here = _Folder(folder, architecture, record, network, preprocessing.read(folder), data, code)
    checks = [_trained(record), *_counts(network, architecture), *unchanged, *here.checked()]
    return checks, here.accuracy


def judge_int8(
    folder: Path, architecture: Architecture, record: Mapping[str, Any], data: DataSet | None
) -> tuple[list[Check], dict[str, float]]:
    """The checks of model.int8.onnx alone, and its accuracy."""
    network = build(architecture).eval()
    load_into(network, read_safetensors(folder / PIPELINE), PIPELINE)
    here = _Folder(folder, architecture, record, network, preprocessing.read(folder), data, code=False)
    if why := here._not_judged():
        return [not_run(f"accuracy of {INT8}", why)], {}
    pipeline = Pipeline.of(network, data)
    checks = list(here._judged_file(INT8, pipeline, judging.pixels_of(data, here.spec), ""))
    return checks, here.accuracy


@dataclass(eq=False)
class _Folder:
    """An export that is checked: `record` is the content of export.json, `spec` that of preprocessing.json."""

    path: Path
    architecture: Architecture
    record: Mapping[str, Any]
    network: nn.Module
    spec: Mapping[str, Any]
    data: DataSet | None
    code: bool
    accuracy: dict[str, float] = field(default_factory=dict)
    program: Future[dict[str, Tensor]] | None = None  # of model.py: what it makes of `given`
    given: dict[str, Tensor] = field(default_factory=dict)
    not_started: str = ""  # why model.py was not run

    def checked(self) -> Iterator[Check]:
        """All checks that go beyond the weights and the digests."""
        problem = next(preprocessing.problems(self.spec, self.architecture), "")
        yield Check("preprocessing.json fits the network", not problem, problem, "")
        files = self.record["files"]
        why = "preprocessing.json does not fit the network" if problem else self._not_judged()
        pixels, unusable = None, ""
        if not why:
            try:
                pixels = judging.pixels_of(self.data, self.spec)
            except ValueError as error:
                unusable = f"preprocessing.json cannot be applied: {error}"
        with ThreadPoolExecutor(1) as beside:  # the process of model.py takes the longest, so it starts first
            if "model.py" in files:
                self._start_model_py(beside, pixels, problem)
            if "weights.pt" in files:
                yield _same_weights(self.path / "weights.pt", self.network)
            if "model.onnx" in files:
                yield from self._model_onnx()
            if "model.py" in files:
                yield from self._source()
            if why:
                yield from (not_run(f"accuracy of {name}", why) for name in JUDGED if self._is_there(name))
            else:
                yield from self._judged(pixels, unusable)
            if "model.py" in files:
                yield from self._model_py(problem)

    def _is_there(self, name: str) -> bool:
        return name in self.record["files"] or (name == INT8 and (self.path / name).is_file())

    def _not_judged(self) -> str:
        """Why accuracy is not judged; empty where it is."""
        if not self.record["trained"]:
            return "never trained"
        if self.data is None:
            return NO_DATA
        return "" if self.data.validation.originals else "the data keep no original images"

    def _model_onnx(self) -> Iterator[Check]:
        shape, metadata = judging.described(self.path / "model.onnx")
        wanted = list(self.architecture.input)
        yield Check("model.onnx takes the network's input", shape == wanted, _size(shape), _size(wanted))
        wrong = preprocessing.differences_in_metadata(metadata, self.spec, self.architecture.digest)
        yield Check("model.onnx states preprocessing.json", not wrong, ", ".join(wrong), "")
        if shape != wanted:
            yield not_run("model.onnx equals PyTorch", "it takes another input")
            return
        yield _outputs_equal("model.onnx", self._difference_of_onnx())

    def _difference_of_onnx(self) -> float:
        from nasspace.latency.convert import largest_difference

        path = self.path / "model.onnx"
        try:
            return largest_difference(self.network, path, self.architecture.input)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise InputError(f"{path}: ONNX Runtime cannot run it ({first_line(error)[:200]})") from None

    def _source(self) -> Iterator[Check]:
        """What model.py says, read and not run."""
        tree = _parsed(self.path / "model.py")
        others = [name for name in _imported(tree) if not allowed(name)]
        yield Check("model.py imports only torch and the standard library", not others, ", ".join(others), "")
        wrong = preprocessing.differences_in_source(tree, self.spec)
        yield Check("model.py states preprocessing.json", not wrong, ", ".join(wrong), "")

    def _start_model_py(self, beside: ThreadPoolExecutor, pixels: Tensor | None, problem: str) -> None:
        """Run model.py in a fresh process that has no nasspace, unless there is a reason not to."""
        path = self.path / "model.py"
        if digest(path) != self.record["files"]["model.py"]:
            self.not_started = "changed since the export, so it was not run"
        elif not self.code:
            self.not_started = "--no-code"
        if self.not_started:
            return
        photo = None if problem else _photo(self.spec)
        self.given = {
            "inputs": torch.randn(BATCH, *self.architecture.input, generator=torch.Generator().manual_seed(0))
        }
        self.given |= {} if photo is None else {"photo": photo}
        if pixels is not None:
            self.given |= {key: torch.tensor(self.spec[key]) for key in ("mean", "std")} | {"pixels": pixels}
        self.program = beside.submit(code_runner.run, path, self.given)

    def _model_py(self, problem: str) -> Iterator[Check]:
        """The outputs of model.py."""
        name, same = "model.py equals PyTorch", "model.py preprocesses as predict.py"
        if self.program is None:
            yield from (not_run(name, self.not_started), not_run(same, self.not_started))
            return
        try:
            found = self.program.result()
        except ValueError as error:
            yield Check(name, False, f"does not run: {error}", LIMIT)
            return
        with torch.inference_mode():
            expected = self.network(self.given["inputs"])
        value = math.inf
        if expected.shape == found["scores"].shape:
            value = _difference(expected, found["scores"])
            value /= max(float(expected.abs().max()), torch.finfo(torch.float32).tiny)
        yield _outputs_equal("model.py", value)
        if (photo := self.given.get("photo")) is None:
            yield not_run(same, problem or "PyTorch has no such interpolation, or the input is no photo")
        else:
            yield self._same_preprocessing(same, photo, found.get("preprocessed"))

    def _decisions_of_model_py(self) -> Tensor | None:
        """On the validation images; None where it was not run, or failed."""
        if self.program is None or self.program.exception() is not None:
            return None
        return self.program.result().get("decisions")

    def _same_preprocessing(self, name: str, photo: Tensor, found: Tensor | None) -> Check:
        """The difference in levels of 255."""
        array = photo.permute(1, 2, 0).contiguous().numpy()
        expected = predict.preprocess(array[..., 0] if array.shape[2] == 1 else array, self.spec)
        expected = torch.from_numpy(predict.normalize(expected, self.spec))
        if found is None or found.shape != expected.shape or not found.isfinite().all():
            return Check(name, False, "not finite, or of another shape", LEVELS)
        levels = (found - expected).abs() * 255 * torch.tensor(self.spec["std"])[:, None, None]
        value = round(float(levels.max()), 3)
        return Check(name, value <= LEVELS, value, LEVELS)

    def _judged(self, pixels: Tensor | None, unusable: str) -> Iterator[Check]:
        """The accuracy of each file beside that of the training pipeline, and beside what was recorded."""
        pipeline = Pipeline.of(self.network, self.data)
        own, told = pipeline.own, self._told()
        self.accuracy[PIPELINE] = own.accuracy
        name = f"accuracy of {PIPELINE} in the training pipeline"
        yield Check(name, told is None or own.near(told), own.accuracy, "" if told is None else told)
        wrong = preprocessing.differences(self.spec, self.data)
        yield Check("preprocessing.json equals the data's", not wrong, ", ".join(wrong), "")
        if pixels is not None:
            count = int((pixels != self.data.validation.pixels).flatten(1).any(1).sum())
            yield Check("images whose pixels differ from the training pipeline's", count == 0, count, 0)
        for name in filter(self._is_there, JUDGED):
            yield from self._judged_file(name, pipeline, pixels, unusable)

    def _told(self) -> float | None:
        """What the pipeline's accuracy was said to be: recorded by the export, or, at the export, on the card."""
        said, key = (
            (self.record["accuracy"], PIPELINE) if "accuracy" in self.record else (self.record["card"], "accuracy")
        )
        return said.get(key)

    def _judged_file(self, name: str, pipeline: Pipeline, pixels: Tensor | None, unusable: str) -> Iterator[Check]:
        own, check = pipeline.own.accuracy, f"accuracy of {name}"
        if name == "model.py" and pixels is not None and self._decisions_of_model_py() is None:
            yield not_run(check, "model.py was not run")
            return
        try:
            if pixels is None:
                raise ValueError(unusable)
            verdict = pipeline.verdict(pipeline.named(self._decided(name, pixels), self.spec))
        except Exception as error:  # ONNX Runtime's share no base class, and a foreign file may do anything
            yield Check(check, False, (str(error).splitlines() or [type(error).__name__])[0][:200], own)
            return
        self.accuracy[name] = verdict.accuracy
        free = name == INT8  # it may lose something, and says how much
        yield Check(check, free or verdict.near(own), verdict.accuracy, "" if free else own)
        allowed_to = "" if free else verdict.allowed
        few = free or verdict.differing <= verdict.allowed
        yield Check(f"decisions of {name} that differ", few, verdict.differing, allowed_to)
        if name in (recorded := self.record.get("accuracy") or {}):
            yield Check(f"{check} as recorded", verdict.near(recorded[name]), verdict.accuracy, recorded[name])

    def _decided(self, name: str, pixels: Tensor) -> Tensor | None:
        if name == "model.py":
            return self._decisions_of_model_py()
        if name != "weights.pt":
            return judging.by_onnx(self.path / name, pixels, self.spec)
        network = build(self.architecture).eval()
        load_into(network, read_state(self.path / name), name)
        return judging.by_torch(network, pixels, self.spec)


def _size(shape: list[Any]) -> str:
    return " x ".join(map(str, shape))


def _photo(spec: Mapping[str, Any]) -> Tensor | None:
    """A smooth picture that is larger than the input and not square, uint8 [C, H, W]; None where none can be had."""
    channels, height, width = spec["input"]
    if channels not in (1, 3) or spec["interpolation"] not in ("bilinear", "bicubic"):
        return None
    rows, columns = np.mgrid[: round(1.3 * height) + 7, : round(1.7 * width) + 11] / max(height, width)
    waves = [np.sin((3 + i) * rows + (5 - i) * columns**2 + 2 * i) for i in range(channels)]
    return torch.from_numpy((128 + 90 * np.stack(waves)).astype(np.uint8))


def _trained(record: Mapping[str, Any]) -> Check:
    value = "as given" if record["trained"] else f"never trained: initialized from seed {record['seed']}"
    return Check("weights", True, value, "")


def _counts(network: nn.Module, architecture: Architecture) -> Iterator[Check]:
    """Parameters as the network has them, FLOPs as fvcore counts the whole network."""
    counted = counting.cost(architecture)
    params = sum(parameter.numel() for parameter in network.parameters())
    yield Check("parameters", params == counted.params, params, counted.params)
    flops = fvcore_flops(network, architecture.input)
    if flops is None:
        yield not_run("FLOPs by fvcore", "fvcore cannot trace the network")
    else:
        yield Check("FLOPs by fvcore", flops == counted.flops, flops, counted.flops)


def fvcore_flops(network: nn.Module, input_shape: tuple[int, int, int]) -> int | None:
    """Multiply-adds of convolutions and linear layers for one image; None where the network cannot be traced."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(network, torch.zeros(1, *input_shape))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        try:
            operators = analysis.by_operator()
        except Exception:  # whatever a user's `forward` raises when it is traced
            return None
    return round(sum(operators[name] for name in COUNTED))


def _unchanged(folder: Path, recorded: Mapping[str, str | None]) -> Iterator[Check]:
    """Whether the files that nobody edits are those that were written."""
    for name, expected in recorded.items():
        if expected is not None:
            found = digest(folder / name)
            yield Check(f"{name} unchanged", found == expected, found, expected)


def digest(path: Path) -> str:
    """The first 16 hex digits of a file's SHA-256; a missing file is an `InputError`."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None


def _same_weights(path: Path, network: nn.Module) -> Check:
    """weights.pt holds what weights.safetensors holds, to the last bit."""
    own, found = network.state_dict(), read_state(path)
    worst = math.inf
    if own.keys() == found.keys():
        worst = max((_difference(own[name], found[name]) for name in own), default=0.0)
    value = worst if math.isfinite(worst) else "other names, shapes or kinds"
    return Check("weights.pt equals weights.safetensors", worst == 0, value, 0.0)


def _outputs_equal(name: str, difference: float) -> Check:
    """The check of a relative difference; an infinite one, which JSON cannot hold, is said in words."""
    value = difference if math.isfinite(difference) else "not finite, or of another shape"
    return Check(f"{name} equals PyTorch", difference <= LIMIT, value, LIMIT)


def _difference(expected: Tensor, found: Tensor) -> float:
    """The largest absolute difference; infinite where a value is not finite, or shape or kind differ."""
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return math.inf
    if expected.is_floating_point() and not (expected.isfinite().all() and found.isfinite().all()):
        return math.inf
    return float((expected.double() - found.double()).abs().max()) if expected.numel() else 0.0


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise InputError(f"{path}: not a Python file ({error})") from None


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
