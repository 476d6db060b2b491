"""Image folders: every image is read or named, and every unsuitable folder is refused by name."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nasspace.data.loading import load_data
from nasspace.errors import InputError

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


def picture(value: int, size: tuple[int, int] = (6, 6), mode: str = "RGB") -> Image.Image:
    """A picture of seeded noise."""
    channels = {"RGB": (3,), "L": ()}[mode]
    noise = np.random.default_rng(value).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    return Image.fromarray(noise)


def torn() -> bytes:
    """A truncated PNG."""
    buffer = io.BytesIO()
    picture(1).save(buffer, "PNG")
    return buffer.getvalue()[:-40]


def folder(root: Path, classes: dict[str, int], **options) -> Path:
    """A folder of noise pictures; `classes` maps each class to its number of pictures."""
    for position, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            picture(100 * position + number, **options).save(root / name / f"{number:02}.png")
    return root


def test_a_folder_of_classes_is_read_and_not_changed(tmp_path):
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


def test_split_folders_are_the_splits(tmp_path):
    for split, count in {"Train": 3, "val": 1, "test": 2}.items():
        folder(tmp_path / split, {"a": count, "b": count})
    data = load_data(f"imagefolder:{tmp_path}")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [6, 2, 4]
    assert data.test.labels.tolist() == [0, 0, 1, 1]


def test_a_class_may_be_called_train(tmp_path):
    folder(tmp_path, {"bus": 2, "train": 2})
    assert load_data(f"imagefolder:{tmp_path}").classes == ("bus", "train")


def test_gray_images_stay_gray_unless_one_has_color(tmp_path):
    folder(tmp_path, {"a": 2, "b": 2}, mode="L")
    assert load_data(f"imagefolder:{tmp_path}").channels == 1
    picture(1).save(tmp_path / "a" / "color.png")
    data = load_data(f"imagefolder:{tmp_path}")
    assert (data.channels, data.train.pixels.shape[1]) == (3, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "not an image format"), (b"\xff\xd8\xff\xe0 but no more", "Truncated"), (torn(), "truncated")],
    ids=["empty", "first bytes only", "truncated"],
)
def test_a_corrupt_image_is_named_and_left_out_only_with_skip_broken(tmp_path, content, reason):
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
    ("make", "message"),
    [
        (spoil_class, "'b' has 1"),
        (spoil_loose, "CLASS/NAME"),
        (spoil_split, "vaildation.*did you mean 'validation'"),
        (spoil_untrained, "none named 'train'"),
        (spoil_foreign, "label 'c'"),
        (spoil_hollow, "b: .*no images"),
        (spoil_alone, "one class only, 'a'"),
        (spoil_twice, "'val'.*'valid'.*validation"),
        (spoil_all, r"x\.png"),
        (lambda root: None, "holds no class folders"),
        (lambda root: root.rmdir(), "does not exist"),
        (lambda root: (root.rmdir(), root.write_text("")), "is a file"),
    ],
)
def test_an_unsuitable_folder_is_refused_by_name(tmp_path, make, message):
    root = tmp_path / "photographs"
    root.mkdir()
    make(root)
    with pytest.raises(InputError, match=message) as error:
        load_data(f"imagefolder:{root}", skip_broken=True)
    assert str(root) in str(error.value)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "clothing10").is_dir(), reason="../shared/data/clothing10 is not here")
def test_clothing10_is_whole():
    data = load_data(f"imagefolder:{SHARED / 'clothing10'}", resolution=32)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [3068, 341, 372]
    assert (len(data.classes), data.channels, data.skipped) == (10, 3, ())


def tree(root: Path, places: str, count: int = 3) -> str:
    """Write noise pictures into folders, separated by spaces; returns the data set's name."""
    for position, place in enumerate(places.split()):
        (root / place).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(10 * position + number).save(root / place / f"{number}.png")
    return f"imagefolder:{root}"


INTEL = "seg_train/seg_train/a seg_train/seg_train/b seg_test/seg_test/a seg_test/seg_test/b"


@pytest.mark.parametrize(
    ("places", "counts"),
    [
        ("training_set/a training_set/b test_set/a test_set/b", (4, 2, 6)),
        ("train/a train/b test/a test/b", (4, 2, 6)),
        ("Train/a Train/b VAL/a VAL/b", (6, 6, None)),
        ("trainset/a trainset/b valset/a valset/b testset/a testset/b", (6, 6, 6)),
        ("train2017/a train2017/b val2017/a val2017/b", (6, 6, None)),
        ("TrainImages/a TrainImages/b TestImages/a TestImages/b", (4, 2, 6)),
        ("asl_train/a asl_train/b asl_test/a asl_test/b", (4, 2, 6)),
        ("train/train/a train/train/b test/a test/b", (4, 2, 6)),
        (INTEL, (4, 2, 6)),
        ("a/train a/test b/train b/test", (4, 2, 6)),
        ("a/train a/val a/test b/train b/val", (6, 6, 3)),
    ],
)
def test_splits_are_recognized_by_their_names(tmp_path, places, counts):
    data = load_data(tree(tmp_path, places))
    splits = (data.train, data.validation, data.test)
    assert tuple(images and len(images) for images in splits) == counts
    assert (data.classes, data.skipped) == (("a", "b"), ())


@pytest.mark.parametrize(
    ("places", "left_out"),
    [
        (f"{INTEL} seg_pred/seg_pred", "seg_pred (3 images"),
        ("train/a train/b test", "test (3 images"),
        ("train/a train/b val/a val/b samples", "samples (3 images"),
    ],
)
def test_images_without_labels_are_named_and_left_out(tmp_path, places, left_out):
    data = load_data(tree(tmp_path, places))
    assert data.classes == ("a", "b")
    (named,) = data.skipped
    assert named.startswith(str(tmp_path / left_out))


@pytest.mark.parametrize(
    "places",
    [
        "bus train",
        "bus Train tram",
        "bus/old train",
        "train_station test_tube",
        "bus validation_unit",
        "train/old bus/new",
    ],
)
def test_classes_may_have_the_names_of_splits(tmp_path, places):
    spec = tree(tmp_path, places)
    if places == "train/old bus/new":  # ambiguous: a split whose only class is `old`, or a class
        with pytest.raises(
            InputError, match=r"bus: holds images but is no split.*move the images in the folders of 'train'"
        ):
            load_data(spec)
    else:
        assert load_data(spec).classes == tuple(sorted({place.split("/")[0] for place in places.split()}))


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ("train test", "'test', 'train' are named like splits but hold no class folders.*train/CLASS"),
        ("training_set test_set", "named like splits"),
        ("dogs_train dogs_test", "named like splits"),
        ("train/a train/b Train/a Train/b", "both 'Train' and 'train' could be the train split"),
        ("train/a train/b train_images/a train_images/b", "both 'train' and 'train_images'"),
        ("train/a train/b Train", "Train: holds no class folders"),
        ("train/a train/b val", "val: holds no class folders"),
        ("test_set/a test_set/b", "'test_set' but none named 'train'"),
        (
            "color/a color/b grayscale/a grayscale/b segmented/a",
            r"'color', 'grayscale', 'segmented'.*imagefolder:\S*/color,",
        ),
        ("train/color/a train/color/b train/gray/a train/gray/b", "'color', 'gray' hold folders of the same names"),
        ("fit/a fit/b holdout/a holdout/b", "'fit', 'holdout' hold folders of the same names"),
        ("archive/a archive/b", r"one class only, 'archive'; .*imagefolder:\S*/archive"),
        ("archive/train/a archive/train/b archive/test/a", r"one class only, 'archive'; .*imagefolder:\S*/archive"),
        ("a/train a/test b", "a/test: is named like a split, inside a class|a/train: is named like a split"),
        ("a a/train b b/train", "a/train: is named like a split"),
        ("a/test b/test", "a/test: is named like a split"),
        ("x/train/a x/train/b y/train/a y/train/b", "x/train: is named like a split"),
        ("train/a/test train/b", "train/a/test: is named like a split"),
    ],
)
def test_ambiguous_folders_are_refused(tmp_path, places, message):
    with pytest.raises(InputError, match=message) as error:
        load_data(tree(tmp_path, places))
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "@eaDir", ".AppleDouble", "__MACOSX", "$RECYCLE.BIN", ".git"])
def test_hidden_and_system_folders_hold_no_images(tmp_path, name):
    spec = tree(tmp_path, f"a b {name} a/{name} a/{name}/deeper")
    data = load_data(spec)
    assert (data.classes, len(data.train) + len(data.validation), data.skipped) == (("a", "b"), 6, ())
    spec = tree(tmp_path / "split", f"train/a train/b train/{name} test/a test/b {name}/a {name}/b")
    data = load_data(spec)
    assert (data.classes, len(data.test), data.skipped) == (("a", "b"), 6, ())


@pytest.mark.parametrize(
    "name",
    ["x.jpe", "x.tga", "x.JPG", "x", "x.jpg_large", "x.jpeg!d", "x.bin", "x.dib", "x.pcx", "x.mpo", "x.pnm"],
)
def test_images_are_recognized_by_suffix_or_first_bytes(tmp_path, name):
    spec = tree(tmp_path, "a b")
    kinds = {".tga": "TGA", ".dib": "DIB", ".pcx": "PCX", ".pnm": "PPM", ".mpo": "MPO"}
    picture(99).save(tmp_path / "a" / name, format=kinds.get(Path(name).suffix, "JPEG"))
    data = load_data(spec)
    assert (len(data.train) + len(data.validation), data.skipped) == (7, ())


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "AVIF"])
def test_a_class_of_images_without_suffixes_is_read(tmp_path, kind):
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(2):
            picture(number, (20, 20)).save(tmp_path / name / str(number), format=kind)
    assert len(load_data(f"imagefolder:{tmp_path}").validation) == 2


def test_other_files_are_named_unless_they_are_texts(tmp_path):
    spec = tree(tmp_path, "a b")
    for name in ("notes.txt", "README", "labels.csv", "x.xml", "empty", "Thumbs.db", "desktop.ini"):
        (tmp_path / "a" / name).write_text("" if name == "empty" else "<words>")
    (tmp_path / "a" / "windows.txt").write_text("words", encoding="utf-16")
    assert load_data(spec).skipped == ()
    for name in ("film.mp4", "other.mp4", "table.npy", "blob"):
        (tmp_path / "b" / name).write_bytes(bytes(range(100)))
    (tmp_path / "b" / "x.svg").write_text("<svg/>")
    picture(1).save(tmp_path / "cover.png")
    assert load_data(spec).skipped == (
        f"{tmp_path} (1 images in no class folder, such as cover.png)",
        f"{tmp_path / 'b'} (1 of no suffix, such as blob)",
        f"{tmp_path / 'b'} (2 of .mp4, such as film.mp4)",
        f"{tmp_path / 'b'} (1 of .npy, such as table.npy)",
        f"{tmp_path / 'b'} (1 of .svg, such as x.svg)",
    )
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.npy").write_bytes(bytes(9))
    with pytest.raises(InputError, match=r"c: .*no images \(but 1 of \.npy, such as x\.npy\)"):
        load_data(spec)


def test_links_are_followed_or_named(tmp_path):
    tree(tmp_path, "real/a real/b more/deep elsewhere")
    root = tmp_path / "real"
    (root / "c").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "a" / "nested").symlink_to(tmp_path / "more", target_is_directory=True)
    (root / "b" / "one.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    spec = f"imagefolder:{root}"
    data = load_data(spec)
    assert (data.classes, len(data.train) + len(data.validation)) == (("a", "b", "c"), 6 + 4 + 3)
    for name in ("gone.png", "gone"):
        link = root / "b" / name
        link.symlink_to("nowhere")
        with pytest.raises(InputError, match=f"{name}: cannot be read as an image .No such file or directory."):
            load_data(spec)
        assert load_data(spec, skip_broken=True).skipped == (str(link),)
        link.unlink()
    for name, target in (("d", "nowhere"), ("e", "e")):
        (root / name).symlink_to(target)
        with pytest.raises(InputError, match=rf"{root / name}: is a link to nothing"):
            load_data(spec)
        (root / name).unlink()
    for target in (".", "..", "../.."):
        (root / "a" / "back").symlink_to(target, target_is_directory=True)
        with pytest.raises(InputError, match="a link leads back"):
            load_data(spec)
        (root / "a" / "back").unlink()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_named_and_not_read(tmp_path):
    spec = tree(tmp_path, "a b")
    for name in ("x.png", "x"):
        os.mkfifo(tmp_path / "a" / name)
        with pytest.raises(InputError, match=f"a/{name}: cannot be read as an image"):
            load_data(spec)
        (tmp_path / "a" / name).unlink()


def test_both_unicode_forms_of_a_letter_are_one_class(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    data = load_data(tree(tmp_path, f"train/{decomposed} train/b val/{composed} val/b"))
    assert (data.classes, data.validation.labels.tolist()) == (("b", composed), [0, 0, 0, 1, 1, 1])
    both = tmp_path / "both"
    data = load_data(tree(both, f"{composed} {decomposed} b"))
    assert (data.classes, len(data.train) + len(data.validation)) == (("b", composed), 9)


@pytest.mark.skipif(os.name != "posix", reason="file names are Unicode elsewhere")
@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff\xfe", b"{0}", b"[red]x", b"a\x1b[2J", b"1e3", b"%s", b"50%"])
def test_any_name_of_a_folder_is_a_class(tmp_path, name):
    spec = tree(tmp_path / os.fsdecode(name), f"b {os.fsdecode(name)}")
    data = load_data(spec)
    data.classes[1 if data.classes[0] == "b" else 0].encode()
    assert set(data.classes) == {"b", name.decode("utf-8", "backslashreplace")}
    assert data.name == spec
    (tmp_path / os.fsdecode(name) / "b" / "torn.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"torn\.png: cannot be read"):
        load_data(spec)


def test_one_image_a_class_is_enough_with_a_validation_split(tmp_path):
    tree(tmp_path, "train/a train/b", count=1)
    spec = tree(tmp_path, "val/a val/b")
    data = load_data(spec)
    assert (len(data.train), len(data.validation)) == (2, 6)
    (tmp_path / "train" / "a" / "0.png").write_bytes(b"torn")
    with pytest.raises(InputError, match="each class needs a training image; 'a' has 0"):
        load_data(spec, skip_broken=True)


@pytest.mark.parametrize("place", ["x" * 300, "a\0b", "~nobody-here/x", "x/" * 3000])
@pytest.mark.parametrize("kind", ["imagefolder:", "parquet:", ""])
def test_impossible_paths_are_one_message(tmp_path, monkeypatch, kind, place):
    monkeypatch.chdir(tmp_path)
    if kind:
        with pytest.raises(InputError, match=r"does not exist|no such file|is unknown"):
            load_data(kind + place)
    else:
        with pytest.raises(InputError):
            load_data(place)
