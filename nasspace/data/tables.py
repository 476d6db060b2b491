"""Images as rows of tables: parquet files in the format of the Hugging Face hub, and the hub itself."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nasspace.data.decoding import Encoded
from nasspace.data.sources import SPLITS, SourceData, SourceSplit, splits_among
from nasspace.errors import InputError, first_line
from nasspace.files import kind_of

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label")
HUB_TIMEOUT = 10.0  # seconds for the hub to answer


def parquet(path: Path) -> SourceData:
    """A parquet file, or a folder of files named after their splits.

    One of several pieces (`train-00000-of-00002.parquet`) loads all of them. With a file of the train split, the
    files of the other splits next to it are read, too.
    """
    splits, left_out = _parquet_files(path)
    names = _class_names(_schema(splits["train"][0]).metadata or {}, splits["train"][0])
    read = {split: _read_all(files, labeled=split != "test") for split, files in splits.items()}
    return SourceData(str(path), read, names, left_out)


def hub(name: str) -> SourceData:
    """A data set of the Hugging Face hub, `NAME` or `NAME:CONFIGURATION`, through `datasets` and its cache."""
    datasets = _datasets()
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
        parts[split] = _split(table.column(image), table.column(label), f"{name} {split}")
    return SourceData(name, parts, tuple(features[label].names) if label in classes else None)


def _parquet_files(path: Path) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    """The files of each split, and a description of a folder's other files."""
    kind = kind_of(path)
    if not kind:
        raise InputError(f"parquet:{path}: there is no such file")
    folder = path if kind == "folder" else path.parent
    tables = _in_pieces(folder)
    splits = splits_among(tables)
    if kind == "file":
        own = next((first for first, pieces in tables.items() if path in pieces), path)
        pieces = tables[own] if own in tables and _are_pieces(tables[own]) else [path]
        others = {
            split: those for split, those in splits.items() if own in splits.get("train", ()) and split != "train"
        }
        found = {"train": pieces} | {split: tables[_only(those, split, folder)] for split, those in others.items()}
        return {split: _complete(files) for split, files in found.items()}, ()
    if "train" not in splits:
        instead = f"; {next(iter(tables)).name} is named after no split" if tables else ""
        raise InputError(f"parquet:{path}: this folder holds no train.parquet or train-*.parquet{instead}")
    found = {split: tables[_only(those, split, folder)] for split, those in splits.items()}
    unused = [file.name for files in tables.values() for file in files if files not in found.values()]
    left_out = (f"{folder} ({len(unused)} files of no split, such as {unused[0]})",) if unused else ()
    return {split: _complete(files) for split, files in found.items()}, left_out


def _in_pieces(folder: Path) -> dict[Path, list[Path]]:
    """The tables in a folder, first piece → all pieces: files whose names differ only in a number are pieces."""
    tables: dict[tuple[str, ...], list[Path]] = {}
    for file in sorted(folder.glob("*.parquet")):
        if not file.name.startswith("."):
            number = _number(file)
            key = (file.stem[: number.start(1)], file.stem[number.end(1) :]) if number else (file.stem,)
            tables.setdefault(key, []).append(file)
    return {files[0]: files for files in tables.values()}


def _number(file: Path) -> re.Match | None:
    """The number of a piece: `00000-of-00002` (the hub), a number at the end, or one of four digits (Spark)."""
    for pattern in (r"(\d+)-of-\d+", r"(\d+)$", r"(\d{4,})"):
        if found := re.search(pattern, file.stem):
            return found
    return None


def _are_pieces(files: Sequence[Path]) -> bool:
    """Whether files are pieces: `0000`, `0001`, `0-of-2` are; `2020`, `2021`, `train-1` may be separate tables."""
    first = _number(files[0])
    return first is not None and ("-of-" in first[0] or re.fullmatch("0{4,}", first[1]) is not None)


def _complete(files: Sequence[Path]) -> Sequence[Path]:
    """The pieces of a table; a missing piece raises `InputError`."""
    if found := re.search(r"(\d+)-of-(\d+)", files[0].stem):
        present = {int(re.search(r"(\d+)-of-", file.stem)[1]) for file in files}
        missing = sorted(set(range(int(found[2]))) - present)
        if missing:
            first = f"{missing[0]:0{len(found[1])}}"
            name = f"{files[0].stem[: found.start(1)]}{first}{files[0].stem[found.end(1) :]}{files[0].suffix}"
            raise InputError(
                f"{files[0].parent}: lacks {name}, so {len(missing)} of {found[2]} pieces; download it again"
            )
    return files


def _only(candidates: Sequence[Path], split: str, place: object) -> Path:
    """The only table of a split; several raise `InputError`."""
    if len(candidates) > 1:
        first, second = candidates[0].name, candidates[1].name
        raise InputError(f"{place}: both '{first}' and '{second}' could be the {split} split; name one")
    return candidates[0]


def _schema(file: Path) -> Any:
    """The Arrow schema of a parquet file."""
    with _opened(file) as opened:
        return opened.schema_arrow


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Open a parquet file; any error in it raises `InputError`."""
    import pyarrow
    from pyarrow import parquet as reader

    try:
        with file.open("rb") as content:  # pyarrow would read a name as UTF-8 and as a partition
            yield reader.ParquetFile(content)
    except (pyarrow.ArrowException, OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise InputError(f"{file}: cannot be read as parquet ({reason})") from None


def _read_all(files: Sequence[Path], labeled: bool) -> SourceSplit:
    """Read the rows of all pieces; without `labeled` the label column may be missing."""
    parts = [_read(file, labeled) for file in files]
    images = [image for part in parts for image in part.images]
    labels = [label for part in parts for label in part.labels]
    if not images:
        raise InputError(f"{files[0]}: has no rows")
    if len({type(label) for label in labels if label is not None}) > 1:
        raise InputError(
            f"{files[0].parent}: the labels are numbers in some pieces and strings in others; make them one"
        )
    return SourceSplit(images, labels)


def _read(file: Path, labeled: bool) -> SourceSplit:
    """Read the rows of one file."""
    with _opened(file) as opened:
        columns = opened.schema_arrow.names
        image = _column(columns, IMAGE_COLUMNS, file)
        known = labeled or any(name in columns for name in LABEL_COLUMNS)
        label = _column(columns, LABEL_COLUMNS, file) if known else None
        table = opened.read(columns=[image, label] if label else [image])
        return _split(table.column(image), table.column(label) if label else None, str(file))


def _column(columns: Sequence[str], candidates: Sequence[str], place: object) -> str:
    """The first of the candidate names that is a column; an `InputError` if none is."""
    for name in candidates:
        if list(columns).count(name) > 1:
            raise InputError(f"{place}: has two columns '{name}'; remove or rename one")
        if name in columns:
            return name
    raise InputError(f"{place}: has no column {' or '.join(candidates)}; its columns are {', '.join(columns)}")


def _split(images: Any, labels: Any, place: str) -> SourceSplit:
    """A split from Arrow columns of images and labels."""
    contents = _contents(images, place)
    encoded = [Encoded(f"{place} row {row}", content) for row, content in enumerate(contents)]
    return SourceSplit(encoded, [None] * len(encoded) if labels is None else _labels(labels, place))


def _contents(column: Any, place: str) -> list[bytes | None]:
    """The bytes of image files in a column."""
    from pyarrow import compute, types

    column = _plain(column)
    if types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = _plain(compute.struct_field(column, "bytes"))
    if not _is_any(column.type, "binary", "null", "large_binary", "binary_view", "fixed_size_binary"):
        raise InputError(
            f"{place}: its images are {column.type}; a struct of 'bytes' and 'path' is read, as on the "
            "Hugging Face hub, or plain bytes of an image file"
        )
    return column.to_pylist()


def _labels(column: Any, place: str) -> list[int | str | None]:
    """The labels in a column of integers or strings."""
    column = _plain(column)
    if not _is_any(column.type, "integer", "string", "large_string", "string_view", "null"):
        raise InputError(f"{place}: its labels are {column.type}; integers or strings are read")
    labels = column.to_pylist()
    # As in folders: both Unicode forms of `é` are one class.
    return [unicodedata.normalize("NFC", label) if isinstance(label, str) else label for label in labels]


def _plain(column: Any) -> Any:
    """The plain values of a dictionary-encoded column."""
    from pyarrow import types

    return column.cast(column.type.value_type) if types.is_dictionary(column.type) else column


def _is_any(kind: Any, *names: str) -> bool:
    """Whether an Arrow type is one of the named types."""
    from pyarrow import types

    return any(getattr(types, f"is_{name}")(kind) for name in names)


def _class_names(metadata: dict[bytes, bytes], file: Path) -> tuple[str, ...] | None:
    """The class names in the metadata that `datasets` writes into its files."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        label = features.get(next((name for name in LABEL_COLUMNS if name in features), ""), {})
        return tuple(map(str, label["names"])) if label.get("names") else None
    except (ValueError, AttributeError, TypeError):
        raise InputError(f"{file}: its 'huggingface' description of the columns cannot be read") from None


def _datasets() -> Any:
    """Import the library `datasets`, which the extra `hub` installs."""
    try:
        import datasets
    except ImportError:
        raise InputError(
            "a data set of the Hugging Face hub needs the library datasets; run: pip install 'nasspace[hub]'"
        ) from None
    return datasets


def _load(name: str, configuration: str) -> Any:
    """Load a data set of the hub, from the local cache if the hub cannot be reached."""
    datasets = _datasets()
    reached, reason = _ask_hub(name)
    if reached is False:
        raise InputError(f"'{name}' is not on the Hugging Face hub ({reason})")
    try:
        if reached:
            return datasets.load_dataset(name, configuration or None)
        with _offline():
            return datasets.load_dataset(name, configuration or None)
    except Exception as error:  # of any of the libraries that `datasets` uses
        if reached:
            raise InputError(f"{name}: cannot be loaded ({first_line(error)})") from None
        raise InputError(f"'{name}': the Hugging Face hub cannot be reached ({reason}), nor is it cached") from None


def _ask_hub(name: str) -> tuple[bool | None, str]:
    """Whether the hub has the data set (None if it cannot be reached), and the reason if not.

    `load_dataset` would retry for half a minute without a network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        HfApi().dataset_info(name, timeout=HUB_TIMEOUT)
    except (HFValidationError, RepositoryNotFoundError) as error:
        return False, first_line(error)
    except Exception as error:  # of the HTTP library that the hub's client uses
        return None, type(error).__name__
    return True, ""


@contextmanager
def _offline() -> Iterator[None]:
    """Set both libraries to offline mode, as environment variables would."""
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
