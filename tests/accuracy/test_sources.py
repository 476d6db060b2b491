"""Image folders and IDX files: what is read is what lies there, and every unfit folder is refused by name."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nasspace.accuracy.data import load_data
from nasspace.errors import InputError

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


def picture(value: int, size: tuple[int, int] = (6, 6), mode: str = "RGB") -> Image.Image:
    """A picture of seeded noise."""
    channels = {"RGB": (3,), "L": ()}[mode]
    noise = np.random.default_rng(value).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    return Image.fromarray(noise)


def torn() -> bytes:
    """A PNG without its end."""
    buffer = io.BytesIO()
    picture(1).save(buffer, "PNG")
    return buffer.getvalue()[:-40]


def folder(root: Path, classes: dict[str, int], **options) -> Path:
    """A folder of noise pictures: class → how many."""
    for position, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            picture(100 * position + number, **options).save(root / name / f"{number:02}.png")
    return root


def test_a_folder_of_classes_is_read_as_it_lies(tmp_path):
    folder(tmp_path, {"cat": 3, "ant": 2})
    (tmp_path / "ant" / "deeper").mkdir()
    picture(7).save(tmp_path / "ant" / "deeper" / "x.PNG")
    for stray in (".hidden.png", "notes.txt", "Thumbs.db"):
        (tmp_path / "ant" / stray).write_text("not an image")
    (tmp_path / ".cache" / "z").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    data = load_data(f"imagefolder:{tmp_path}", held_out=0.3)
    assert (data.classes, data.channels, data.resolution, data.skipped) == (("ant", "cat"), 3, 6, ())
    assert (len(data.train), len(data.validation), data.test) == (4, 2, None)
    found = {tuple(image.flatten().tolist()) for split in (data.train, data.validation) for image in split.pixels}
    values = [0, 1, 2, 100, 101, 7]
    assert found == {tuple(np.asarray(picture(value)).transpose(2, 0, 1).flatten().tolist()) for value in values}
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_brings_its_own_splits(tmp_path):
    for split, count in {"Train": 3, "val": 1, "test": 2}.items():
        folder(tmp_path / split, {"a": count, "b": count})
    data = load_data(f"imagefolder:{tmp_path}")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [6, 2, 4]
    assert data.test.labels.tolist() == [0, 0, 1, 1]


def test_a_class_may_be_called_train(tmp_path):
    folder(tmp_path, {"bus": 2, "train": 2})
    assert load_data(f"imagefolder:{tmp_path}").classes == ("bus", "train")


def test_grey_images_stay_grey_until_one_has_colour(tmp_path):
    folder(tmp_path, {"a": 2, "b": 2}, mode="L")
    assert load_data(f"imagefolder:{tmp_path}").channels == 1
    picture(1).save(tmp_path / "a" / "colour.png")
    data = load_data(f"imagefolder:{tmp_path}")
    assert (data.channels, data.train.pixels.shape[1]) == (3, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "no image format"), (b"\xff\xd8\xff\xe0 but no more", "Truncated"), (torn(), "truncated")],
    ids=["empty", "first bytes only", "truncated"],
)
def test_a_corrupt_image_is_named_and_left_out_only_if_asked(tmp_path, content, reason):
    folder(tmp_path, {"a": 4, "b": 4})
    bad = tmp_path / "b" / "02.png"
    bad.write_bytes(content)
    with pytest.raises(InputError, match=reason) as error:
        load_data(f"imagefolder:{tmp_path}")
    assert str(bad) in str(error.value)
    assert "--skip-broken" in str(error.value)
    data = load_data(f"imagefolder:{tmp_path}", skip_broken=True)
    assert data.skipped == (str(bad),)
    assert len(data.train) + len(data.validation) == 7


def test_many_corrupt_images_are_named_and_counted(tmp_path):
    folder(tmp_path, {"a": 2, "b": 2})
    for number in range(7):
        (tmp_path / "a" / f"bad{number}.jpg").write_text("no")
    with pytest.raises(InputError, match=r"bad0\.jpg(.|\n)*bad4\.jpg(.|\n)*and 2 more"):
        load_data(f"imagefolder:{tmp_path}")


def spoil_class(root: Path) -> None:
    folder(root, {"a": 3, "b": 1})


def spoil_loose(root: Path) -> None:
    picture(1).save(root / "loose.png")


def spoil_split(root: Path) -> None:
    for split in ("train", "vaildation"):
        folder(root / split, {"a": 2, "b": 2})


def spoil_untrained(root: Path) -> None:
    folder(root / "test", {"a": 2, "b": 2})


def spoil_foreign(root: Path) -> None:
    folder(root / "train", {"a": 2, "b": 2})
    folder(root / "test", {"a": 2, "c": 2})


def spoil_hollow(root: Path) -> None:
    folder(root, {"a": 3, "b": 0})


def spoil_alone(root: Path) -> None:
    folder(root, {"a": 3})


def spoil_twice(root: Path) -> None:
    for split in ("train", "val", "valid"):
        folder(root / split, {"a": 2, "b": 2})


def spoil_all(root: Path) -> None:
    folder(root, {"a": 0, "b": 0})
    for name in "ab":
        (root / name / "x.png").write_text("no")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (spoil_class, "'b' has 1"),
        (spoil_loose, "CLASS/NAME"),
        (spoil_split, "vaildation.*did you mean 'validation'"),
        (spoil_untrained, "none named 'train'"),
        (spoil_foreign, "label 'c'"),
        (spoil_hollow, "b: .*no images"),
        (spoil_alone, "one class only, 'a'"),
        (spoil_twice, "'valid'.*'val'.*validation"),
        (spoil_all, r"x\.png"),
        (lambda root: None, "holds no class folders"),
        (lambda root: root.rmdir(), "does not exist"),
        (lambda root: (root.rmdir(), root.write_text("")), "is a file"),
    ],
)
def test_an_unfit_folder_is_refused_by_name(tmp_path, make, says):
    root = tmp_path / "photographs"
    root.mkdir()
    make(root)
    with pytest.raises(InputError, match=says) as error:
        load_data(f"imagefolder:{root}", skip_broken=True)
    assert str(root) in str(error.value)


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


def test_unfit_idx_files_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("nasspace.accuracy.sources.FASHION_FOLDER", tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"apt install dataset-fashion-mnist.*--data-dir"):
        load_data("fashion-mnist")
    write_fashion(tmp_path)
    images = tmp_path / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    images.write_bytes(whole[:-200])
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz: cannot be read"):
        load_data("fashion-mnist", data_dir=tmp_path)
    images.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
    with pytest.raises(InputError, match="not an IDX file of 3 dimensions"):
        load_data("fashion-mnist", data_dir=tmp_path)
    write_idx(images, np.zeros((39, 28, 28)))
    with pytest.raises(InputError, match="39 train images but 40 labels"):
        load_data("fashion-mnist", data_dir=tmp_path)
    images.unlink()
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz: there is no such file"):
        load_data("fashion-mnist", data_dir=tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "clothing10").is_dir(), reason="../shared/data/clothing10 is not here")
def test_clothing10_is_whole():
    data = load_data(f"imagefolder:{SHARED / 'clothing10'}", resolution=32)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [3068, 341, 372]
    assert (len(data.classes), data.channels, data.skipped) == (10, 3, ())
