"""What every test has: a latency cache of its own, blocks that vanish again, and an oracle for counts."""

from __future__ import annotations

import os
import tempfile

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other make small networks ten times slower

if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # of `pytest -n`: searches of two processes take turns by files
    os.environ["TMPDIR"] = tempfile.mkdtemp(prefix=f"nasspace-{worker}-")
    os.chmod(os.environ["TMPDIR"], 0o711)  # a server of another user has a folder below
    tempfile.tempdir = None  # read the environment again


SLOWEST = ("test_clusters", "test_delivery", "test_ray_hygiene", "test_full_training", "test_postgresql", "test_loop")


def pytest_collection_modifyitems(items):
    """The slowest files first: with `-n 2 --dist loadfile` no process is left alone with one of them at the end."""
    items.sort(key=lambda item: SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else len(SLOWEST))


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("NASSPACE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def own_blocks(monkeypatch):
    """What a test registers is forgotten after it."""
    from nasspace.blocks import registry

    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))


@pytest.fixture(scope="session")
def by_hooks():
    """Count (FLOPs, parameters, memory access) of a module on an image, by forward hooks on its layers."""
    import torch
    from torch import nn

    def count(module: nn.Module, image: torch.Tensor) -> tuple[int, int, int]:
        flops = memory_access = 0

        def hook(layer, given, out):
            nonlocal flops, memory_access
            each = layer.weight[0].numel()  # multiply-adds for one output value
            flops += out.numel() * each
            memory_access += given[0].numel() + layer.weight.numel() + out.numel()

        layers = [part for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
        handles = [layer.register_forward_hook(hook) for layer in layers]
        with torch.no_grad():
            module.eval()(image)
        for handle in handles:
            handle.remove()
        return flops, sum(parameter.numel() for parameter in module.parameters()), memory_access

    return count
