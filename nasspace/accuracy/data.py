"""Data sets by name: found, checked, cut to one size and split."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nasspace.accuracy import decoding, sources, tables
from nasspace.accuracy.images import DataSet, Images, prepared, resized, stratified
from nasspace.accuracy.sources import Found, Part
from nasspace.errors import InputError, nearest

__all__ = ["DataSet", "Images", "load_data", "prepared", "stratified"]

NAMED = ("digits", "fashion-mnist", "cifar10")
PREFIXED = ("imagefolder:DIR", "parquet:FILE", "hub:NAME")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MOST_CLASSES = 100_000  # a label above is a mistake: the largest public set of images has 21,841 classes


def load_data(
    spec: str,
    *,
    resolution: int | None = None,
    data_dir: str | Path | None = None,
    seed: int = 0,
    held_out: float = 0.2,
    skip_broken: bool = False,
) -> DataSet:
    """The data set that `spec` names: `digits`, `imagefolder:DIR`, `parquet:FILE`, a name on the hub, ...

    Images are cut square and held at `resolution`; without one, at their own size if that is at most 224, where
    sizes differ at the most frequent. Without a validation split of their own, the share `held_out` of each class's
    training images becomes one, drawn with `seed`; the test split never does. Raises `InputError` for whatever is
    missing, empty or unreadable; with `skip_broken` unreadable images are left out and named in `skipped`.
    """
    if resolution is not None and resolution < 1:
        raise InputError(f"a resolution of {resolution} holds no image; give one above 0")
    if not 0 < held_out < 1:
        raise InputError(f"held_out: {held_out} is no share of the training images; give one between 0 and 1")
    found = _find(spec, Path(data_dir).expanduser() if data_dir else None)
    classes, labels = _encode_labels(found)
    splits, skipped = _pixels(found, labels, resolution, skip_broken)
    _check_classes(found.place, classes, splits["train"].labels)
    if "validation" not in splits:
        held, kept = stratified(splits["train"].labels, held_out, torch.Generator().manual_seed(seed))
        splits |= {"validation": splits["train"].at(held), "train": splits["train"].at(kept)}
    _, channels, _, side = splits["train"].pixels.shape
    train, validation, test = (splits.get(split) for split in sources.SPLITS)
    return DataSet(spec, classes, channels, train, validation, test, side, skipped)


def _find(spec: str, data_dir: Path | None) -> Found:
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
        return sources.image_folder(Path(rest).expanduser())
    if kind == "parquet":
        return tables.parquet(Path(rest).expanduser())
    return _from_hub(spec, rest if kind == "hub" else spec)


def _cifar10(data_dir: Path | None) -> Found:
    if data_dir:
        found = tables.parquet(data_dir)
    else:
        try:
            found = tables.hub("uoft-cs/cifar10")
        except InputError as error:
            raise InputError(f"{error}; --data-dir may name a folder with its train.parquet and test.parquet") from None
    return found if found.names else dataclasses.replace(found, names=CIFAR10)


def _from_hub(spec: str, name: str) -> Found:
    path = Path(spec).expanduser()
    if path.exists():
        raise InputError(f"'{spec}' is a path; write {'imagefolder' if path.is_dir() else 'parquet'}:{spec}")
    try:
        return tables.hub(name)
    except InputError as error:
        built_in = f"built in: {', '.join((*NAMED, *PREFIXED))}"
        hint = nearest(spec.partition(":")[0], [*NAMED, *(form.partition(":")[0] for form in PREFIXED)])
        raise InputError(f"{error}; {built_in}{hint if 'mean' in hint else ''}") from None


def _encode_labels(found: Found) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Class names and, for each split, the labels as their positions; a split without labels is left out."""
    train = found.parts["train"].labels
    numbers = not isinstance(train[0], str)
    if numbers and found.names:
        known: Sequence[int | str] = range(len(found.names))
    else:
        known = found.names or sorted(set(train))
    positions = {label: position for position, label in enumerate(known)}
    labels = {}
    for split, part in found.parts.items():
        # Competitions hold back the labels of a test split: on the hub all are -1.
        if split != "test" or set(part.labels) != {-1}:
            _check_labels(split, part, positions, found)
            labels[split] = torch.tensor([positions[label] for label in part.labels])
    return found.names or tuple(map(str, known)), labels


def _check_labels(split: str, part: Part, known: Mapping[int | str, int], found: Found) -> None:
    for label in dict.fromkeys(part.labels):
        if label in known and (isinstance(label, str) or 0 <= label < MOST_CLASSES):
            continue
        image = part.images[part.labels.index(label)]
        place = image.place if isinstance(image, decoding.Encoded) else f"{found.place} {split}"
        what = f"the {len(found.names)} named classes" if found.names else "the training images' classes"
        if label in known:
            what = f"numbers from 0 to {MOST_CLASSES - 1:,}"
        raise InputError(f"{place}: its label {label!r} is not among {what}; correct it or leave the image out")


def _check_classes(place: str, classes: tuple[str, ...], labels: Tensor) -> None:
    if len(classes) < 2:
        raise InputError(f"{place}: has one class only, '{classes[0]}'; there is nothing to tell apart")
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    few = [f"'{name}' has {count}" for name, count in zip(classes, counts, strict=True) if count < 2]
    if few:
        more = f" (and {len(few) - 3} more classes)" if len(few) > 3 else ""
        raise InputError(
            f"{place}: each class needs two training images at least, one to train on and one to validate; "
            f"{', '.join(few[:3])}{more}"
        )


def _pixels(
    found: Found, labels: dict[str, Tensor], resolution: int | None, skip_broken: bool
) -> tuple[dict[str, Images], tuple[str, ...]]:
    """Each split's images at one resolution, and the places of those that were left out."""
    parts = {split: found.parts[split].images for split in labels}
    if isinstance(parts["train"], Tensor):
        held = {split: resized(pixels, resolution or pixels.shape[-1]) for split, pixels in parts.items()}
        return {split: Images(pixels, labels[split]) for split, pixels in held.items()}, ()
    heads = {split: decoding.headers(images) for split, images in parts.items()}
    readable = [head for found_heads in heads.values() for head in found_heads if not head.broken]
    broken = list(_broken_headers(parts, heads))
    if broken and (not skip_broken or not readable):
        raise decoding.name_broken(broken)
    side = resolution or decoding.common_resolution(readable)
    channels = 1 if all(head.grey for head in readable) else 3
    decoded = {split: decoding.decode(images, channels, side) for split, images in parts.items()}
    broken = [(parts[split][at].place, why) for split, (_, wrong) in decoded.items() for at, why in wrong.items()]
    if broken and not skip_broken:
        raise decoding.name_broken(broken)
    held = {split: _kept(*decoded[split], labels[split]) for split in parts}
    for split, images in held.items():
        if not len(images):
            raise InputError(f"{found.place}: none of its {split} images can be read")
    return held, tuple(place for place, _ in broken)


def _broken_headers(parts: dict, heads: dict) -> Iterator[tuple[str, str]]:
    for split, images in parts.items():
        for image, head in zip(images, heads[split], strict=True):
            if head.broken:
                yield image.place, head.broken


def _kept(pixels: Tensor, broken: dict[int, str], labels: Tensor) -> Images:
    kept = [index for index in range(len(labels)) if index not in broken]
    return Images(pixels, labels) if not broken else Images(pixels, labels).at(torch.tensor(kept))
