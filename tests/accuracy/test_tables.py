"""Parquet files and the hub: read as `datasets` writes them, refused by name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from nasspace.accuracy.data import load_data
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
    parquet.write_table(rows.replace_schema_metadata({"huggingface": names} if names else {}), path)
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


def test_a_test_split_whose_labels_are_held_back_is_none(tmp_path):
    file = table(tmp_path / "train.parquet", [0, 1] * 2)
    table(tmp_path / "test.parquet", [-1, -1])
    assert load_data(f"parquet:{file}").test is None


@pytest.mark.parametrize(
    ("labels", "columns", "says"),
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
        ([], {}, "no rows|no column"),
    ],
)
def test_an_unfit_parquet_file_is_refused_by_name(tmp_path, labels, columns, says):
    file = table(tmp_path / "train.parquet", labels, **columns)
    with pytest.raises(InputError, match=says) as error:
        load_data(f"parquet:{file}")
    assert str(file) in str(error.value)


def test_images_that_are_no_bytes_and_files_that_are_no_parquet(tmp_path):
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


def test_cifar10_from_a_folder_has_its_class_names(tmp_path):
    table(tmp_path / "train.parquet", list(range(10)) * 2)
    data = load_data("cifar10", data_dir=tmp_path)
    assert (data.classes[6], data.test) == ("frog", None)


@pytest.fixture
def offline(monkeypatch):
    """The hub's client as with HF_HUB_OFFLINE: nothing is asked of the network."""
    import datasets
    import huggingface_hub

    for home in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(home, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("digts", "cannot be reached.*digits, fashion-mnist, cifar10.*did you mean 'digits'"),
        ("imagefoldr:/photographs", "did you mean 'imagefolder'"),
        ("hub:someone/pictures", "someone/pictures.*cannot be reached.*built in"),
        ("not a name!", "not on the Hugging Face hub"),
        ("cifar10", "--data-dir"),
    ],
)
def test_without_network_a_hub_name_is_one_clear_message(offline, tmp_path, monkeypatch, spec, says):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(InputError, match=says):
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
    asked = []
    monkeypatch.setattr("nasspace.accuracy.tables._ask_hub", lambda name: (True, ""))
    monkeypatch.setattr(datasets, "load_dataset", lambda *call: asked.append(call) or {"train": split, "valid": split})
    data = load_data("someone/insects:small")
    assert asked == [("someone/insects", "small")]
    assert (data.classes, data.validation.labels.tolist()) == (("ant", "bee"), [0, 1] * 3)
    assert torch.equal(data.train.pixels[4], torch.tensor(np.asarray(picture(4))).permute(2, 0, 1))


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "cifar10-12k").is_dir(), reason="../shared/data/cifar10-12k is not here")
def test_cifar10_12k_is_whole():
    data = load_data(f"parquet:{SHARED / 'cifar10-12k' / 'train.parquet'}")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [8000, 2000, 2000]
    assert torch.bincount(data.train.labels).tolist() == [800] * 10
