"""IDX files: read exactly; invalid files are refused by name."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from nasspace.data.loading import load_data
from nasspace.errors import InputError


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def write_fashion(home: Path) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0)
    arrays = {}
    for stem, count in (("train", 40), ("t10k", 20)):
        arrays[f"{stem}-images-idx3-ubyte.gz"] = noise.integers(0, 256, (count, 28, 28))
        arrays[f"{stem}-labels-idx1-ubyte.gz"] = np.arange(count) % 10
    for name, array in arrays.items():
        write_idx(home / name, array)
    return arrays


def test_fashion_mnist_is_read_from_its_idx_files(tmp_path):
    arrays = write_fashion(tmp_path)
    data = load_data("fashion-mnist", data_dir=tmp_path)
    assert (len(data.train), len(data.validation), len(data.test), data.channels) == (30, 10, 20, 1)
    assert data.classes[9] == "ankle boot"
    assert np.array_equal(data.test.pixels[:, 0].numpy(), arrays["t10k-images-idx3-ubyte.gz"])
    unpacked = tmp_path / "train-labels-idx1-ubyte"
    packed = unpacked.with_suffix(".gz")
    unpacked.write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    assert load_data("fashion-mnist", data_dir=tmp_path).fingerprint == data.fingerprint


def test_invalid_idx_files_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("nasspace.data.sources.FASHION_FOLDER", tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"apt install dataset-fashion-mnist.*--data-dir"):
        load_data("fashion-mnist")
    with pytest.raises(InputError, match="there is no folder"):
        load_data("fashion-mnist", data_dir="x" * 300)
    write_fashion(tmp_path)
    images = tmp_path / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    images.write_bytes(whole[:-200])
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz: cannot be read"):
        load_data("fashion-mnist", data_dir=tmp_path)
    images.write_bytes(whole[:40] + bytes(40) + whole[80:])
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz: cannot be read"):
        load_data("fashion-mnist", data_dir=tmp_path)
    for stem in ("train", "t10k"):
        for kind, shape in (("images-idx3", (0, 28, 28)), ("labels-idx1", (0,))):
            write_idx(tmp_path / f"{stem}-{kind}-ubyte.gz", np.zeros(shape))
        with pytest.raises(InputError, match=f"has no {stem.replace('t10k', 'test')} images"):
            load_data("fashion-mnist", data_dir=tmp_path)
        write_fashion(tmp_path)
    images.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    with pytest.raises(InputError, match="not an IDX file of 3 dimensions"):
        load_data("fashion-mnist", data_dir=tmp_path)
    write_idx(images, np.zeros((39, 28, 28)))
    with pytest.raises(InputError, match="39 train images but 40 labels"):
        load_data("fashion-mnist", data_dir=tmp_path)
    images.write_bytes(gzip.compress(bytes([0, 0, 8, 3]) + bytes([255] * 12)))
    with pytest.raises(InputError, match="not an IDX file of 3 dimensions"):
        load_data("fashion-mnist", data_dir=tmp_path)
    images.unlink()
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz: there is no such file"):
        load_data("fashion-mnist", data_dir=tmp_path)
