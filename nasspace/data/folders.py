"""Image folders: find splits and classes; every file is used or named."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from nasspace import files
from nasspace.data.decoding import Encoded
from nasspace.data.sources import ALIASES, SourceData, SourceSplit, split_of, splits_among, words_of
from nasspace.errors import InputError, nearest

SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".pcx", ".ico", ".qoi", ".dds", ".sgi", ".psd", ".xbm", ".xpm"),
    *(".jp2", ".j2k", ".j2c", ".jpx", ".jpf", ".avif", ".heic", ".heif"),  # Pillow reads the last two with a plugin
}
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"qoif")
BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1")  # AVIF and HEIC, whose container is also used for videos
SYSTEM = {  # files and folders of network drives, archives and file managers
    *("@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin", "system volume information"),
    *("lost+found", "__macosx", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),
    *("network trash folder", "temporary items"),
}
DRAWINGS = {".svg", ".eps", ".ps"}  # pictures in text files
HEAD = 1024  # bytes read to tell a text from an image
UNLABELED = {"pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled"}


def image_folder(root: Path) -> SourceData:
    """Images in one folder per class: directly in `root`, in its splits, or in CLASS/train and CLASS/test.

    A split is a folder of class folders whose name denotes it: `train`, `Validation`, `test_set`, `seg_train`.
    Ambiguous folders are refused. Hidden folders, system folders (`@eaDir`) and texts are ignored; everything else that
    is not used is named in `left_out`.

    Hugging Face's `imagefolder` is not used, because it copies the list of files to a cache in the home folder on every
    change and reports a corrupt image without the file's name.
    """
    if (kind := files.kind_of(root)) != "folder":
        what = "is a file" if kind else "does not exist"
        raise InputError(f"imagefolder:{root}: this {what}; name a folder that holds a folder for each class")
    left_out = list(_loose(root))
    classes = _splits_in_classes(root)
    if classes is None:
        folders = _split_folders(root, left_out)
        left_out += [text for folder in folders.values() if folder != root for text in _loose(folder)]
        classes = {split: _class_folders(folder) for split, folder in folders.items()}
    parts = {split: _split(root, found, left_out) for split, found in classes.items()}
    return SourceData(str(root), parts, left_out=tuple(left_out))


def _split_folders(root: Path, left_out: list[str]) -> dict[str, Path]:
    """Split → folder. A folder named `train` with images and no folders is a class of that name."""
    children = _subfolders(root)
    found = splits_among(child for child in children if _classes_in(child))
    for split, folders in found.items():
        if len(folders) > 1:
            first, second, *_ = (folder.name for folder in folders)
            raise InputError(f"{root}: both '{first}' and '{second}' could be the {split} split; move one elsewhere")
    if not found:
        _refuse_flat_splits(root, children)
        return {"train": root}
    named = [folders[0] for folders in found.values()]
    if "train" not in found:
        raise InputError(f"{root}: has a folder '{named[0].name}' but none named 'train'")
    chosen = {split: _unwrapped(folders[0], split) for split, folders in found.items()}
    classes = _classes_in(chosen["train"])
    for other in children:
        if other not in named:
            _refuse_misspelled(other, classes)
            left_out += _image_folder_outside_splits(other, certain=len(found) > 1)
    return chosen


def _unwrapped(folder: Path, split: str) -> Path:
    """The folder with the classes: the inner one of `seg_train/seg_train`, as in some archives."""
    inside = _subfolders(folder)
    if len(inside) == 1 and _classes_in(inside[0]) and (split_of(inside[0].name) or [""])[0] == split:
        return _unwrapped(inside[0], split)
    return folder


def _refuse_flat_splits(root: Path, classes: Sequence[Path]) -> None:
    """Refuse `train/1.jpg` and `test/1.jpg`, which would be two classes."""
    found = splits_among(folder for folder in classes if _holds_images(folder))
    if "train" in found and len(found) > 1:
        names = _listed(folder.name for folders in found.values() for folder in folders)
        raise InputError(
            f"{root}: {names} are named like splits but hold no class folders; put the images into "
            f"{found['train'][0]}/CLASS/NAME.jpg, or rename the folders if they are classes"
        )


def _refuse_misspelled(other: Path, classes: Mapping[str, Path]) -> None:
    """Refuse a folder of known classes whose name denotes no split, instead of ignoring it."""
    if classes.keys() & _classes_in(other).keys():
        raise InputError(f"{other}: holds class folders but is no split{nearest(other.name, ALIASES)}")


def _image_folder_outside_splits(other: Path, certain: bool) -> Iterator[str]:
    """Describe a folder of images that is no split; `certain` if two splits were found, so that it is no class."""
    count = sum(map(_is_image, _files(other)))
    if not count:
        return
    split, rest = split_of(other.name) or ("", ())
    if split in ("train", "validation") and not rest:
        raise InputError(f"{other}: holds no class folders; images are expected at {other}/CLASS/NAME.jpg")
    if not certain and not split and not UNLABELED & set(words_of(other.name)):
        raise InputError(
            f"{other}: holds images but is no split; move it elsewhere, or, if it is a class, so is 'train': move the "
            "images in the folders of 'train' up"
        )
    yield f"{other} ({count} images, in no split's class folders)"


def _splits_in_classes(root: Path) -> dict[str, list[tuple[str, Path]]] | None:
    """Split → class and folder CLASS/SPLIT, if every class has a `train` folder; else None."""
    classes = _subfolders(root)
    if splits_among(child for child in classes if _classes_in(child)):
        return None
    found: dict[str, list[tuple[str, Path]]] = {}
    for child in classes:
        inside = splits_among(_classes_in(child).values())
        folders = [folder for group in inside.values() for folder in group]
        mixed = len(folders) != len(_classes_in(child)) or any(_loose(child)) or any(map(_classes_in, folders))
        if "train" not in inside or mixed:
            return None  # `_class_folders` refuses splits in some classes only
        for split, group in inside.items():
            found.setdefault(split, []).extend((child.name, folder) for folder in group)
    return found or None


def _class_folders(folder: Path) -> list[tuple[str, Path]]:
    """The classes and their folders; folders that suggest another arrangement are refused."""
    inside = {child: _classes_in(child) for child in _subfolders(folder)}
    if len(inside) == 1 and any(inside.values()):
        (only,) = inside
        raise InputError(
            f"{folder}: has one class only, '{only.name}'; if it holds the classes, name imagefolder:{only}"
        )
    for path in (path for folders in inside.values() for path in folders.values()):
        if splits_among([path]):
            raise InputError(
                f"{path}: is named like a split, inside a class; give every class such folders and a 'train', with "
                "no images next to them, or rename this one"
            )
    counts = Counter(name for folders in inside.values() for name in folders)
    repeated = {name for name, count in counts.items() if count > 1}
    outer = [child for child, folders in inside.items() if repeated & folders.keys()]
    if len(repeated) > 1:  # color/CLASS, grayscale/CLASS: each is a whole data set
        raise InputError(
            f"{folder}: {_listed(child.name for child in outer)} hold folders of the same names ({_listed(repeated)}), "
            f"and either may be the classes; if the inner ones are, name imagefolder:{outer[0]}, else move the images "
            "in them up"
        )
    return [(child.name, child) for child in inside]


def _listed(names: Iterable[str]) -> str:
    """Up to four names in order, and the number of others."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 4} more" if len(ordered) > 4 else ""
    return ", ".join(f"'{name}'" for name in ordered[:4]) + more


def _split(root: Path, classes: Sequence[tuple[str, Path]], left_out: list[str]) -> SourceSplit:
    """The images of a split's class folders; adds to `left_out`."""
    images, labels = [], []
    for name, folder in classes:
        found, others = _images_below(folder)
        if not found:
            instead = f" (but {'; '.join(others)})" if others else ""
            raise InputError(f"{folder}: this class folder holds no images{instead}; fill or remove it")
        images += found
        labels += [_class_name(name)] * len(found)
        left_out += [f"{folder} ({text})" for text in others]
    if not images:
        raise InputError(f"{root}: holds no class folders; images are expected at {root}/CLASS/NAME.jpg")
    return SourceSplit(images, labels)


def _class_name(name: str) -> str:
    """The class of a folder: both Unicode forms of `é` are one class; bytes that are not UTF-8 are escaped."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "backslashreplace"))


def _images_below(folder: Path) -> tuple[list[Encoded], list[str]]:
    """The images below a folder, in the same order on every machine, and counts of other files by suffix."""
    images, others = [], {}
    for entry in _files(folder):
        path, suffix = Path(entry.path), _suffix(entry)
        if not _is_file(entry):  # a broken link, reported when it is read, or a pipe, which must not be read
            images.append((path, Encoded(entry.path, path if entry.is_symlink() else None)))
        elif _is_image(entry):
            images.append((path, Encoded(entry.path, path)))
        elif suffix in DRAWINGS or _kind(entry) != "text":
            others.setdefault(suffix, []).append(entry.name)
    images.sort(key=lambda image: image[0])
    texts = (
        f"{len(names)} of {suffix or 'no suffix'}, such as {min(names)}" for suffix, names in sorted(others.items())
    )
    return [image for _, image in images], list(texts)


def _loose(folder: Path) -> Iterator[str]:
    """Describe the images directly in a folder of class folders; a broken link is refused."""
    loose = []
    for entry in _entries(folder):
        if entry.is_symlink() and not os.path.exists(entry.path):
            raise InputError(f"{entry.path}: is a link to nothing; repair or remove it")
        if not _is_folder(entry) and _is_image(entry):
            loose.append(entry.name)
    if loose:
        yield f"{folder} ({len(loose)} images in no class folder, such as {min(loose)})"


def _classes_in(folder: Path) -> dict[str, Path]:
    """Class name → folder, for the subfolders that hold images."""
    return {_class_name(child.name): child for child in _subfolders(folder) if _holds_images(child)}


def _holds_images(folder: Path) -> bool:
    """Whether there is an image below a folder."""
    return any(map(_is_image, _files(folder)))


def _subfolders(folder: Path) -> list[Path]:
    """The folders directly in a folder, in order."""
    return sorted(Path(entry.path) for entry in _entries(folder) if _is_folder(entry))


def _files(folder: Path) -> Iterator[os.DirEntry]:
    """Every file below a folder, in no particular order; links to folders are followed."""
    waiting = [(os.fspath(folder), frozenset[str]())]
    while waiting:
        place, above = waiting.pop()
        real = os.path.realpath(place)
        if real in above:
            raise InputError(f"{place}: a link leads back to a folder that it lies in; remove it")
        for entry in _entries(place):
            if _is_folder(entry):
                waiting.append((entry.path, above | {real}))
            else:
                yield entry


def _entries(folder: str | Path) -> Iterator[os.DirEntry]:
    """The entries of a folder, without hidden and system ones, read as needed."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.name.casefold() not in SYSTEM:
                    yield entry
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder or a link to one."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


def _is_file(entry: os.DirEntry) -> bool:
    """Whether an entry is a regular file or a link to one."""
    return entry.is_file(follow_symlinks=False) or (entry.is_symlink() and os.path.isfile(entry.path))


def _is_image(entry: os.DirEntry) -> bool:
    """Whether an entry is an image, by its suffix, else by its first bytes: files from the web often have no suffix."""
    return _suffix(entry) in SUFFIXES or _kind(entry) == "image"


def _suffix(entry: os.DirEntry) -> str:
    """The suffix in lower case."""
    return os.path.splitext(entry.name)[1].lower()


def _kind(entry: os.DirEntry) -> str:
    """'image', 'text' or 'other' by the first bytes of a file; broken links and pipes are 'other'."""
    if not _is_file(entry):
        return "other"
    try:
        with open(entry.path, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return "other"
    bitmap = head[:2] == b"BM" and head[6:10] == bytes(4)
    contained = (head[4:8] == b"ftyp" and head[8:12] in BRANDS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
    if head.startswith(MAGIC) or bitmap or contained:
        return "image"
    text = head.startswith((b"\xff\xfe", b"\xfe\xff")) or not re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", head)
    return "text" if text else "other"
