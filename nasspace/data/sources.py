"""Data sets before decoding: bundled sets, IDX files, and which names denote which split."""

from __future__ import annotations

import gzip
import importlib.util
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nasspace.data.decoding import Encoded
from nasspace.errors import InputError
from nasspace.files import kind_of

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
ALIASES = {alias: split for split, aliases in SPLITS.items() for alias in aliases}
NEUTRAL = {  # words that say nothing about the kind of a split
    "of",
    "set",
    "seg",
    "data",
    "dataset",
    "image",
    "images",
    "img",
    "imgs",
    "split",
    "folder",
    "files",
    "photos",
}
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package
FASHION_CLASSES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


@dataclass(frozen=True)
class SourceSplit:
    """One split of a source: images, decoded (uint8 [N, C, H, W]) or not, and their labels, None if unknown."""

    images: Sequence[Encoded] | Tensor
    labels: Sequence[int | str | None]


@dataclass(frozen=True)
class SourceData:
    """The splits of a source by name (at least `train`); `place` names the source in messages.

    `class_names` are the names of numeric labels, if known. `left_out` describes what is not used.
    """

    place: str
    splits: dict[str, SourceSplit]
    class_names: tuple[str, ...] | None = None
    left_out: tuple[str, ...] = ()


def words_of(name: str) -> list[str]:
    """The words of a file's or folder's name, in lower case.

    >>> words_of("TrainSet_2017"), words_of("seg-testset")
    (['train', 'set'], ['seg', 'test', 'set'])
    """
    words = re.findall(r"[^\W\d_]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
    return [part for word in words for part in (_without_set(word) or (word,))]


def _without_set(word: str) -> tuple[str, str] | None:
    """Split a word such as `testset` in two; None for others."""
    stem = word.removesuffix("set")
    return (stem, "set") if stem != word and stem in ALIASES else None


def split_of(name: str) -> tuple[str, tuple[str, ...]] | None:
    """The split that a name denotes, and its other words except neutral ones (`set`, `images`); None if it is none.

    >>> split_of("seg_train"), split_of("asl_test"), split_of("cats"), split_of("train_val")
    (('train', ()), ('test', ('asl',)), None, None)
    """
    words = words_of(name)
    named = [word for word in words if word in ALIASES]
    if len(named) != 1:
        return None
    return ALIASES[named[0]], tuple(word for word in words if word not in ALIASES and word not in NEUTRAL)


def splits_among(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Map each split to the paths whose names (without suffix) denote it.

    If no path is plainly named `train`, names with other words, such as `asl_train` and `asl_test`, count if two splits
    share these words; `test_tube` is a class.
    """
    groups: dict[tuple[str, ...], dict[str, list[Path]]] = {}
    for path in paths:
        if named := split_of(path.stem):
            groups.setdefault(named[1], {}).setdefault(named[0], []).append(path)
    plain = groups.pop((), {})
    taken = [plain]
    if "train" not in plain:
        taken += [group for group in groups.values() if "train" in group and len(group) > 1]
    found = {split: [path for group in taken for path in group.get(split, ())] for split in SPLITS}
    return {split: those for split, those in found.items() if those}


def digits() -> SourceData:
    """1,797 handwritten digits of 8x8 gray levels, bundled with scikit-learn (UCI ML, optdigits, its test part)."""
    table = _digits()
    pixels = torch.from_numpy(table[:, :-1]).view(-1, 8, 8).mul(255 / 16).round().to(torch.uint8)[:, None]
    return SourceData("digits", {"train": SourceSplit(pixels, table[:, -1].astype(int).tolist())}, tuple("0123456789"))


def _digits() -> np.ndarray:
    """One row per image: 64 levels of 0 to 16, then the digit.

    The file is read without importing scikit-learn, which takes seconds.
    """
    package = importlib.util.find_spec("sklearn")
    for place in package.submodule_search_locations or () if package else ():
        path = Path(place) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])


def fashion_mnist(folder: Path | None) -> SourceData:
    """Fashion-MNIST from its four IDX files in `folder`, by default Debian's."""
    home = folder or FASHION_FOLDER
    if kind_of(home) != "folder":
        raise InputError(
            f"fashion-mnist: there is no folder {home}; install Debian's package (apt install "
            "dataset-fashion-mnist), or name the folder of the four IDX files with --data-dir"
        )
    splits = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        pixels = _idx(home / f"{stem}-images-idx3-ubyte.gz", dimensions=3)
        labels = _idx(home / f"{stem}-labels-idx1-ubyte.gz", dimensions=1)
        if len(pixels) != len(labels):
            raise InputError(f"{home}: {len(pixels)} {split} images but {len(labels)} labels; download them again")
        if not len(labels):
            raise InputError(f"{home}: has no {split} images; download the files again")
        splits[split] = SourceSplit(pixels[:, None], labels.tolist())
    return SourceData(str(home), splits, FASHION_CLASSES)


def _idx(path: Path, dimensions: int) -> Tensor:
    """Read the uint8 array of an IDX file, compressed or not: zeros, type 8, dimensions, their sizes, the bytes."""
    compressed = path.exists()
    path = path if compressed else path.with_suffix("")
    try:
        content = gzip.decompress(path.read_bytes()) if compressed else path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}.gz: there is no such file; --data-dir names the folder that has it") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); download it again") from None
    start = 4 + 4 * dimensions
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) != start + math.prod(sizes):
        raise InputError(f"{path}: not an IDX file of {dimensions} dimensions of bytes; download it again")
    return torch.from_numpy(np.frombuffer(bytearray(content), np.uint8)[start:].reshape(sizes))
