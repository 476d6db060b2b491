"""model.py runs in a process that finds the same torch and no nasspace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from nasspace.errors import InputError
from nasspace.exporting import code_runner

INPUTS = {"inputs": torch.arange(6.0).reshape(2, 3)}


def program(folder: Path, line: str) -> Path:
    """Write a model.py that starts with `line` and returns its input."""
    (folder / "model.py").write_text(f"{line}\nimport torch\n\n\ndef load():\n    return torch.nn.Identity()\n")
    return folder / "model.py"


def test_a_library_of_pythonpath_is_found(tmp_path, monkeypatch):
    """After `pip install --target`, torch is found through PYTHONPATH alone."""
    (tmp_path / "libraries").mkdir()
    (tmp_path / "libraries" / "elsewhere.py").write_text("")
    path = os.pathsep.join([str(tmp_path / "libraries"), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    assert torch.equal(code_runner.run(program(tmp_path, "import elsewhere"), INPUTS)["scores"], INPUTS["inputs"])


@pytest.mark.parametrize("name", ["nasspace", "neighbor"])
def test_neither_nasspace_nor_the_working_folder_is_found(tmp_path, monkeypatch, name):
    """An exported model.py must not depend on either."""
    (tmp_path / "neighbor.py").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=name):
        code_runner.run(program(tmp_path, f"import {name}"), INPUTS)


def test_a_full_disk_is_one_message(tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:659] . PytorchStreamWriter failed\nframe 1\n")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        InputError, match=r"given\.pt: cannot be written \(.*failed\); free disk space there or set TMPDIR"
    ):
        code_runner.run(tmp_path / "model.py", INPUTS)
