"""A full training as one HTML page that works offline: its result, curves, confusions, settings.

The page shows what training.json and confusion.csv in the training's folder record.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nasspace.formatting import duration
from nasspace.reporting.page import Column, Table, Tile, class_names, render
from nasspace.reporting.plot_data import as_float, values
from nasspace.reporting.training_plots import classes_figure, confusion_figure, curves_figure
from nasspace.training.metrics import wilson

MOST_TABLED = 20  # classes of a confusion matrix shown as a table, and pairs of a list of confusions
MOST_DRAWN = 200  # classes of a confusion matrix shown as a picture
MOST_COMPARED = 30  # classes in the figure of accuracies
DATA_COUNTS = ("train", "validation", "test")
Row = dict[str, Any]


def read_confusion(path: Path, classes: int) -> list[list[int]] | None:
    """The counts in confusion.csv, rows true classes; None if there is no such file of this number of classes."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            counts = [[int(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]]
    except (OSError, ValueError, csv.Error):
        return None
    return counts if [len(row) for row in counts] == [classes] * classes else None


def page_html(record: Mapping[str, Any], confusion: Sequence[Sequence[int]] | None) -> str:
    """Render the page of a training from its record and its confusion matrix (counts, rows true classes)."""
    return render("training.html", _content(record, confusion))


def _content(record: Mapping[str, Any], confusion: Sequence[Sequence[int]] | None) -> dict[str, Any]:
    """What the template shows."""
    epochs, classes = epoch_rows(record), record["data"]["classes"]
    content = {
        "name": _name(record),
        "subtitle": _subtitle(record),
        "result": _result(record),
        "tiles": list(_tiles(record)),
        "curves_plot": curves_figure(epochs, record["validation"]["accuracy"]),
        "curves_hint": _curves_hint(epochs),
        "epochs_table": _epochs_table(epochs),
        "split": record["confusion_is_of"],
        "confusion_plot": None,
        "confusion_table": None,
        "pairs_table": None,
        "classes_plot": None,
        "classes_table": None,
        "classes_hint": "",
        "origin": _origin(record),
        "not_applied": record["not_applied"],
        "settings": _settings(record),
        "provenance": _provenance(record),
        "notes": list(_notes(record)),
    }
    return content | (_by_class(confusion, classes) if confusion and sum(map(sum, confusion)) else {})


def _by_class(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> dict[str, Any]:
    """The parts that need the confusion matrix."""
    few = len(classes) <= MOST_TABLED
    rows = class_rows(confusion, classes)
    compared = sorted((row for row in rows if row["images"]), key=lambda row: row["accuracy"])[:MOST_COMPARED]
    correct, images = (sum(row[name] for row in rows) for name in ("correct", "images"))
    return {
        "confusion_plot": confusion_figure(confusion, classes) if len(classes) <= MOST_DRAWN else None,
        "confusion_table": _confusion_table(confusion, classes) if few else None,
        "pairs_table": None if few else _pairs_table(confusion, classes),
        "classes_plot": classes_figure(compared, correct / images),
        "classes_table": _classes_table(rows),
        "classes_hint": _classes_hint(len(compared), len(classes)),
    }


def _name(record: Mapping[str, Any]) -> str:
    """The network's name; trainings of earlier versions record only the folder."""
    return record.get("network") or Path(record["folder"]).name


def _subtitle(record: Mapping[str, Any]) -> str:
    size, epochs = record["resolution"], record["epochs"]
    finished = str(record.get("finished") or "").replace("T", " ").replace("+00:00", " UTC")
    trained = f"A training on {record['data']['name']}: {_count(epochs, 'epoch')} at {size}x{size}"
    return trained + (f", finished {finished}" if finished else "")


def _count(number: int, noun: str) -> str:
    """'1 epoch', '1,200 epochs'."""
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def _result(record: Mapping[str, Any]) -> str:
    """The result in a sentence or two."""
    data, test, validation = record["data"], record["test"], record["validation"]["accuracy"]
    images = f"{data['validation']:,} validation images"
    if test is None:
        low, high = wilson(round(validation * data["validation"]), data["validation"])
        return (
            f"The network classifies {validation:.2%} of the {images} correctly "
            f"(95 % interval {low:.2%} to {high:.2%}). The data has no test split."
        )
    return (
        f"The network classifies {test['accuracy']:.2%} of the {data['test']:,} test images correctly (95 % interval "
        f"{test['low']:.2%} to {test['high']:.2%}), and {validation:.2%} of the {images}."
    )


def _tiles(record: Mapping[str, Any]) -> Iterator[Tile]:
    test = record["test"]
    if test:
        yield Tile(f"{test['accuracy']:.2%}", "test accuracy")
        yield Tile(f"{test['balanced_accuracy']:.2%}", "balanced accuracy, of test")
        yield Tile(f"{test['macro_f1']:.2%}", "macro F1, of test")
    yield Tile(f"{record['validation']['accuracy']:.2%}", "validation accuracy")
    yield Tile(f"{record['data']['train']:,}", "training images")
    yield Tile(duration(record["seconds"]), f"for {_count(record['epochs'], 'epoch')} on {record['device']}")


def epoch_rows(record: Mapping[str, Any]) -> list[Row]:
    """The epochs of a training: `epoch`, `loss`, `accuracy` of validation and `rate`, NaN where not recorded."""
    losses = record["losses"]
    rates, accuracies = (record.get(name) or [None] * len(losses) for name in ("rates", "validation_by_epoch"))
    return [
        {"epoch": epoch, "loss": as_float(loss), "accuracy": as_float(accuracy), "rate": as_float(rate)}
        for epoch, (loss, accuracy, rate) in enumerate(zip(losses, accuracies, rates, strict=True), start=1)
    ]


def _curves_hint(epochs: Sequence[Row]) -> str:
    hint = "The loss of an epoch is the mean over its augmented training images."
    if values(epochs, "accuracy"):
        hint += (
            " Between epochs, the validation images are classified with the weights of that moment; the diamond is the "
            "finished network."
        )
    if values(epochs, "rate"):
        hint += " The learning rate is that of an epoch's last step."
    return hint


def _epochs_table(epochs: Sequence[Row]) -> Table:
    formats = {"loss": "{:.4f}", "accuracy": "{:.2%}", "rate": "{:.3g}"}
    titles = {"loss": "training loss", "accuracy": "validation accuracy", "rate": "learning rate"}
    shown = [name for name in titles if values(epochs, name)]
    columns = [Column("epoch", "number"), *(Column(titles[name], "number") for name in shown)]
    cells = (
        [row["epoch"], *("" if math.isnan(row[name]) else formats[name].format(row[name]) for name in shown)]
        for row in epochs
    )
    return Table.of(columns, cells)


def class_rows(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> list[Row]:
    """Each class with its `images`, `correct`, and the `accuracy` with the ends of its 95 % interval (Wilson).

    `accuracy`, `low` and `high` are NaN for a class without images; `mistaken_for` is the class that most of its images
    were wrongly taken for, with their number, or "".
    """
    rows = []
    for i, (name, counts) in enumerate(zip(classes, confusion, strict=True)):
        images, correct = sum(counts), counts[i]
        low, high = wilson(correct, images) if images else (math.nan, math.nan)
        most, j = max(((count, -j) for j, count in enumerate(counts) if j != i), default=(0, 0))
        rows.append(
            {
                "name": name,
                "images": images,
                "correct": correct,
                "accuracy": correct / images if images else math.nan,
                "low": low,
                "high": high,
                "mistaken_for": f"{classes[-j]} ({most})" if most else "",
            }
        )
    return rows


def _classes_table(rows: Sequence[Row]) -> Table:
    columns = [
        Column("class"),
        Column("images", "number"),
        Column("correct", "number"),
        Column("accuracy", "number"),
        Column("95 % interval", "number"),
        Column("most often taken for"),
    ]
    cells = (
        [
            row["name"],
            f"{row['images']:,}",
            f"{row['correct']:,}",
            f"{row['accuracy']:.1%}" if row["images"] else "",
            f"{row['low']:.1%} to {row['high']:.1%}" if row["images"] else "",
            row["mistaken_for"],
        ]
        for row in rows
    )
    return Table.of(columns, cells)


def _classes_hint(compared: int, classes: int) -> str:
    hint = "Bars are 95 % intervals; the dashed line is the accuracy of all images."
    return f"The {compared} classes with the lowest accuracy. {hint}" if compared < classes else hint


def _confusion_table(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Table:
    columns = [Column("true class"), *(Column(name, "number") for name in classes)]
    return Table.of(columns, ([name, *row] for name, row in zip(classes, confusion, strict=True)))


def _pairs_table(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Table:
    """The most frequent confusions."""
    pairs = [(count, i, j) for i, row in enumerate(confusion) for j, count in enumerate(row) if i != j and count]
    worst = sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[:MOST_TABLED]
    columns = [Column("true class"), Column("predicted"), Column("images", "number"), Column("of the class", "number")]
    cells = ([classes[i], classes[j], count, f"{count / sum(confusion[i]):.1%}"] for count, i, j in worst)
    return Table.of(columns, cells)


def _origin(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the training started from and learned from."""
    return {
        "weights": "; ".join(record.get("starts_from") or []) or f"initial weights of seed {record['seed']}",
        "images": "normalized as for these weights" if record.get("normalization") else None,
        "teacher": record.get("teacher") or "none",
        "settings": record["settings"],
    }


def _settings(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"name": record["settings"], "epochs": record["epochs"], **record["training"]}


def _provenance(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Where the training can be found again, by the titles of their lists."""
    data = dict(record["data"])
    classes = data.pop("classes")
    images = ", ".join(f"{data.pop(name):,} {name}" for name in DATA_COUNTS if data[name])
    data = {name: value for name, value in data.items() if name not in DATA_COUNTS}
    return {
        "Network": {"name": record.get("network"), "digest": record["digest"], "seed": record["seed"]},
        "Data": {**data, "images": images, "classes": class_names(classes)},
        "Machine": {"device": record["device"], **record["machine"]},
        "Versions": record["versions"],
    }


def _notes(record: Mapping[str, Any]) -> Iterator[str]:
    """How to read the page."""
    if record["test"]:
        yield "The test images were classified once, at the end; nothing was chosen by them."
        yield (
            "Balanced accuracy is the mean of the classes' accuracies, macro F1 that of their F1 scores; with uneven "
            "classes they say more than accuracy."
        )
    yield (
        "The accuracy of a class is the share of its images that are classified correctly (its recall). Intervals are "
        "Wilson's score intervals: they cover the chance of which images were drawn, not that of another training."
    )
    yield "training.json next to this page has all of it as numbers, confusion.csv the confusion matrix."
