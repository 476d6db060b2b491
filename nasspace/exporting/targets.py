"""Files for other runtimes: torch.export, OpenVINO, ExecuTorch and LiteRT, each written and run by its own package."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nasspace import temporary
from nasspace.errors import InputError, first_line

if TYPE_CHECKING:
    from torch import nn

Scores = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Target:
    """A format of an export that another runtime runs.

    `file` is what the runtime loads, `others` lie next to it. `package` is the runtime's Python package, and `extra`
    the extra of nasspace that installs it. `write` takes the network, the shape of a batch and whether its size is
    free, and the file's path; `load` returns the scores (N, classes) of images, float32 (N, C, H, W). `loads_code` says
    that the format may hold Python objects, which run code when the file is loaded, and `is_int8` that it computes in
    int8, so that its scores are only near PyTorch's. `title`, `about`, `imports` and `use` are for the model card.
    """

    name: str
    file: str
    package: str
    # None: written by `nas quantize` from another file
    write: Callable[[nn.Module, tuple[int, ...], bool, Path], None] | None
    load: Callable[[Path], Scores]
    title: str
    about: str
    imports: str
    use: str
    others: tuple[str, ...] = ()
    extra: str = ""
    loads_code: bool = False
    is_int8: bool = False

    @property
    def missing(self) -> str:
        """What to install; empty if the runtime's package is there."""
        if importlib.util.find_spec(self.package) is not None:
            return ""
        return f"needs {self.package}: pip install 'nasspace[{self.extra}]'"


def write(target: Target, network: nn.Module, shape: tuple[int, ...], free_batch: bool, path: Path) -> None:
    """Write a file of the deployed network; `InputError` if the runtime's package cannot represent it."""
    from nasspace.latency.convert import deployed

    assert target.write is not None
    try:
        with quiet():
            target.write(deployed(network), shape, free_batch, path)
    except Exception as error:  # of a converter, which may raise anything
        raise InputError(
            f"--format {target.name}: the network cannot be converted: {first_line(error)[:200]}"
        ) from error


def scores(target: Target, path: Path) -> Scores:
    """The scores that a file gives in its own runtime; `InputError` if it cannot be loaded."""
    try:
        with quiet():
            return target.load(path)
    except Exception as error:  # of a runtime, on a file that may be damaged
        raise InputError(f"{path}: {target.package} cannot load it ({first_line(error)[:200]})") from error


def fitting(run: Scores, batch_size: int | str) -> Scores:
    """Scores of any number of images from those of a file with a fixed batch, whose last batch zeros fill."""
    if not isinstance(batch_size, int):
        return run

    def of_any_number(images: np.ndarray) -> np.ndarray:
        found = []
        for start in range(0, len(images), batch_size):
            part = images[start : start + batch_size]
            zeros = np.zeros((batch_size - len(part), *part.shape[1:]), part.dtype)
            found.append(run(np.concatenate([part, zeros]))[: len(part)])
        return np.concatenate(found)

    return of_any_number


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ignore what converters warn of in their own code, and print of their steps."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _write_pt2(network: nn.Module, shape: tuple[int, ...], free_batch: bool, path: Path) -> None:
    import torch

    batch = torch.zeros(2 if free_batch else shape[0], *shape[1:])  # a batch of one would be taken for a constant
    dynamic = {0: torch.export.Dim("batch", min=1)} if free_batch else None
    torch.export.save(torch.export.export(network, (batch,), dynamic_shapes=(dynamic,)), path)


def _load_pt2(path: Path) -> Scores:
    import torch

    network = torch.export.load(path).module()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(images)).numpy()

    return run


def _write_openvino(network: nn.Module, shape: tuple[int, ...], free_batch: bool, path: Path) -> None:
    import openvino

    from nasspace.latency.convert import to_onnx

    with temporary.private() as folder:
        source = to_onnx(network, shape[1:], Path(folder) / "model.onnx", batch_size=shape[0], dynamic_batch=free_batch)
        openvino.save_model(openvino.convert_model(source), path, compress_to_fp16=False)


def _load_openvino(path: Path) -> Scores:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32"}  # by default bfloat16 where the processor has it
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda images: compiled([images])[0]


def _write_executorch(network: nn.Module, shape: tuple[int, ...], _: bool, path: Path) -> None:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    exported = torch.export.export(network, (torch.zeros(shape),))
    lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


def _load_executorch(path: Path) -> Scores:
    import torch
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path)
    method = program.load_method("forward")

    def run(images: np.ndarray) -> np.ndarray:
        return method.execute([torch.from_numpy(np.ascontiguousarray(images))])[0].clone().numpy()

    return fitting(run, int(method.metadata.input_tensor_meta(0).sizes()[0]))


def _write_litert(network: nn.Module, shape: tuple[int, ...], _: bool, path: Path) -> None:
    import litert_torch
    import torch

    litert_torch.convert(network, (torch.zeros(shape),)).export(str(path))


def _load_litert(path: Path) -> Scores:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(images: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(taken["index"], _as_int8(images, taken))
        interpreter.invoke()
        scores = interpreter.get_tensor(given["index"])
        if scores.dtype != np.int8:
            return scores
        scale, zero = given["quantization"]
        return (scores.astype(np.float32) - zero) * np.float32(scale)

    return fitting(run, int(taken["shape"][0]))


def _as_int8(images: np.ndarray, taken: dict[str, Any]) -> np.ndarray:
    """Round images to the int8 of an interpreter's input, if that is what it takes."""
    if taken["dtype"] != np.int8:
        return images
    scale, zero = taken["quantization"]
    return np.clip(np.rint(images / scale) + zero, -128, 127).astype(np.int8)


TARGETS = {
    target.name: target
    for target in (
        Target(
            name="pt2",
            file="model.pt2",
            package="torch",
            write=_write_pt2,
            load=_load_pt2,
            title="`torch.export`",
            about="the network as a program of `torch.export`; needs torch only",
            imports="import torch",
            use='network = torch.export.load("model.pt2").module()\nscores = network(torch.zeros({shape}))',
            loads_code=True,
        ),
        Target(
            name="openvino",
            file="model.openvino.xml",
            others=("model.openvino.bin",),
            package="openvino",
            extra="openvino",
            write=_write_openvino,
            load=_load_openvino,
            title="OpenVINO",
            imports="import numpy\nimport openvino",
            about="the network for OpenVINO",
            use=(
                "# By default OpenVINO computes in bfloat16 where the processor can: scores differ by a percent.\n"
                'settings = {{"INFERENCE_PRECISION_HINT": "f32"}}\n'
                'network = openvino.Core().compile_model("model.openvino.xml", "CPU", settings)\n'
                "scores = network([numpy.zeros(({shape}), numpy.float32)])[0]"
            ),
        ),
        Target(
            name="executorch",
            file="model.pte",
            package="executorch",
            extra="executorch",
            write=_write_executorch,
            load=_load_executorch,
            title="ExecuTorch",
            imports="import torch\nfrom executorch.runtime import Runtime",
            about="the network for ExecuTorch with XNNPACK, a fixed batch",
            use=(
                'method = Runtime.get().load_program("model.pte").load_method("forward")\n'
                "(scores,) = method.execute([torch.zeros({shape})])"
            ),
        ),
        Target(
            name="litert",
            file="model.tflite",
            package="litert_torch",
            extra="litert",
            write=_write_litert,
            load=_load_litert,
            title="LiteRT (TensorFlow Lite)",
            imports="import numpy\nfrom ai_edge_litert.interpreter import Interpreter",
            about="the network for LiteRT (TensorFlow Lite), float32, a fixed batch",
            use=(
                'interpreter = Interpreter("model.tflite")\ninterpreter.allocate_tensors()\n'
                'interpreter.set_tensor(interpreter.get_input_details()[0]["index"], '
                "numpy.zeros(({shape}), numpy.float32))\n"
                "interpreter.invoke()\n"
                'scores = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])'
            ),
        ),
    )
}
LITERT_INT8 = replace(
    TARGETS["litert"],
    name="litert-int8",
    file="model.int8.tflite",
    write=None,
    is_int8=True,
    title="LiteRT in int8",
    about="the network for LiteRT (TensorFlow Lite), quantized to int8, input and output, too",
    use=(
        'interpreter = Interpreter("model.int8.tflite")\ninterpreter.allocate_tensors()\n'
        "(taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()\n"
        'scale, zero = taken["quantization"]\n'
        "images = numpy.rint(numpy.zeros(({shape}), numpy.float32) / scale) + zero\n"
        'interpreter.set_tensor(taken["index"], images.clip(-128, 127).astype(numpy.int8))\n'
        "interpreter.invoke()\n"
        'scale, zero = given["quantization"]\n'
        'scores = scale * (interpreter.get_tensor(given["index"]).astype(numpy.float32) - zero)'
    ),
)
BY_FILE = {target.file: target for target in (*TARGETS.values(), LITERT_INT8)}
