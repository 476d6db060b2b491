"""Load data sets by name: find, check, decode to one size, and split."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nasspace import files
from nasspace.data import decoding, folders, pixel_files, sources, tables
from nasspace.data.images import DataSet, Images, prepared, stratified
from nasspace.data.names import NAMED, PREFIXED
from nasspace.data.sources import SourceData, SourceSplit
from nasspace.errors import InputError, nearest

__all__ = ["DataSet", "Images", "load_data", "prepared", "stratified"]

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LARGEST_NATIVE = 224  # pixels: largest side of images if no resolution is given
MOST_CLASSES = 100_000  # larger labels are mistakes: the largest public image data set has 21,841 classes

Image = tuple[str, int]  # split of the source, index
Rows = dict[str, tuple[str, Tensor]]  # final split: split of the source, indices of its images


def load_data(
    spec: str,
    *,
    resolution: int | Callable[[int], int] | None = None,
    data_dir: str | Path | None = None,
    seed: int = 0,
    held_out: float = 0.2,
    skip_broken: bool = False,
    on_disk: bool = False,
    report: Callable[[str], None] | None = None,
) -> DataSet:
    """Load the data set that `spec` names: `digits`, `imagefolder:DIR`, `parquet:FILE`, a name on the hub, ...

    Images are cropped to squares of `resolution` pixels. `resolution` may be a function that gets the size of the
    training images (their most frequent shorter side in pixels) and returns the resolution; None is that size, at most
    224. If the source has no validation split, the share `held_out` of each class's training images becomes one, drawn
    with `seed`; the test split is never used for it. Raises `InputError` for missing, empty or unreadable data, and for
    training images that are all blank. With `skip_broken`, unreadable images are left out; `skipped` names them.

    Decoded images are held in memory. With `on_disk`, or if they would take more than half of the memory, the same
    pixels are read from a file of the cache (`pixel_files`), and `report` is called with a line of text. Sources that
    are decoded arrays of the right size are always held.
    """
    if resolution is not None and not callable(resolution):
        _check_resolution(resolution)
    if not 0 < held_out < 1:
        raise InputError(f"held_out: {held_out} is not a share of the training images; give one between 0 and 1")
    source = _find(spec, files.expanded(data_dir) if data_dir else None)
    classes, labels = _encode_labels(source)
    own = "validation" in labels

    def divide(broken: Collection[Image]) -> Rows:
        """The images of each split, without the broken ones; validation images are split off if there are none."""
        kept = {
            split: torch.tensor([at for at in range(len(part)) if (split, at) not in broken], dtype=torch.int64)
            for split, part in labels.items()
        }
        for split, indices in kept.items():
            if not len(indices):
                raise InputError(f"{source.place}: none of its {split} images can be read")
        rows, train = {split: (split, indices) for split, indices in kept.items()}, kept["train"]
        _check_classes(source.place, classes, labels["train"][train], split_off=not own)
        if not own:
            taken, rest = stratified(labels["train"][train], held_out, torch.Generator().manual_seed(seed))
            rows |= {"validation": ("train", train[taken]), "train": ("train", train[rest])}
        return rows

    decoded = _decode_splits(source, labels, resolution, divide, _Store(on_disk, skip_broken, report))
    splits = decoded.splits
    splits["train"] = splits["train"].without_originals()
    _check_variance(source.place, splits["train"].pixels)
    channels, side, _ = decoded.preprocessing["input"]
    return DataSet(
        spec,
        classes,
        channels,
        **{split: splits.get(split) for split in sources.SPLITS},
        resolution=side,
        skipped=(*source.left_out, *decoded.skipped),
        native=decoded.native,
        preprocessing=decoded.preprocessing,
        seed=seed,
        held_out=held_out,
        own_validation=own,
    )


def _check_resolution(resolution: int) -> None:
    """Refuse a resolution below 1."""
    if resolution < 1:
        raise InputError(f"a resolution of {resolution} holds no image; give one above 0")


def _find(spec: str, data_dir: Path | None) -> SourceData:
    """The source that `spec` names, not yet decoded."""
    kind, _, rest = spec.partition(":")
    if data_dir and spec not in ("fashion-mnist", "cifar10"):
        raise InputError(f"--data-dir names the files of fashion-mnist or cifar10; {spec} does not take it")
    if kind in ("imagefolder", "parquet", "hub") and not rest:
        raise InputError(f"'{spec}' names no {'data set' if kind == 'hub' else 'place'}; write {kind}:SOMETHING")
    if spec == "digits":
        return sources.digits()
    if spec == "fashion-mnist":
        return sources.fashion_mnist(data_dir)
    if spec == "cifar10":
        return _cifar10(data_dir)
    if kind == "imagefolder":
        return folders.image_folder(files.expanded(rest))
    if kind == "parquet":
        return tables.parquet(files.expanded(rest))
    return _from_hub(spec, rest if kind == "hub" else spec)


def _cifar10(data_dir: Path | None) -> SourceData:
    """CIFAR-10 from parquet files in `data_dir`, else from the hub."""
    if data_dir:
        source = tables.parquet(data_dir)
    else:
        try:
            source = tables.hub("uoft-cs/cifar10")
        except InputError as error:
            raise InputError(f"{error}; --data-dir may name a folder with its train.parquet and test.parquet") from None
    return source if source.class_names else dataclasses.replace(source, class_names=CIFAR10)


def _from_hub(spec: str, name: str) -> SourceData:
    """A data set of the hub; an unknown name raises `InputError` with the nearest built-in one."""
    if kind := files.kind_of(files.expanded(spec)):
        raise InputError(f"'{spec}' is a path; write {'imagefolder' if kind == 'folder' else 'parquet'}:{spec}")
    try:
        return tables.hub(name)
    except InputError as error:
        built_in = f"built in: {', '.join((*NAMED, *PREFIXED))}"
        hint = nearest(spec.partition(":")[0], [*NAMED, *(form.partition(":")[0] for form in PREFIXED)])
        raise InputError(f"{error}; {built_in}{hint if 'mean' in hint else ''}") from None


def _encode_labels(source: SourceData) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Class names, and the labels of each split as indices into them; a test split without labels is left out."""
    train = source.splits["train"].labels
    numbers = not any(isinstance(label, str) for label in train)
    if numbers and source.class_names:
        known: Sequence[int | str] = range(len(source.class_names))
    else:
        known = source.class_names or sorted({label for label in train if label is not None})
    positions = {label: position for position, label in enumerate(known)}
    labels = {}
    for split, part in source.splits.items():
        # Competitions withhold the labels of the test split: all are -1 on the hub, null or empty elsewhere.
        if split != "test" or not set(part.labels) <= {-1, None, ""}:
            _check_labels(split, part, positions, source)
            labels[split] = torch.tensor([positions[label] for label in part.labels])
    return source.class_names or tuple(map(str, known)), labels


def _check_labels(split: str, part: SourceSplit, known: Mapping[int | str, int], source: SourceData) -> None:
    """Refuse missing and unknown labels."""
    for label in dict.fromkeys(part.labels):
        if label in known and (isinstance(label, str) or 0 <= label < MOST_CLASSES):
            continue
        image = part.images[part.labels.index(label)]
        place = image.place if isinstance(image, decoding.Encoded) else f"{source.place} {split}"
        if label is None:
            raise InputError(f"{place}: has no label; {part.labels.count(None)} images of the split have none")
        what = f"the {len(source.class_names)} named classes" if source.class_names else "the training images' classes"
        if label in known:
            what = f"numbers from 0 to {MOST_CLASSES - 1:,}"
        raise InputError(f"{place}: its label {label!r} is not among {what}; correct it or leave the image out")


def _check_classes(place: str, classes: tuple[str, ...], labels: Tensor, split_off: bool) -> None:
    """Refuse a single class, and classes with too few training images (two if validation images are split off)."""
    if len(classes) < 2:
        raise InputError(f"{place}: has one class only, '{classes[0]}'; a data set needs two or more")
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    few = [f"'{name}' has {count}" for name, count in zip(classes, counts, strict=True) if count < 1 + split_off]
    if few:
        more = f" (and {len(few) - 3} more classes)" if len(few) > 3 else ""
        needed = (
            "two training images at least, one to train on and one to validate" if split_off else "a training image"
        )
        raise InputError(f"{place}: each class needs {needed}; {', '.join(few[:3])}{more}")


def _check_variance(place: str, pixels: Tensor) -> None:
    """Refuse training images whose pixels are all equal."""
    low, high = pixels.amin((0, 2, 3)), pixels.amax((0, 2, 3))
    if torch.equal(low, high):
        raise InputError(
            f"{place}: all pixels of the {len(pixels)} training images are equal ({', '.join(map(str, low.tolist()))} "
            "of 255), so there is nothing to learn; perhaps the files are blank, or white drawings on a transparent "
            "background, which becomes white: give them a background of another color"
        )


@dataclass(frozen=True)
class _Store:
    """Where decoded images are kept, what is done with unreadable ones, and the user's function for messages."""

    on_disk: bool
    skip_broken: bool
    report: Callable[[str], None] | None

    def decode(
        self, images: Sequence[decoding.Encoded], spec: Mapping[str, Any]
    ) -> tuple[Tensor, dict[int, str], Path | None]:
        """Pixels, the reasons for unreadable images, and the file of the pixels if they are not held in memory."""
        report = self.report or (lambda text: None)
        if not self.on_disk:
            if not pixel_files.exceeds_memory(len(images) * math.prod(spec["input"])):
                return *decoding.decode(images, spec), None
            report("the decoded images would take more than half of the memory, so they are read from the disk")
        return pixel_files.decode(images, spec, report, skip_broken=self.skip_broken)


@dataclass(frozen=True)
class _Decoded:
    """Decoded splits, places of images left out, native side, and preprocessing."""

    splits: dict[str, Images]
    skipped: tuple[str, ...]
    native: int
    preprocessing: dict[str, Any]


def _decode_splits(
    source: SourceData,
    labels: dict[str, Tensor],
    resolution: int | Callable[[int], int] | None,
    divide: Callable[[Collection[Image]], Rows],
    store: _Store,
) -> _Decoded:
    """Decode the images of all splits at one resolution.

    Size, color and range of values are those of all training images, before any are held out, so that they do not
    depend on the seed.
    """
    parts = {split: source.splits[split].images for split in labels}
    if isinstance(parts["train"], Tensor):
        return _from_arrays(source.place, parts, labels, resolution, divide, store)
    heads = {split: decoding.headers(images) for split, images in parts.items()}
    broken = dict(_broken_headers(heads))
    if broken and (not store.skip_broken or all(head.broken for head in heads["train"])):
        raise decoding.name_broken(_places(broken, parts))
    readable = [head for head in heads["train"] if not head.broken]
    native = decoding.native_side(readable)
    decoding.check_brightness([image for image, head in zip(parts["train"], heads["train"], strict=True) if head.wide])
    deep = [image for image, head in zip(parts["train"], heads["train"], strict=True) if head.deep]
    preprocessing = decoding.specification(
        1 if all(head.gray for head in readable) else 3,
        _resolution(resolution, native),
        values=decoding.value_range(deep),
        jpeg=any(head.jpeg for each in heads.values() for head in each),
    )
    return _decode(parts, labels, broken, divide, store, native, preprocessing)


def _decode(
    parts: Mapping[str, Sequence[decoding.Encoded]],
    labels: dict[str, Tensor],
    broken: dict[Image, str],
    divide: Callable[[Collection[Image]], Rows],
    store: _Store,
    native: int,
    preprocessing: dict[str, Any],
) -> _Decoded:
    """Decode the images that are not known to be broken, split by split: each split is a part of one tensor."""
    rows = divide(broken)
    order = _order(rows)
    pixels, wrong, file = store.decode([parts[split][at] for split, at in order], preprocessing)
    while wrong:
        broken = broken | {order[position]: why for position, why in wrong.items()}
        if not store.skip_broken:
            raise decoding.name_broken(_places(broken, parts))
        rows, positions = divide(broken), {image: position for position, image in enumerate(order)}
        order = _order(rows)
        if file is None:
            pixels, wrong = pixels[[positions[image] for image in order]], {}
        else:
            pixels, wrong, file = store.decode([parts[split][at] for split, at in order], preprocessing)
    splits, start = {}, 0
    for name, (split, indices) in rows.items():
        originals = [parts[split][at].content for at in indices.tolist()]
        splits[name] = Images(pixels[start : start + len(indices)], labels[split][indices], originals, file)
        start += len(indices)
    skipped = tuple(place for place, _ in _places(broken, parts))
    return _Decoded(splits, skipped, native, preprocessing)


def _order(rows: Rows) -> list[Image]:
    """The images of all splits, split by split."""
    return [(split, at) for split, indices in rows.values() for at in indices.tolist()]


def _places(broken: Mapping[Image, str], parts: Mapping[str, Sequence[decoding.Encoded]]) -> list[tuple[str, str]]:
    """Place and reason of each broken image, in the order of the source."""
    return [
        (image.place, broken[split, at])
        for split, images in parts.items()
        for at, image in enumerate(images)
        if (split, at) in broken
    ]


def _from_arrays(
    place: str,
    parts: dict[str, Tensor],
    labels: dict[str, Tensor],
    resolution: int | Callable[[int], int] | None,
    divide: Callable[[Collection[Image]], Rows],
    store: _Store,
) -> _Decoded:
    """As `_decode_splits`, for sources of uint8 [N, C, H, W]; those of the right size are taken as they are."""
    native = min(parts["train"].shape[2:])
    preprocessing = decoding.specification(parts["train"].shape[1], _resolution(resolution, native))
    arrays = {
        split: list(pixels[:, 0].numpy() if pixels.shape[1] == 1 else pixels.permute(0, 2, 3, 1).numpy())
        for split, pixels in parts.items()
    }
    if all(list(pixels.shape[1:]) == preprocessing["input"] for pixels in parts.values()):
        splits = {
            name: Images(parts[split], labels[split], arrays[split]).at(indices)
            for name, (split, indices) in divide(()).items()
        }
        return _Decoded(splits, (), native, preprocessing)
    encoded = {
        split: [decoding.Encoded(f"{place} {split} {at}", array) for at, array in enumerate(each)]
        for split, each in arrays.items()
    }
    return _decode(encoded, labels, {}, divide, store, native, preprocessing)


def _resolution(requested: int | Callable[[int], int] | None, native: int) -> int:
    """The resolution for images of the side `native`."""
    if not callable(requested):
        return requested or min(native, LARGEST_NATIVE)
    chosen = requested(native)
    _check_resolution(chosen)
    return chosen


def _broken_headers(heads: Mapping[str, Sequence[decoding.Header]]) -> Iterator[tuple[Image, str]]:
    """Each image whose header cannot be read, and the reason."""
    for split, found in heads.items():
        yield from (((split, at), head.broken) for at, head in enumerate(found) if head.broken)
