"""An ONNX file with the preprocessing inside: its pixels are Pillow's but for a level, its decisions the pipeline's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image, ImageFilter

from nasspace import cli
from nasspace.architecture import Architecture
from nasspace.data import predict
from nasspace.data.loading import load_data
from nasspace.errors import InputError
from nasspace.exporting import judging, photo_onnx, preprocessing
from nasspace.exporting.export import export, verify
from nasspace.network import build

SIDE = 24
pytestmark = pytest.mark.slow


def architecture(channels: int = 3) -> Architecture:
    layers = [{"block": "conv", "out": 8, "stride": 2}, {"block": "global_pool"}, {"block": "linear", "out": 2}]
    return Architecture.of(layers, input=(channels, SIDE, SIDE), name="little")


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    """A smooth image with some noise."""
    noise = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1)))
    return smooth if channels == 3 else smooth[..., :1]


@pytest.mark.parametrize("size", [(SIDE, SIDE), (90, 41), (37, 200), (25, 24), (11, 17)], ids=str)
@pytest.mark.parametrize(
    ("given", "channels"),
    [
        ({"resize": {"shorter_side": SIDE}, "crop": [SIDE, SIDE]}, 3),
        ({"resize": {"shorter_side": 28.5}, "crop": [SIDE, SIDE], "interpolation": "bicubic"}, 3),
        ({"resize": {"size": [SIDE, SIDE]}, "crop": None}, 1),
    ],
    ids=["shorter side", "bicubic", "gray"],
)
def test_pixels_are_those_of_pillow_but_for_a_level(given, channels, size, tmp_path):
    network = build(architecture(channels)).eval()
    spec = preprocessing.complete(
        architecture(channels), {}, {**given, "mean": [0.4] * channels, "std": [0.2] * channels}
    )
    path = tmp_path / "x.onnx"
    photo_onnx.write(network, spec, {"a": "b"}, path)
    model = onnx.load(path)
    model.graph.output.append(onnx.helper.make_tensor_value_info("preprocessed", onnx.TensorProto.FLOAT, None))
    image = picture(*size, channels)
    found, pixels = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": image})
    expected = predict.normalize(predict.preprocess(image[..., 0] if channels == 1 else image, spec), spec)
    assert np.abs(pixels - expected).max() * 0.2 * 255 < 1.01
    with torch.inference_mode():
        scores = network(torch.from_numpy(expected)).softmax(1)[0].numpy()
    assert np.allclose(found, scores, atol=1e-3)
    assert found.sum() == pytest.approx(1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for name, level in (("dark", 60), ("light", 190)):
        (root / name).mkdir()
        for i in range(20):
            pixels = np.clip(picture(30 + i, 44).astype(int) // 3 + level, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.mark.usefixtures("forked_model_py")
def test_an_export_has_the_file_and_judges_it(photos, tmp_path):
    data = load_data(f"imagefolder:{photos}", resolution=SIDE)
    folder = tmp_path / "net"
    weights = build(architecture()).state_dict()
    result = export(architecture(), folder, weights=weights, data=data, formats=["onnx", photo_onnx.FORMAT])
    checks = {check.name: check for check in result.checks}
    assert checks[f"{photo_onnx.NAME} preprocesses as predict.py"].ok
    assert result.accuracy[photo_onnx.NAME] == result.accuracy["model.onnx"]
    assert photo_onnx.NAME in (folder / "README.md").read_text()
    first = next((photos / "dark").iterdir())
    spec = json.loads((folder / "preprocessing.json").read_text())
    image = predict.photo(first, spec)
    assert (image.dtype, image.shape[2]) == (np.uint8, 3)
    probabilities = judging.photo_probabilities(folder / photo_onnx.NAME)(image)
    (listed,) = predict.classify([first], folder)
    assert listed["probability"] == pytest.approx(float(probabilities.max()), abs=1e-3)
    assert verify(folder, data=f"imagefolder:{photos}").ok
    other = build(architecture()).eval()
    other[-1].linear.bias.data[0] += 1
    copy = shutil.copytree(folder, tmp_path / "copy")
    photo_onnx.write(other, spec, {}, copy / photo_onnx.NAME)
    failed = {check.name for check in verify(copy).checks if check.ok is False}
    assert failed == {f"{photo_onnx.NAME} unchanged", f"{photo_onnx.NAME} preprocesses as predict.py"}


def test_the_flag_adds_the_file(tmp_path, capsys):
    (tmp_path / "a.json").write_text(architecture().to_json())
    command = ["export", str(tmp_path / "a.json"), "--out", str(tmp_path / "net"), "--format", "onnx"]
    assert cli.run([*command, "--with-preprocessing", "--json"]) == 0
    assert photo_onnx.NAME in json.loads(capsys.readouterr().out)["files"]


def test_an_interpolation_that_onnx_lacks_is_refused(tmp_path):
    spec = preprocessing.complete(architecture(), {}, {"interpolation": "lanczos"})
    with pytest.raises(InputError, match="lanczos"):
        photo_onnx.write(build(architecture()), spec, {}, tmp_path / "x.onnx")
