"""Classify images with an exported network: `python predict.py IMAGE... [--top K] [--json] [--folder DIR]`.

Needs numpy, pillow and onnxruntime. This file is copied into every export folder and does the preprocessing of the
training pipeline, too, so that both see the same pixels.
"""

import argparse
import contextlib
import io
import json
import struct
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin, UnidentifiedImageError

KEYS = (
    *("input", "orientation", "color", "background", "draft", "range"),
    *("resize", "interpolation", "crop", "mean", "std", "classes"),
)
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")  # Pillow's names
LARGEST = float(np.finfo(np.float32).max)  # largest number in preprocessing.json
SMALLEST = 1e-30  # smallest standard deviation: not 0 as a float32
BATCH = 32  # images of a batch if the network takes any number
FULL_SCALE = (0, 65535)  # default `range` of integer images of more than eight bits
TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def preprocess(image: str | Path | bytes | Image.Image | np.ndarray, spec: dict) -> np.ndarray:
    """Preprocess an image as in training, to uint8 [C, H, W]; `normalize` comes next.

    `image` is a path, the bytes of an image file, a Pillow image, or a uint8 array [H, W] or [H, W, 3]. `spec` is the
    content of preprocessing.json. Steps: decode (a large JPEG at a fraction of its size, `draft`), rotate as EXIF says,
    scale more than eight bits by `range`, blend transparent images with `background`, convert to `color`, resize, crop
    the center. Raises ValueError or OSError for an unusable image. A Pillow image that is not decoded yet is decoded in
    place.
    """
    if isinstance(image, np.ndarray):
        return _pixels(_from_array(image), spec)
    if isinstance(image, Image.Image):
        return _pixels(_decoded(image, spec), spec)
    with opened(image) as picture:
        return _pixels(_decoded(picture, spec), spec)


def photo(image: str | Path | bytes | np.ndarray, spec: dict) -> np.ndarray:
    """Decode an image as `preprocess` does, without resizing: uint8 [H, W, C].

    This is the input of an ONNX file with the preprocessing inside.
    """
    if isinstance(image, np.ndarray):
        picture = _from_array(image)
    else:
        with opened(image) as opened_picture:
            picture = _decoded(opened_picture, spec)
    picture = picture if picture.mode == spec["color"] else picture.convert(spec["color"])
    pixels = np.asarray(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def normalize(pixels: np.ndarray, spec: dict) -> np.ndarray:
    """The network's input `(pixels / 255 - mean) / std`, float32 [N, C, H, W].

    `pixels` are uint8 [N, C, H, W] or [C, H, W].
    """
    pixels = pixels if pixels.ndim == 4 else pixels[None]
    mean, std = (np.array(spec[key], np.float32)[:, None, None] for key in ("mean", "std"))
    return (pixels.astype(np.float32) / np.float32(255) - mean) / std


def class_probabilities(scores: np.ndarray) -> np.ndarray:
    """Softmax of scores [N, classes], float64."""
    shifted = np.exp(scores.astype(np.float64) - scores.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def classify(files: Sequence[str | Path], folder: str | Path, top: int = 5) -> list[dict]:
    """Classify files with model.onnx in `folder`: `file`, `class`, `probability` and the `top` classes of each.

    Raises ValueError that names an unusable file, ImportError without onnxruntime.
    """
    spec, session = read_spec(folder), open_network(folder)
    predictions = []
    for start in range(0, len(files), BATCH):
        chunk = files[start : start + BATCH]
        pixels = np.stack([_preprocess_file(file, spec) for file in chunk])
        try:
            scores = network_scores(session, normalize(pixels, spec))
        except Exception as error:  # ONNX Runtime's exceptions have no common class
            raise ValueError(
                f"{folder}: model.onnx does not run on {list(pixels.shape[1:])}, the input of preprocessing.json "
                f"({_first_line(error)}); export again"
            ) from None
        if scores.ndim != 2 or scores.shape[1] != len(spec["classes"]):
            raise ValueError(
                f"{folder}: model.onnx gives scores of the shape {list(scores.shape[1:])} for the "
                f"{len(spec['classes'])} classes of preprocessing.json; export again"
            )
        probabilities = class_probabilities(scores)
        for file, row in zip(chunk, probabilities, strict=True):
            best = np.argsort(-row, kind="stable")[: max(1, top)]
            ranked = [{"class": spec["classes"][at], "probability": float(row[at])} for at in best]
            predictions.append({"file": str(file), **ranked[0], "top": ranked})
    return predictions


def read_spec(folder: str | Path) -> dict:
    """Read preprocessing.json in `folder`; raises ValueError if it is missing or damaged."""
    path = Path(folder) / "preprocessing.json"
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); --folder names the export folder") from None
    if problem := next(problems(spec), None):
        raise ValueError(f"{path}: {problem}; export again")
    return spec


def problems(spec: Any) -> Iterator[str]:
    """Messages about missing, unknown and invalid values in the content of preprocessing.json."""
    if not isinstance(spec, dict):
        yield "not an object of named values"
        return
    if missing := [key for key in KEYS if key not in spec]:
        yield f"lacks {', '.join(missing)}"
        return
    if unknown := [key for key in spec if key not in KEYS]:  # perhaps a step that this version would skip
        yield f"{unknown[0]!r} is not known to this version"
    if not _is_list(spec["input"], 3, _is_size):
        yield "input is not three whole numbers above 0"
        return
    channels = spec["input"][0]
    if spec["color"] not in ("RGB", "L"):
        yield f"color {_short(spec['color'])} is neither 'RGB' nor 'L'"
    if spec["orientation"] not in ("exif", "none", None):
        yield f"orientation {_short(spec['orientation'])} is not 'exif' or null"
    if spec["interpolation"] not in INTERPOLATIONS:
        yield f"interpolation {_short(spec['interpolation'])} is not one of {', '.join(INTERPOLATIONS)}"
    if not _is_list(spec["background"], 3, _is_level):
        yield "background is not three whole numbers from 0 to 255"
    for key in ("draft", "crop"):
        if spec[key] is not None and not _is_list(spec[key], 2, _is_size):
            yield f"{key} is neither a height and a width nor null"
    if spec["range"] is not None and not _is_list(spec["range"], 2, _is_number):
        yield "range is neither two numbers nor null"
    yield from _problems_of_resize(spec["resize"])
    if not _is_list(spec["mean"], channels, _is_number):
        yield f"mean is not {channels} numbers"
    if not _is_list(spec["std"], channels, lambda value: _is_number(value) and value > SMALLEST):
        yield f"std is not {channels} numbers above 0"
    if not spec["classes"] or not _is_list(spec["classes"], None, _is_name):
        yield "classes is not a list of names"


def _problems_of_resize(resize: Any) -> Iterator[str]:
    """Messages about an invalid `resize`."""
    if not isinstance(resize, dict) or list(resize) not in (["size"], ["shorter_side"]):
        yield "resize is neither a size nor a shorter_side"
    elif "size" in resize and not _is_list(resize["size"], 2, _is_size):
        yield "resize.size is not a height and a width"
    elif "shorter_side" in resize and not (_is_number(resize["shorter_side"]) and resize["shorter_side"] >= 1):
        yield "resize.shorter_side is not a number of pixels"


def _is_list(value: Any, count: int | None, each: Callable[[Any], bool]) -> bool:
    """Whether a value is a list, of `count` elements unless None, that all pass `each`."""
    return isinstance(value, list) and (count is None or len(value) == count) and all(map(each, value))


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number and no boolean, which Python takes for a number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def _is_size(value: Any) -> bool:
    """Whether a value is a number of pixels."""
    return _is_number(value) and isinstance(value, int) and value >= 1


def _is_level(value: Any) -> bool:
    """Whether a value is a level of eight bits."""
    return _is_number(value) and isinstance(value, int) and 0 <= value <= 255


def _is_name(value: Any) -> bool:
    """Whether a value is a string that can be printed; the bytes of a folder's name need not be UTF-8."""
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _short(value: Any) -> str:
    """The representation of a value, cut to 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."


def open_network(folder: str | Path):
    """An ONNX Runtime session of model.onnx in `folder`."""
    try:
        import onnxruntime
    except ImportError:
        raise ImportError("onnxruntime is not installed; run: pip install onnxruntime") from None

    path = Path(folder) / "model.onnx"
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; --folder names the export folder")
    try:
        # The content, since ONNX Runtime accepts only paths in UTF-8.
        return onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common class
        raise ValueError(f"{path}: cannot be loaded ({_first_line(error)})") from None


def network_scores(session, inputs: np.ndarray) -> np.ndarray:
    """Scores [N, classes] of inputs [N, C, H, W]; a fixed batch size is filled with zeros."""
    declared = session.get_inputs()[0]
    fixed = declared.shape[0] if isinstance(declared.shape[0], int) else 0
    size = fixed or BATCH
    scores = []
    for start in range(0, len(inputs), size):
        batch = inputs[start : start + size]
        padding = np.zeros((fixed - len(batch) if fixed else 0, *batch.shape[1:]), batch.dtype)
        scores.append(session.run(None, {declared.name: np.concatenate([batch, padding])})[0][: len(batch)])
    return np.concatenate(scores)


@contextlib.contextmanager
def opened(image: str | Path | bytes) -> Iterator[Image.Image]:
    """Open a file or its bytes as a Pillow image that is not decoded yet."""
    with io.BytesIO(image) if isinstance(image, bytes) else open(image, "rb") as file:
        jpeg = file.read(3) == b"\xff\xd8\xff"
        file.seek(0)
        with _opened_jpeg(file) if jpeg else Image.open(file) as picture:
            if picture.format == "EPS":  # regardless of the suffix; Pillow would start Ghostscript
                raise ValueError("PostScript, a program that is not run; convert it to PNG")
            yield picture


def is_deep(picture: Image.Image) -> bool:
    """Whether the pixels of a gray image have more than eight bits."""
    return picture.mode in ("I", "F") or picture.mode.startswith("I;16")


def check_size(size: tuple[int, int], what: str = "") -> None:
    """Raise ValueError for a size (width, height) above Pillow's limit for decompression bombs."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit and size[0] * size[1] > limit:
        raise ValueError(f"{what}{size[0]}x{size[1]} pixels exceeds limit of {limit:,} pixels")


def _opened_jpeg(file: io.BufferedIOBase) -> Image.Image:
    """Open a JPEG without the pixel limit of Image.open: `draft` may decode far fewer pixels."""
    try:
        return JpegImagePlugin.JpegImageFile(file)
    except (SyntaxError, IndexError, TypeError, struct.error):  # as in Image.open
        raise UnidentifiedImageError("not a JPEG file") from None


def _from_array(array: np.ndarray) -> Image.Image:
    """A Pillow image from a uint8 array."""
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(f"an array of {array.dtype} {array.shape} is no image; give uint8 [H, W] or [H, W, 3]")
    return Image.fromarray(array)


def _decoded(picture: Image.Image, spec: dict) -> Image.Image:
    """Decode a picture: upright, eight bits, no transparency."""
    if spec["draft"] and isinstance(picture, JpegImagePlugin.JpegImageFile):
        picture.draft(None, (spec["draft"][1], spec["draft"][0]))
    check_size(picture.size)
    picture.load()
    if spec["orientation"] == "exif":
        picture = _upright(picture)
    if is_deep(picture):
        picture = _eight_bits(picture, spec["range"])
    return _opaque(picture, spec["background"])


def _pixels(picture: Image.Image, spec: dict) -> np.ndarray:
    """Convert a decoded picture to `color`, resize and crop it: uint8 [C, H, W]."""
    picture = picture if picture.mode == spec["color"] else picture.convert(spec["color"])
    pixels = np.asarray(_cropped(_resized(picture, spec), spec["crop"]))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if list(pixels.shape) != list(spec["input"]):
        raise ValueError(f"resize and crop give {list(pixels.shape)}, but the network takes {list(spec['input'])}")
    return np.ascontiguousarray(pixels)


def _upright(picture: Image.Image) -> Image.Image:
    """Rotate a picture as EXIF says; unreadable EXIF data is ignored."""
    try:
        turn = TURNS.get(picture.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # Pillow's parsers raise all kinds of exceptions on damaged data
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _eight_bits(picture: Image.Image, limits: Sequence[float] | None) -> Image.Image:
    """Scale the low limit to 0 and the high one to 255; values outside are clipped, and NaN becomes 0."""
    if limits is None and picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers, and preprocessing.json gives no range for them")
    low, high = limits or FULL_SCALE
    values = np.asarray(picture)
    scaled = (values.astype(np.float64) - low) * 255 / ((high - low) or 1)
    scaled = np.nan_to_num(scaled, nan=0, posinf=255, neginf=0).clip(0, 255).round()
    gray = Image.fromarray(scaled.astype(np.uint8))
    key = picture.info.get("transparency")
    if isinstance(key, int):
        gray.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return gray


def _opaque(picture: Image.Image, background: Sequence[int]) -> Image.Image:
    """Blend a transparent picture with the background."""
    if not picture.has_transparency_data:
        return picture
    if picture.mode == "La":  # Pillow converts it to LA only
        picture = picture.convert("LA")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, (*background, 255)), picture)


def _resized(picture: Image.Image, spec: dict) -> Image.Image:
    """Resize a picture to `size` or by its `shorter_side`."""
    width, height = picture.size
    if "size" in spec["resize"]:
        size = (spec["resize"]["size"][1], spec["resize"]["size"][0])
    else:
        side, shorter = spec["resize"]["shorter_side"], min(width, height)
        size = (round(width * side / shorter), round(height * side / shorter))
    if size == picture.size:
        return picture
    check_size(size, f"{width}x{height} pixels is too long and narrow: scaled to ")
    return picture.resize(size, Image.Resampling[spec["interpolation"].upper()])


def _cropped(picture: Image.Image, crop: Sequence[int] | None) -> Image.Image:
    """Crop the center of a picture."""
    if not crop or (crop[1], crop[0]) == picture.size:
        return picture
    height, width = crop
    if width > picture.width or height > picture.height:
        raise ValueError(f"a crop of {width}x{height} does not fit in {picture.width}x{picture.height} pixels")
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _preprocess_file(file: str | Path, spec: dict) -> np.ndarray:
    """Preprocess a file; an unusable one is a ValueError that names it."""
    try:
        return preprocess(file, spec)
    except UnidentifiedImageError:
        raise ValueError(f"{file}: not an image format that Pillow knows") from None
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror or _first_line(error)}") from None
    except Exception as error:  # Pillow's decoders raise all kinds of exceptions on damaged files
        raise ValueError(f"{file}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    """The first line of an error's message, else the name of its class."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the class of each image; exit status 2 and one message for unusable input."""
    parser = argparse.ArgumentParser(prog="predict.py", description="Classify images with the network of a folder.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="an image file")
    parser.add_argument("--top", type=int, metavar="K", help="list the K most probable classes (default: 1, --json: 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--folder", default=Path(__file__).parent, help="the export folder (default: this file's)")
    options = parser.parse_args(arguments)
    if options.top is not None and options.top < 1:
        parser.error("--top: give a number above 0")
    warnings.simplefilter("ignore")  # Pillow's warnings about unusual files
    try:
        predictions = classify(options.images, options.folder, options.top or (5 if options.json else 1))
    except (ValueError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({"predictions": predictions}, indent=2))
        return 0
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file's name need not be UTF-8
    for prediction in predictions:
        classes = (f"{each['class']}\t{each['probability']:.4f}" for each in prediction["top"])
        print(prediction["file"], *classes, sep="\t")
    return 0


if __name__ == "__main__":
    sys.exit(main())
