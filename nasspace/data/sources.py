"""Where images come from: bundled sets and IDX files, found but not yet decoded; splits by their names."""

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
NEUTRAL = {
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
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
FASHION_CLASSES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


@dataclass(frozen=True)
class Part:
    """One split as it was found: images, decoded (uint8 [N, C, H, W]) or not, and a label each, None if unknown."""

    images: Sequence[Encoded] | Tensor
    labels: Sequence[int | str | None]


@dataclass(frozen=True)
class Found:
    """The splits by name (`train` at least) and, where labels are numbers and it is known, the name of each class.

    `left_out` has a text for whatever is not used.
    """

    place: str
    parts: dict[str, Part]
    names: tuple[str, ...] | None = None
    left_out: tuple[str, ...] = ()


def words_of(name: str) -> list[str]:
    """The words of a file's or folder's name, in lower case.

    >>> words_of("TrainSet_2017"), words_of("seg-testset")
    (['train', 'set'], ['seg', 'test', 'set'])
    """
    words = re.findall(r"[^\W\d_]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
    return [part for word in words for part in (_without_set(word) or (word,))]


def _without_set(word: str) -> tuple[str, str] | None:
    stem = word.removesuffix("set")
    return (stem, "set") if stem != word and stem in ALIASES else None


def split_of(name: str) -> tuple[str, tuple[str, ...]] | None:
    """The split that a name names, and its other words but for such as `set` and `images`; None if it names none.

    >>> split_of("seg_train"), split_of("asl_test"), split_of("cats"), split_of("train_val")
    (('train', ()), ('test', ('asl',)), None, None)
    """
    words = words_of(name)
    named = [word for word in words if word in ALIASES]
    if len(named) != 1:
        return None
    return ALIASES[named[0]], tuple(word for word in words if word not in ALIASES and word not in NEUTRAL)


def splits_among(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Split → those of the paths whose name (without suffix) names it.

    Where none is plainly `train`, names with other words, such as `asl_train` and `asl_test`, count if two splits have
    the same ones: `test_tube` is a class.
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


def digits() -> Found:
    """1,797 handwritten digits of 8x8 grey levels, bundled with scikit-learn (UCI ML, optdigits, its test part)."""
    table = _digits()
    pixels = torch.from_numpy(table[:, :-1]).view(-1, 8, 8).mul(255 / 16).round().to(torch.uint8)[:, None]
    return Found("digits", {"train": Part(pixels, table[:, -1].astype(int).tolist())}, tuple("0123456789"))


def _digits() -> np.ndarray:
    """A row an image: 64 levels of 0 to 16 and the digit; read without importing scikit-learn, which takes seconds."""
    package = importlib.util.find_spec("sklearn")
    for place in package.submodule_search_locations or () if package else ():
        path = Path(place) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])


def fashion_mnist(folder: Path | None) -> Found:
    """Fashion-MNIST from its four IDX files; Debian's folder unless another is given."""
    home = folder or FASHION_FOLDER
    if kind_of(home) != "folder":
        raise InputError(
            f"fashion-mnist: there is no folder {home}; install Debian's package (apt install "
            "dataset-fashion-mnist), or name the folder of the four IDX files by --data-dir"
        )
    parts = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        pixels = _idx(home / f"{stem}-images-idx3-ubyte.gz", dimensions=3)
        labels = _idx(home / f"{stem}-labels-idx1-ubyte.gz", dimensions=1)
        if len(pixels) != len(labels):
            raise InputError(f"{home}: {len(pixels)} {split} images but {len(labels)} labels; get them again")
        if not len(labels):
            raise InputError(f"{home}: has no {split} images; get the files again")
        parts[split] = Part(pixels[:, None], labels.tolist())
    return Found(str(home), parts, FASHION_CLASSES)


def _idx(path: Path, dimensions: int) -> Tensor:
    """The uint8 array of an IDX file, packed or not: zeros, type 8, dimensions, their sizes, then the bytes."""
    packed = path.exists()
    path = path if packed else path.with_suffix("")
    try:
        content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}.gz: there is no such file; --data-dir names the folder that has it") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); get it again") from None
    start = 4 + 4 * dimensions
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) != start + math.prod(sizes):
        raise InputError(f"{path}: not an IDX file of {dimensions} dimensions of bytes; get it again")
    return torch.from_numpy(np.frombuffer(bytearray(content), np.uint8)[start:].reshape(sizes))
