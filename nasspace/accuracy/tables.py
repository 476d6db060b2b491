"""Images as rows of a table: parquet files as they lie on the Hugging Face hub, and the hub itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nasspace.accuracy.decoding import Encoded
from nasspace.accuracy.sources import SPLITS, Found, Part
from nasspace.errors import InputError

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label")
HUB_TIMEOUT = 10.0  # seconds within which the hub must say that it has the data set


def parquet(path: Path) -> Found:
    """A file, or a folder of `train*.parquet` with its other splits.

    Beside a file named `train.parquet` or `train-*.parquet`, those that are named so of another split are taken too.
    """
    splits = _parquet_files(path)
    names = _class_names(_schema(splits["train"][0]).metadata or {}, splits["train"][0])
    return Found(str(path), {split: _read_all(files) for split, files in splits.items()}, names)


def hub(name: str) -> Found:
    """A data set of the Hugging Face hub, `NAME` or `NAME:CONFIGURATION`, through `datasets` and its cache."""
    import datasets

    loaded = _load(*name.partition(":")[::2])
    splits = {split: loaded[alias] for split, aliases in SPLITS.items() for alias in aliases if alias in loaded}
    if "train" not in splits:
        raise InputError(f"{name}: has the splits {', '.join(loaded)}, but none named 'train'")
    features = splits["train"].features
    pictures = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    image = pictures[0] if len(pictures) == 1 else _column(features, IMAGE_COLUMNS, name)
    classes = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    label = classes[0] if len(classes) == 1 else _column(features, LABEL_COLUMNS, name)
    parts = {}
    for split, rows in splits.items():
        table = rows.cast_column(image, datasets.Image(decode=False)).with_format("arrow")[:]
        parts[split] = _part(table.column(image), table.column(label), f"{name} {split}")
    return Found(name, parts, tuple(features[label].names) if label in classes else None)


def _parquet_files(path: Path) -> dict[str, list[Path]]:
    if not path.exists():
        raise InputError(f"parquet:{path}: there is no such file")
    folder = path if path.is_dir() else path.parent
    splits = {split: _of_split(folder, aliases) for split, aliases in SPLITS.items()}
    if path.is_file():
        splits = splits if path in splits["train"] else {}
        splits["train"] = [path]
    elif not splits["train"]:
        raise InputError(f"parquet:{path}: this folder holds no train.parquet or train-*.parquet")
    return {split: files for split, files in splits.items() if files}


def _of_split(folder: Path, aliases: Sequence[str]) -> list[Path]:
    """`test.parquet`, or the numbered pieces `test-00000-of-00002.parquet` that the hub makes of a large one."""
    for alias in aliases:
        if files := [*folder.glob(f"{alias}.parquet"), *sorted(folder.glob(f"{alias}-*.parquet"))]:
            return files
    return []


def _schema(file: Path) -> Any:
    import pyarrow
    from pyarrow import parquet as reader

    try:
        return reader.read_schema(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{file}: cannot be read as parquet ({str(error).splitlines()[0]})") from None


def _read_all(files: Sequence[Path]) -> Part:
    parts = [_read(file) for file in files]
    return Part([image for part in parts for image in part.images], [label for part in parts for label in part.labels])


def _read(file: Path) -> Part:
    import pyarrow
    from pyarrow import parquet as reader

    columns = _schema(file).names
    image, label = _column(columns, IMAGE_COLUMNS, file), _column(columns, LABEL_COLUMNS, file)
    try:
        table = reader.read_table(file, columns=[image, label])
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{file}: cannot be read as parquet ({str(error).splitlines()[0]})") from None
    return _part(table.column(image), table.column(label), str(file))


def _column(columns: Sequence[str], wanted: Sequence[str], place: object) -> str:
    for name in wanted:
        if name in columns:
            return name
    raise InputError(f"{place}: has no column {' or '.join(wanted)}; its columns are {', '.join(columns)}")


def _part(images: Any, labels: Any, place: str) -> Part:
    if not len(images):
        raise InputError(f"{place}: has no rows")
    contents = _contents(images, place)
    encoded = [Encoded(f"{place} row {row}", content) for row, content in enumerate(contents)]
    return Part(encoded, _labels(labels, place))


def _contents(column: Any, place: str) -> list[bytes | None]:
    from pyarrow import compute, types

    if types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = compute.struct_field(column, "bytes")
    if not (types.is_binary(column.type) or types.is_large_binary(column.type)):
        raise InputError(
            f"{place}: its images are {column.type}; a struct of 'bytes' and 'path' is read, as on the "
            "Hugging Face hub, or plain bytes of an image file"
        )
    return column.to_pylist()


def _labels(column: Any, place: str) -> list[int | str]:
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if not any(check(kind) for check in (types.is_integer, types.is_string, types.is_large_string)):
        raise InputError(f"{place}: its labels are {kind}; integers or strings are read")
    if column.null_count:
        row = column.is_null().index(True).as_py()
        raise InputError(f"{place} row {row}: has no label; {column.null_count} rows have none")
    return column.to_pylist()


def _class_names(metadata: dict[bytes, bytes], file: Path) -> tuple[str, ...] | None:
    """The names in Hugging Face's description of the label column, which `datasets` writes into its files."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        label = features.get(next((name for name in LABEL_COLUMNS if name in features), ""), {})
        return tuple(map(str, label["names"])) if label.get("names") else None
    except (ValueError, AttributeError, TypeError):
        raise InputError(f"{file}: its 'huggingface' description of the columns cannot be read") from None


def _load(name: str, configuration: str) -> Any:
    """The data set's splits; from the local cache where the hub cannot be reached, else one `InputError`."""
    import datasets

    reached, reason = _ask_hub(name)
    if reached is False:
        raise InputError(f"'{name}' is not on the Hugging Face hub ({reason})")
    try:
        if reached:
            return datasets.load_dataset(name, configuration or None)
        with _offline():
            return datasets.load_dataset(name, configuration or None)
    except Exception as error:  # of the many libraries below; each would end in a traceback
        if reached:
            raise InputError(f"{name}: cannot be loaded ({str(error).splitlines()[0]})") from None
        raise InputError(f"'{name}': the Hugging Face hub cannot be reached ({reason}), nor is it cached") from None


def _ask_hub(name: str) -> tuple[bool | None, str]:
    """Whether the hub has the data set, None if it cannot be reached; and why.

    Asked once, beforehand, because `load_dataset` retries for half a minute where there is no network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        HfApi().dataset_info(name, timeout=HUB_TIMEOUT)
    except (HFValidationError, RepositoryNotFoundError) as error:
        return False, str(error).splitlines()[0]
    except Exception as error:  # whichever library of HTTP the hub's client uses has exceptions of its own
        return None, type(error).__name__
    return True, ""


@contextmanager
def _offline() -> Iterator[None]:
    """Both libraries' offline mode, which the environment sets otherwise, for one call."""
    import datasets
    import huggingface_hub

    homes = (datasets.config, huggingface_hub.constants)
    before = [home.HF_HUB_OFFLINE for home in homes]
    try:
        for home in homes:
            home.HF_HUB_OFFLINE = True
        yield
    finally:
        for home, value in zip(homes, before, strict=True):
            home.HF_HUB_OFFLINE = value
