"""Accuracy of the exported files of a study, measured by a program without nasspace.

    python benchmarks/shipped_files.py STUDY...

For each member of a front `model.onnx` classifies the validation images, and the test split where there is one, from
their original files (arrays are written as PNG). `judge` knows onnxruntime, numpy, Pillow and preprocessing.json, and
runs in a process that cannot import nasspace. Printed, as tables in Markdown: the front's accuracy, the file's on the
same images, the file's on the test split, and the 95 % interval of the difference between test and front (Newcombe
1998, method 10: two independent shares); below, how many members are equal within 0.2 points or one image, and how
many of the intervals hold zero.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

JUDGE = "import json, sys; sys.modules['nasspace'] = None; sys.path.insert(0, sys.argv[1]); import shipped_files as s\n"
JUDGE += "print(json.dumps(s.judge(sys.argv[2], json.load(sys.stdin))))"
BATCH = 64
TOLERANCE = 0.002


def judge(folder: str, images: list[tuple[str, str]]) -> int:
    """How many images, (path, name of the class), the model.onnx of an export folder gets right."""
    import numpy
    import onnxruntime

    spec = json.loads((Path(folder) / "preprocessing.json").read_text())
    mean, std = (numpy.array(spec[key], numpy.float32)[:, None, None] for key in ("mean", "std"))
    session = onnxruntime.InferenceSession(str(Path(folder) / "model.onnx"), providers=["CPUExecutionProvider"])
    right = 0
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        pixels = numpy.stack([_pixels(path, spec) for path, _ in part]).astype(numpy.float32)
        (scores,) = session.run(None, {session.get_inputs()[0].name: (pixels / 255 - mean) / std})
        found = [spec["classes"][i] for i in scores.argmax(1)]
        right += sum(name == label for name, (_, label) in zip(found, part, strict=True))
    return right


def _pixels(path: str, spec: dict[str, Any]) -> Any:
    """uint8 [C, H, W], by the words of preprocessing.json alone."""
    import numpy
    from PIL import Image, ImageOps

    image = Image.open(path)
    if spec["draft"] and image.format == "JPEG":
        image.draft(None, tuple(reversed(spec["draft"])))
    if spec["orientation"] == "exif":
        image = ImageOps.exif_transpose(image)
    if spec["range"] and image.mode[0] in "IF":
        low, high = spec["range"]
        values = (numpy.asarray(image, numpy.float64) - low) / (high - low) * 255
        image = Image.fromarray(values.round().clip(0, 255).astype(numpy.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*spec["background"], 255))
        image = Image.alpha_composite(ground, image)
    image = image.convert(spec["color"])
    width, height = image.size
    if "size" in spec["resize"]:
        height, width = spec["resize"]["size"]
    else:
        side = spec["resize"]["shorter_side"]
        scale = side / min(width, height)
        width, height = round(width * scale), round(height * scale)
    image = image.resize((width, height), Image.Resampling[spec["interpolation"].upper()])
    if spec["crop"]:
        rows, columns = spec["crop"]
        left, top = (width - columns) // 2, (height - rows) // 2
        image = image.crop((left, top, left + columns, top + rows))
    array = numpy.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def written(images: Any, classes: tuple[str, ...], folder: Path) -> list[tuple[str, str]]:
    """The originals of a split as files, with their classes."""
    from PIL import Image

    folder.mkdir()
    found = []
    for i, (original, label) in enumerate(zip(images.originals, images.labels.tolist(), strict=True)):
        path = folder / f"{i}.png"
        if isinstance(original, Path):
            shutil.copyfile(original, path)  # Pillow goes by the content, not by the suffix
        elif isinstance(original, bytes):
            path.write_bytes(original)
        else:
            Image.fromarray(original).save(path)
        found.append((str(path), classes[label]))
    return found


def judged_apart(folder: Path, images: list[tuple[str, str]]) -> int:
    """Run `judge` in a separate process that cannot import nasspace."""
    command = [sys.executable, "-c", JUDGE, str(Path(__file__).parent), str(folder)]
    done = subprocess.run(command, input=json.dumps(images), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return int(json.loads(done.stdout))


def difference(right: int, count: int, other_right: int, other_count: int) -> tuple[float, float]:
    """The 95 % interval of one share minus another."""
    from nasspace.training.metrics import wilson

    one, other = right / count, other_right / other_count
    (low, high), (other_low, other_high) = wilson(right, count), wilson(other_right, other_count)
    middle = one - other
    return middle - math.hypot(one - low, other_high - other), middle + math.hypot(high - one, other - other_low)


def main(names: list[str]) -> None:
    from nasspace.documents import Document
    from nasspace.engine.problem import data_of
    from nasspace.studies import recipe, study

    equal = held = members = tested = 0
    for name in names:
        found = study.load(name)
        front = found.document()["front"]
        settings = recipe.read(Document(found.settings["recipe"], name))
        data = data_of(settings, front[0]["resolution"])
        print(f"\n{found.name}: {found.settings['space']['name']}, {data.name.rpartition('/')[2]}, ", end="")
        print(f"{front[0]['resolution']} pixels, limits {found.limits}\n")
        print("| member | latency, ms | front | file, validation | file, test | test - front, 95 % |")
        print("| -- | -- | -- | -- | -- | -- |")
        with tempfile.TemporaryDirectory() as folder:
            images = written(data.validation, data.classes, Path(folder) / "validation")
            test = written(data.test, data.classes, Path(folder) / "test") if data.test else []
            for member in front:
                export = found.folder / "exports" / str(member["id"])
                right, count = judged_apart(export, images), len(images)
                near = abs(right - member["accuracy"] * count) <= max(1, TOLERANCE * count) + 1e-6
                members, equal = members + 1, equal + near
                cells = [f"{member['accuracy']:.4f}", f"{right / count:.4f}{'' if near else ' NOT EQUAL'}", "", ""]
                if test:
                    hit = judged_apart(export, test)
                    low, high = difference(hit, len(test), round(member["accuracy"] * count), count)
                    tested, held = tested + 1, held + (low <= 0 <= high)
                    cells[2:] = f"{hit / len(test):.4f}", f"{low:+.4f} to {high:+.4f}"
                print(f"| {member['id']} | {member['latency_ms']:.3g} | {' | '.join(cells)} |", flush=True)
    print(f"\n{equal} of {members} files equal to the front; {held} of {tested} intervals of test - front hold zero.")


if __name__ == "__main__":
    main(sys.argv[1:])
