"""Data sets by name, their splits and what is held in memory."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from nasspace.accuracy.data import load_data, prepared, stratified
from nasspace.errors import InputError


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


def test_the_fingerprint_tells_a_changed_pixel_or_label():
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
    assert torch.equal(load_data("digits", resolution=32).validation.pixels, scaled.validation.pixels)
    large = Image.fromarray(data.train.pixels[3, 0].numpy()).resize((32, 32), Image.Resampling.BILINEAR)
    small = large.resize((20, 20), Image.Resampling.BILINEAR)
    assert np.abs(scaled.train.pixels[3, 0].numpy() - np.asarray(large, int)).max() <= 1
    assert np.abs(prepared(scaled, 20).train.pixels[3, 0].numpy() - np.asarray(small, int)).max() <= 1


def test_moments_are_numpys():
    data = load_data("digits")
    array = data.train.pixels.numpy().astype(float)
    assert data.mean == pytest.approx([array.mean()])
    assert data.std == pytest.approx([array.std()])


def test_stratified_leaves_one_on_each_side():
    labels = torch.tensor([0] * 2 + [1] * 3 + [2] * 100)
    for share in (0.001, 0.2, 0.999):
        taken, rest = stratified(labels, share, torch.Generator().manual_seed(0))
        assert sorted([*taken.tolist(), *rest.tolist()]) == list(range(105))
        assert set(labels[taken].tolist()) == set(labels[rest].tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("spec", "options", "says"),
    [
        ("digits", {"data_dir": "/somewhere"}, "--data-dir"),
        ("digits", {"resolution": 0}, "resolution of 0"),
        ("digits", {"held_out": 1.0}, "held_out: 1.0"),
        ("imagefolder:", {}, "imagefolder:SOMETHING"),
        ("hub:", {}, "names no data set"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(spec, options, says):
    with pytest.raises(InputError, match=says):
        load_data(spec, **options)


def test_a_bare_path_gets_its_prefix_named(tmp_path):
    with pytest.raises(InputError, match=f"write imagefolder:{tmp_path}"):
        load_data(str(tmp_path))
