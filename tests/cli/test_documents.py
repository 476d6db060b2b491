"""The commands in README.md and docs/ are valid, and those that need only this machine are run at a small size."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer

from nasspace import cli

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
ELSEWHERE = {  # part of a command: the tests that run it, since it needs more than this machine, or minutes
    "torchrun": "tests/training/test_distributed.py",
    "postgresql:": "tests/engine/test_postgresql.py",
    "ssh:": "tests/latency/test_remote.py",
    "ghost": "tests/test_examples.py",
    "--workers": "tests/engine/ray/test_clusters.py",
    "--recipe cluster": "tests/engine/ray/test_clusters.py",
    "--log": "tests/engine/test_training_logs.py",
    "--start-from": "tests/engine/test_starting_weights.py",
    "compress": "tests/engine/test_netadapt.py",
    "supernet": "tests/engine/test_shared_weights.py",
    "onnxruntime-int8": "tests/latency/test_searches.py",
    "--measure": "tests/cli/test_explaining.py",
    "reports/photos/exports": "tests/exporting/test_int8.py",
    "--fine-tune": "tests/exporting/test_int8.py",
}
RECIPE = "trials: 1\nresolution: 32\nfidelity: {resolution: 16, epochs: 1}\nfull: {epochs: 1}\n"
SMALLER = {  # verb: flags that are added, or replaced, to make it quick
    "search": {"--recipe": "brief", "--latency-target": "500ms"},
    "compare": {"--recipe": "brief", "--networks": "2"},
    "train": {"--epochs": "1"},
}
MODULE = """
from torch import nn


def small_net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
"""


def commands() -> dict[str, Path]:
    """Every line with a command of `nas`, as it stands in a code block, and the document that shows it first."""
    found = {}
    for document in DOCUMENTS:
        for block in re.findall(r"```\w*\n(.*?)```", document.read_text(), re.S):
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                if match := re.search(r"(?:^|[\s/])(nas [a-z].*)", line):
                    found.setdefault(line if "torchrun" in line else match[1], document)
    return found


def arguments(command: str) -> list[str]:
    words = shlex.split(command, comments=True)
    return words[words.index("nas") + 1 :]


def test_commands_that_are_not_run_have_tests():
    assert [path for path in ELSEWHERE.values() if not (ROOT / path).is_file()] == []
    assert [part for part in ELSEWHERE if not any(part in command for command in commands())] == []


@pytest.mark.parametrize("command", commands())
def test_a_documented_command_is_valid(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    verb, *rest = arguments(command)
    group = typer.main.get_command(cli.app)
    group.commands[verb].make_parser(typer.Context(group)).parse_args(list(rest))  # raises for an unknown flag


@pytest.fixture(scope="module")
def working_folder(tmp_path_factory):
    """A folder with 60 photos, a recipe of seconds, networks as a module and files, a study, a training, an export."""
    import pyarrow
    import torch
    from PIL import Image
    from pyarrow import parquet

    import nasspace

    folder = tmp_path_factory.mktemp("working")
    for number in range(60):
        path = folder / "photos" / ("cat", "dog", "owl")[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (4 * number, 80 * (number % 3), 99)).save(path)
    shutil.copy(folder / "photos" / "cat" / "0.png", folder / "photo.jpg")
    (folder / "search").mkdir()
    (folder / "search" / "brief.yaml").write_text(RECIPE)
    (folder / "my_networks.py").write_text(MODULE)
    weights = nasspace.build(nasspace.zoo.load("mobilenet_v2_1.0")).state_dict()
    torch.save(weights, folder / "mobilenet_v2-7ebf99e0.pth")
    photos = [path.read_bytes() for path in sorted((folder / "photos").glob("*/*"))]
    labels = [path.parent.name for path in sorted((folder / "photos").glob("*/*"))]
    parquet.write_table(pyarrow.table({"image": photos, "label": labels}), folder / "train.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        given = "--space mobile --data imagefolder:photos --latency-target 500ms --recipe brief --study photos"
        assert cli.run(["search", *given.split()]) == 0
        assert cli.run(["train", "photos:front", "--epochs", "1"]) == 0
        assert cli.run(["export", f"photos:{member(folder)}", "--out", "product"]) == 0
    shutil.copy(folder / "product" / "model.onnx", folder)
    return folder


def member(folder: Path) -> str:
    """The id of a network of the study's front."""
    return min(path.name for path in (folder / "reports" / "photos" / "exports").iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("forked_model_py")
@pytest.mark.parametrize("command", [line for line in commands() if not any(part in line for part in ELSEWHERE)])
def test_a_documented_command_runs(command, working_folder, monkeypatch, capsys):
    monkeypatch.chdir(working_folder)
    status = cli.run(small(arguments(command), working_folder))
    assert status == 0, capsys.readouterr().err


def small(words: list[str], folder: Path) -> list[str]:
    """The command at a small size, with the id of a network that exists."""
    for flag, value in SMALLER.get(words[0], {}).items():
        if flag in words:
            words[words.index(flag) + 1] = value
        elif flag != "--latency-target":
            words += [flag, value]
    words = [re.sub(r"(?<=photos[:-])\d+|(?<=exports/)\d+", member(folder), word) for word in words]
    return ["source,onnx,pt2" if "openvino" in word else word for word in words]
