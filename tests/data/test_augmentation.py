"""Random augmentation of batches against plain computations on single images."""

from __future__ import annotations

import colorsys
import math

import numpy
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch.nn import functional

from nasspace.data import augmentation, policies
from nasspace.data.augmentation import random_flip, random_shift


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 12, channels: int = 3, rows: int = 16, columns: int = 16) -> torch.Tensor:
    """Smooth random images: upsampled noise, so that interpolation changes little."""
    noise = torch.rand(count, channels, 5, 5, generator=generator(0))
    return functional.interpolate(noise, (rows, columns), mode="bicubic").mul(300).clamp(0, 255).to(torch.uint8)


def close(first: torch.Tensor, second: torch.Tensor, most: int = 1) -> bool:
    return int((first.int() - second.int()).abs().max()) <= most


def pillow(image: torch.Tensor) -> Image.Image:
    array = image.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def tensor(image: Image.Image) -> torch.Tensor:
    array = numpy.asarray(image).copy()
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


# every operation as (pixels, generator) -> pixels; then with parameters that change nothing
AUGMENTED = {
    "crop": lambda p, g: augmentation.random_resized_crop(p, (0.08, 1), (3 / 4, 4 / 3), g),
    "jitter": lambda p, g: augmentation.color_jitter(p, (0.4, 0.4, 0.4, 0.2), g),
    "rotation": lambda p, g: augmentation.random_rotation(p, 15, g),
    "color noise": lambda p, g: augmentation.color_noise(p, augmentation.principal_components(p), 0.1, g),
    "erasing": lambda p, g: augmentation.random_erasing(p, 0.5, [100.0] * p.shape[1], g),
    "randaugment": policies.rand_augment,
    "trivialaugment": policies.trivial_augment,
}
UNCHANGED = {
    "crop": lambda p, g: augmentation.random_resized_crop(p, (1, 1), (1, 1), g),
    "jitter": lambda p, g: augmentation.color_jitter(p, (0, 0, 0, 0), g),
    "hue": lambda p, g: augmentation.apply_jitter(p, torch.tensor([[1.0], [1], [1], [0]]).repeat(1, len(p)), orders(p)),
    "rotation": lambda p, g: augmentation.random_rotation(p, 0, g),
    "color noise": lambda p, g: augmentation.color_noise(p, augmentation.principal_components(p), 0, g),
    "erasing": lambda p, g: augmentation.random_erasing(p, 0, [100.0] * p.shape[1], g),
    "identity": lambda p, g: policies.apply_operations(p, torch.zeros(len(p)).long(), torch.zeros(len(p))),
    "geometry": lambda p, g: policies.apply_operations(p, torch.arange(len(p)) % 9, torch.zeros(len(p))),
}


def orders(pixels: torch.Tensor) -> torch.Tensor:
    return torch.rand(len(pixels), 4, generator=generator(9)).argsort(1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", AUGMENTED)
def test_shape_and_type_are_kept_and_a_seed_repeats(name, channels):
    pixels = images(channels=channels)
    before = pixels.clone()
    result = AUGMENTED[name](pixels, generator(3))
    assert (result.shape, result.dtype) == (pixels.shape, torch.uint8)
    assert torch.equal(pixels, before)
    assert torch.equal(result, AUGMENTED[name](pixels, generator(3)))
    assert not torch.equal(result, AUGMENTED[name](pixels, generator(4)))
    assert not torch.equal(result, pixels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", UNCHANGED)
def test_neutral_parameters_change_nothing(name, channels):
    pixels = images(18, channels)
    assert torch.equal(UNCHANGED[name](pixels, generator(3)), pixels)


@pytest.mark.parametrize("name", sorted(AUGMENTED.keys() - {"color noise"}))
def test_an_image_does_not_depend_on_the_others(name):
    """The other images of the batch replaced: the first keeps its result."""
    pixels = images()
    others = torch.cat([pixels[:1], 255 - pixels[1:]])
    results = [AUGMENTED[name](batch, generator(3)) for batch in (pixels, others)]
    assert torch.equal(results[0][0], results[1][0])


@pytest.mark.parametrize("most", [1, 3, 6])
def test_a_shift_is_a_crop_of_the_reflected_image(most):
    pixels = torch.rand(20, 3, 7, 9, generator=generator(0))
    moved = random_shift(pixels, most, generator(5))
    offsets = torch.randint(-most, most + 1, (2, 20, 1), generator=generator(5))[..., 0] + most
    padded = functional.pad(pixels, (most,) * 4, mode="reflect")
    for image, result, top, left in zip(padded, moved, *offsets.tolist(), strict=True):
        assert torch.equal(result, image[:, top : top + 7, left : left + 9])


def test_every_shift_occurs_and_stays_uint8():
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[0, 0, 4, 4] = 1
    moved = random_shift(image.expand(500, -1, -1, -1), 2, generator(0))
    assert moved.dtype == torch.uint8
    assert {tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()} == {
        (row, column) for row in range(2, 7) for column in range(2, 7)
    }


def test_about_half_the_images_are_flipped():
    pixels = torch.rand(400, 1, 3, 3, generator=generator(0))
    result = random_flip(pixels, generator(1))
    same = (result == pixels).all((1, 2, 3))
    flipped = (result == pixels.flip(3)).all((1, 2, 3))
    assert (same ^ flipped).all()
    assert 160 < int(flipped.sum()) < 240
    assert torch.equal(result, random_flip(pixels, generator(1)))


@pytest.mark.parametrize("size", [(16, 16), (20, 12)])
def test_a_crop_is_a_resized_box(size):
    pixels = images(30, 3, *size)
    result = augmentation.random_resized_crop(pixels, (0.08, 1), (3 / 4, 4 / 3), generator(5))
    found = augmentation.random_boxes(30, size, (0.08, 1), (3 / 4, 4 / 3), generator(5))
    for image, crop, (top, left, height, width) in zip(pixels, result, found.tolist(), strict=True):
        box = image[None, :, top : top + height, left : left + width].float()
        assert close(crop, functional.interpolate(box, size, mode="bilinear")[0].round())


def test_boxes_have_the_given_area_and_shape():
    found = augmentation.random_boxes(4000, (200, 200), (0.1, 0.6), (1 / 2, 2), generator(1)).double()
    top, left, height, width = found.unbind(1)
    areas, shapes = height * width / 200**2, width / height
    assert 0.098 < areas.min() < 0.12
    assert 0.57 < areas.max() < 0.605
    assert areas.mean() == pytest.approx(0.35, abs=0.01)
    assert 0.48 < shapes.min() < 0.52
    assert 1.9 < shapes.max() < 2.1
    assert shapes.log().mean() == pytest.approx(0, abs=0.03)
    assert (top >= 0).all()
    assert (top + height <= 200).all()
    assert (left + width <= 200).all()
    assert (top == 0).any()
    assert (top + height == 200).any()


def test_without_a_fitting_box_it_is_the_largest_central_one():
    found = augmentation.random_boxes(3, (10, 40), (1, 1), (1, 2), generator(0))
    assert found.tolist() == [[0, 10, 10, 20]] * 3
    found = augmentation.random_boxes(3, (40, 10), (1, 1), (1, 2), generator(0))
    assert found.tolist() == [[15, 0, 10, 10]] * 3


@pytest.mark.parametrize("name", ["Brightness", "Contrast", "Color"])
@pytest.mark.parametrize("factor", [0.3, 0.9, 1.4])
def test_jitter_equals_pillow_s_enhancement(name, factor):
    pixels = images()
    kind = ("Brightness", "Contrast", "Color").index(name)
    changes = torch.tensor([[1.0], [1], [1], [0]]).repeat(1, len(pixels))
    changes[kind] = factor
    result = augmentation.apply_jitter(pixels, changes, orders(pixels))
    for image, found in zip(pixels, result, strict=True):
        assert close(found, tensor(getattr(ImageEnhance, name)(pillow(image)).enhance(factor)), 2)


@pytest.mark.parametrize("turn", [-0.4, -0.1, 0.25, 0.5])
def test_hue_changes_as_in_colorsys(turn):
    pixels = images(2, rows=6, columns=6)
    result = augmentation.to_uint8(augmentation.adjust_hue(pixels.float(), torch.full((2, 1, 1, 1), turn)))
    for image, found in zip(pixels, result, strict=True):
        for color, other in zip(image.flatten(1).T.tolist(), found.flatten(1).T.tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*(part / 255 for part in color))
            expected = [part * 255 for part in colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)]
            assert other == pytest.approx(expected, abs=1)


def test_jitter_takes_each_order_and_stays_in_range():
    pixels = images(1).expand(200, -1, -1, -1)
    gray = pixels.float().mean()
    changed = augmentation.color_jitter(pixels, (0.4, 0, 0, 0), generator(2)).float().mean((1, 2, 3)) / gray
    assert 0.59 < changed.min() < 0.65
    assert 1.2 < changed.max() < 1.41
    changes = torch.tensor([[1.5], [0.5], [1], [0]])
    both = [
        augmentation.apply_jitter(pixels[:1], changes, torch.tensor([order]))
        for order in ([0, 1, 2, 3], [1, 0, 2, 3])  # brightness first clips more
    ]
    assert not torch.equal(*both)
    expected = augmentation.adjust_contrast(augmentation.adjust_brightness(pixels[:1].float(), 1.5), 0.5)
    assert torch.equal(both[0], augmentation.to_uint8(expected))


@pytest.mark.parametrize("degrees", [-20.0, 7.0, 90.0])
def test_rotation_equals_pillow_s(degrees):
    pixels = images(3)
    result = augmentation.affine(pixels, augmentation.rotation_matrices(torch.full((3,), degrees)))
    for image, found in zip(pixels, result, strict=True):
        expected = tensor(pillow(image).rotate(degrees, Image.Resampling.BILINEAR))
        assert close(found[:, 4:12, 4:12], expected[:, 4:12, 4:12], 3)
    assert (result[:, :, 0, 0] < pixels[:, :, 0, 0]).all() or degrees == 90


def test_rotations_are_within_their_range(monkeypatch):
    drawn = []
    matrices = augmentation.rotation_matrices
    monkeypatch.setattr(augmentation, "rotation_matrices", lambda degrees: drawn.append(degrees) or matrices(degrees))
    augmentation.random_rotation(images(1).expand(500, -1, -1, -1), 15, generator(0))
    assert -15 <= drawn[0].min() < -14.5
    assert 14.5 < drawn[0].max() <= 15


def test_color_noise_is_along_the_principal_components():
    pixels = images(60)
    colors = pixels.permute(1, 0, 2, 3).reshape(3, -1).double().numpy() / 255
    values, vectors = numpy.linalg.eigh(numpy.cov(colors, bias=True))
    components = augmentation.principal_components(pixels)
    assert (components.norm(dim=0).numpy()) == pytest.approx(values, rel=1e-4)
    assert abs((components.numpy() / values * vectors).sum(0)) == pytest.approx(1, rel=1e-4)
    flat = torch.full((40_000, 3, 1, 1), 128, dtype=torch.uint8)
    moved = augmentation.color_noise(flat, components * 10, 0.1, generator(0)).double()[:, :, 0, 0] - 128
    spread = numpy.cov(moved.T.numpy(), bias=True)
    assert spread == pytest.approx((255 * vectors * values) @ (255 * vectors * values).T, rel=0.05, abs=8)


def test_erasing_fills_one_box_with_the_color():
    pixels = images(300) // 2 + 1
    result = augmentation.random_erasing(pixels, 0.5, [200.4, 210, 220], generator(1))
    changed = (result != pixels).any(1)
    touched = changed.flatten(1).any(1)
    assert 120 < int(touched.sum()) < 180
    for image, mask in zip(result[touched], changed[touched], strict=True):
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all()
        assert 0.01 < box.numel() / mask.numel() < 0.36
        assert image[:, mask].unique(dim=1).T.tolist() == [[200, 210, 220]]


def test_mixup_blends_images_and_labels_alike():
    pixels, labels = images().float(), torch.eye(12)
    mixed, soft = augmentation.mixup(pixels, labels, 0.4, generator(2))
    assert soft.sum(1).tolist() == pytest.approx([1] * 12)
    expected = torch.einsum("nm,mchw->nchw", soft, pixels)  # the labels say what was mixed
    assert torch.allclose(mixed, expected, atol=1e-3)
    assert 0 < soft.diagonal().min() < 1


def test_cutmix_pastes_a_box_and_mixes_labels_by_area():
    pixels = torch.arange(12.0)[:, None, None, None].expand(-1, 3, 16, 16).contiguous()
    for seed in range(20):
        mixed, soft = augmentation.cutmix(pixels, torch.eye(12), 1.0, generator(seed))
        for i, (image, label) in enumerate(zip(mixed, soft, strict=True)):
            values, counts = image[0].unique(return_counts=True)
            shares = dict(zip(values.int().tolist(), (counts / 256).tolist(), strict=True))
            assert {int(k): float(label[k]) for k in label.nonzero()[:, 0]} == pytest.approx(shares)
            assert i in shares or float(label[i]) == 0


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_follow_the_beta_distribution(alpha):
    from scipy import stats

    source = generator(0)
    drawn = [augmentation._beta(alpha, source) for _ in range(1000)]
    assert stats.kstest(drawn, stats.beta(alpha, alpha).cdf).pvalue > 0.01


PILLOW = {
    "autocontrast": (0.0, ImageOps.autocontrast),
    "equalize": (0.0, ImageOps.equalize),
    "posterize": (3.0, lambda image: ImageOps.posterize(image, 5)),
    "solarize": (0.5, lambda image: ImageOps.solarize(image, 128)),
    "brightness": (0.6, lambda image: ImageEnhance.Brightness(image).enhance(1.6)),
    "color": (-0.5, lambda image: ImageEnhance.Color(image).enhance(0.5)),
    "contrast": (-0.5, lambda image: ImageEnhance.Contrast(image).enhance(0.5)),
    "sharpness": (0.9, lambda image: ImageEnhance.Sharpness(image).enhance(1.9)),
    "rotate": (15.0, lambda image: image.rotate(15, Image.Resampling.BILINEAR)),
    "shear_x": (0.3, lambda image: sheared(image, (1, 0.3, -0.3 * 8, 0, 1, 0))),
    "shear_y": (-0.2, lambda image: sheared(image, (1, 0, 0, -0.2, 1, 0.2 * 8))),
    "translate_x": (0.25, lambda image: sheared(image, (1, 0, 4, 0, 1, 0))),
    "translate_y": (-0.25, lambda image: sheared(image, (1, 0, 0, 0, 1, -4))),
}


def sheared(image: Image.Image, matrix: tuple) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PILLOW)
def test_an_operation_equals_pillow_s(name, channels):
    magnitude, expected = PILLOW[name]
    pixels = images(6, channels)
    kinds = torch.full((6,), policies.NAMES.index(name))
    result = policies.apply_operations(pixels, kinds, torch.full((6,), magnitude))
    inner = (slice(None), slice(4, 12), slice(4, 12)) if name in policies.GEOMETRIC else ()
    for image, found in zip(pixels, result, strict=True):
        assert close(found[inner], tensor(expected(pillow(image)))[inner], 3)


def test_flat_images_stay_flat():
    flat = torch.full((14, 3, 8, 8), 77, dtype=torch.uint8)
    kept = [policies.NAMES.index(name) for name in ("autocontrast", "equalize", "contrast", "color", "sharpness")]
    for kind in kept:
        result = policies.apply_operations(flat, torch.full((14,), kind), torch.full((14,), 0.5))
        assert close(result, flat)


@pytest.mark.parametrize(("column", "name"), list(enumerate(policies.POLICIES)))
def test_magnitudes_are_within_their_ranges(column, name):
    kinds = torch.arange(14).repeat(500)
    shares = torch.randint(31, (len(kinds),), generator=generator(0)) / 30
    found = policies._magnitudes(kinds, shares, column, generator(1))
    for kind, ranges in enumerate(policies.RANGES.values()):
        most, signed = ranges[column]
        of_kind = found[kinds == kind]
        assert math.isclose(of_kind.max(), most, rel_tol=1e-6)
        assert math.isclose(of_kind.min(), -most if signed else 0, rel_tol=1e-6)
