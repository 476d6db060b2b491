"""Checks of an export folder: all files hold the same network, its counts are right, and its decisions are equal."""

from __future__ import annotations

import ast
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
from nasspace.exporting import code_runner, judging, photo_onnx, preprocessing, targets
from nasspace.exporting.check import Check, digest, not_run
from nasspace.exporting.judging import Pipeline
from nasspace.exporting.module_source import allowed
from nasspace.exporting.targets import BY_FILE, Target
from nasspace.exporting.weights import load_into, read_safetensors, read_state
from nasspace.latency.convert import deployed, relative_difference
from nasspace.network import build

if TYPE_CHECKING:
    from nasspace.data.images import DataSet

LIMIT = 5e-4  # relative difference of outputs; rounding reaches 1.5e-4 in an untrained network of all blocks
PROBABILITY = 0.01  # largest difference of a probability; a level of a pixel that differs moves it by far less
LEVELS = 2  # of 255: largest difference between the resizing of PyTorch and Pillow
BATCH = 2
INT8 = "model.int8.onnx"
INT8_FILES = (INT8, *(name for name, target in BY_FILE.items() if target.is_int8))
JUDGED = ("model.onnx", INT8, photo_onnx.NAME, *BY_FILE, "model.py", "weights.pt")
PIPELINE = "weights.safetensors"  # the reference for the other files
NO_DATA = "no data given; `nas verify FOLDER --data SPEC` judges it"
COUNTED = ("conv", "linear", "addmm", "matmul", "mm", "bmm", "baddbmm", "einsum")  # fvcore's names of operators


def run(
    folder: Path,
    architecture: Architecture,
    record: Mapping[str, Any],
    *,
    data: DataSet | None = None,
    code: bool = True,
) -> tuple[list[Check], dict[str, float]]:
    """Check the files listed in `record`, the content of export.json; with `data` also the accuracy of each.

    With `code`, model.py is run in a separate process that cannot import nasspace, unless it was changed since the
    export. A missing or unreadable file raises `InputError`; a file that differs is a failed check. Returns the checks,
    and the accuracy by file.
    """
    network, weights = build(architecture).eval(), read_safetensors(folder / PIPELINE)
    unchanged = list(_unchanged(folder, record["files"]))
    try:
        load_into(network, weights, PIPELINE)
    except InputError as error:  # no other check can run
        fits = Check("weights.safetensors fits the network", False, str(error), "")
        return [_trained(record), fits, *unchanged], {}
    here = _Folder(folder, architecture, record, network, preprocessing.read(folder), data, code)
    checks = [_trained(record), *_counts(deployed(network), architecture), *unchanged, *here.checked()]
    return checks, here.accuracy


def judge_int8(
    folder: Path, name: str, architecture: Architecture, record: Mapping[str, Any], data: DataSet | None
) -> tuple[list[Check], dict[str, float]]:
    """Check an int8 file alone; returns the checks and its accuracy."""
    network = build(architecture).eval()
    load_into(network, read_safetensors(folder / PIPELINE), PIPELINE)
    here = _Folder(folder, architecture, record, network, preprocessing.read(folder), data, code=False)
    if why := here._not_judged():
        return [not_run(f"accuracy of {name}", why)], {}
    pipeline = Pipeline.of(network, data)
    checks = list(here._judged_file(name, pipeline, judging.pixels_of(data, here.spec), ""))
    return checks, here.accuracy


@dataclass(eq=False)
class _Folder:
    """An export under check: `record` is the content of export.json, `spec` that of preprocessing.json."""

    path: Path
    architecture: Architecture
    record: Mapping[str, Any]
    network: nn.Module
    spec: Mapping[str, Any]
    data: DataSet | None
    code: bool
    accuracy: dict[str, float] = field(default_factory=dict)
    program: Future[dict[str, Tensor]] | None = None  # the outputs of model.py for `inputs`
    inputs: dict[str, Tensor] = field(default_factory=dict)
    not_started: str = ""  # why model.py was not run

    def checked(self) -> Iterator[Check]:
        """Run all checks except those of the weights and the digests."""
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
        with ThreadPoolExecutor(1) as executor:  # model.py takes the longest, so it starts first
            if "model.py" in files:
                self._start_model_py(executor, pixels, problem)
            if "weights.pt" in files:
                yield _same_weights(self.path / "weights.pt", self.network)
            if "model.onnx" in files:
                yield from self._model_onnx()
            if photo_onnx.NAME in files:
                yield self._same_probabilities(problem)
            for target in self._targets:
                yield self._same_outputs(target)
            if "model.py" in files:
                yield from self._source()
            if why:
                yield from (not_run(f"accuracy of {name}", why) for name in JUDGED if self._is_there(name))
            else:
                yield from self._judged(pixels, unusable)
            if "model.py" in files:
                yield from self._model_py(problem)

    def _is_there(self, name: str) -> bool:
        return name in self.record["files"] or (name in INT8_FILES and (self.path / name).is_file())

    def _not_judged(self) -> str:
        """Why accuracy is not judged; empty if it is."""
        if not self.record["trained"]:
            return "never trained"
        if self.data is None:
            return NO_DATA
        return "" if self.data.validation.originals else "the data set does not keep its original images"

    def _model_onnx(self) -> Iterator[Check]:
        """Check input, metadata and outputs of model.onnx."""
        shape, metadata = judging.described(self.path / "model.onnx")
        expected = list(self.architecture.input)
        yield Check("model.onnx takes the network's input", shape == expected, _size(shape), _size(expected))
        wrong = preprocessing.differences_in_metadata(metadata, self.spec, self.architecture.digest)
        yield Check("model.onnx states preprocessing.json", not wrong, ", ".join(wrong), "")
        if shape != expected:
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

    def _same_probabilities(self, problem: str) -> Check:
        """Compare the probabilities of a photo with those that predict.py's preprocessing leads to."""
        name = f"{photo_onnx.NAME} preprocesses as predict.py"
        photo = None if problem else _photo(self.spec)
        if photo is None:
            return not_run(name, problem or "the input is no photo")
        image = photo.permute(1, 2, 0).contiguous().numpy()
        plain = predict.preprocess(image[..., 0] if image.shape[2] == 1 else image, self.spec)
        with torch.inference_mode():
            expected = self.network(torch.from_numpy(predict.normalize(plain, self.spec))).softmax(1)[0]
        try:
            found = torch.from_numpy(judging.photo_probabilities(self.path / photo_onnx.NAME)(image))
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise InputError(
                f"{self.path / photo_onnx.NAME}: ONNX Runtime cannot run it ({first_line(error)[:200]})"
            ) from None
        value = _difference(expected, found)
        shown = round(value, 6) if math.isfinite(value) else "not finite, or of another shape"
        return Check(name, value <= PROBABILITY, shown, PROBABILITY)

    @property
    def _targets(self) -> list[Target]:
        """The files for other runtimes."""
        return [target for name, target in BY_FILE.items() if name in self.record["files"]]

    def _same_outputs(self, target: Target) -> Check:
        """Compare the outputs of a file in its own runtime with PyTorch's."""
        name = f"{target.file} runs" if target.is_int8 else f"{target.file} equals PyTorch"
        if why := self._not_loaded(target):
            return not_run(name, why)
        images = torch.randn(BATCH, *self.architecture.input, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = self.network(images).numpy()
        run = targets.fitting(targets.scores(target, self.path / target.file), self.record["batch_size"])
        try:
            found = run(images.numpy())
        except Exception as error:  # a runtime may raise anything on a file of another network
            return Check(name, False, f"does not run: {first_line(error)[:200]}", LIMIT)
        if target.is_int8:  # what it loses is reported, not limited
            ok = found.shape == expected.shape and bool(np.isfinite(found).all())
            return Check(name, ok, "" if ok else "not finite, or of another shape", "")
        return _outputs_equal(target.file, relative_difference(expected, found))

    def _not_loaded(self, target: Target) -> str:
        """Why a file for another runtime is not loaded; empty if it is."""
        if target.missing:
            return target.missing
        if not target.loads_code:
            return ""
        if digest(self.path / target.file) != self.record["files"][target.file]:
            return "changed since the export, so it was not loaded"
        return "" if self.code else "--no-code"

    def _source(self) -> Iterator[Check]:
        """Check imports and constants of model.py, which is parsed, not run."""
        tree = _parsed(self.path / "model.py")
        others = [name for name in _imported(tree) if not allowed(name)]
        yield Check("model.py imports only torch and the standard library", not others, ", ".join(others), "")
        wrong = preprocessing.differences_in_source(tree, self.spec)
        yield Check("model.py states preprocessing.json", not wrong, ", ".join(wrong), "")

    def _start_model_py(self, executor: ThreadPoolExecutor, pixels: Tensor | None, problem: str) -> None:
        """Start model.py in a fresh process without nasspace, unless it was changed or must not run."""
        path = self.path / "model.py"
        if digest(path) != self.record["files"]["model.py"]:
            self.not_started = "changed since the export, so it was not run"
        elif not self.code:
            self.not_started = "--no-code"
        if self.not_started:
            return
        photo = None if problem else _photo(self.spec)
        self.inputs = {
            "inputs": torch.randn(BATCH, *self.architecture.input, generator=torch.Generator().manual_seed(0))
        }
        self.inputs |= {} if photo is None else {"photo": photo}
        if pixels is not None:
            self.inputs |= {key: torch.tensor(self.spec[key]) for key in ("mean", "std")} | {"pixels": pixels}
        self.program = executor.submit(code_runner.run, path, self.inputs)

    def _model_py(self, problem: str) -> Iterator[Check]:
        """Check the outputs of model.py."""
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
            expected = self.network(self.inputs["inputs"])
        value = math.inf
        if expected.shape == found["scores"].shape:
            value = _difference(expected, found["scores"])
            value /= max(float(expected.abs().max()), torch.finfo(torch.float32).tiny)
        yield _outputs_equal("model.py", value)
        if (photo := self.inputs.get("photo")) is None:
            yield not_run(same, problem or "PyTorch has no such interpolation, or the input is no photo")
        else:
            yield self._same_preprocessing(same, photo, found.get("preprocessed"))

    def _decisions_of_model_py(self) -> Tensor | None:
        """Its decisions on the validation images; None if it was not run, or failed."""
        if self.program is None or self.program.exception() is not None:
            return None
        return self.program.result().get("decisions")

    def _same_preprocessing(self, name: str, photo: Tensor, found: Tensor | None) -> Check:
        """Compare the preprocessing of model.py and predict.py, in levels of 255."""
        array = photo.permute(1, 2, 0).contiguous().numpy()
        pixels = predict.preprocess(array[..., 0] if array.shape[2] == 1 else array, self.spec)
        expected = torch.from_numpy(predict.normalize(pixels, self.spec))
        if found is None or found.shape != expected.shape or not found.isfinite().all():
            return Check(name, False, "not finite, or of another shape", LEVELS)
        levels = (found - expected).abs() * 255 * torch.tensor(self.spec["std"])[:, None, None]
        value = round(float(levels.max()), 3)
        return Check(name, value <= LEVELS, value, LEVELS)

    def _judged(self, pixels: Tensor | None, unusable: str) -> Iterator[Check]:
        """Compare the accuracy of each file with that of the training pipeline and with the recorded one."""
        pipeline = Pipeline.of(self.network, self.data)
        own, recorded = pipeline.own, self._recorded_accuracy()
        self.accuracy[PIPELINE] = own.accuracy
        name = f"accuracy of {PIPELINE} in the training pipeline"
        yield Check(name, recorded is None or own.near(recorded), own.accuracy, "" if recorded is None else recorded)
        wrong = preprocessing.differences(self.spec, self.data)
        yield Check("preprocessing.json equals the data's", not wrong, ", ".join(wrong), "")
        if pixels is not None:
            count = int((pixels != self.data.validation.pixels).flatten(1).any(1).sum())
            yield Check("images whose pixels differ from the training pipeline's", count == 0, count, 0)
        for name in filter(self._is_there, JUDGED):
            yield from self._judged_file(name, pipeline, pixels, unusable)

    def _recorded_accuracy(self) -> float | None:
        """The pipeline's accuracy as recorded by the export, or, during the export, as on its card."""
        if "accuracy" in self.record:
            return self.record["accuracy"].get(PIPELINE)
        return self.record["card"].get("accuracy")

    def _judged_file(self, name: str, pipeline: Pipeline, pixels: Tensor | None, unusable: str) -> Iterator[Check]:
        own, check = pipeline.own.accuracy, f"accuracy of {name}"
        if name == "model.py" and pixels is not None and self._decisions_of_model_py() is None:
            yield not_run(check, "model.py was not run")
            return
        if name in BY_FILE and (why := self._not_loaded(BY_FILE[name])):
            yield not_run(check, why)
            return
        try:
            if pixels is None:
                raise ValueError(unusable)
            verdict = pipeline.verdict(pipeline.named(self._decided(name, pixels), self.spec))
        except Exception as error:  # ONNX Runtime's share no base class, and a foreign file may raise any
            yield Check(check, False, (str(error).splitlines() or [type(error).__name__])[0][:200], own)
            return
        self.accuracy[name] = verdict.accuracy
        free = name in INT8_FILES  # its loss is reported, not limited
        yield Check(check, free or verdict.near(own), verdict.accuracy, "" if free else own)
        limit = "" if free else verdict.allowed
        few = free or verdict.differing <= verdict.allowed
        yield Check(f"decisions of {name} that differ", few, verdict.differing, limit)
        if name in (recorded := self.record.get("accuracy") or {}):
            yield Check(f"{check} as recorded", verdict.near(recorded[name]), verdict.accuracy, recorded[name])

    def _decided(self, name: str, pixels: Tensor) -> Tensor | None:
        """The decisions of one file."""
        if name == "model.py":
            return self._decisions_of_model_py()
        if name == photo_onnx.NAME:
            return judging.by_photos(judging.photo_probabilities(self.path / name), self.data, self.spec)
        if name in BY_FILE:
            run = targets.fitting(targets.scores(BY_FILE[name], self.path / name), self.record["batch_size"])
            return judging.by_scores(run, pixels, self.spec)
        if name != "weights.pt":
            return judging.by_onnx(self.path / name, pixels, self.spec)
        network = build(self.architecture).eval()
        load_into(network, read_state(self.path / name), name)
        return judging.by_torch(network, pixels, self.spec)


def _size(shape: list[Any]) -> str:
    return " x ".join(map(str, shape))


def _photo(spec: Mapping[str, Any]) -> Tensor | None:
    """A smooth image, larger than the input and not square, uint8 [C, H, W]; None for an input that is no photo."""
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
    """Check parameters against the deployed network, and FLOPs against fvcore."""
    counted = counting.cost(architecture)
    params = sum(parameter.numel() for parameter in network.parameters())
    yield Check("parameters", params == counted.params, params, counted.params)
    flops = fvcore_flops(network, architecture.input)
    if flops is None:
        yield not_run("FLOPs by fvcore", "fvcore cannot trace the network")
    else:
        yield Check("FLOPs by fvcore", flops == counted.flops, flops, counted.flops)


def fvcore_flops(network: nn.Module, input_shape: tuple[int, int, int]) -> int | None:
    """Multiply-adds of convolutions and linear layers for one image; None if the network cannot be traced."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(network, torch.zeros(1, *input_shape))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        try:
            operators = analysis.by_operator()
        except Exception:  # a user's `forward` may raise any error when traced
            return None
    return round(sum(operators[name] for name in COUNTED))


def _unchanged(folder: Path, recorded: Mapping[str, str | None]) -> Iterator[Check]:
    """Check the digests of the files in `HASHED`."""
    for name, expected in recorded.items():
        if expected is not None:
            found = digest(folder / name)
            yield Check(f"{name} unchanged", found == expected, found, expected)


def _same_weights(path: Path, network: nn.Module) -> Check:
    """Check that weights.pt equals weights.safetensors to the last bit."""
    own, found = network.state_dict(), read_state(path)
    worst = math.inf
    if own.keys() == found.keys():
        worst = max((_difference(own[name], found[name]) for name in own), default=0.0)
    value = worst if math.isfinite(worst) else "other names, shapes or types"
    return Check("weights.pt equals weights.safetensors", worst == 0, value, 0.0)


def _outputs_equal(name: str, difference: float) -> Check:
    """Check a relative difference; an infinite one is written as text, because JSON cannot hold it."""
    value = difference if math.isfinite(difference) else "not finite, or of another shape"
    return Check(f"{name} equals PyTorch", difference <= LIMIT, value, LIMIT)


def _difference(expected: Tensor, found: Tensor) -> float:
    """The largest absolute difference; infinite if a value is not finite, or shape or type differ."""
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
