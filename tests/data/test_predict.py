"""The shipped preprocessing equals the pipeline's, in a process without nasspace; Pillow and NumPy are oracles."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from nasspace import cli
from nasspace.data import predict
from nasspace.data.decoding import specification
from nasspace.data.images import DataSet
from nasspace.data.loading import load_data
from nasspace.errors import InputError

ORIENTATION = 0x0112
# Run in the folder of predict.py with python -I: neither nasspace nor the folder's own path can be imported.
ALONE = """
import importlib.util, json, sys
import numpy as np
found = importlib.util.spec_from_file_location("predict", "predict.py")
predict = importlib.util.module_from_spec(found)
found.loader.exec_module(predict)
spec = predict.read_spec(".")
pixels = np.stack([predict.preprocess(path, spec) for path in json.load(open("paths.json"))])
np.savez("out.npz", pixels=pixels, normal=predict.normalize(pixels, spec))
assert "nasspace" not in sys.modules and "torch" not in sys.modules
"""


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Waves of a different length in each channel, with some noise."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x * (0.05 + 0.03 * channel) + seed) + np.cos(y * 0.07) for channel in range(3)]
    noise = np.random.default_rng(seed).integers(0, 20, (height, width, 3))
    return Image.fromarray(((np.stack(waves, -1) + 2) * 55 + noise).astype(np.uint8))


def spec_of(channels: int = 3, resolution: int = 24, **changes) -> dict:
    """A valid content of preprocessing.json."""
    rest = {"mean": [0.5] * channels, "std": [0.25] * channels, "classes": ["a", "b", "c"]}
    return {**specification(channels, resolution), **rest, **changes}


def turned(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif


def write_photographs(root: Path) -> None:
    """Photographs of mixed size, as PNG and JPEG: rotated, gray, transparent, palette, CMYK, large."""
    for folder in (root / "a", root / "b"):
        folder.mkdir(parents=True)
        for number, size in enumerate([(60, 90), (90, 60), (31, 47), (24, 24), (500, 333), (640, 480)]):
            photograph(*size, number).save(folder / f"plain{number}.jpg", quality=90)
            photograph(*size, number).save(folder / f"plain{number}.png")
        for value in range(1, 9):
            photograph(60, 41, value).save(folder / f"turned{value}.jpg", exif=turned(value))
            photograph(60, 41, value).save(folder / f"turned{value}.png", exif=turned(value))
        picture = photograph(70, 50)
        picture.convert("L").save(folder / "gray.jpg")
        picture.convert("L").save(folder / "gray.png")
        picture.convert("CMYK").save(folder / "cmyk.jpg")
        picture.convert("P").save(folder / "palette.png")
        picture.convert("P").save(folder / "palette.gif")
        picture.putalpha(photograph(70, 50, 5).convert("L"))
        picture.save(folder / "transparent.png")
        picture.convert("LA").save(folder / "gray_transparent.png")
        Image.fromarray(np.asarray(photograph(50, 70).convert("L"), np.uint16) * 16).save(folder / "deep.png")


def alone(folder: Path, data: DataSet, paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and normalized pixels of the files by predict.py, copied to a folder and run alone."""
    folder.mkdir()
    shutil.copy(predict.__file__, folder / "predict.py")
    (folder / "preprocessing.json").write_text(json.dumps(data.preprocessing))
    (folder / "paths.json").write_text(json.dumps(list(map(str, paths))))
    subprocess.run([sys.executable, "-I", "-c", ALONE], cwd=folder, check=True, timeout=60)
    with np.load(folder / "out.npz") as found:
        return found["pixels"], found["normal"]


@pytest.mark.parametrize("resolution", [24, 32])
def test_the_pipeline_and_the_shipped_file_see_the_same_pixels(tmp_path, resolution):
    from nasspace.training.trainer import normalized

    write_photographs(tmp_path / "data" / "train")
    write_photographs(tmp_path / "data" / "val")
    data = load_data(f"imagefolder:{tmp_path / 'data'}", resolution=resolution)
    pixels, normal = alone(tmp_path / "shipped", data, data.validation.originals)
    assert data.preprocessing["draft"] == [2 * resolution] * 2
    assert np.array_equal(pixels, data.validation.pixels)
    assert np.allclose(normal, normalized(data.validation.pixels, data), atol=1e-5)
    files = sorted((tmp_path / "data" / "train").rglob("*.*"))  # in the order of the training split
    assert np.array_equal(alone(tmp_path / "again", data, files)[0], data.train.pixels)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("value", range(1, 9))
def test_every_orientation_is_applied(tmp_path, value, suffix):
    photograph(40, 24).save(tmp_path / f"a.{suffix}", exif=turned(value))
    with Image.open(tmp_path / f"a.{suffix}") as picture:
        upright = ImageOps.exif_transpose(picture)
    side = min(upright.size)
    left, top = (upright.width - side) // 2, (upright.height - side) // 2
    expected = np.asarray(upright.crop((left, top, left + side, top + side))).transpose(2, 0, 1)
    assert np.array_equal(predict.preprocess(tmp_path / f"a.{suffix}", spec_of()), expected)


def test_exif_that_cannot_be_read_is_ignored(tmp_path):
    picture = photograph(24, 24)
    for number, exif in enumerate(
        [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x09"]
    ):
        path = tmp_path / f"{number}.jpg"
        picture.save(path, exif=exif, quality=95)
        picture.save(tmp_path / "good.jpg", quality=95)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = predict.preprocess(path, spec_of())
        assert np.array_equal(found, predict.preprocess(tmp_path / "good.jpg", spec_of()))


def test_path_bytes_picture_and_array_give_equal_pixels(tmp_path):
    path = tmp_path / "a.jpg"
    photograph(300, 200).save(path)
    spec = spec_of(draft=[48, 48])
    expected = predict.preprocess(path, spec)
    assert np.array_equal(predict.preprocess(str(path), spec), expected)
    assert np.array_equal(predict.preprocess(path.read_bytes(), spec), expected)
    with Image.open(path) as picture:
        assert np.array_equal(predict.preprocess(picture, spec), expected)
    array = np.asarray(photograph(60, 90))
    plain = predict.preprocess(Image.fromarray(array), spec)
    assert np.array_equal(predict.preprocess(array, spec), plain)
    assert np.array_equal(
        predict.preprocess(array[..., 0], spec_of(1)), predict.preprocess(array[..., :1].repeat(3, 2), spec_of(1))
    )
    for wrong in (array.astype(np.float32), array[None], array[..., :2]):
        with pytest.raises(ValueError, match="give uint8"):
            predict.preprocess(wrong, spec)


def test_resize_and_crop_are_pillows(tmp_path):
    picture = photograph(61, 90)
    spec = spec_of(resize={"shorter_side": 30}, interpolation="bicubic")
    scaled = picture.resize((30, round(90 * 30 / 61)), Image.Resampling.BICUBIC)
    box = (3, (scaled.height - 24) // 2, 27, (scaled.height - 24) // 2 + 24)
    assert np.array_equal(predict.preprocess(picture, spec), np.asarray(scaled.crop(box)).transpose(2, 0, 1))
    squeezed = picture.resize((20, 24), Image.Resampling.LANCZOS)
    spec = spec_of(input=[3, 24, 20], resize={"size": [24, 20]}, crop=None, interpolation="lanczos")
    assert np.array_equal(predict.preprocess(picture, spec), np.asarray(squeezed).transpose(2, 0, 1))
    with pytest.raises(ValueError, match="crop of 40x40 does not fit in 24x35"):
        predict.preprocess(picture, spec_of(crop=[40, 40]))
    with pytest.raises(ValueError, match=r"give \[3, 35, 24\].*takes \[3, 24, 24\]"):
        predict.preprocess(picture, spec_of(crop=None))


@pytest.mark.parametrize("size", [(1, 400_000), (300_000, 2)])
def test_an_extremely_large_result_is_refused(size):
    with pytest.raises(ValueError, match=r"too long and narrow: scaled to .* exceeds limit"):
        predict.preprocess(Image.new("RGB", size), spec_of(resolution=224))


def seen(path: Path, **changes) -> np.ndarray:
    """The one channel of an image file, [24, 24] of int."""
    return predict.preprocess(path, spec_of(1, **changes))[0].astype(int)


def drawn(mode: str, clear: object, ink: object) -> Image.Image:
    """A drawing in the upper half on a transparent background."""
    picture = Image.new(mode, (24, 24), clear)
    if mode == "P":
        picture.putpalette([0, 0, 0, 0, 0, 0] + [9] * 762)
    ImageDraw.Draw(picture).rectangle((0, 0, 24, 11), fill=ink)
    return picture


TRANSPARENT = {
    "RGBA": ("RGBA", (0, 0, 0, 0), (0, 0, 0, 255), {}),
    "LA": ("LA", (0, 0), (0, 255), {}),
    "P with a key": ("P", 0, 1, {"transparency": 0}),
    "P with bytes": ("P", 0, 1, {"transparency": bytes([0, 255])}),
    "RGB with a key": ("RGB", (9, 9, 9), (0, 0, 0), {"transparency": (9, 9, 9)}),
    "L with a key": ("L", 9, 0, {"transparency": 9}),
    "I;16 with a key": ("I;16", 900, 0, {"transparency": 900}),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparent_images_get_the_background(tmp_path, kind):
    mode, clear, ink, options = TRANSPARENT[kind]
    drawn(mode, clear, ink).save(tmp_path / "a.png", **options)
    for background in ([255, 255, 255], [40, 40, 40]):
        found = seen(tmp_path / "a.png", background=background)
        assert (found[:12] == 0).all()
        assert (found[12:] == background[0]).all()


def test_half_transparent_pixels_are_blended_and_opaque_ones_stay(tmp_path):
    assert predict.preprocess(Image.new("RGBA", (24, 24), (255, 0, 0, 128)), spec_of())[:, 0, 0].tolist() == [
        255,
        127,
        127,
    ]
    picture = photograph(24, 24)
    opaque = predict.preprocess(picture.convert("RGBA"), spec_of())
    assert np.array_equal(opaque, predict.preprocess(picture, spec_of()))
    gray = picture.convert("LA")
    for mode in ("LA", "La", "RGBa"):
        found = predict.preprocess(gray.convert("RGBA" if mode == "RGBa" else "LA").convert(mode), spec_of(1))
        assert np.array_equal(found[0], np.asarray(picture.convert("L")))


LEVELS = np.linspace(0, 255, 24 * 24).round().reshape(24, 24)  # the expected pixels
# File suffix, values, range of images of more than eight bits.
DEEP: dict[str, tuple[str, np.ndarray, tuple[float, float]]] = {
    "16 bits of low range": ("png", LEVELS.astype(np.uint16), (0, 255)),
    "12 bits": ("png", (LEVELS * 16).astype(np.uint16), (0, 255 * 16)),
    "16 bits in full": ("png", (LEVELS * 257).astype(np.uint16), (0, 65535)),
    "16 bits, big-endian": ("tif", (LEVELS * 257).astype(">u2"), (0, 65535)),
    "32 bits": ("tif", (LEVELS * 1000 - 5000).astype(np.int32), (-5000, 250_000)),
    "float 0..1": ("tif", (LEVELS / 255).astype(np.float32), (0, 1)),
    "float 0..65535": ("tif", (LEVELS * 257).astype(np.float32), (0, 65535)),
}


@pytest.mark.parametrize("kind", DEEP)
def test_more_than_eight_bits_are_scaled_by_the_data_sets_range(tmp_path, kind):
    suffix, values, limits = DEEP[kind]
    for name, picture in (("a", values), ("b", values[::-1])):
        for number in range(3):
            path = tmp_path / name / f"{number}.{suffix}"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(picture).save(path)
    if "big" in kind:
        with Image.open(path) as picture:
            assert picture.mode == "I;16B"
    data = load_data(f"imagefolder:{tmp_path}")
    assert (data.channels, data.preprocessing["range"]) == (1, pytest.approx(list(limits)))
    assert np.array_equal(data.train.pixels[data.train.labels == 0][0, 0], LEVELS)


def test_the_range_is_of_training_images_and_clips_others(tmp_path):
    for split, factor in (("train", 1), ("val", 4)):
        for name, picture in (("a", LEVELS), ("b", LEVELS[::-1])):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(2):
                Image.fromarray((factor * picture).astype(np.uint16)).save(tmp_path / split / name / f"{number}.png")
    data = load_data(f"imagefolder:{tmp_path}")
    assert data.preprocessing["range"] == [0, 255]
    assert np.array_equal(data.validation.pixels[0, 0], (LEVELS * 4).clip(max=255))


def test_deep_images_without_a_usable_range(tmp_path):
    deep = Image.fromarray((LEVELS * 257).astype(np.uint16))
    deep.save(tmp_path / "a.png")
    assert np.array_equal(seen(tmp_path / "a.png"), LEVELS)  # without a range: all of 16 bits
    assert (seen(tmp_path / "a.png", range=[300, 300]) == np.where(LEVELS * 257 > 300, 255, 0)).all()
    odd = np.full((24, 24), 0.5, np.float32)
    odd[0, :3] = np.nan, np.inf, -np.inf
    Image.fromarray(odd).save(tmp_path / "a.tif")
    assert seen(tmp_path / "a.tif", range=[0, 1])[0, :4].tolist() == [0, 255, 0, 128]
    with pytest.raises(ValueError, match="no range"):
        seen(tmp_path / "a.tif")


def test_a_camera_of_100_megapixels_is_decoded_at_a_fraction(tmp_path):
    Image.new("L", (12000, 9000), 90).save(tmp_path / "phone.jpg", quality=30)
    assert np.abs(seen(tmp_path / "phone.jpg", draft=[48, 48]) - 90).max() <= 2
    with pytest.raises(ValueError, match="12000x9000 pixels exceeds limit"):
        seen(tmp_path / "phone.jpg")


def test_a_truncated_jpeg_has_no_format_or_is_truncated(tmp_path):
    photograph(60, 60).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    for content in (b"\xff\xd8\xff", whole[:100], whole[:-200]):
        with pytest.raises(OSError, match=r"JPEG|[Tt]runcated"):
            predict.preprocess(content, spec_of())


def test_normalize_and_probabilities_are_the_formulas():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), dtype=np.uint8)
    spec = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    expected = (pixels / 255 - np.array(spec["mean"])[:, None, None]) / np.array(spec["std"])[:, None, None]
    found = predict.normalize(pixels, spec)
    assert found.dtype == np.float32
    assert np.allclose(found, expected, atol=1e-6)
    assert np.array_equal(predict.normalize(pixels[1], spec), found[1:])
    odds = predict.class_probabilities(np.array([[0, np.log(3)], [1000, 1000]], np.float32))
    assert np.allclose(odds, [[0.25, 0.75], [0.5, 0.5]])


@pytest.fixture
def shipped(tmp_path) -> Callable[[int | str], Path]:
    """A folder with predict.py and a network whose scores are ten times the mean of each channel."""

    def make(batch: int | str) -> Path:
        from onnx import TensorProto, helper, numpy_helper, save

        folder = tmp_path / "export"
        folder.mkdir()
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 24, 24])
        scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 3])
        nodes = [
            helper.make_node("ReduceMean", ["image", "axes"], ["means"], keepdims=0),
            helper.make_node("Mul", ["means", "ten"], ["scores"]),
        ]
        constants = [
            numpy_helper.from_array(np.array([2, 3]), "axes"),
            numpy_helper.from_array(np.array(10, np.float32), "ten"),
        ]
        graph = helper.make_graph(nodes, "means", [image], [scores], constants)
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "model.onnx")
        (folder / "preprocessing.json").write_text(json.dumps(spec_of(classes=["red", "green", "blue"])))
        shutil.copy(predict.__file__, folder / "predict.py")
        return folder

    return make


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-I", folder / "predict.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, cwd=folder.parent)


def colors(folder: Path) -> list[Path]:
    paths = [folder / f"{name}.png" for name in ("red", "green", "blue")]
    for path in paths:
        Image.new("RGB", (30, 40), path.stem).save(path)
    return paths


@pytest.mark.parametrize("batch", [1, 2, 8, "batch"])
def test_predict_py_classifies_alone(shipped, tmp_path, batch):
    folder, paths = shipped(batch), colors(tmp_path)
    done = run(folder, *paths)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [(line[0], line[1]) for line in lines] == [(str(path), path.stem) for path in paths]
    done = run(folder, *paths, "--json", "--top", 2)
    found = json.loads(done.stdout)["predictions"]
    assert found == predict.classify(paths, folder, top=2)
    for path, each in zip(paths, found, strict=True):
        assert (each["file"], each["class"], len(each["top"])) == (str(path), path.stem, 2)
        assert each["top"][0] == {"class": each["class"], "probability": each["probability"]}
        assert each["top"][0]["probability"] > each["top"][1]["probability"]
    many = predict.classify(paths * 15, folder)
    assert [each["class"] for each in many] == ["red", "green", "blue"] * 15
    assert sum(each["probability"] for each in many[0]["top"]) == pytest.approx(1)


def test_unusable_input_is_named_in_one_line(shipped, tmp_path):
    folder, paths = shipped(1), colors(tmp_path)
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    torn = tmp_path / "torn.png"
    torn.write_bytes(paths[0].read_bytes()[:60])
    for wrong in (bad, torn, tmp_path / "missing.png", tmp_path):
        done = run(folder, paths[0], wrong)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"{wrong}: ")
        assert done.stderr.count("\n") == 1
    for missing in ("model.onnx", "preprocessing.json"):
        (folder / missing).unlink()
        done = run(folder, paths[0])
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert f"{folder / missing}: " in done.stderr
    (folder / "preprocessing.json").write_text('{"input": [3, 24, 24]}')
    with pytest.raises(ValueError, match=r"preprocessing\.json: lacks orientation"):
        predict.read_spec(folder)


WRONG = [
    *(None, True, 0, 5, -1, 1.5, 10**400, float("nan"), float("inf"), "word", "", [], {}, {"size": None}),
    *([1], [1, 2], [None] * 3, ["1"] * 3, [[1]] * 3, [0] * 3, [-1] * 3, [1.5] * 3, [True] * 3, [float("nan")] * 3),
    *([1e39] * 3, [1e-300] * 3, ["a", "b", "\ud800"], {"shorter_side": 0}, {"size": [24, 24], "shorter_side": 24}),
]
VALID = {  # values of WRONG that are valid for a key
    "orientation": [None],
    "draft": [None, [1, 2]],
    "range": [None, [1, 2]],
    "crop": [None, [1, 2]],
    "background": [[0] * 3],
    "mean": [[0] * 3, [-1] * 3, [1.5] * 3, [1e-300] * 3],
    "std": [[1.5] * 3],
    "classes": [["1"] * 3],
}


def test_any_damage_of_preprocessing_json_is_one_message(shipped, tmp_path, capsys):
    folder, image = shipped("batch"), str(colors(tmp_path)[0])
    path = folder / "preprocessing.json"
    sound = json.loads(path.read_text())
    damaged = [
        (key, {**sound, key: value}) for key in predict.KEYS for value in WRONG if value not in VALID.get(key, [])
    ]
    damaged += [("lacks", {key: sound[key] for key in predict.KEYS if key != left_out}) for left_out in predict.KEYS]
    damaged += [
        ("'version' is not known", {**sound, "version": 2}),
        ("lacks", {}),
        *(("object", wrong) for wrong in (None, 5, [])),
    ]
    for message, spec in damaged:
        path.write_text(json.dumps(spec))
        for command in (predict.main, lambda words: cli.run(["predict", words[2], words[0]])):
            with warnings.catch_warnings():  # main sets a filter
                assert command([image, "--folder", str(folder)]) == 2, spec
            out, err = capsys.readouterr()
            assert (out, err.count("\n"), "export again" in err) == ("", 1, True), spec
            assert f"{path}: {message}" in err or message == "object", spec
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="cannot be read"):
        predict.read_spec(folder)


def test_valid_values_are_read(shipped):
    folder = shipped("batch")
    sound = spec_of()
    for key, values in VALID.items():
        for value in values:
            (folder / "preprocessing.json").write_text(json.dumps({**sound, key: value}))
            assert predict.read_spec(folder)[key] == value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["a", "b"]}, r"scores of the shape \[3\] for the 2 classes"),
        ({"input": [3, 20, 20], "crop": [20, 20]}, r"does not run on \[3, 20, 20\].*export again"),
    ],
)
def test_a_network_of_another_export_is_one_message(shipped, tmp_path, changes, message):
    folder, paths = shipped(1), colors(tmp_path)
    (folder / "preprocessing.json").write_text(json.dumps(spec_of(**changes)))
    done = run(folder, paths[0])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert re.search(message, done.stderr)


def test_without_onnxruntime_the_install_command_is_named(shipped, tmp_path, monkeypatch, capsys):
    folder, paths = shipped(1), colors(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with warnings.catch_warnings():  # main sets a filter
        assert predict.main([str(paths[0]), "--folder", str(folder)]) == 2
    assert "pip install onnxruntime" in capsys.readouterr().err


def gray_halves(label: int) -> np.ndarray:
    """A noisy 40x40 image whose left (class 0) or upper (class 1) half is bright, as float64 gray values."""
    image = np.random.default_rng(label).integers(0, 60, (40, 40, 3), dtype=np.uint8)
    image[(slice(20), slice(None)) if label else (slice(None), slice(20))] += 150
    return np.asarray(Image.fromarray(image).convert("L")).astype(np.float64)


def transparent_drawing(mode: str, clear: int | tuple[int, ...], ink: int | tuple[int, ...], label: int) -> Image.Image:
    """A black rectangle on a transparent background; its position is the class."""
    image = Image.new(mode, (40, 40), clear)
    if mode == "P":
        image.putpalette([0, 0, 0, 0, 0, 0] + [9] * 762)
    ImageDraw.Draw(image).rectangle((8, 20, 32, 34) if label else (8, 8, 32, 20), fill=ink)
    return image


SPECIAL_IMAGES = {  # of class 0 or 1; saved as (suffix, options)
    "transparent RGBA": (lambda label: transparent_drawing("RGBA", (0, 0, 0, 0), (0, 0, 0, 255), label), "png", {}),
    "transparent LA": (lambda label: transparent_drawing("LA", (0, 0), (0, 255), label), "png", {}),
    "transparent palette": (lambda label: transparent_drawing("P", 0, 1, label), "png", {"transparency": 0}),
    "8 of 16 bits": (lambda label: Image.fromarray(gray_halves(label).astype(np.uint16)), "png", {}),
    "12 of 16 bits": (lambda label: Image.fromarray((gray_halves(label) * 16).astype(np.uint16)), "png", {}),
    "8 of 32 bits": (lambda label: Image.fromarray(gray_halves(label).astype(np.int32)), "tif", {}),
    "floats to 1": (lambda label: Image.fromarray((gray_halves(label) / 255).astype(np.float32)), "tif", {}),
    "floats to 65535": (lambda label: Image.fromarray((gray_halves(label) * 257).astype(np.float32)), "tif", {}),
}


@pytest.mark.parametrize("kind", SPECIAL_IMAGES)
def test_special_images_keep_their_content(tmp_path, kind):
    make, suffix, options = SPECIAL_IMAGES[kind]
    for label, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        for number in range(8):
            make(label).save(tmp_path / name / f"{number}.{suffix}", **options)
    data = load_data(f"imagefolder:{tmp_path}", resolution=40)
    assert distance_of_classes(data) > 40
    assert len(data.train.pixels.unique()) > 2 or "transparent" in kind


def test_a_photograph_of_100_megapixels_is_read(tmp_path):
    for label, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        for number in range(8):
            Image.fromarray(gray_halves(label).astype(np.uint8)).save(tmp_path / name / f"{number}.jpg")
    Image.new("RGB", (12000, 9000), (200, 10, 10)).save(tmp_path / "a" / "phone.jpg", quality=30)
    data = load_data(f"imagefolder:{tmp_path}", resolution=40)
    assert len(data.train) + len(data.validation) == 17
    assert distance_of_classes(data) > 40


def distance_of_classes(data: DataSet) -> float:
    """Mean absolute difference of the two classes' mean images, 0 to 255."""
    means = [data.train.pixels[data.train.labels == label].float().mean((0, 1)) for label in (0, 1)]
    return float((means[0] - means[1]).abs().mean())


def test_white_drawings_on_a_transparent_background_are_refused(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(2):
            drawn("RGBA", (0, 0, 0, 0), (255, 255, 255, 255)).save(tmp_path / name / f"{number}.png")
    with pytest.raises(InputError, match="white drawings on a transparent background"):
        load_data(f"imagefolder:{tmp_path}")


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text elsewhere")
def test_a_file_name_need_not_be_utf8(shipped, tmp_path):
    folder, path = shipped("batch"), colors(tmp_path)[0]
    odd = bytes(tmp_path) + b"/r\xe9d.png"
    shutil.copy(bytes(path), odd)
    command = [sys.executable, "-I", str(folder / "predict.py"), odd]
    for options in ([], ["--json"]):
        done = subprocess.run([*command, *options], capture_output=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"red" in done.stdout
    assert subprocess.run(command, capture_output=True, timeout=60).stdout.startswith(odd + b"\tred\t")
