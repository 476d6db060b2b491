"""Decoding of image files, with Pillow as the oracle."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nasspace.data.decoding import (
    Encoded,
    Header,
    check_brightness,
    decode,
    headers,
    name_broken,
    native_side,
    specification,
    value_range,
)
from nasspace.errors import InputError


def photograph(width: int, height: int) -> Image.Image:
    """A smooth picture, like a photograph: waves of a different length in each channel."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x * (0.05 + 0.03 * channel)) + np.cos(y * 0.07) for channel in range(3)]
    return Image.fromarray(((np.stack(waves, -1) + 2) * 63).astype(np.uint8))


def saved(picture: Image.Image, path: Path, **options) -> Encoded:
    picture.save(path, **options)
    return Encoded(str(path), path)


def only(image: Encoded, channels: int, resolution: int) -> np.ndarray:
    """Decode one image, to int [C, H, W]."""
    pixels, broken = decode([image], specification(channels, resolution, jpeg=True))
    assert broken == {}
    return pixels[0].numpy().astype(int)


def test_the_native_size_is_decoded_exactly(tmp_path):
    picture = photograph(24, 24)
    pixels = only(saved(picture, tmp_path / "a.png"), 3, 24)
    assert np.array_equal(pixels, np.asarray(picture).transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(100, 60), (60, 100), (40, 40), (15, 25)])
def test_the_shorter_side_is_scaled_and_the_center_cropped(tmp_path, size):
    picture = photograph(*size)
    pixels = only(saved(picture, tmp_path / "a.png"), 3, 30)
    scale = 30 / min(size)
    scaled = picture.resize([round(side * scale) for side in size], Image.Resampling.BILINEAR)
    left, top = (scaled.width - 30) // 2, (scaled.height - 30) // 2
    expected = np.asarray(scaled.crop((left, top, left + 30, top + 30)), int).transpose(2, 0, 1)
    assert np.array_equal(pixels, expected)


def test_a_large_jpeg_decoded_at_a_fraction_looks_the_same(tmp_path):
    picture = photograph(800, 640)
    quick = only(saved(picture, tmp_path / "a.jpg", quality=95), 3, 40)
    exact = only(saved(picture, tmp_path / "a.png"), 3, 40)
    assert np.abs(quick - exact).mean() < 2


def test_the_exif_rotation_is_applied(tmp_path):
    picture = photograph(30, 30)
    rotation = Image.Exif()
    rotation[0x0112] = 6  # orientation: to be rotated by 90 degrees clockwise
    turned = only(saved(picture, tmp_path / "a.png", exif=rotation), 3, 30)
    assert np.array_equal(turned, np.asarray(picture.rotate(-90)).transpose(2, 0, 1))


def test_every_mode_is_converted(tmp_path):
    picture = photograph(20, 20)
    gray = np.asarray(picture.convert("L"), int)
    for mode in ("L", "LA", "P", "RGBA", "CMYK", "1"):
        image = saved(picture.convert(mode), tmp_path / f"{mode}.tif")
        assert only(image, 3, 20).shape == (3, 20, 20)
        assert headers([image])[0].gray == (mode in ("L", "LA", "1"))
        if mode in ("L", "LA"):
            assert np.array_equal(only(image, 1, 20)[0], gray)


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    levels = np.linspace(0, 65535, 400).round().astype(np.uint16).reshape(20, 20)
    image = saved(Image.fromarray(levels), tmp_path / "a.png")
    assert headers([image])[0].gray
    assert headers([image])[0].deep
    assert value_range([image]) == (0, 65535)
    assert np.array_equal(only(image, 1, 20)[0], (levels / 257).round())


def test_channels_and_size_are_the_data_sets(tmp_path):
    images = [
        saved(photograph(*size).convert(mode), tmp_path / f"{number}.png")
        for number, (size, mode) in enumerate([((12, 9), "L"), ((9, 30), "L"), ((40, 50), "RGB")])
    ]
    found = headers(images)
    assert [header.shorter for header in found] == [9, 9, 40]
    assert [header.gray for header in found] == [True, True, False]
    assert native_side(found) == 9
    assert native_side(found[1:]) == 40  # the larger one of a tie
    sizes = [replace(found[0], shorter=side) for side in (12, 12, *range(150, 229))]
    assert native_side(sizes) == 188  # a side of two images among 81 is not frequent
    assert native_side(headers([saved(photograph(300, 400), tmp_path / "large.png")])) == 300


def test_a_decompression_bomb_is_a_broken_image(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for height in (40, 60):  # where Pillow warns, and where it refuses
        bomb = saved(Image.new("1", (40, height)), tmp_path / "bomb.png")
        assert "exceeds limit" in headers([bomb])[0].broken
        assert "exceeds limit" in decode([bomb], specification(1, 8))[1][0]


def test_the_limit_of_pixels_counts_decoded_pixels_of_a_jpeg(tmp_path, monkeypatch):
    phone = saved(photograph(320, 240), tmp_path / "phone.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # Pillow itself refuses twice as many
    assert headers([phone]) == [Header(240, jpeg=True)]
    assert np.ptp(only(phone, 3, 30)) > 50
    assert "320x240 pixels exceeds limit" in decode([phone], specification(3, 200, jpeg=True))[1][0]
    assert "320x240 pixels exceeds limit" in decode([phone], specification(3, 30))[1][0]


def png16(values: np.ndarray) -> bytes:
    """A PNG of sixteen bits a channel, which Pillow does not write: uint16 [H, W, 2 to 4]."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return len(content).to_bytes(4, "big") + kind + content + check.to_bytes(4, "big")

    height, width, channels = values.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("bits", [8, 12, 14, 16])
def test_color_of_sixteen_bits_is_read_only_if_it_uses_the_upper_bits(channels, bits):
    values = np.random.default_rng(0).integers(0, 2**bits, (6, 6, channels))
    if channels != 3:
        values[..., -1] = 65535
    images = [Encoded("a.png", png16(values)), Encoded("b.png", png16(values // 2))]
    assert [header.wide for header in headers(images)] == [True, True]
    if bits == 16:
        check_brightness(images)
        assert np.array_equal(only(images[0], 3, 6)[0], values[..., 0] // 256)
    else:
        with pytest.raises(InputError, match=r"a\.png and 1 more: color of sixteen bits .* below [\d,]+ only"):
            check_brightness(images)


def test_other_images_are_not_wide(tmp_path):
    ppm = b"P6\n2 2\n%d\n" + bytes(24)
    contents = [ppm % 255, ppm % 65535, b"torn"]
    assert [header.wide for header in headers([Encoded("x", content) for content in contents])] == [False, True, False]
    gray = saved(Image.fromarray(np.zeros((2, 2), np.uint16)), tmp_path / "a.png")
    plain = saved(photograph(9, 9), tmp_path / "b.png")
    assert [header.wide for header in headers([gray, plain])] == [False, False]
    check_brightness([])
    check_brightness([Encoded("x", b"torn")])


def test_the_range_is_that_of_all_finite_values(tmp_path):
    def tiff(values: object, dtype: type, name: str) -> Encoded:
        return saved(Image.fromarray(np.array(values, dtype)), tmp_path / f"{name}.tif")

    low = tiff([[0.25, 0.5], [np.nan, np.inf]], np.float32, "low")
    high = tiff([[0.5, 3.0]], np.float32, "high")
    empty = tiff([[np.nan]], np.float32, "empty")
    assert value_range([low, high, empty, Encoded("x", b"torn")]) == (0.25, 3)
    assert value_range([tiff([[-1000, 70000]], np.int32, "int")]) == (-1000, 70000)
    assert value_range([empty]) is None
    assert value_range([]) is None


def test_unreadable_images_have_a_reason_and_zero_pixels(tmp_path):
    good = saved(photograph(8, 8), tmp_path / "good.png")
    whole = good.content.read_bytes()
    contents = [b"", b"text", whole[:-30], None, tmp_path / "missing.png", whole]
    pixels, broken = decode([Encoded("x", content) for content in contents], specification(3, 8))
    assert sorted(broken) == [0, 1, 2, 3, 4]
    assert "truncated" in broken[2]
    assert "No such file" in broken[4]
    assert not pixels[:5].any()
    assert np.array_equal(pixels[5].numpy(), only(good, 3, 8))


def test_postscript_named_as_an_image_is_not_run(tmp_path):
    picture = tmp_path / "drawing.eps"
    photograph(8, 8).save(picture)
    image = Encoded("a.png", picture.rename(tmp_path / "a.png"))
    assert "PostScript" in headers([image])[0].broken
    assert "PostScript" in decode([image], specification(3, 8))[1][0]


def test_the_error_names_five_and_counts_the_rest():
    message = str(name_broken([(f"{number}.jpg", "torn") for number in range(7)]))
    assert "0.jpg" in message
    assert "4.jpg" in message
    assert "5.jpg" not in message
    assert "2 more" in message
    assert str(name_broken([("0.jpg", "torn")])).endswith("--skip-broken")
