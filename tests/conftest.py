"""Fixtures: a latency cache per test, blocks registered for one test only, an oracle for counts."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # waiting threads make small networks ten times slower
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # as few compilations do not pay for a pool of processes

# Tests start hundreds of processes that import torch or Ray. Where the environment forbids to write bytecode, each of
# them would compile these for seconds; a folder of this run lets them share it.
if "PYTEST_XDIST_WORKER" not in os.environ:  # its workers inherit the variables
    compiled = tempfile.mkdtemp(prefix="nasspace-compiled-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", compiled)  # the headers that all compiled networks include
    if sys.dont_write_bytecode:
        sys.dont_write_bytecode, sys.pycache_prefix = False, compiled
        os.environ["PYTHONPYCACHEPREFIX"] = compiled
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# With `pytest -n`, searches of two processes would wait for each other's lock files.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["TMPDIR"] = tempfile.mkdtemp(prefix=f"nasspace-{worker}-")
    os.chmod(os.environ["TMPDIR"], 0o711)  # it contains a folder of a server that runs as another user
    tempfile.tempdir = None  # makes tempfile read TMPDIR again
    atexit.register(shutil.rmtree, os.environ["TMPDIR"], ignore_errors=True)  # compiled headers fill 150 MB


SLOWEST = (
    *("test_clusters", "test_ray_hygiene", "test_delivery", "test_postgresql", "test_full_training", "test_loop"),
    *(
        "test_documents",
        "test_searches",
        "test_runtimes",
        "test_damage",
        "test_blocks",
        "test_benchmark",
        "test_cli",
        "test_process",
    ),
    *(
        "test_spaces",
        "test_export",
        "test_convert",
        "test_profile",
        "test_outputs",
        "test_mutations",
        "test_listing",
        "test_browser",
    ),
)


NIGHTLY = {  # test: the parameters that only a nightly run has; all (*) where other tests check much of the same
    "test_benchmarks::test_a_program_runs_at_its_smallest_size": (
        "belief branches* counting* guidelines* scores?score* training_speed?images*"
    ),
    "test_benchmark::test_a_real_architecture_is_measured": "compile",
    "test_blocks::test_every_option_at_many_widths_and_strides": (
        "inception_* ghost_bottleneck auxiliary universal_* starnet mobileone expanded_* fasternet fused_* bottleneck "
        "xception"
    ),
    "test_browser::test_accessible_and_as_wide_as_the_screen": "light-1280 dark-390",
    "test_clusters::test_a_network_whose_process_dies_at_every_attempt_leaves_the_front": "*",
    "test_clusters::test_a_rung_moves_to_another_node": "*",
    "test_clusters::test_a_rung_whose_process_is_killed_continues_from_its_checkpoint": "*",
    "test_clusters::test_a_trial_that_never_returns_is_stopped": "*",
    "test_convert::test_a_dynamic_batch_gives_pytorchs_outputs_with_the_same_operators": (
        "xception_cifar se_resnet50 inception_v3_cifar resnext50_* mobilenet_v4_conv_medium "
        "shufflenet_v2_0.5_* mnasnet_* resnet18_cifar efficientnet_lite0 googlenet ghostnet_* mobilenext_*"
    ),
    "test_counting::test_many_random_networks": "*",
    "test_documents::test_a_documented_command_runs": "nas?compare?* nas?quantize?product",
    "test_fake_quantization::test_every_block_computes_what_the_file_computes": "0-False 1-True 2-False",
    "test_fuzz::test_every_case_ends_in_success_or_one_message": "space",
    "test_graph_edits::test_each_kind_can_be_removed_from_published_networks": "xception resnet18",
    "test_loop::test_a_search_killed_at_any_moment_ends_with_the_same_study": "tpe mnasnet netadapt",
    "test_loop::test_the_same_seed_gives_the_same_study": "tpe mnasnet netadapt",
    "test_memory::test_every_published_network_fits_an_arena_of_its_peak": "mobilenet repvgg",
    "test_memory::test_flash_is_what_the_files_hold": "shufflenet_* mobilenet_v3_* mnasnet_* mobileone_*",
    "test_memory::test_peak_is_what_onnx_runtime_holds": "se_resnet50 mobilenext_*",
    "test_mnasnet::test_its_networks_earn_more_than_random_ones": "hard",
    "test_netadapt::test_a_stopped_compression_continues_to_the_same_network": "*",
    "test_numbered::test_an_edit_of_a_file_is_measured_in_the_whole_file": "*",
    "test_optuna_samplers::test_a_resumed_search_equals_an_uninterrupted_one": "gp",
    "test_outputs::test_every_block_computes_the_same_in_onnx_at_odd_maps": "*-fixed",
    "test_pretrained::test_every_naming_is_recorded": "*",
    "test_pretrained::test_the_output_is_the_originals": (
        "alexnet-* inception_* se_resnet50* resnet50* xception-* mobileone_s4* resnext50*"
    ),
    "test_pretrained::test_weights_of_another_function_are_refused": "se_resnet50* resnet50*",
    "test_process::test_a_search_outlives_its_streams": "<*",
    "test_process::test_an_interrupted_search_names_the_command_to_continue": "SIGHUP SIGINT",
    "test_profile::test_every_operator_of_each_family_is_mapped": (
        "inception_* mobilenet_v4_conv_[lm]* resnext50* alexnet_grouped efficientnet_lite[1-4] xception"
    ),
    "test_profile::test_every_operator_of_samples_of_each_space_is_mapped": "spos mnasnet sandglass inception",
    "test_proxies::test_one_network_of_each_family_has_every_score_and_its_units": (
        "inception resnext xception mobileone resnet ghostnet starnet googlenet mnasnet_small mobilenext repvgg"
    ),
    "test_pruning::test_a_pruned_network_computes_what_the_whole_one_does_without_the_removed_channels": (
        "mnasnet_* mobilenext_* mobilenet_v1_* mobilenet_v3_* resnet18"
    ),
    "test_ray_hygiene::test_stopping_a_cluster_loses_no_finished_trial": "True",
    "test_runtimes::test_a_runtime_loads_and_runs_a_network_without_changing_it": "compile",
    "test_runtimes::test_a_trained_network_classifies_as_in_pytorch": "eager torchscript",
    "test_runtimes::test_outputs_are_pytorchs": "compile-*",
    "test_searches::test_a_search_measures_with_its_runtime": "ncnn eager onnxruntime",
    "test_shared_weights::test_killed_while_it_trains_or_uses_shared_weights_it_ends_in_the_same_front": "*",
    "test_source_bundler::test_networks_of_every_space_are_bundled": (
        "fire inception mnasnet mobile resnext sandglass spos xception"
    ),
    "test_spaces::test_networks_of_each_space_give_equal_outputs_in_onnx": (
        "fire inception mnasnet mobile resnext sandglass spos xception"
    ),
    "test_supernet::test_every_block_runs_on_slices_as_the_standalone_network": (
        "auxiliary bottleneck ghost_bottleneck inception_* mobileone"
    ),
    "test_supernet::test_shared_weights_learn_digits": "*",
    "test_values::test_a_networks_output_is_the_originals": (
        "mobileone_s4* inception_resnet_v2* inception_v4* resnet50* repvgg_b1g4* xception* se_resnet50* fasternet_t2* "
        "mobilenet_v4_conv_medium*"
    ),
    "test_weight_compression::test_a_network_is_compressed_fine_tuned_and_exported": "svd cluster",
}


def mark_nightly(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of `NIGHTLY`; a pattern that matches no test of a collected file is a mistake."""
    unused = {(test, pattern) for test, patterns in NIGHTLY.items() for pattern in patterns.split()}
    for item in items:
        test = f"{item.path.stem}::{getattr(item, 'originalname', item.name)}"
        parameters = item.callspec.id if hasattr(item, "callspec") else ""
        for pattern in NIGHTLY.get(test, "").split():
            if fnmatchcase(parameters, pattern):
                unused.discard((test, pattern))
                item.add_marker(pytest.mark.nightly)
                item.add_marker(pytest.mark.slow)
    if getattr(config.option, "lf", False) or is_one_named(config):  # only a part of each file is collected
        return
    collected = {item.path for item in items}
    files = {test: set(Path(__file__).parent.rglob(f"{test.partition('::')[0]}.py")) for test, _ in unused}
    if wrong := sorted(f"{test} {pattern}" for test, pattern in unused if files[test] <= collected):
        raise pytest.UsageError(f"NIGHTLY in tests/conftest.py: no test matches {', '.join(wrong)}")


def is_one_named(config) -> bool:
    """Whether the command line names a test."""
    return any("::" in argument for argument in config.args)


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marks
def pytest_collection_modifyitems(config, items):
    """Mark nightly tests; one that is named runs all the same, with `-m nightly`, too. Run the slowest files first.

    With `--dist loadfile` all processes then end at about the same time.
    """
    if config.option.markexpr == "nightly" or not is_one_named(config):
        mark_nightly(config, items)
    items.sort(key=lambda item: SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else len(SLOWEST))


@pytest.fixture(scope="session", autouse=True)
def temporary_files_removed(request, tmp_path_factory):
    """Remove the folders of all tests after a run without failures: a whole run writes 3 GB.

    pytest's own `tmp_path_retention_policy` removes each folder after its test, which others may still work in.
    """
    yield
    if not request.session.testsfailed:
        shutil.rmtree(tmp_path_factory.getbasetemp(), ignore_errors=True)


EXACT = ("test_benchmark", "test_coverage")  # their clocks and figures depend on the length of a round


@pytest.fixture(autouse=True)
def short_rounds(request, monkeypatch):
    """Measure latency in rounds of 4 ms instead of 20: tests need a latency, seldom a precise one."""
    timing = sys.modules.get("nasspace.latency.runtimes.timing")
    if timing and request.node.path.stem not in EXACT:
        monkeypatch.setattr(timing, "ROUND_SECONDS", 0.004)


def pytest_runtest_setup():
    """Do once per process what two libraries repeat: for each command Typer builds all, for each database Optuna runs
    its migration scripts, to find the newest."""
    if (typer := sys.modules.get("typer.main")) and not hasattr(typer.get_command, "cache_info"):
        typer.get_command = functools.cache(typer.get_command)
    storage = sys.modules.get("optuna.storages._rdb.storage")
    if storage and not hasattr(read := storage._VersionManager.get_head_version, "newest"):

        def remembered(self):
            remembered.newest = remembered.newest or read(self)
            return remembered.newest

        remembered.newest = None
        storage._VersionManager.get_head_version = remembered


IMPORTED = (
    *("torch._dynamo", "fvcore.nn", "safetensors.torch", "onnx.checker", "onnxruntime", "pandas", "sklearn.ensemble"),
    *(
        "optuna.storages._rdb.models",
        "alembic.config",
        "alembic.migration",
        "sqlalchemy.dialects.postgresql",
        "ray.tune",
    ),
    *("sqlalchemy.dialects.sqlite", "plotly.graph_objs._figure", "nasspace.latency.predictor"),
    *(
        "nasspace.samplers.optuna_samplers",
        "nasspace.engine.delivery",
        "nasspace.engine.full_training",
        "nasspace.engine.loop",
    ),
    *("nasspace.cli.searching", "nasspace.exporting.checks", "nasspace.latency.convert", "nasspace.reporting.report"),
    "nasspace.engine.ray.runner",
)
PRELUDE = """
import os, sys, tempfile, warnings
os.chdir({folder!r})
os.environ.clear()
os.environ.update({environment!r})
tempfile.tempdir = None
warnings.simplefilter("ignore")
sys.argv[1:] = {arguments!r}
for descriptor in (1, 2):
    os.dup2(os.open({output!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT), descriptor)
"""


RECORDED_STUDY = Path(__file__).parent / "recorded" / "study"


class Forked:
    """A process that runs Python code as `python -c` does, with the methods of `subprocess.Popen` that tests use.

    It is forked from a process that has imported what searches import, which takes seconds.
    """

    def __init__(self, code: str, arguments: list[str], folder: Path, output: Path) -> None:
        self._output = output
        values = {"folder": str(folder), "environment": dict(os.environ), "arguments": arguments, "output": str(output)}
        module = {"__name__": "__main__"}
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(IMPORTED))
        self._process: Any = context.Process(target=exec, args=(PRELUDE.format(**values) + code, module))
        self._process.start()
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("forked", timeout or 0.0)
        return self._process.exitcode

    def output(self) -> str:
        """Return its standard output and standard error."""
        return self._output.read_text(errors="backslashreplace") if self._output.is_file() else ""

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end and return its output; both streams are one."""
        self.wait(timeout)
        return self.output(), self.output()

    def send_signal(self, which: signal.Signals) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ends at this moment
                os.kill(self.pid, which)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def lines(self) -> Iterator[str]:
        """Yield its output line by line until it ends."""
        while not self._output.is_file() and self.poll() is None:
            time.sleep(0.01)
        with self._output.open() as stream:
            rest = ""
            while True:
                has_ended = self.poll() is not None
                rest += (read := stream.read())
                *whole, rest = rest.split("\n")
                yield from whole
                if not read:
                    if has_ended:
                        break
                    time.sleep(0.01)


@pytest.fixture
def forked(tmp_path_factory) -> Iterator[Callable[..., Forked]]:
    """Start Python code in a separate process: `forked(code, *arguments)`, in the working folder or `folder`."""
    made: list[Forked] = []

    def start(code: str, *arguments: str, folder: Path | None = None) -> Forked:
        output = tmp_path_factory.mktemp("forked") / "output"
        made.append(Forked(code, list(arguments), folder or Path.cwd(), output))
        return made[-1]

    yield start
    for process in made:  # of a test that failed
        process.kill()
        process.wait()


class ForkedModelPy:
    """Replaces the process that `exporting.code_runner` starts for a model.py: forked, and also without nasspace."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._process: Forked | None = None

    @property
    def returncode(self) -> int | None:
        return self._process and self._process.returncode

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        if self._process:
            self._process.kill()

    def communicate(self, given: str | None = None, timeout: float | None = None) -> tuple[str, str]:
        from nasspace.exporting import code_runner

        if given is not None:
            forgotten = "for name in [name for name in sys.modules if name.startswith('nasspace')]:\n"
            forgotten += f"    del sys.modules[name]\nimport io\nsys.stdin = io.StringIO({given!r})\n"
            self._process = Forked(forgotten + code_runner.PROGRAM, [], Path.cwd(), self._output)
        return self._process.communicate(timeout) if self._process else ("", "")


@pytest.fixture(scope="module")
def forked_model_py(tmp_path_factory) -> Iterator[None]:
    """Run exported model.py files in forked processes, for tests that do not test that process."""
    from nasspace.exporting import code_runner

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_runner, "_start", lambda: ForkedModelPy(tmp_path_factory.mktemp("model_py") / "output"))
        yield


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """Keep tests from reading and writing the user's cache."""
    monkeypatch.setenv("NASSPACE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def restore_study() -> Callable[[Path], Path]:
    """`restore_study(folder)` writes the recorded study, a finished search on digits, to reports/real in a folder."""

    def restore(folder: Path) -> Path:
        place = folder / "reports" / "real"
        place.mkdir(parents=True)
        shutil.copy(RECORDED_STUDY / "study.yaml", place)
        with contextlib.closing(sqlite3.connect(place / "study.db")) as connection:
            connection.executescript((RECORDED_STUDY / "study.sql").read_text())
        return place

    return restore


@pytest.fixture
def own_blocks(monkeypatch):
    """Remove the blocks that a test registered."""
    from nasspace.blocks import registry

    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))


@pytest.fixture(scope="session")
def shortened():
    """`shortened(architecture)`: the network with at most two equal layers in a row and narrow hidden linear layers.

    What a test checks of every kind of layer takes a fraction of the whole network's time. With `most`, only so many
    layers are kept before global pooling.
    """

    def shorten(architecture, most=None):
        kept: list[dict[str, Any]] = []
        for layer in architecture.layers[:-1]:
            if layer.block == "linear":
                layer = dataclasses.replace(layer, out=min(layer.out, 64))
            if kept[-2:] != [layer.to_dict()] * 2:
                kept.append(layer.to_dict())
        if most is not None:
            pool = next(i for i, layer in enumerate(kept) if layer["block"] == "global_pool")
            kept[most:pool] = []
        layers = [*kept, architecture.layers[-1].to_dict()]
        return type(architecture).of(layers, input=architecture.input, name=architecture.name)

    return shorten


@pytest.fixture(scope="session")
def by_hooks():
    """Return a function that counts FLOPs, parameters and memory access of a module on an image by forward hooks.

    They are those of the folded module; the module itself is put into evaluation mode.
    """
    import copy

    import torch
    from torch import nn

    from nasspace.network import fold

    def count(module: nn.Module, image: torch.Tensor) -> tuple[int, int, int]:
        flops = memory_access = 0
        module = fold(copy.deepcopy(module.eval()))

        def hook(layer, inputs, out):
            nonlocal flops, memory_access
            flops += out.numel() * layer.weight[0].numel()
            memory_access += inputs[0].numel() + layer.weight.numel() + out.numel()

        layers = [part for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
        handles = [layer.register_forward_hook(hook) for layer in layers]
        with torch.no_grad():
            module(image)
        for handle in handles:
            handle.remove()
        return flops, sum(parameter.numel() for parameter in module.parameters()), memory_access

    return count
