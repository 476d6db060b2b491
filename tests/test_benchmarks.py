"""Every program of benchmarks/ loads, documents how to run it, and runs at its smallest size where that takes seconds.

test_fuzz.py runs fuzz.py. These are only loaded, or print their help: programs that take minutes
(delivery_kills, explain, faults, kills, latency_protocols, overhead, predictor, promises, published, replacement,
search, targets, textbook, wall_clock), those that need data with a test split (compression, compression_methods,
plain_training, starts), the table NAS-Bench-201 (halving, samplers), or torchvision, timm, pytorchcv, and official
code (foreign, originals, originals_list, record_checkpoints, record_networks, record_values).
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
PROGRAMS = {path.stem: path for path in sorted(FOLDER.glob("*.py"))}
LIBRARIES = {"originals_list"}  # imported by other programs
WITH_FLAGS = {name for name, path in PROGRAMS.items() if "argparse" in path.read_text(encoding="utf-8")}
SMALLEST = {  # program and arguments: a part of what it prints
    "asks --space shuffle --trials 3 --repeats 1": "| 3 |",
    "belief": "full trainings lie in their interval",
    "branches --seconds 0.01 --networks googlenet:32": "| googlenet at 32 | 7 |",
    "compare --repeats 2 --without-draws": "| 20 | 300 images |",
    "counting shuffle 5": "counts equal: True",
    "dynamic_batch --rounds 2 --repeats 1 --resolution 32 mobilenet_v2_0.35": "| mobilenet_v2_0.35 |",
    "fidelities list": "clothing10",
    "guidelines --seconds 0.01 --sizes 1 --out .": "G1",
    "scores score zoo --networks 2 --resolution 32 --images 4 --table scores.csv": "zoo shufflenet_v1_g8_0.25",
    "promotions --subsets 1": "| 32x4 | together |",
    "scores report --draws 3": "best pair, chosen on these data",
    "shipped_files": "0 of 0 files",
    "startup 1 --help": "nas --help: median",
    "training_speed precision mobilenet_v2_0.35 --rounds 1 --resolution 32": "| bfloat16 |",
    "training_speed images digits --resolution 9": "| digits, 1,797 at 9 | read from the file |",
    "supernet report --draws 3": "better half alone",
}


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """Run in an empty folder; undo what a program adds to the path, the modules, and the blocks."""
    from nasspace.blocks import registry

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    before = set(sys.modules)
    yield
    for name in {*PROGRAMS, "test_values", "test_pretrained"} - before:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_loads_and_documents_itself(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    if name in WITH_FLAGS:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(PROGRAMS[name]), run_name="__main__")
        assert not ended.value.code
        assert "usage:" in capsys.readouterr().out
    names = runpy.run_path(str(PROGRAMS[name]))
    assert name in LIBRARIES or f"python benchmarks/{name}.py" in names["__doc__"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of fvcore
@pytest.mark.parametrize("command", SMALLEST)
def test_a_program_runs_at_its_smallest_size(command, monkeypatch, capsys):
    name, *arguments = command.split()
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    runpy.run_path(str(PROGRAMS[name]), run_name="__main__")
    assert SMALLEST[command] in capsys.readouterr().out


@pytest.mark.slow
def test_shared_weights_are_trained_and_recorded(tmp_path, monkeypatch, capsys):
    import csv

    from PIL import Image

    for number in range(60):
        folder = tmp_path / "images" / f"class{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (4 * number, 255 - 4 * number, 99)).save(folder / f"{number}.png")
    given = [
        "train",
        "clothing10",
        "images",
        "--epochs",
        "1",
        "--resolution",
        "16",
        "--only",
        "2",
        "--table",
        "table.csv",
    ]
    monkeypatch.setattr(sys, "argv", ["supernet.py", *given])
    runpy.run_path(str(PROGRAMS["supernet"]), run_name="__main__")
    assert "epoch 1 of 1: loss" in capsys.readouterr().out
    rows = list(csv.DictReader(Path("table.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["network"] for row in rows] == ["0", "1"]
    assert all(0 <= float(row["accuracy"]) <= 1 and float(row["log_loss"]) > 0 for row in rows)
