"""From a folder of photos to a model that ships: search, train the recommended network fully, classify with its export.

    python examples/own_photos.py photos

`photos` has a folder of images for each class. Without an argument, handwritten digits are written to ./digits as image
files, and the search and the training are very short. The study is written to reports/NAME in the current folder, the
trained network to ./shipped.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nasspace


def write_digits(folder: Path) -> Path:
    """Write scikit-learn's digits as folder/CLASS/NUMBER.png."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i, (image, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(digit) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).astype("uint8")).save(path)
    return folder


def main() -> None:
    if len(sys.argv) > 1:
        photos, trials, epochs = Path(sys.argv[1]), 30, 100
    else:
        photos, trials, epochs = write_digits(Path("digits")), 1, 1

    study = nasspace.search(
        nasspace.Space.load("shuffle"), data=f"imagefolder:{photos}", latency_target_ms=20, trials=trials
    )
    recommended = study.document()["recommended"]
    print(study.front(), f"recommended: {recommended}", sep="\n")

    trained = nasspace.train(f"{study.name}:{recommended}", epochs=epochs, out="shipped")
    print(f"{trained.validation.accuracy:.1%} of the validation images after {trained.epochs} epochs")

    # The folder needs neither nasspace nor PyTorch: predict.py runs model.onnx with onnxruntime, numpy and pillow.
    images = [str(next(folder.iterdir())) for folder in sorted(photos.iterdir()) if folder.is_dir()]
    subprocess.run([sys.executable, "shipped/predict.py", *images], check=True)


if __name__ == "__main__":
    main()
