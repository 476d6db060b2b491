"""Parquet files as `datasets` writes them, and the hub; invalid ones are refused by name."""

from __future__ import annotations

import contextlib
import io
import os
import random
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from nasspace.data.loading import load_data
from nasspace.errors import InputError

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


def picture(value: int, size: tuple[int, int] = (6, 6), mode: str = "RGB") -> Image.Image:
    """A picture of seeded noise."""
    channels = {"RGB": (3,), "L": ()}[mode]
    noise = np.random.default_rng(value).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    return Image.fromarray(noise)


def encoded(value: int) -> bytes:
    buffer = io.BytesIO()
    picture(value).save(buffer, "PNG")
    return buffer.getvalue()


def table(path: Path, labels: list, image: str = "img", label: str = "label", names: str = "") -> Path:
    """A parquet file as on the Hugging Face hub."""
    structs = [{"bytes": encoded(number), "path": f"{number}.png"} for number in range(len(labels))]
    rows = pyarrow.table({image: structs, label: labels})
    with path.open("wb") as file:  # pyarrow reads names as UTF-8
        parquet.write_table(rows.replace_schema_metadata({"huggingface": names} if names else {}), file)
    return path


def test_parquet_is_read_as_on_the_hub(tmp_path):
    names = '{"info": {"features": {"label": {"names": ["ant", "bee"], "_type": "ClassLabel"}}}}'
    file = table(tmp_path / "train.parquet", [0, 1] * 5, names=names)
    table(tmp_path / "test.parquet", [1, 0, 1])
    data = load_data(f"parquet:{file}")
    assert (data.classes, data.channels, data.resolution) == (("ant", "bee"), 3, 6)
    assert (len(data.train), len(data.validation), data.test.labels.tolist()) == (8, 2, [1, 0, 1])
    assert torch.equal(data.test.pixels[2], torch.tensor(np.asarray(picture(2))).permute(2, 0, 1))
    assert load_data(f"parquet:{tmp_path}").test is not None
    alone = table(tmp_path / "other.parquet", ["x", "y"] * 3, image="image", label="labels")
    assert (load_data(f"parquet:{alone}").classes, load_data(f"parquet:{alone}").test) == (("x", "y"), None)


def test_parquet_pieces_and_gaps_between_labels(tmp_path):
    table(tmp_path / "train-00000-of-00002.parquet", [3, 7, 3])
    table(tmp_path / "train-00001-of-00002.parquet", [7, 7, 3])
    table(tmp_path / "validation-00000-of-00001.parquet", [7, 3])
    data = load_data(f"parquet:{tmp_path}")
    assert (data.classes, data.train.labels.tolist(), data.validation.labels.tolist()) == (
        ("3", "7"),
        [0, 1, 0, 1, 1, 0],
        [1, 0],
    )


def pieces(folder: Path, names: str) -> None:
    """Write files of six rows each, by their names without suffix."""
    folder.mkdir(exist_ok=True)
    for name in names.split():
        table(folder / f"{name}.parquet", ["a", "b"] * 3)


SHARDS = "train-00000-of-00003 train-00001-of-00003 train-00002-of-00003"


@pytest.mark.parametrize(
    ("names", "file", "counts"),
    [
        (SHARDS, "train-00000-of-00003.parquet", (18, None)),
        (SHARDS, "train-00002-of-00003.parquet", (18, None)),
        (SHARDS, "", (18, None)),
        (f"{SHARDS} test-00000-of-00001", "train-00001-of-00003.parquet", (18, 6)),
        ("data-0-of-2 data-1-of-2", "data-0-of-2.parquet", (12, None)),
        ("0000 0001", "0000.parquet", (12, None)),
        ("part-00000-x-c000.snappy part-00001-x-c000.snappy", "part-00001-x-c000.snappy.parquet", (12, None)),
        ("train-0 train-1 test-0", "", (12, 6)),
        ("Train VALID", "", (12, None)),
        ("asl_train asl_test", "asl_train.parquet", (6, 6)),
        ("train_batch_1 train_batch_2 test_batch", "", (12, 6)),
        ("data2020 data2021", "data2020.parquet", (6, None)),
        ("train test train_meta test_meta", "train.parquet", (6, 6)),
        ("other test", "other.parquet", (6, None)),
    ],
)
def test_every_piece_of_a_table_is_read(tmp_path, names, file, counts):
    pieces(tmp_path, names)
    data = load_data(f"parquet:{tmp_path / file}")
    assert (len(data.train) + len(data.validation), data.test and len(data.test)) == counts
    assert data.skipped == ()


@pytest.mark.parametrize(
    ("names", "file", "message"),
    [
        ("train-00000-of-00003 train-00002-of-00003", "", r"lacks train-00001-of-00003\.parquet, so 1 of 00003"),
        ("data-0-of-2", "data-0-of-2.parquet", r"lacks data-1-of-2\.parquet"),
        ("train test-1-of-2", "train.parquet", r"lacks test-0-of-2\.parquet"),
        ("train train-00000-of-00001", "", r"both 'train.*' and 'train.*' could be the train split"),
        ("0000 0001", "", r"holds no train\.parquet .*0000\.parquet is named after no split"),
    ],
)
def test_an_ambiguous_table_is_refused(tmp_path, names, file, message):
    pieces(tmp_path, names)
    with pytest.raises(InputError, match=message) as error:
        load_data(f"parquet:{tmp_path / file}")
    assert str(tmp_path) in str(error.value)


def test_a_file_of_no_split_is_named(tmp_path):
    pieces(tmp_path, "train extra vaildation")
    assert load_data(f"parquet:{tmp_path}").skipped == (f"{tmp_path} (2 files of no split, such as extra.parquet)",)


@pytest.mark.parametrize("labels", [[-1, -1], [None, None], [-1, None], ["", ""], None])
def test_a_test_split_with_withheld_labels_is_none(tmp_path, labels):
    file = table(tmp_path / "train.parquet", [0, 1] * 2)
    if labels is None:
        parquet.write_table(pyarrow.table({"img": [encoded(0)]}), tmp_path / "test.parquet")
    else:
        table(tmp_path / "test.parquet", labels)
    data = load_data(f"parquet:{file}")
    assert (data.test, data.skipped) == (None, ())


@pytest.mark.parametrize(
    ("split", "labels"), [("test", [0, None]), ("validation", [None, None]), ("train", [0, 1, None])]
)
def test_other_missing_labels_are_named(tmp_path, split, labels):
    table(tmp_path / "train.parquet", [0, 1] * 2)
    file = table(tmp_path / f"{split}.parquet", labels)
    with pytest.raises(InputError, match=rf"{file} row \d: has no label; \d images of the split have none"):
        load_data(f"parquet:{tmp_path}")


def test_both_unicode_forms_of_a_letter_are_one_class(tmp_path):
    table(tmp_path / "train.parquet", ["caf\u00e9", "b", "cafe\u0301"])
    table(tmp_path / "val.parquet", ["b", "cafe\u0301"])
    data = load_data(f"parquet:{tmp_path}")
    assert (data.classes, data.train.labels.tolist(), data.validation.labels.tolist()) == (
        ("b", "caf\u00e9"),
        [1, 0, 1],
        [0, 1],
    )


def test_labels_of_two_types_are_refused(tmp_path):
    table(tmp_path / "train-0-of-2.parquet", [0, 1] * 2)
    table(tmp_path / "train-1-of-2.parquet", ["a", "b"] * 2)
    with pytest.raises(InputError, match="numbers in some pieces and strings in others"):
        load_data(f"parquet:{tmp_path}")


@pytest.mark.parametrize("text", ["string", "large_string", "string_view", "dictionary"])
@pytest.mark.parametrize(
    "binary", ["binary", "large_binary", "binary_view", "struct of binary_view", "dictionary", "fixed"]
)
def test_arrow_has_many_types_of_texts_and_bytes(tmp_path, text, binary):
    words, contents = ["a", "b"] * 3, [encoded(number) for number in range(6)]
    longest = max(map(len, contents))
    label = pyarrow.array(words)
    label = label.dictionary_encode() if text == "dictionary" else label.cast(getattr(pyarrow, text)())
    if binary == "dictionary":
        image = pyarrow.array(contents).dictionary_encode()
    elif binary == "fixed":
        image = pyarrow.array([content.ljust(longest, b"\0") for content in contents], pyarrow.binary(longest))
    elif binary == "struct of binary_view":
        image = pyarrow.StructArray.from_arrays([pyarrow.array(contents, pyarrow.binary_view())], ["bytes"])
    else:
        image = pyarrow.array(contents, getattr(pyarrow, binary)())
    parquet.write_table(pyarrow.table({"img": image, "label": label}), tmp_path / "train.parquet")
    data = load_data(f"parquet:{tmp_path}")
    assert (data.classes, len(data.train) + len(data.validation)) == (("a", "b"), 6)


def test_a_duplicate_column_is_refused(tmp_path):
    images = pyarrow.array([encoded(0)] * 4)
    rows = pyarrow.Table.from_arrays([images, images, pyarrow.array([0, 1, 0, 1])], ["img", "img", "label"])
    parquet.write_table(rows, tmp_path / "train.parquet")
    with pytest.raises(InputError, match="two columns 'img'"):
        load_data(f"parquet:{tmp_path}")


@pytest.mark.skipif(os.name != "posix", reason="file names are text elsewhere")
@pytest.mark.parametrize("name", [b"caf\xe9", b"{0}", b"[b]", b"label=3", b"a%20b", b"s3:x"])
def test_any_name_of_a_folder_is_read(tmp_path, name):
    folder = tmp_path / os.fsdecode(name)
    pieces(folder, "train test")
    assert len(load_data(f"parquet:{folder}").test) == 6
    assert len(load_data(f"parquet:{folder / 'train.parquet'}").test) == 6


@pytest.mark.parametrize(
    ("labels", "columns", "message"),
    [
        ([0, 1, 0, -1], {}, "row 3.*-1"),
        ([0, 1, 0, 10**9], {}, r"row 3.*1000000000"),
        ([0, 1, None, 1], {}, "row 2: has no label"),
        ([0.5, 1.0, 0.5, 1.0], {}, "double"),
        ([0, 1, 0, 1], {"image": "picture"}, "img or image; its columns are picture, label"),
        ([0, 1, 0, 1], {"label": "kind"}, "label or labels or fine_label; its columns are img, kind"),
        ([0, 1, 0, 2], {"names": '{"info": {"features": {"label": {"names": ["a", "b"]}}}}'}, "row 3.*2.*named"),
        ([0, 1, 0, 1], {"names": "{broken"}, "description"),
        ([0, 0, 0, 0], {}, "one class only"),
        ([0, 0, 0, 1], {}, "'1' has 1"),
        ([], {}, "no rows"),
    ],
)
def test_an_invalid_parquet_file_is_refused_by_name(tmp_path, labels, columns, message):
    file = table(tmp_path / "train.parquet", labels, **columns)
    with pytest.raises(InputError, match=message) as error:
        load_data(f"parquet:{file}")
    assert str(file) in str(error.value)


def test_images_that_are_not_bytes_and_files_that_are_not_parquet(tmp_path):
    file = tmp_path / "train.parquet"
    parquet.write_table(pyarrow.table({"img": ["a.png"] * 4, "label": [0, 1, 0, 1]}), file)
    with pytest.raises(InputError, match="its images are string"):
        load_data(f"parquet:{file}")
    rows = [{"bytes": encoded(1), "path": ""}, {"bytes": None, "path": ""}] * 2
    parquet.write_table(pyarrow.table({"img": rows, "label": [0, 1, 1, 0]}), file)
    with pytest.raises(InputError, match=r"row 1: .*no bytes"):
        load_data(f"parquet:{file}")
    file.write_bytes(b"PAR1 not a table PAR1")
    with pytest.raises(InputError, match=r"train\.parquet: cannot be read as parquet"):
        load_data(f"parquet:{file}")
    with pytest.raises(InputError, match="no such file"):
        load_data(f"parquet:{tmp_path / 'none.parquet'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no train\.parquet"):
        load_data(f"parquet:{tmp_path / 'empty'}")


def test_a_damaged_file_is_one_message(tmp_path):
    whole = table(tmp_path / "whole", ["a", "b"] * 4, names='{"info": {}}').read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    rng = random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(rng.choice([0, footer]), len(damaged))] = rng.randrange(256)
        (tmp_path / "train.parquet").write_bytes(damaged)
        with contextlib.suppress(InputError):
            load_data(f"parquet:{tmp_path / 'train.parquet'}", resolution=8)


def test_a_text_that_is_not_utf8_is_one_message(tmp_path):
    labels = pyarrow.array([b"caf\xe9", b"b"] * 2).view(pyarrow.string())
    rows = pyarrow.table({"img": [encoded(0)] * 4, "label": labels})
    parquet.write_table(rows, tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"train\.parquet: cannot be read as parquet"):
        load_data(f"parquet:{tmp_path}")


def test_cifar10_from_a_folder_has_its_class_names(tmp_path):
    table(tmp_path / "train.parquet", list(range(10)) * 2)
    data = load_data("cifar10", data_dir=tmp_path)
    assert (data.classes[6], data.test) == ("frog", None)


@pytest.fixture
def offline(monkeypatch):
    """The hub's client without network, as with HF_HUB_OFFLINE."""
    import datasets
    import huggingface_hub

    for home in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(home, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digts", "cannot be reached.*digits, fashion-mnist, cifar10.*did you mean 'digits'"),
        ("imagefoldr:/photographs", "did you mean 'imagefolder'"),
        ("hub:someone/pictures", "someone/pictures.*cannot be reached.*built in"),
        ("not a name!", "not on the Hugging Face hub"),
        ("cifar10", "--data-dir"),
    ],
)
def test_without_network_a_hub_name_is_one_clear_message(offline, tmp_path, monkeypatch, spec, message):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(InputError, match=message):
        load_data(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("someone/insects", r"pip install 'nasspace\[hub\]'; built in: digits"),
        ("digts", r"pip install 'nasspace\[hub\]'.*did you mean 'digits'"),
        ("cifar10", r"pip install 'nasspace\[hub\]'.*--data-dir"),
    ],
)
def test_without_datasets_the_extra_is_named(monkeypatch, spec, message):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=message):
        load_data(spec)


def test_a_hub_set_is_read_through_datasets(monkeypatch):
    import datasets

    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "kind": datasets.ClassLabel(names=["ant", "bee"]),
            "note": datasets.Value("string"),
        }
    )
    rows = {"picture": [{"bytes": encoded(n), "path": None} for n in range(6)], "kind": [0, 1] * 3, "note": ["x"] * 6}
    split = datasets.Dataset.from_dict(rows, features)
    calls = []
    monkeypatch.setattr("nasspace.data.tables._ask_hub", lambda name: (True, ""))
    monkeypatch.setattr(datasets, "load_dataset", lambda *call: calls.append(call) or {"train": split, "valid": split})
    data = load_data("someone/insects:small")
    assert calls == [("someone/insects", "small")]
    assert (data.classes, data.validation.labels.tolist()) == (("ant", "bee"), [0, 1] * 3)
    assert torch.equal(data.train.pixels[4], torch.tensor(np.asarray(picture(4))).permute(2, 0, 1))


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "cifar10-12k").is_dir(), reason="../shared/data/cifar10-12k is not here")
def test_cifar10_12k_is_whole():
    data = load_data(f"parquet:{SHARED / 'cifar10-12k' / 'train.parquet'}")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [8000, 2000, 2000]
    assert torch.bincount(data.train.labels).tolist() == [800] * 10
