"""Files for other runtimes: equal outputs and accuracy in their own runtime; what is missing or damaged is said."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nasspace import cli
from nasspace.architecture import Architecture
from nasspace.data.loading import load_data
from nasspace.errors import InputError
from nasspace.exporting import checks, int8_litert, targets
from nasspace.exporting import export as exporting
from nasspace.exporting.export import export, verify
from nasspace.exporting.targets import LITERT_INT8, TARGETS
from nasspace.network import build
from nasspace.training.trainer import Fidelity, TrainingSettings, train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_model_py")]
THERE = [name for name, target in TARGETS.items() if not target.missing]


def architecture() -> Architecture:
    layers = [
        {"block": "conv", "out": 8, "stride": 2},
        {"block": "shuffle_v1", "out": 16, "stride": 2, "groups": 2},
        {"block": "inverted_residual", "out": 16, "se": 0.25, "activation": "hard_swish"},
        {"block": "global_pool"},
        {"block": "linear", "out": 10},
    ]
    return Architecture.of(layers, input=(1, 16, 16), name="little")


@pytest.fixture(scope="module")
def data():
    return load_data("digits", resolution=16)


@pytest.fixture(scope="module")
def network(data):
    model = build(architecture())
    assert train(model, data, Fidelity(16, 5), TrainingSettings(batch_size=32)).accuracy > 0.8
    return model


@pytest.fixture(scope="module")
def exported(network, data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("targets") / "net"
    export(architecture(), folder, weights=network.state_dict(), data=data, formats=["source", "onnx", *THERE])
    return folder


@pytest.mark.parametrize("name", TARGETS)
def test_a_file_equals_the_network_in_its_own_runtime(name, exported, network):
    target = TARGETS[name]
    if target.missing:
        pytest.skip(target.missing)
    found = {check["name"]: check for check in json.loads((exported / "export.json").read_text())["checks"]}
    assert found[f"{target.file} equals PyTorch"]["ok"]
    assert found[f"accuracy of {target.file}"]["value"] == found["accuracy of model.onnx"]["value"]
    assert f"`{target.file}`" in (exported / "README.md").read_text()
    images = torch.randn(5, 1, 16, 16)
    scores = targets.scores(target, exported / target.file)(images.numpy())
    with torch.inference_mode():
        assert np.allclose(scores, network.eval()(images).numpy(), atol=1e-4)


def test_an_export_is_verified_again_and_survives_a_copy(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "copy")
    again = verify(folder, data="digits")
    assert again.ok
    for name in THERE:
        assert any(check.name == f"accuracy of {TARGETS[name].file} as recorded" and check.ok for check in again.checks)


def test_pt2_runs_without_nasspace(exported, tmp_path):
    code = (
        "import sys; sys.modules['nasspace'] = None; import torch; "
        "print(torch.export.load('model.pt2').module()(torch.zeros(3, 1, 16, 16)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=exported, capture_output=True, text=True, check=True)
    assert "[3, 10]" in done.stdout


def test_a_file_that_may_hold_code_is_not_loaded_if_it_was_changed(exported, tmp_path):
    """torch.export's archives may hold pickled objects."""
    folder = shutil.copytree(exported, tmp_path / "changed")
    data = bytearray((folder / "model.pt2").read_bytes())
    (folder / "model.pt2").write_bytes(data + b"\n")
    found = {check.name: check for check in verify(folder).checks}
    assert found["model.pt2 unchanged"].ok is False
    assert found["model.pt2 equals PyTorch"].ok is None
    assert "not loaded" in found["model.pt2 equals PyTorch"].why
    unread = {check.name: check for check in verify(exported, code=False).checks}
    assert unread["model.pt2 equals PyTorch"].why == "--no-code"


def test_a_missing_runtime_is_named_at_export_and_skipped_at_verification(exported, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    assert cli.run(["export", "shufflenet_v2_0.5", "--out", str(tmp_path / "x"), "--format", "onnx,openvino"]) == 2
    assert "pip install 'nasspace[openvino]'" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    found = {check.name: check for check in verify(exported).checks}
    for name in THERE:
        assert found[f"{TARGETS[name].file} equals PyTorch"].ok is None


def test_a_network_that_a_converter_refuses_is_one_message(monkeypatch, tmp_path):
    def refuse(*_):
        raise ValueError("no such operator\nmore lines")

    monkeypatch.setitem(exporting.TARGETS, "pt2", dataclasses.replace(TARGETS["pt2"], write=refuse))
    with pytest.raises(InputError, match=r"--format pt2: the network cannot be converted: no such operator$"):
        export(architecture(), tmp_path / "net", formats=["pt2"])


def test_a_damaged_file_is_one_message(tmp_path):
    for name in THERE:
        path = tmp_path / TARGETS[name].file
        path.write_bytes(b"damaged")
        with pytest.raises(InputError, match=r"cannot load it"):
            targets.scores(TARGETS[name], path)


def test_a_fixed_batch_is_filled():
    seen = []

    def run(images):
        seen.append(len(images))
        return images.reshape(len(images), -1)[:, :2]

    images = np.arange(7 * 4, dtype=np.float32).reshape(7, 1, 2, 2)
    assert np.array_equal(targets.fitting(run, 3)(images), images.reshape(7, -1)[:, :2])
    assert seen == [3, 3, 3]
    assert targets.fitting(run, "dynamic") is run


def test_a_file_that_does_not_run_is_a_failed_check(exported, monkeypatch, tmp_path):
    def refuse(images):
        raise RuntimeError("another shape")

    monkeypatch.setattr(checks.targets, "scores", lambda target, path: refuse)
    found = {check.name: check for check in verify(exported).checks}
    assert found["model.pt2 equals PyTorch"].ok is False
    assert "another shape" in found["model.pt2 equals PyTorch"].value


def test_int8_for_litert_keeps_the_decisions(exported, data, tmp_path, capsys):
    if LITERT_INT8.missing:
        pytest.skip(LITERT_INT8.missing)
    folder = shutil.copytree(exported, tmp_path / "copy")
    assert cli.run(["quantize", str(folder), "--format", "litert", "--data", "digits", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"][LITERT_INT8.file] > found["accuracy"]["model.onnx"] - 0.05
    assert found["loss"]["images"] == len(data.validation)
    assert found["divergence"].keys() == {"minmax", "moving average"}
    assert found["divergence"][found["ranges"]] < 0.05
    again = {check.name: check for check in verify(folder, data="digits").checks}
    assert again[f"{LITERT_INT8.file} runs"].ok
    assert again[f"accuracy of {LITERT_INT8.file} as recorded"].ok
    assert f"`{LITERT_INT8.file}` has weights per channel" in (folder / "README.md").read_text()
    code = (folder / "README.md").read_text().split("With LiteRT in int8:\n\n```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", code + "print(scores.shape)"], cwd=folder, capture_output=True, text=True
    )
    assert "(1, 10)" in done.stdout, done.stderr


def test_int8_for_litert_without_its_package_is_one_message(exported, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    assert cli.run(["quantize", str(exported), "--format", "litert"]) == 2
    assert "--format litert: needs litert_torch: pip install 'nasspace[litert]'" in capsys.readouterr().err
    assert cli.run(["quantize", str(exported), "--format", "litert", "--fine-tune", "3"]) == 2
    assert "--fine-tune trains for model.int8.onnx" in capsys.readouterr().err
    assert cli.run(["quantize", str(exported), "--format", "litrt"]) == 2
    assert "did you mean 'litert'" in capsys.readouterr().err


def test_an_int8_input_is_rounded_to_its_scale():
    taken = {"dtype": np.int8, "quantization": (0.5, -3)}
    images = np.array([0.0, 0.3, 1.0, -99.0, 99.0], np.float32)
    assert targets._as_int8(images, taken).tolist() == [-3, -2, -1, -128, 127]
    assert targets._as_int8(images, {"dtype": np.float32}) is images


def test_a_wrong_int8_file_loses_its_accuracy_but_not_its_export(exported, data, tmp_path, monkeypatch):
    """A file in int8 is judged as the others are; what it loses is reported."""
    seen = []

    def wrong(network, shape, drawn, path):
        seen.append(shape)
        path.write_bytes(b"")
        return "minmax", (("minmax", 2.0),)

    zeros = dataclasses.replace(
        LITERT_INT8, package="torch", load=lambda path: lambda images: np.zeros((len(images), 10))
    )
    monkeypatch.setitem(targets.BY_FILE, zeros.file, zeros)
    monkeypatch.setitem(TARGETS, "litert", zeros)
    monkeypatch.setattr(int8_litert, "LITERT_INT8", zeros)
    monkeypatch.setattr(int8_litert, "float_layers", lambda path: (2,))
    monkeypatch.setattr(int8_litert, "choose", wrong)
    folder = shutil.copytree(exported, tmp_path / "copy")
    found, quantized = int8_litert.quantize(folder, data)
    assert seen == [(1, 1, 16, 16)]
    assert found.accuracy[zeros.file] < 0.3
    assert quantized.loss.value == pytest.approx(found.accuracy["model.onnx"] - found.accuracy[zeros.file])
    assert "model.int8.tflite loses" in quantized.warning
    assert "operations of layers 2 stay in float" in (folder / "README.md").read_text()
    assert verify(folder, data="digits").ok
