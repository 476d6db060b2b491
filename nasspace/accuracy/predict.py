"""Classify images with an exported network: `python predict.py IMAGE... [--top K] [--json] [--folder DIR]`.

Needs numpy, pillow and onnxruntime. This file is copied into every export folder and is also the training pipeline's
preprocessing, so that both see the same pixels.
"""

import argparse
import contextlib
import io
import json
import struct
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin, UnidentifiedImageError

KEYS = (
    *("input", "orientation", "color", "background", "draft", "range"),
    *("resize", "interpolation", "crop", "mean", "std", "classes"),
)
BATCH = 32  # images run at once where the network takes any number
FULL_SCALE = (0, 65535)  # the range of integer images of more than eight bits where none is given
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def preprocess(image: str | Path | bytes | Image.Image | np.ndarray, spec: dict) -> np.ndarray:
    """Pixels as the network was trained on them, uint8 [C, H, W]; `normalize` comes next.

    `image` is a path, the bytes of an image file, a Pillow image, or a uint8 array [H, W] or [H, W, 3]. `spec` is the
    content of preprocessing.json. Steps: decode (a large JPEG at a fraction of its size, `draft`), rotate as EXIF says,
    scale more than eight bits by `range`, put transparency on `background`, convert to `color`, resize, crop the
    center. Raises ValueError or OSError for an image that cannot be used. A Pillow image that is not decoded yet is
    decoded in place.
    """
    if isinstance(image, np.ndarray):
        return _pixels(_from_array(image), spec)
    if isinstance(image, Image.Image):
        return _pixels(_decoded(image, spec), spec)
    with opened(image) as picture:
        return _pixels(_decoded(picture, spec), spec)


def normalize(pixels: np.ndarray, spec: dict) -> np.ndarray:
    """The network's input `(pixels / 255 - mean) / std`, float32 [N, C, H, W].

    `pixels` is uint8 [N, C, H, W] or [C, H, W].
    """
    pixels = pixels if pixels.ndim == 4 else pixels[None]
    mean, std = (np.array(spec[key], np.float32)[:, None, None] for key in ("mean", "std"))
    return (pixels.astype(np.float32) / np.float32(255) - mean) / std


def class_probabilities(scores: np.ndarray) -> np.ndarray:
    """Softmax of scores [N, classes], float64."""
    shifted = np.exp(scores.astype(np.float64) - scores.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def classify(files: Sequence[str | Path], folder: str | Path, top: int = 5) -> list[dict]:
    """The class of each file by model.onnx in `folder`: `file`, `class`, `probability`, and the `top` classes.

    Raises ValueError that names the file for one that cannot be used, ImportError without onnxruntime.
    """
    spec, session = read_spec(folder), open_network(folder)
    predictions = []
    for start in range(0, len(files), BATCH):
        chunk = files[start : start + BATCH]
        pixels = np.stack([_named(file, spec) for file in chunk])
        probabilities = class_probabilities(network_scores(session, normalize(pixels, spec)))
        if probabilities.shape[1] != len(spec["classes"]):
            raise ValueError(
                f"{folder}: model.onnx has {probabilities.shape[1]} classes, preprocessing.json {len(spec['classes'])}"
            )
        for file, row in zip(chunk, probabilities, strict=True):
            best = np.argsort(-row, kind="stable")[: max(1, top)]
            ranked = [{"class": spec["classes"][at], "probability": float(row[at])} for at in best]
            predictions.append({"file": str(file), **ranked[0], "top": ranked})
    return predictions


def read_spec(folder: str | Path) -> dict:
    """The content of preprocessing.json in `folder`; raises ValueError where it is missing or incomplete."""
    path = Path(folder) / "preprocessing.json"
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); --folder names the export folder") from None
    missing = [key for key in KEYS if key not in spec] if isinstance(spec, dict) else KEYS
    if missing:
        raise ValueError(f"{path}: lacks {', '.join(missing)}; export again")
    return spec


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
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common class
        raise ValueError(f"{path}: cannot be loaded ({_first_line(error)})") from None


def network_scores(session, inputs: np.ndarray) -> np.ndarray:
    """Scores [N, classes] of inputs [N, C, H, W]; a network of a fixed batch gets full batches, padded with zeros."""
    given = session.get_inputs()[0]
    fixed = given.shape[0] if isinstance(given.shape[0], int) else 0
    size = fixed or BATCH
    scores = []
    for start in range(0, len(inputs), size):
        batch = inputs[start : start + size]
        padding = np.zeros((fixed - len(batch) if fixed else 0, *batch.shape[1:]), batch.dtype)
        scores.append(session.run(None, {given.name: np.concatenate([batch, padding])})[0][: len(batch)])
    return np.concatenate(scores)


@contextlib.contextmanager
def opened(image: str | Path | bytes) -> Iterator[Image.Image]:
    """A Pillow image of a file or its bytes, not yet decoded."""
    with io.BytesIO(image) if isinstance(image, bytes) else open(image, "rb") as file:
        jpeg = file.read(3) == b"\xff\xd8\xff"
        file.seek(0)
        with _opened_jpeg(file) if jpeg else Image.open(file) as picture:
            yield picture


def is_deep(picture: Image.Image) -> bool:
    """Whether its pixels have more than eight bits."""
    return picture.mode in ("I", "F") or picture.mode.startswith("I;16")


def check_size(size: tuple[int, int], what: str = "") -> None:
    """Refuse a picture of (width, height) above Pillow's limit for decompression bombs by ValueError."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit and size[0] * size[1] > limit:
        raise ValueError(f"{what}{size[0]}x{size[1]} pixels exceeds limit of {limit:,} pixels")


def _opened_jpeg(file: io.BufferedIOBase) -> Image.Image:
    """As Image.open, without its limit of pixels: `draft` may decode far fewer."""
    try:
        return JpegImagePlugin.JpegImageFile(file)
    except (SyntaxError, IndexError, TypeError, struct.error):  # those that Image.open takes for "not this format"
        raise UnidentifiedImageError("not a JPEG file") from None


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(f"an array of {array.dtype} {array.shape} is no image; give uint8 [H, W] or [H, W, 3]")
    return Image.fromarray(array)


def _decoded(picture: Image.Image, spec: dict) -> Image.Image:
    """Upright, of eight bits, without transparency."""
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
    picture = picture if picture.mode == spec["color"] else picture.convert(spec["color"])
    pixels = np.asarray(_cropped(_resized(picture, spec), spec["crop"]))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if list(pixels.shape) != list(spec["input"]):
        raise ValueError(f"resize and crop give {list(pixels.shape)}, but the network takes {list(spec['input'])}")
    return np.ascontiguousarray(pixels)


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as EXIF says; an EXIF block that cannot be read is ignored."""
    try:
        turn = TURNS.get(picture.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # Pillow's parsers raise whatever foreign bytes lead them to
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _eight_bits(picture: Image.Image, limits: Sequence[float] | None) -> Image.Image:
    """LOW becomes 0 and HIGH 255; values outside are clipped, and what is not a number becomes 0."""
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
    if not picture.has_transparency_data:
        return picture
    if picture.mode == "La":  # which Pillow converts to LA only
        picture = picture.convert("LA")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, (*background, 255)), picture)


def _resized(picture: Image.Image, spec: dict) -> Image.Image:
    width, height = picture.size
    if "size" in spec["resize"]:
        wanted = (spec["resize"]["size"][1], spec["resize"]["size"][0])
    else:
        side, shorter = spec["resize"]["shorter_side"], min(width, height)
        wanted = (round(width * side / shorter), round(height * side / shorter))
    if wanted == picture.size:
        return picture
    check_size(wanted, f"{width}x{height} pixels is too long and narrow: scaled to ")
    return picture.resize(wanted, Image.Resampling[spec["interpolation"].upper()])


def _cropped(picture: Image.Image, crop: Sequence[int] | None) -> Image.Image:
    if not crop or (crop[1], crop[0]) == picture.size:
        return picture
    height, width = crop
    if width > picture.width or height > picture.height:
        raise ValueError(f"a crop of {width}x{height} does not fit in {picture.width}x{picture.height} pixels")
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _named(file: str | Path, spec: dict) -> np.ndarray:
    try:
        return preprocess(file, spec)
    except UnidentifiedImageError:
        raise ValueError(f"{file}: no image format that Pillow knows") from None
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror or _first_line(error)}") from None
    except Exception as error:  # Pillow's decoders raise whatever foreign bytes lead them to
        raise ValueError(f"{file}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the class of each image; exit status 2 and one message for what cannot be used."""
    parser = argparse.ArgumentParser(prog="predict.py", description="Classify images with the network of a folder.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="an image file")
    parser.add_argument("--top", type=int, metavar="K", help="list the K most probable classes (default: 1, --json: 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--folder", default=Path(__file__).parent, help="the export folder (default: this file's)")
    asked = parser.parse_args(arguments)
    if asked.top is not None and asked.top < 1:
        parser.error("--top: give a number above 0")
    warnings.simplefilter("ignore")  # Pillow's remarks on odd files
    try:
        predictions = classify(asked.images, asked.folder, asked.top or (5 if asked.json else 1))
    except (ValueError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    if asked.json:
        print(json.dumps({"predictions": predictions}, indent=2))
        return 0
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file's name need not be text
    for found in predictions:
        print(found["file"], *(f"{each['class']}\t{each['probability']:.4f}" for each in found["top"]), sep="\t")
    return 0


if __name__ == "__main__":
    sys.exit(main())
