"""`--teacher`: ONNX files, exports and trainings as teachers, at their own size, with their own normalization."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn

import nasspace
from nasspace import Architecture, InputError, build
from nasspace.data.loading import load_data
from nasspace.engine import teachers
from nasspace.latency.convert import to_onnx
from nasspace.training.trainer import logits

LAYERS = [
    {"block": "conv", "out": 8, "kernel": 3, "stride": 2},
    {"block": "global_pool"},
    {"block": "linear", "out": 10},
]


def network(side: int = 16, channels: int = 1, classes: int = 10) -> Architecture:
    return Architecture.of([*LAYERS[:-1], {**LAYERS[-1], "out": classes}], input=(channels, side, side), name="tiny")


@pytest.fixture(scope="module")
def data():
    return load_data("digits", resolution=16)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The folder of a trained network."""
    folder = tmp_path_factory.mktemp("t") / "teacher"
    nasspace.train(network(), data=data, epochs=2, out=folder)
    return folder


def images(data):
    return data.validation.pixels[:9].float()


@pytest.mark.parametrize("file", ["", "model.onnx"])
def test_a_training_and_its_onnx_file_have_the_scores_of_the_network(trained, data, file):
    teacher = teachers.load(trained / file, data, "cpu", print)
    model = build(network())
    model.load_state_dict(torch.load(trained / "weights.pt", weights_only=True))
    expected = logits(model, data.validation.at(torch.arange(9)), data, 16)
    torch.testing.assert_close(teacher.scores(images(data)), expected, rtol=1e-3, atol=1e-4)


def test_classes_in_another_order_are_put_in_order(trained, data):
    turned = dataclasses.replace(data, classes=tuple(reversed(data.classes)))
    expected = teachers.load(trained, data, "cpu", print).scores(images(data))
    for file in ("", "model.onnx"):
        found = teachers.load(trained / file, turned, "cpu", print).scores(images(data))
        torch.testing.assert_close(found, expected.flip(1), rtol=1e-3, atol=1e-4)


def test_images_are_resized_for_the_teacher(trained, data):
    larger = load_data("digits", resolution=32)
    teacher = teachers.load(trained, larger, "cpu", print)
    assert teacher.scores(images(larger)).shape == (9, 10)


def test_a_file_of_another_program_is_taken_as_it_is(data, tmp_path):
    """With probabilities instead of logits."""
    model = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(1, 10), nn.Softmax(1)).eval()
    to_onnx(model, (1, 16, 16), tmp_path / "other.onnx")
    lines = []
    teacher = teachers.load(tmp_path / "other.onnx", data, "cpu", lines.append)
    assert "names no classes and no normalization; the data's are used" in lines[0]
    mean, std = data.mean[0], data.std[0]
    expected = model((images(data) - mean) / std)
    torch.testing.assert_close(teacher.scores(images(data)).softmax(1), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("mobilenet_v2_1.0", "has no trained weights; name an ONNX file"),
        ("nothing.onnx", "there is no such file"),
        ("gray-teacher", "takes 1 channels, photos has 3"),
        ("seven.onnx", "has 7 outputs, digits has 10 classes"),
        ("twenty.onnx", "has 20 outputs, digits has 10 classes"),
        ("half.onnx", "half.onnx: ONNX Runtime cannot run it"),
        ("broken.onnx", "ONNX Runtime cannot run it"),
    ],
)
def test_an_unfit_teacher_is_one_message(teacher, message, trained, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.onnx").write_bytes(b"no")
    if teacher in ("seven.onnx", "twenty.onnx"):
        to_onnx(build(network(classes=7 if teacher == "seven.onnx" else 20)).eval(), (1, 16, 16), tmp_path / teacher)
    if teacher == "half.onnx":
        import onnx

        model = onnx.load(trained / "model.onnx")
        model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
        onnx.save(model, tmp_path / teacher)
    if teacher == "gray-teacher":
        data = dataclasses.replace(data, name="photos", channels=3, mean=(1.0,) * 3, std=(1.0,) * 3)
        teacher = str(trained)
    with pytest.raises(InputError, match=message):
        teachers.load(teacher, data, "cpu", print)


def test_a_network_learns_from_a_teacher_and_resumes(trained, data, tmp_path, capsys):
    arguments = {"data": data, "epochs": 1, "out": tmp_path / "student", "seed": 1}
    found = nasspace.train(network(), teacher=trained, **arguments)
    record = json.loads((tmp_path / "student" / "training.json").read_text())
    assert record["teacher"] == str(trained)
    assert len(record["identity"]["teacher"]) == 12
    plain = nasspace.train(network(), data=data, epochs=1, out=tmp_path / "plain", seed=1)
    assert json.loads((tmp_path / "plain" / "training.json").read_text())["losses"] != record["losses"]
    assert nasspace.train(network(), teacher=trained, **arguments) == found
    with pytest.raises(InputError, match=r"holds another training \(teacher differ\)"):
        nasspace.train(network(), **arguments)
    assert plain.digest == found.digest
