"""Networks of other programs on the meter: an ONNX file, or a function that returns an `nn.Module`."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasspace import temporary
from nasspace.errors import InputError, first_line

if TYPE_CHECKING:
    from torch import nn

    from nasspace.latency.benchmark import Latency

ONNX = ".onnx"
RESOLUTION = 224  # pixels, of a function's network
FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def is_foreign(text: str) -> bool:
    """Whether a text names an ONNX file or `module:function`, instead of an ARCH.

    A function cannot be called `front` or `recommended`: these are networks of a study.
    """
    of_study = text.endswith((":front", ":recommended"))
    return Path(text).suffix == ONNX or (FUNCTION.fullmatch(text) is not None and not of_study)


def measure(
    text: str,
    *,
    threads: int = 1,
    batch_size: int = 1,
    resolution: int | None = None,
    seconds: float,
    latency_device: str,
) -> Latency:
    """Measure a file or a function's network in ONNX Runtime, as the files of a front are measured; see `as_file`."""
    with as_file(text, batch_size, resolution) as path:
        return _measured(path, threads, batch_size, seconds, latency_device)


@contextlib.contextmanager
def as_file(text: str, batch_size: int, resolution: int | None) -> Iterator[Path]:
    """The ONNX file that a text names, or that the network of a function is written to, with its outputs compared.

    A function's code is run. Its network gets images of `resolution` (224 by default) with the channels of its first
    convolution. Raises `InputError` if there is no such file or function, or if it cannot run.
    """
    if Path(text).suffix == ONNX:
        if resolution is not None:
            raise InputError(f"{text}: an ONNX file has a size of its own; leave --resolution out")
        if not Path(text).is_file():
            raise InputError(f"{text}: {'is a folder' if Path(text).is_dir() else 'there is no such file'}")
        yield Path(text)
        return
    import torch

    from nasspace.latency import runtimes

    model = load(text)
    side = resolution or RESOLUTION
    shape = (_channels(model, text), side, side)
    _called(lambda: model(torch.zeros(1, *shape)), f"{text}, with images of {'x'.join(map(str, shape))}")
    with temporary.private() as folder:
        local = runtimes.OnnxRuntime(batch_size=batch_size)
        path = local.write(model, shape, Path(folder) / "network.onnx")
        runtimes.check_outputs(local.load(path), model)
        yield path


def load(text: str) -> nn.Module:
    """Call the function that `module:function` names, with the working folder on the path, and return its network."""
    from torch import nn

    name, _, function = text.partition(":")
    made = _called(lambda: getattr(_imported(name), function)(), text)
    if not isinstance(made, nn.Module):
        raise InputError(f"{text}: returned a {type(made).__name__}, not an nn.Module")
    return made.eval()


def _imported(name: str) -> Any:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there and imports one that is not
        raise _no_module(str(error.name)) from error
    finally:
        sys.path.remove(here)
    if module.__spec__ is not None and module.__spec__.origin is None:  # a folder, perhaps of a study
        raise _no_module(name)
    return module


def _no_module(name: str) -> InputError:
    return InputError(
        f"there is no module '{name}' here or installed; a network of a study is named by its number, as STUDY:3, or "
        "STUDY:recommended"
    )


def _called(call: Callable[[], Any], text: str) -> Any:
    """The result of a user's code, which prints to standard error; what it raises becomes an `InputError`."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return call()
    except InputError as error:
        raise InputError(f"{text}: {error}") from error
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        raise InputError(f"{text}: {type(error).__name__}: {first_line(error)}") from error


def _channels(model: nn.Module, text: str) -> int:
    """The channels of a network's images: those of its first convolution."""
    from torch import nn

    first = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
    if first is None:
        raise InputError(
            f"{text}: has no convolution, so that the channels of its images are unknown; name an ONNX file"
        )
    return first.in_channels


def _measured(path: Path, threads: int, batch_size: int, seconds: float, latency_device: str) -> Latency:
    """The latency of an ONNX file in a process of its own, here or on another machine."""
    from nasspace.latency import remote
    from nasspace.latency.subprocess_benchmark import measure_files_in_subprocess

    remote.check_device(latency_device, "onnxruntime")
    if latency_device == remote.LOCAL:
        return measure_files_in_subprocess([path], threads, batch_size, seconds)[0]
    with remote.RemoteDevice(latency_device) as device:
        return next(iter(device.measure_files([path], threads, batch_size, seconds)))
