"""Data sets by name, their splits and their contents in memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from nasspace.data.loading import DataSet, Images, load_data, prepared, stratified
from nasspace.data.predict import preprocess
from nasspace.engine.problem import Problem
from nasspace.errors import InputError
from nasspace.space.space import Space
from nasspace.studies.recipe import Recipe

CUT_AT_32 = {"resize": {"shorter_side": 32}, "crop": [32, 32]}


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    data = load_data("digits")
    assert (data.classes, data.channels, data.resolution, data.test) == (tuple("0123456789"), 1, 8, None)
    both = torch.cat([data.train.pixels, data.validation.pixels]).double().mul(16 / 255).round()
    labels = torch.cat([data.train.labels, data.validation.labels])
    bunch = load_digits()
    here = sorted(map(tuple, torch.cat([both.flatten(1), labels[:, None]], 1).tolist()))
    there = sorted(map(tuple, np.concatenate([bunch.data, bunch.target[:, None]], 1).tolist()))
    assert here == there


def test_the_validation_split_is_stratified_and_seeded():
    first, again, other = load_data("digits"), load_data("digits"), load_data("digits", seed=1)
    counts = torch.bincount(first.train.labels), torch.bincount(first.validation.labels)
    assert (counts[1] == (0.2 * (counts[0] + counts[1])).round()).all()
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert len(load_data("digits", held_out=0.5).validation) == pytest.approx(1797 / 2, abs=10)


def test_a_changed_pixel_or_label_changes_the_fingerprint():
    data = load_data("digits")
    pixels, labels = data.train.pixels.clone(), data.train.labels.clone()
    pixels[5, 0, 3, 3] += 1
    labels[7] = (labels[7] + 1) % 10
    for change in ({"pixels": pixels}, {"labels": labels}):
        changed = dataclasses.replace(data, train=dataclasses.replace(data.train, **change))
        assert changed.fingerprint != data.fingerprint


def test_prepared_scales_every_split_once():
    data = load_data("digits")
    assert prepared(data, 8) is data
    scaled = prepared(data, 32)
    assert (scaled.resolution, scaled.train.pixels.shape, scaled.train.pixels.dtype) == (
        32,
        (1438, 1, 32, 32),
        torch.uint8,
    )
    assert (scaled.mean, scaled.std) == (data.mean, data.std)
    assert (scaled.native, scaled.validation.originals) == (8, None)
    assert scaled.preprocessing == {**data.preprocessing, "input": [1, 32, 32], **CUT_AT_32}
    there = load_data("digits", resolution=32).validation.pixels
    assert int((there.int() - scaled.validation.pixels).abs().max()) <= 1  # Pillow's bilinear against torch's
    large = Image.fromarray(data.train.pixels[3, 0].numpy()).resize((32, 32), Image.Resampling.BILINEAR)
    small = large.resize((20, 20), Image.Resampling.BILINEAR)
    assert np.abs(scaled.train.pixels[3, 0].numpy() - np.asarray(large, int)).max() <= 1
    assert np.abs(prepared(scaled, 20).train.pixels[3, 0].numpy() - np.asarray(small, int)).max() <= 1


def test_moments_are_numpys():
    data = load_data("digits")
    array = data.train.pixels.numpy().astype(float)
    assert data.mean == pytest.approx([array.mean()], abs=255 * 5e-7)
    assert data.std == pytest.approx([array.std()], abs=255 * 5e-7)


def test_stratified_leaves_one_on_each_side():
    labels = torch.tensor([0] * 2 + [1] * 3 + [2] * 100)
    for share in (0.001, 0.2, 0.999):
        taken, rest = stratified(labels, share, torch.Generator().manual_seed(0))
        assert sorted([*taken.tolist(), *rest.tolist()]) == list(range(105))
        assert set(labels[taken].tolist()) == set(labels[rest].tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("digits", {"data_dir": "/somewhere"}, "--data-dir"),
        ("digits", {"resolution": 0}, "resolution of 0"),
        ("digits", {"held_out": 1.0}, "held_out: 1.0"),
        ("imagefolder:", {}, "imagefolder:SOMETHING"),
        ("hub:", {}, "names no data set"),
    ],
)
def test_invalid_arguments_are_refused(spec, options, message):
    with pytest.raises(InputError, match=message):
        load_data(spec, **options)


def test_a_bare_path_is_refused_with_its_prefix(tmp_path):
    with pytest.raises(InputError, match=f"write imagefolder:{tmp_path}"):
        load_data(str(tmp_path))


def pictures(root, sizes, suffix="png"):
    """Seeded noise of these sizes (width, height), once in class `a` and once in `b`."""
    for position, size in enumerate(sizes):
        noise = np.random.default_rng(position).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        for name in "ab":
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise).save(root / name / f"{position}.{suffix}")
    return f"imagefolder:{root}"


def test_a_function_of_the_native_side_chooses_the_resolution(tmp_path):
    folder = tmp_path / "own"
    spec = pictures(folder / "train", [(300, 240), (240, 500), (20, 20)])
    pictures(folder / "validation", [(30, 30)] * 9)
    sides = []
    data = load_data(spec.removesuffix("/train"), resolution=lambda native: sides.append(native) or 16)
    assert (sides, data.native, data.resolution) == ([240], 240, 16)
    assert data.own_validation
    assert data.validated_on == prepared(data, 8).validated_on == "validation images"
    assert load_data("digits").validated_on == "held-out training images"
    recipe = Recipe(data=data.name, resolution=16, objectives=("accuracy", "flops"))
    described = Problem.from_data(recipe, Space.load("shuffle")).settings("s", None)["accuracy_is_of"]
    assert described == "the exported file on validation images at 16x16"
    assert (load_data("digits", resolution=lambda native: 2 * native).resolution, load_data("digits").native) == (16, 8)
    plain = load_data(spec.removesuffix("/train"))
    assert (plain.native, plain.resolution) == (240, 224)
    with pytest.raises(InputError, match="resolution of 0"):
        load_data("digits", resolution=lambda native: 0)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_originals_and_preprocessing_reproduce_the_pixels(tmp_path, suffix):
    data = load_data(pictures(tmp_path, [(12, 9), (20, 35), (90, 60), (9, 9)] * 2, suffix), resolution=10)
    assert data.train.originals is None
    assert data.preprocessing["draft"] == ([20, 20] if suffix == "jpg" else None)
    few = data.validation.at(torch.tensor([1, 0]))
    for images in (data.validation, few):
        assert len(images.originals) == len(images)
        for original, pixels in zip(images.originals, images.pixels, strict=True):
            assert np.array_equal(preprocess(original, data.preprocessing), pixels)


@pytest.mark.parametrize("resolution", [8, 13])
def test_arrays_are_preprocessed_like_files(resolution):
    data = load_data("digits", resolution=resolution)
    assert (data.native, data.preprocessing["input"]) == (8, [1, resolution, resolution])
    for original, pixels in zip(data.validation.originals, data.validation.pixels, strict=True):
        assert original.shape == (8, 8)
        assert np.array_equal(preprocess(original, data.preprocessing), pixels)


def test_mean_and_deviation_equal_those_of_preprocessing_json():
    data = load_data("digits")
    assert data.preprocessing["mean"] == [round(data.mean[0] / 255, 6)]
    assert data.mean == (255 * data.preprocessing["mean"][0],)
    assert data.std == (255 * data.preprocessing["std"][0],)
    assert data.preprocessing["classes"] == list("0123456789")
    again = dataclasses.replace(data, train=data.validation)
    assert (again.mean, again.std, again.preprocessing) == (data.mean, data.std, data.preprocessing)


def test_the_origin_identifies_the_validation_images():
    data = load_data("digits", seed=3, held_out=0.25)
    assert data.origin == {"name": "digits", "seed": 3, "held_out": 0.25, "fingerprint": data.fingerprint}


def test_a_data_set_derives_its_preprocessing():
    noise = torch.randint(0, 256, (4, 3, 6, 6), dtype=torch.uint8)
    images = Images(noise, torch.tensor([0, 1, 0, 1]))
    data = DataSet("noise", ("a", "b"), 3, images, images, None, 6)
    assert (data.native, data.preprocessing["input"], data.preprocessing["color"]) == (6, [3, 6, 6], "RGB")
    assert images.at(torch.tensor([1])).originals is None


@pytest.mark.parametrize("value", [0, 90])
def test_blank_images_are_refused(tmp_path, value):
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("L", (6, 6), value).save(tmp_path / name / f"{number}.png")
    with pytest.raises(
        InputError, match=rf"{tmp_path}: all pixels of the \d training images are equal \({value} of 255\)"
    ):
        load_data(f"imagefolder:{tmp_path}")
