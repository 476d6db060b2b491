"""Load data sets by name: find, check, decode to one size, and split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nasspace import files
from nasspace.data import decoding, folders, sources, tables
from nasspace.data.images import DataSet, Images, prepared, stratified
from nasspace.data.names import NAMED, PREFIXED
from nasspace.data.sources import SourceData, SourceSplit
from nasspace.errors import InputError, nearest

__all__ = ["DataSet", "Images", "load_data", "prepared", "stratified"]

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
LARGEST_NATIVE = 224  # pixels: largest side of images if no resolution is given
MOST_CLASSES = 100_000  # larger labels are mistakes: the largest public image data set has 21,841 classes


def load_data(
    spec: str,
    *,
    resolution: int | Callable[[int], int] | None = None,
    data_dir: str | Path | None = None,
    seed: int = 0,
    held_out: float = 0.2,
    skip_broken: bool = False,
) -> DataSet:
    """Load the data set that `spec` names: `digits`, `imagefolder:DIR`, `parquet:FILE`, a name on the hub, ...

    Images are cropped to squares of `resolution` pixels. `resolution` may be a function that gets the size of the
    training images (their most frequent shorter side in pixels) and returns the resolution; None is that size, at most
    224. If the source has no validation split, the share `held_out` of each class's training images becomes one, drawn
    with `seed`; the test split is never used for it. Raises `InputError` for missing, empty or unreadable data, and for
    training images that are all blank. With `skip_broken`, unreadable images are left out; `skipped` names them.
    """
    if resolution is not None and not callable(resolution):
        _check_resolution(resolution)
    if not 0 < held_out < 1:
        raise InputError(f"held_out: {held_out} is not a share of the training images; give one between 0 and 1")
    source = _find(spec, files.expanded(data_dir) if data_dir else None)
    classes, labels = _encode_labels(source)
    decoded = _decode_splits(source, labels, resolution, skip_broken)
    splits = decoded.splits
    own = "validation" in splits
    _check_classes(source.place, classes, splits["train"].labels, split_off=not own)
    if not own:
        taken, kept = stratified(splits["train"].labels, held_out, torch.Generator().manual_seed(seed))
        splits = {**splits, "validation": splits["train"].at(taken), "train": splits["train"].at(kept)}
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
class _Decoded:
    """Decoded splits, places of images left out, native side, and preprocessing."""

    splits: dict[str, Images]
    skipped: tuple[str, ...]
    native: int
    preprocessing: dict[str, Any]


def _decode_splits(
    source: SourceData, labels: dict[str, Tensor], resolution: int | Callable[[int], int] | None, skip_broken: bool
) -> _Decoded:
    """Decode the images of all splits at one resolution.

    Size, color and range of values are those of all training images, before any are held out, so that they do not
    depend on the seed.
    """
    parts = {split: source.splits[split].images for split in labels}
    if isinstance(parts["train"], Tensor):
        return _from_arrays(source.place, parts, labels, resolution)
    heads = {split: decoding.headers(images) for split, images in parts.items()}
    broken = list(_broken_headers(parts, heads))
    if broken and (not skip_broken or all(head.broken for head in heads["train"])):
        raise decoding.name_broken(broken)
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
    decoded = {split: decoding.decode(images, preprocessing) for split, images in parts.items()}
    broken = [(parts[split][at].place, why) for split, (_, wrong) in decoded.items() for at, why in wrong.items()]
    if broken and not skip_broken:
        raise decoding.name_broken(broken)
    splits = {split: _readable(*decoded[split], labels[split], parts[split]) for split in parts}
    for split, images in splits.items():
        if not len(images):
            raise InputError(f"{source.place}: none of its {split} images can be read")
    return _Decoded(splits, tuple(place for place, _ in broken), native, preprocessing)


def _from_arrays(
    place: str, parts: dict[str, Tensor], labels: dict[str, Tensor], resolution: int | Callable[[int], int] | None
) -> _Decoded:
    """As `_decode_splits`, for sources of uint8 [N, C, H, W]."""
    native = min(parts["train"].shape[2:])
    preprocessing = decoding.specification(parts["train"].shape[1], _resolution(resolution, native))
    splits = {}
    for split, pixels in parts.items():
        arrays = list(pixels[:, 0].numpy() if pixels.shape[1] == 1 else pixels.permute(0, 2, 3, 1).numpy())
        if list(pixels.shape[1:]) != preprocessing["input"]:
            encoded = [decoding.Encoded(f"{place} {split} {index}", array) for index, array in enumerate(arrays)]
            pixels, broken = decoding.decode(encoded, preprocessing)
            if broken:
                raise decoding.name_broken([(encoded[index].place, why) for index, why in broken.items()])
        splits[split] = Images(pixels, labels[split], arrays)
    return _Decoded(splits, (), native, preprocessing)


def _resolution(requested: int | Callable[[int], int] | None, native: int) -> int:
    """The resolution for images of the side `native`."""
    if not callable(requested):
        return requested or min(native, LARGEST_NATIVE)
    chosen = requested(native)
    _check_resolution(chosen)
    return chosen


def _broken_headers(parts: dict, heads: dict) -> Iterator[tuple[str, str]]:
    """Place and reason of each image whose header cannot be read."""
    for split, images in parts.items():
        for image, head in zip(images, heads[split], strict=True):
            if head.broken:
                yield image.place, head.broken


def _readable(pixels: Tensor, broken: dict[int, str], labels: Tensor, encoded: Sequence[decoding.Encoded]) -> Images:
    """The images of a split without the broken ones."""
    images = Images(pixels, labels, [image.content for image in encoded])
    kept = [index for index in range(len(labels)) if index not in broken]
    return images.at(torch.tensor(kept, dtype=torch.int64)) if broken else images
