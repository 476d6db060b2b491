"""What given weights, a teacher and balanced classes are worth: trainings alike but for one thing, on the same images.

    python benchmarks/starts.py FOLDER --data imagefolder:clothing10 --weights efficientnet-lite0.pth
        [--resolution 65] [--epochs 25] [--seeds 0,1,2] [--only start,teacher,balance] [--try RATE,...] [--processes 2]

FOLDER keeps a line for each training, so that a stopped run goes on. The data needs a test split.

    start    `efficientnet_lite0` from new weights and from `--weights` (ImageNet's), in all epochs and a third of them
    teacher  the student `mobilenet_v2_0.35` with and without a teacher: the third network of `start` with seed 0
    balance  the same student with the settings `balance: weights` and `balance: sampling`

`--try` compares learning rates from given weights on the validation images, seed 0, a third of the epochs, and ends.
Printed: accuracy on the test images (for `balance` also of the two rarest classes, on validation and test images) with
95 % bootstrap intervals over images and seeds, and differences from the first row, paired by image.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import published
import torch

from nasspace import zoo
from nasspace.data.loading import DataSet, load_data
from nasspace.exporting.weights import read_state, read_weights
from nasspace.latency.conditions import machine
from nasspace.network import build
from nasspace.training import pretrained, trainer
from nasspace.training.distillation import Teacher
from nasspace.training.settings import Fidelity, TrainingSettings

LARGE, SMALL = "efficientnet_lite0", "mobilenet_v2_0.35"
OWN = TrainingSettings()
Run = dict[str, Any]  # network, settings, given weights, share of the epochs, teacher
TEACHER = "given weights, a third of the epochs"
GROUPS: dict[str, dict[str, Run]] = {
    "start": {
        "new weights": {"network": LARGE},
        "given weights": {"network": LARGE, "given": True},
        TEACHER: {"network": LARGE, "given": True, "share": 1 / 3},
    },
    "teacher": {
        "student": {"network": SMALL},
        "student with a teacher": {"network": SMALL, "teacher": TEACHER},
    },
    "balance": {
        "student": {"network": SMALL},
        "student, balanced by weights": {"network": SMALL, "settings": dataclasses.replace(OWN, balance="weights")},
        "student, balanced by sampling": {"network": SMALL, "settings": dataclasses.replace(OWN, balance="sampling")},
    },
}


def normalized_as(data: DataSet, normalization: pretrained.Normalization | None) -> DataSet:
    """The data normalized as that of given weights."""
    if normalization is None:
        return data
    mean, std = (tuple(255 * value for value in values) for values in normalization)
    return dataclasses.replace(data, mean=mean, std=std)


def teacher_of(path: Path, options: argparse.Namespace, data: DataSet) -> Teacher:
    """The fine-tuned network, whose images are normalized as those of the given weights, as the teacher."""
    architecture = zoo.load(LARGE, resolution=options.resolution, classes=len(data.classes))
    network = build(architecture).eval()
    network.load_state_dict(read_state(path))
    original = build(zoo.load(LARGE))
    _, normalization = pretrained.converted(
        read_weights(options.weights), original, zoo.load(LARGE), str(options.weights), lambda _: None
    )
    taught = normalized_as(data, normalization)
    mean, std = (torch.tensor(values)[:, None, None] for values in (taught.mean, taught.std))

    def scores(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return network((images - mean) / std)

    return Teacher(scores, path.name)


def train(name: str, run: Run, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train one network, and classify the validation and test images."""
    torch.set_num_threads(1)
    data = load_data(options.data, resolution=options.resolution)
    architecture = zoo.load(run["network"], resolution=options.resolution, classes=len(data.classes))
    model = build(architecture, seed=seed, initialization=zoo.initialization_of(run["network"]))
    if run.get("given"):
        place, lines = str(options.weights), []
        state, normalization = pretrained.converted(
            read_weights(options.weights), model, architecture, place, lines.append
        )
        model.load_state_dict(pretrained.fitted(state, model, place, lines.append)[0])
        data = normalized_as(data, normalization)
    teacher = None
    if run.get("teacher"):
        teacher = teacher_of(weights_path(options, run["teacher"], 0), options, data)
    epochs = max(1, round(options.epochs * run.get("share", 1)))
    start = time.process_time()
    fidelity = Fidelity(options.resolution, epochs)
    trainer.train(model, data, fidelity, run.get("settings"), seed=seed, teacher=teacher)
    seconds = time.process_time() - start
    torch.save(model.state_dict(), weights_path(options, name, seed))
    splits = {"validation": data.validation, "test": data.test}
    found = {key: trainer.predictions(model, images, data, options.resolution) for key, images in splits.items()}
    right = {key: (found[key] == images.labels).int().tolist() for key, images in splits.items()}
    return {
        "network": name,
        "seed": seed,
        "seconds": round(seconds, 1),
        **{key: "".join(map(str, values)) for key, values in right.items()},
    }


def weights_path(options: argparse.Namespace, name: str, seed: int) -> Path:
    """The file of a training's weights."""
    return options.folder / f"{name.replace(' ', '-').replace(',', '')}-{seed}.pt"


def trainings(runs: dict[str, Run], seeds: list[int], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the missing trainings, `options.processes` at a time, a missing teacher first; return the rows of all."""
    for teacher in {run["teacher"] for run in runs.values() if "teacher" in run}:
        if not weights_path(options, teacher, 0).exists():
            trainings({teacher: GROUPS["start"][teacher]}, [0], options)
    table = options.folder / "trainings.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()] if table.exists() else []
    held = {(row["network"], row["seed"]) for row in rows}
    left = [(name, seed) for seed in seeds for name in runs if (name, seed) not in held]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.processes, context) as pool, table.open("a") as file:
        running = [pool.submit(train, name, runs[name], seed, options) for name, seed in left]
        for finished in concurrent.futures.as_completed(running):
            rows.append(finished.result())
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
            print(f"{rows[-1]['network']}, seed {rows[-1]['seed']}: {rows[-1]['seconds']:.0f} CPU s", flush=True)
    return [row for row in rows if row["network"] in runs and row["seed"] in seeds]


def report(rows: list[dict[str, Any]], names: list[str], seeds: list[int], title: str, kept: np.ndarray | None) -> None:
    """Print accuracies on the images `kept` of validation and test (None: on the test images), and differences."""

    def correct(row: dict[str, Any]) -> str:
        if kept is None:
            return row["test"]
        return "".join(np.array(list(row["validation"] + row["test"]))[kept])

    found = published.Comparison([{**row, "correct": correct(row)} for row in rows], names, seeds)
    print(f"\n{title}, {found.correct.shape[2]} images, seeds {', '.join(map(str, seeds))}\n")
    print("| training | % (95 %) | by seed | minus the first | CPU seconds |\n| -- | -- | -- | -- | -- |")
    for i, name in enumerate(names):
        low, high = (100 * each for each in found.interval(found.samples[:, i]))
        by_seed = ", ".join(f"{100 * each:.1f}" for each in found.correct[i].mean(1))
        gap = 100 * (found.accuracies[i] - found.accuracies[0])
        least, most = (100 * each for each in found.interval(found.samples[:, i] - found.samples[:, 0]))
        difference = f"{gap:+.1f} ({least:+.1f} to {most:+.1f})" if i else ""
        seconds = np.median([row["seconds"] for row in rows if row["network"] == name])
        accuracy = f"{100 * found.accuracies[i]:.1f} ({low:.1f} to {high:.1f})"
        print(f"| {name} | {accuracy} | {by_seed} | {difference} | {seconds:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--resolution", type=int, default=65)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seeds", type=lambda text: [int(each) for each in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(GROUPS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--try", dest="rates", type=lambda text: [float(each) for each in text.split(",")])
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(machine(), flush=True)
    if options.rates:
        usual = {"network": LARGE, "given": True, "share": 1 / 3}
        changes = {"": {}, ", norms frozen": {"frozen_norms": True}}
        runs = {
            f"rate {rate:g}{name}": {
                **usual,
                "settings": dataclasses.replace(OWN, learning_rate=rate, head_first=0.1, **change),
            }
            for rate in options.rates
            for name, change in changes.items()
        }
        for row in trainings(runs, [0], options):
            print(f"{row['network']}: validation {100 * row['validation'].count('1') / len(row['validation']):.1f} %")
        return
    data = load_data(options.data, resolution=options.resolution)
    labels = torch.cat([data.validation.labels, data.test.labels]).numpy()
    rare = data.train.labels.bincount().argsort()[:2].tolist()
    for group in options.only:
        runs = GROUPS[group]
        rows = trainings(runs, options.seeds, options)
        report(rows, list(runs), options.seeds, f"{group}: test accuracy", None)
        if group == "balance":
            named = " and ".join(data.classes[each] for each in rare)
            report(rows, list(runs), options.seeds, f"{group}: accuracy of {named}", np.isin(labels, rare))


if __name__ == "__main__":
    main()
