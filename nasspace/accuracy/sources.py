"""Where images come from: bundled sets, IDX files and folders, found but not yet decoded."""

from __future__ import annotations

import gzip
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nasspace.accuracy.decoding import Encoded
from nasspace.errors import InputError, nearest

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
SUFFIXES = {
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
    *(".jp2", ".avif", ".heic", ".heif"),  # Pillow reads the last two only with a plugin, and says so by name
}
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
FASHION_CLASSES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)


@dataclass(frozen=True)
class Part:
    """One split as it was found: images, decoded (uint8 [N, C, H, W]) or not, and a label each."""

    images: Sequence[Encoded] | Tensor
    labels: Sequence[int | str]


@dataclass(frozen=True)
class Found:
    """The splits by name (`train` at least) and, where labels are numbers and it is known, the name of each class."""

    place: str
    parts: dict[str, Part]
    names: tuple[str, ...] | None = None


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
    if not home.is_dir():
        raise InputError(
            f"fashion-mnist: there is no folder {home}; install Debian's package (apt install "
            "dataset-fashion-mnist), or name the folder of the four IDX files by --data-dir"
        )
    parts = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        pixels = _idx(home / f"{stem}-images-idx3-ubyte.gz", dimensions=3)
        labels = _idx(home / f"{stem}-labels-idx1-ubyte.gz", dimensions=1)
        if len(pixels) != len(labels):
            raise InputError(f"{home}: {len(pixels)} {split} images but {len(labels)} labels; get the files anew")
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
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read ({error}); get it anew") from None
    start = 4 + 4 * dimensions
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) != start + torch.Size(sizes).numel():
        raise InputError(f"{path}: not an IDX file of {dimensions} dimensions of bytes; get it anew")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(sizes)


def image_folder(root: Path) -> Found:
    """Images in a folder for each class, directly in `root` or in its `train`, `validation` and `test`.

    Read with Pillow and not with Hugging Face's `imagefolder`: that one copies the list of files to a cache in the
    home folder on every change, and a corrupt image comes as a decoding error without the file's name.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise InputError(f"imagefolder:{root}: this {what}; name a folder that holds a folder for each class")
    parts = {split: _class_folders(folder) for split, folder in _split_folders(root).items()}
    return Found(str(root), parts)


def _split_folders(root: Path) -> dict[str, Path]:
    """Split → folder. A folder named `train` that holds images and no folders is a class of that name."""
    children = {child.name.lower(): child for child in _subfolders(root)}
    found = {}
    for split, aliases in SPLITS.items():
        named = [children.pop(alias) for alias in aliases if alias in children and _subfolders(children[alias])]
        if len(named) > 1:
            raise InputError(f"{root}: both '{named[0].name}' and '{named[1].name}' could be the {split} split")
        if named:
            found[split] = named[0]
    if not found:
        return {"train": root}
    if "train" not in found:
        raise InputError(f"{root}: has a folder '{next(iter(found.values())).name}' but none named 'train'")
    _refuse_other_splits(children.values(), {child.name for child in _subfolders(found["train"])})
    return found


def _refuse_other_splits(others: Sequence[Path], classes: set[str]) -> None:
    """A misspelt split would otherwise be left out in silence."""
    known = [alias for aliases in SPLITS.values() for alias in aliases]
    for other in others:
        if classes & {child.name for child in _subfolders(other)}:
            raise InputError(f"{other}: holds class folders but is no split{nearest(other.name, known)}")


def _class_folders(folder: Path) -> Part:
    images, labels = [], []
    for child in _subfolders(folder):
        paths = _image_files(child)
        if not paths:
            raise InputError(f"{child}: this class folder holds no images; fill or remove it")
        images += [Encoded(str(path), path) for path in paths]
        labels += [child.name] * len(paths)
    if not images:
        raise InputError(f"{folder}: holds no class folders; images are looked for as {folder}/CLASS/NAME.jpg")
    return Part(images, labels)


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None


def _image_files(folder: Path) -> list[Path]:
    """Files with an image's suffix in the folder and its own folders, in one order on every machine."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})")

    walk = os.walk(folder, onerror=refuse)
    paths = [Path(place) / name for place, _, names in walk for name in names if not name.startswith(".")]
    return sorted(path for path in paths if path.suffix.lower() in SUFFIXES)
