"""model.py runs in a process that finds torch where this one does, and no nasspace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from nasspace.errors import InputError
from nasspace.exporting import code_runner

GIVEN = {"inputs": torch.arange(6.0).reshape(2, 3)}


def program(folder: Path, line: str) -> Path:
    """A model.py that begins with `line` and returns what it is given."""
    (folder / "model.py").write_text(f"{line}\nimport torch\n\n\ndef load():\n    return torch.nn.Identity()\n")
    return folder / "model.py"


def test_a_library_of_pythonpath_is_found(tmp_path, monkeypatch):
    """Where torch is installed with `pip install --target`, only PYTHONPATH leads to it."""
    (tmp_path / "libraries").mkdir()
    (tmp_path / "libraries" / "elsewhere.py").write_text("")
    path = os.pathsep.join([str(tmp_path / "libraries"), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    assert torch.equal(code_runner.run(program(tmp_path, "import elsewhere"), GIVEN)["scores"], GIVEN["inputs"])


@pytest.mark.parametrize("name", ["nasspace", "neighbor"])
def test_neither_nasspace_nor_the_working_folder_is_found(tmp_path, monkeypatch, name):
    """A shipped model.py must not lean on either."""
    (tmp_path / "neighbor.py").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=name):
        code_runner.run(program(tmp_path, f"import {name}"), GIVEN)


def test_a_full_disk_is_one_message(tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:659] . PytorchStreamWriter failed\nframe 1\n")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=r"given\.pt: cannot be written \(.*failed\); make room there or set TMPDIR"):
        code_runner.run(tmp_path / "model.py", GIVEN)
