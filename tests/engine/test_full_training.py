"""Full trainings: a killed one ends in the same weights, is tested once, and leaves an export."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import re
import shutil
import signal
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import nasspace
from nasspace import cli, zoo
from nasspace.architecture import Architecture
from nasspace.data.loading import DataSet, load_data
from nasspace.engine import arch_reference, full_training
from nasspace.engine.settings import resolve_settings
from nasspace.errors import InputError, NasspaceError
from nasspace.exporting.export import export, verify
from nasspace.network import build
from nasspace.reporting import trained_networks
from nasspace.space.space import Space
from nasspace.training import trainer
from nasspace.training.settings import TrainingSettings
from nasspace.training.trainer import Fidelity

pytestmark = pytest.mark.usefixtures("forked_model_py")
NETWORK = "mobilenet_v1_0.25"
LAYERS = [
    {"block": "conv", "out": 8, "stride": 2},
    {"block": "inverted_residual", "out": 8, "expansion": 2},
    {"block": "global_pool"},
    {"block": "linear", "out": 10},
]
# Trains in a separate process and kills it: argv has the folder, the log, and where to kill.
SCRIPT = """
import os, signal, sys, types
sys.path.insert(0, {tests!r})
from test_full_training import small_digits
import nasspace
from nasspace import files
from nasspace.engine import full_training
from nasspace.training import checkpoints, trainer

out, log, place, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
checkpoints.INTERVAL = 0.0
data = small_digits()

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def dying(function, before=False):
    left = [count]
    def wrapped(*args, **kwargs):
        left[0] -= 1
        if before and not left[0]:
            die()
        result = function(*args, **kwargs)
        if not left[0]:
            die()
        return result
    return wrapped

predict = trainer.predictions
def predictions(model, images, *args, **kwargs):
    if images is data.test:
        with open(log, "a") as stream:
            stream.write("test\\n")
    return predict(model, images, *args, **kwargs)
trainer.predictions = predictions

if place == "a step":
    checkpoints.Checkpoints.save = dying(checkpoints.Checkpoints.save)
elif place == "writing":
    import pathlib
    pathlib.Path.replace = dying(pathlib.Path.replace, before=True)
elif place == "result":
    full_training.export = dying(full_training.export, before=True)
elif place == "exported":
    full_training.export = dying(full_training.export)
elif place == "recorded":
    full_training.shutil = types.SimpleNamespace(rmtree=dying(full_training.shutil.rmtree, before=True))
full_training.train({network!r}, data=data, epochs=3, resolution=16, batch_size=32, out=out)
"""
PLACES = [("a step", 5), ("writing", 3), ("a step", 2), ("result", 1), ("exported", 1), ("recorded", 1)]


def small_digits() -> DataSet:
    """150 digits for training, 40 for validation, 50 for the test."""
    digits = load_data("digits", resolution=16)
    train, test = digits.train.at(torch.arange(150)), digits.train.at(torch.arange(200, 250))
    return dataclasses.replace(digits, train=train, test=test, validation=digits.validation.at(torch.arange(40)))


@pytest.fixture(scope="module")
def data() -> DataSet:
    return small_digits()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def tiny(**changes) -> Architecture:
    return Architecture.of(LAYERS, **{"input": (1, 16, 16), "name": "tiny", **changes})


def timeless(folder: Path) -> dict:
    """The record of a training, without times and folder."""
    record = json.loads((folder / "training.json").read_text())
    return {key: value for key, value in record.items() if key not in ("seconds", "folder", "finished")}


@pytest.fixture
def quick(monkeypatch):
    """Without the export, which takes seconds."""

    def write(architecture, folder, **_):
        folder.mkdir(exist_ok=True)
        (folder / "architecture.json").write_text(architecture.to_json())
        (folder / "README.md").write_text("# A network\n")

    monkeypatch.setattr(full_training, "export", write)


@pytest.mark.slow
def test_a_training_killed_at_every_stage_ends_in_the_same_weights(data, tmp_path, forked):
    log, out = tmp_path / "log", tmp_path / "killed"
    script = SCRIPT.format(tests=str(Path(__file__).parent), network=NETWORK)
    for place, count in PLACES:
        killed = forked(script, str(out), str(log), place, str(count))
        assert killed.wait() == -signal.SIGKILL, (place, killed.output())
        assert (out / "training.json").is_file() == (place == "recorded")
    lines = []
    how = {"data": data, "epochs": 3, "resolution": 16, "batch_size": 32}
    resumed = nasspace.train(NETWORK, **how, out=out, report=lines.append)
    assert lines == [f"{out}: finished before"]
    plain = nasspace.train(NETWORK, **how, out=tmp_path / "plain")
    assert log.read_text() == "test\n"  # evaluated once in total
    weights = [load_file(folder / "weights.safetensors") for folder in (out, tmp_path / "plain")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert timeless(out) == timeless(tmp_path / "plain")
    assert (out / "confusion.csv").read_bytes() == (tmp_path / "plain" / "confusion.csv").read_bytes()
    assert (resumed.validation, resumed.test) == (plain.validation, plain.test)
    names = {path.name for path in tmp_path.iterdir() if not path.name.startswith("cache")}
    assert names == {"log", "killed", "plain"}
    assert verify(out).ok


def test_it_equals_the_plain_training(data, quick, tmp_path):
    lines = []
    found = nasspace.train(tiny(), data=data, epochs=2, seed=4, out=tmp_path / "t", report=lines.append)
    model = build(tiny(), seed=4)
    expected = trainer.train(model, data, Fidelity(16, 2), seed=4)
    record = json.loads((tmp_path / "t" / "training.json").read_text())
    assert record["losses"] == list(expected.losses)
    assert found.validation.accuracy == expected.accuracy == record["validation"]["accuracy"]
    assert found.test.accuracy == trainer.evaluate(model, data.test, data, 16)
    assert found.test.low < found.test.accuracy < found.test.high
    assert [line.split(":")[0] for line in lines] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert lines[0].endswith("left")
    document = found.to_dict()
    assert document == {
        **document,
        "digest": tiny().digest,
        "folder": str(tmp_path / "t"),
        "resolution": 16,
        "epochs": 2,
    }
    assert set(document["test"]) == {"accuracy", "low", "high", "balanced_accuracy", "macro_f1"}
    assert record["data"]["test"] == 50
    rows = list(csv.reader((tmp_path / "t" / "confusion.csv").read_text().splitlines()))
    assert sum(int(cell) for row in rows[1:] for cell in row[1:]) == 50
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_readme_has_the_results(data, quick, tmp_path):
    found = nasspace.train(tiny(), data=data, epochs=1, settings="alexnet", out=tmp_path / "t")
    text = (tmp_path / "t" / "README.md").read_text()
    assert text.startswith("# A network")
    assert f"{found.validation.accuracy:.2%} of held-out training images" in text
    assert f"| Test accuracy | {found.test.accuracy:.2%} (95 % interval {found.test.low:.2%} to " in text
    assert (
        "| Not applied | of the published training: predictions averaged over ten crops, pixels not divided by" in text
    )
    assert "### Confusion matrix of the test images" in text
    assert found.not_applied.startswith("predictions averaged")


def test_each_epoch_is_recorded_also_over_an_interruption(data, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(full_training, "SETTLED", 8)  # steps: two epochs

    def interrupt(line):
        if line.startswith("epoch 3"):
            raise KeyboardInterrupt

    how = {"data": data, "epochs": 4, "batch_size": 32}
    with pytest.raises(KeyboardInterrupt):
        nasspace.train(tiny(), **how, out=tmp_path / "t", report=interrupt)
    nasspace.train(tiny(), **how, out=tmp_path / "t")
    epochs = []
    settings = resolve_settings(None, images=150, epochs=4, batch_size=32).settings
    trainer.train(build(tiny()), data, Fidelity(16, 4), settings, on_epoch=epochs.append, validate_from=2)
    record = json.loads((tmp_path / "t" / "training.json").read_text())
    assert record["rates"] == [epoch.rate for epoch in epochs]
    assert record["validation_by_epoch"] == [epoch.accuracy for epoch in epochs]
    assert record["validation_by_epoch"][0] is None
    assert None not in record["validation_by_epoch"][1:]
    assert record["network"] == "tiny"


def test_the_page_is_linked_and_written_again_if_it_is_missing(data, quick, tmp_path):
    how = {"data": data, "epochs": 1, "out": tmp_path / "t"}
    found = nasspace.train(tiny(), **how)
    page = tmp_path / "t" / "training.html"
    first = page.read_text()
    assert f"classifies {found.test.accuracy:.2%} of the 50 test images correctly" in first
    assert "](training.html)" in (tmp_path / "t" / "README.md").read_text()
    page.unlink()
    path = tmp_path / "t" / "training.json"
    record = json.loads(path.read_text())
    for added in ("network", "rates", "validation_by_epoch", "logs", "finished"):  # as an earlier version wrote it
        del record[added]
    path.write_text(json.dumps(record))
    assert nasspace.train(tiny(), **how) == found
    assert "learning rate is that of" not in page.read_text()
    assert json.loads(path.read_text()) == record


def test_a_training_whose_page_cannot_be_written_is_complete(data, quick, tmp_path):
    how = {"data": data, "epochs": 1, "out": tmp_path / "t"}
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "architecture.json").write_text(tiny().to_json())
    (tmp_path / "t" / "training.html").mkdir()
    lines = []
    found = nasspace.train(tiny(), **how, report=lines.append)
    assert [line.split(":")[0] for line in lines] == ["epoch 1 of 1", str(tmp_path / "t" / "training.html")]
    assert "not written (InputError" in lines[1]
    assert lines[1].endswith("the same command tries again")
    (tmp_path / "t" / "training.html").rmdir()
    assert nasspace.train(tiny(), **how) == found
    assert (tmp_path / "t" / "training.html").is_file()


def test_the_users_own_validation_split_is_named_as_such(data, monkeypatch, tmp_path):
    cards = []

    def write(architecture, folder, *, card, **_):
        cards.append(card)
        folder.mkdir()
        (folder / "README.md").write_text("")

    monkeypatch.setattr(full_training, "export", write)
    own = dataclasses.replace(data, own_validation=True)
    found = nasspace.train(tiny(), data=own, epochs=1, out=tmp_path / "t")
    assert cards[0]["accuracy_is_of"] == "validation images at 16x16"
    assert f"{found.validation.accuracy:.2%} of validation images" in (tmp_path / "t" / "README.md").read_text()


def test_many_classes_have_a_table_of_confusions():
    matrix = [[0] * 30 for _ in range(30)]
    matrix[3][4], matrix[5][6] = 2, 9
    text = full_training._matrix(matrix, [f"class|{i}" for i in range(30)])
    assert text.index(r"| class\|5 | class\|6 | 9 |") < text.index(r"| class\|3 | class\|4 | 2 |")


def test_without_a_test_split_there_is_no_test(data, quick, tmp_path):
    found = nasspace.train(tiny(), data=dataclasses.replace(data, test=None), epochs=1, out=tmp_path / "t")
    assert found.test is None
    assert found.to_dict()["test"] is None
    assert "Confusion matrix of the validation images" in (tmp_path / "t" / "README.md").read_text()


def test_an_interrupted_training_continues(data, quick, tmp_path):
    def interrupt(line):
        if line.startswith("epoch 2"):
            raise KeyboardInterrupt

    how = {"data": data, "epochs": 3, "batch_size": 32}
    with pytest.raises(KeyboardInterrupt):
        nasspace.train(tiny(), **how, out=tmp_path / "t", report=interrupt)
    assert not (tmp_path / "t").exists()
    lines = []
    nasspace.train(tiny(), **how, out=tmp_path / "t", report=lines.append)
    assert [line.split(":")[0].split(" from")[0] for line in lines] == ["continues", "epoch 2 of 3", "epoch 3 of 3"]
    nasspace.train(tiny(), **how, out=tmp_path / "plain")
    assert timeless(tmp_path / "t") == timeless(tmp_path / "plain")


def test_a_folder_of_another_training_is_kept(data, quick, tmp_path):
    nasspace.train(tiny(), data=data, epochs=1, out=tmp_path / "t")
    with pytest.raises(InputError, match=r"t: holds another training \(epochs or resolution differ\); choose another"):
        nasspace.train(tiny(), data=data, epochs=2, out=tmp_path / "t")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("all")
    with pytest.raises(InputError, match="own: holds other files"):
        nasspace.train(tiny(), data=data, epochs=1, out=tmp_path / "own")


VALID = {"test": [None], "not_applied": [None, "word"], "digest": ["word"], "settings": ["word"]}
VALID |= {key: [5] for key in ("resolution", "epochs", "seconds")}
VALID |= {"identity": [{}], "losses": [[]], "rates": [[]], "logs": [{}]}  # of another training
DAMAGE = [{key: kind} for key in (*full_training.RECORDED, "rates", "logs") for kind in (None, "word", 5, True, [], {})]
DAMAGE += [{"validation": {"accuracy": "high"}}, {"test": {"accuracy": 0.5, "top5": 0.9}}]


def test_a_damaged_record_is_one_message(data, quick, tmp_path):
    how = {"data": data, "epochs": 1, "out": tmp_path / "t"}
    nasspace.train(tiny(), **how)
    path = tmp_path / "t" / "training.json"
    sound = json.loads(path.read_text())
    texts = [
        json.dumps({**sound, key: kind}) for ((key, kind),) in map(dict.items, DAMAGE) if kind not in VALID.get(key, [])
    ]
    for text in ("{", "[]", *texts):
        path.write_text(text)
        with pytest.raises(InputError, match=r"^t/training\.json.*; delete .* to train again, or choose another --out"):
            nasspace.train(tiny(), **how)
    for key, kinds in VALID.items():
        for kind in kinds:
            if key != "identity":
                path.write_text(json.dumps({**sound, key: kind}))
                assert nasspace.train(tiny(), **how).folder == tmp_path / "t"


def test_a_damaged_result_is_one_message(data, quick, tmp_path, monkeypatch):
    how = {"data": data, "epochs": 1, "out": tmp_path / "t"}
    with monkeypatch.context() as patch:
        patch.setattr(full_training, "export", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            nasspace.train(tiny(), **how)
    path = tmp_path / ".t.training" / "result.json"
    sound = json.loads(path.read_text())
    for damage in ({"identity": 5}, {"confusion": [[1]]}, {"confusion": None}, {"test": {}}, {"validation": []}):
        path.write_text(json.dumps({**sound, **damage}))
        with pytest.raises(InputError, match=r"result\.json.* to evaluate again$"):
            nasspace.train(tiny(), **how)
    path.write_text(json.dumps(sound))
    nasspace.train(tiny(), **how)


def test_a_training_that_another_process_finished_meanwhile_is_read(data, quick, tmp_path, monkeypatch):
    """The other process finishes between the check of the folder and the lock."""
    lock, lines = full_training._Run._locked, []
    how = {"data": data, "epochs": 1, "out": tmp_path / "t"}

    def late(run):
        monkeypatch.setattr(full_training._Run, "_locked", lock)
        nasspace.train(tiny(), **how)
        return lock(run)

    monkeypatch.setattr(full_training._Run, "_locked", late)
    nasspace.train(tiny(), **how, report=lines.append)
    assert lines == [f"{tmp_path / 't'}: finished before"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_that_cannot_be_written_is_named_before_the_training(data, quick, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(trainer, "train", lambda *_, **__: pytest.fail("it was trained"))
    for out in ("file", "file/below", f"{'x' * 300}"):
        with pytest.raises(InputError, match=f"{Path(out).name}.*choose another"):
            nasspace.train(tiny(), data=data, epochs=1, out=tmp_path / out)
    (tmp_path / "t").mkdir()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match="t: cannot be written; choose another --out folder"):
        nasspace.train(tiny(), data=data, epochs=1, out=tmp_path / "t")


def test_broken_images_are_left_out_with_skip_broken(quick, tmp_path, capsys):
    folder = photos(tmp_path / "photos", 0)
    (folder / "cat" / "3.png").write_bytes(b"no image")
    command = ["train", NETWORK, "--data", f"imagefolder:{folder}", "--epochs", "1"]
    assert cli.run(command) == 2
    assert "--skip-broken" in capsys.readouterr().err
    assert cli.run([*command, "--skip-broken"]) == 0
    assert f"left out, unreadable or in no class: 1 ({folder}/cat/3.png)" in capsys.readouterr().err


@pytest.mark.slow
def test_images_are_read_from_the_disk_on_request(capsys, monkeypatch):
    arguments = ["train", "x.json", "--data", "digits", "--resolution", "9", "--epochs", "1", "--images-on-disk"]
    Path("x.json").write_text(tiny(input=(1, 9, 9)).to_json())
    monkeypatch.setattr(full_training, "JUDGED_COPIES", 2**40)
    assert cli.run([*arguments, "--out", "disk"]) == 0
    said = capsys.readouterr().err
    assert re.search(r"1,797 images at 9x9, [\d.]+ KB: decodes them into .*\.pixels\n", said)
    assert "accuracy of the exported files not checked" in said


def test_two_processes_do_not_train_into_one_folder(data, tmp_path):
    import filelock

    (tmp_path / ".t.training").mkdir()
    with (
        filelock.FileLock(tmp_path / ".t.training" / "lock"),
        pytest.raises(InputError, match="another process is training into it"),
    ):
        nasspace.train(tiny(), data=data, epochs=1, out=tmp_path / "t")


def test_a_diverged_training_is_one_message(data, tmp_path):
    wild = TrainingSettings(learning_rate=1e30, gradient_norm=0, weight_decay=1)
    with pytest.raises(NasspaceError, match=r"the loss of epoch \d is not a number.*lower the learning rate"):
        nasspace.train(tiny(), data=data, epochs=9, settings=wild, out=tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_weights_are_the_start(data, quick, tmp_path):
    given = build(tiny(), seed=9).state_dict()
    nasspace.train(tiny(), data=data, epochs=1, weights=given, out=tmp_path / "t")
    model = build(tiny(), seed=9)
    expected = trainer.train(model, data, Fidelity(16, 1))
    assert json.loads((tmp_path / "t" / "training.json").read_text())["losses"] == list(expected.losses)


def test_a_head_with_other_classes_is_initialized(data, quick, tmp_path):
    other = [*LAYERS[:-1], {"block": "linear", "out": 7}]
    torch.save(build(Architecture.of(other, input=(1, 16, 16)), seed=9).state_dict(), tmp_path / "w.pt")
    lines = []
    nasspace.train(tiny(), data=data, epochs=1, weights=tmp_path / "w.pt", out=tmp_path / "t", report=lines.append)
    assert "the last layer has 7 classes, not 10: it starts from new weights" in lines[0]
    with pytest.raises(InputError, match="these are weights of another network"):
        nasspace.train(tiny(), data=data, epochs=1, weights={"0.weight": torch.zeros(1)}, out=tmp_path / "u")


def test_a_finished_training_is_shown_although_its_weights_are_gone(data, quick, tmp_path):
    weights, lines = tmp_path / "w.pt", []
    torch.save(build(tiny(), seed=9).state_dict(), weights)
    how = {"data": data, "weights": weights, "out": tmp_path / "t"}
    first = nasspace.train(tiny(), epochs=1, **how)
    weights.unlink()
    assert nasspace.train(tiny(), epochs=1, **how, report=lines.append) == first
    assert lines == [f"{tmp_path / 't'}: finished before; {weights} is gone, from which it started"]
    for other in ({"epochs": 2}, {"epochs": 1, "teacher": "teacher.onnx"}):
        with pytest.raises(InputError, match=r"w\.pt: "):
            nasspace.train(tiny(), **other, **how)


def checkpoint(classes: int = 1000) -> dict:
    """Names and values as in torchvision's checkpoint of a small MobileNetV2."""
    records = json.loads((Path(__file__).parents[1] / "recorded" / "checkpoints.json").read_text())
    (lines,) = [each["layers"] for each in records if each["name"] == "mobilenet_v2_0.35"]
    generator, state = torch.Generator().manual_seed(0), {}
    for name, size, *kind in map(str.split, lines):
        shape = [int(each) for each in size.split("x")]
        shape[0] = classes if name == "classifier.1" else shape[0]
        if kind == ["norm"]:
            state |= {f"{name}.{key}": torch.ones(shape) for key in ("weight", "running_var")}
            state |= {f"{name}.{key}": torch.zeros(shape) for key in ("bias", "running_mean")}
            continue
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / math.prod(shape[1:])) ** 0.5
        if kind:
            state[f"{name}.bias"] = torch.zeros(shape[0])
    return state


def test_a_checkpoint_of_torchvision_is_the_start(tmp_path):
    data = load_data("digits", resolution=32)
    torch.save({"epoch": 7, "model": checkpoint()}, tmp_path / "w.pth")
    lines, out = [], tmp_path / "t"
    how = {"data": data, "epochs": 1, "resolution": 32, "out": out, "weights": tmp_path / "w.pth"}
    found = nasspace.train("mobilenet_v2_0.35", **how, report=lines.append)
    place = tmp_path / "w.pth"
    assert lines[:5] == [
        f"{place}: weights of torchvision's MobileNetV2, 105 layers",
        f"{place}: the last layer has 1000 classes, not 10: it starts from new weights",
        f"{place}: the first layer is adapted from color to gray images",
        f"{place}: images are normalized as for these weights, mean 0.449, standard deviation 0.226",
        f"starts from {place}",
    ]
    assert not any("before training" in line for line in lines)
    assert json.loads((out / "training.json").read_text())["starts_from"] == lines[:5]
    assert (
        "| Starts from | w.pth; weights of torchvision's MobileNetV2, 105 layers; the last"
        in (out / "README.md").read_text()
    )
    spec = json.loads((out / "preprocessing.json").read_text())
    assert (spec["mean"], spec["std"]) == (pytest.approx([0.449], abs=1e-6), pytest.approx([0.226], abs=1e-6))
    assert verify(out).ok
    assert verify(out, data=data).ok
    assert nasspace.train("mobilenet_v2_0.35", **how) == found


@pytest.mark.parametrize(("name", "value"), [("frozen_norms", True), ("head_first", 0.1)])
def test_fine_tuning_needs_given_weights(data, tmp_path, name, value):
    with pytest.raises(InputError, match=rf"training.{name}: is for fine-tuning of given weights; give --weights"):
        nasspace.train(tiny(), data=data, settings=TrainingSettings(**{name: value}), out=tmp_path / "t")


def test_given_weights_of_the_same_classes_are_judged_first(quick, tmp_path):
    data, lines = load_data("digits", resolution=32), []
    torch.save(checkpoint(10), tmp_path / "w.pth")
    how = {"data": data, "epochs": 1, "resolution": 32, "out": tmp_path / "t"}
    nasspace.train("mobilenet_v2_0.35", **how, weights=tmp_path / "w.pth", report=lines.append)
    (line,) = [line for line in lines if "before training" in line]
    assert re.fullmatch(r"validation accuracy of the given weights, before training: \d+\.\d\d%", line)


def test_weights_of_an_export_bring_its_normalization_and_name_another_network(data, tmp_path):
    dark = dataclasses.replace(data, mean=(10.0,), std=(20.0,))
    nasspace.train(tiny(), data=dark, epochs=1, out=tmp_path / "one")
    other = Architecture.of(
        [{**layer, **({"activation": "relu6"} if layer["block"] == "conv" else {})} for layer in LAYERS],
        input=tiny().input,
    )
    lines = []
    nasspace.train(other, data=data, epochs=1, weights=tmp_path / "one", out=tmp_path / "two", report=lines.append)
    assert any("whose shapes agree; its function may differ" in line for line in lines)
    spec = json.loads((tmp_path / "two" / "preprocessing.json").read_text())
    assert (spec["mean"], spec["std"]) == ([round(10 / 255, 6)], [round(20 / 255, 6)])


def test_a_training_of_a_script_is_loaded_and_other_python_objects_are_not(data, quick, tmp_path):
    import argparse
    import datetime

    saved = {"model": checkpoint(10), "epoch": 7, "optimizer": {"lr": 0.1}, "args": argparse.Namespace(lr=1)}
    torch.save(saved, tmp_path / "w.pth")
    how = {"data": load_data("digits", resolution=32), "epochs": 1, "resolution": 32}
    nasspace.train("mobilenet_v2_0.35", **how, weights=tmp_path / "w.pth", out=tmp_path / "t")
    torch.save({**saved, "date": datetime.date(2020, 1, 1)}, tmp_path / "w.pth")
    with pytest.raises(
        InputError, match=r"w.pth: not a valid file of weights \(holds a Python object, datetime.date\)"
    ):
        nasspace.train("mobilenet_v2_0.35", **how, weights=tmp_path / "w.pth", out=tmp_path / "u")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {**state, "classifier.1.weight": torch.tensor(1.0)}, "the last layer has another shape"),
        (
            lambda state: {**state, "features.0.0.weight": state["features.0.0.weight"].to_sparse()},
            "is quantized, sparse",
        ),
        (lambda state: {**state, "features.0.0.weight": state["features.0.0.weight"] * torch.nan}, "not finite"),
        (lambda state: {1: torch.ones(1)}, "holds no state dictionary .* it has 1"),
        (lambda state: {name: tensor.numpy() for name, tensor in state.items()}, "holds no state dictionary"),
        (lambda state: torch.nn.Linear(1, 1), "weights: Linear is neither a state dictionary nor a path"),
    ],
)
def test_weights_as_values_are_checked_as_files_are(change, message, quick, tmp_path):
    how = {"data": load_data("digits", resolution=32), "epochs": 1, "resolution": 32, "out": tmp_path / "t"}
    lines = []
    try:
        nasspace.train("mobilenet_v2_0.35", **how, weights=change(checkpoint(10)), report=lines.append)
    except InputError as error:
        lines.append(str(error))
    assert any(re.search(message, line) for line in lines), lines


def test_weights_of_data_parallel_and_lightning_are_recognized(quick, tmp_path):
    how = {"data": load_data("digits", resolution=32), "epochs": 1, "resolution": 32}
    for prefix in ("module.", "model."):
        lines, state = [], {f"{prefix}{name}": tensor for name, tensor in checkpoint().items()}
        nasspace.train(
            "mobilenet_v2_0.35", **how, weights={"state_dict": state}, report=lines.append, out=tmp_path / prefix
        )
        assert "weights of torchvision's MobileNetV2" in lines[0]


def test_a_published_network_is_fitted_to_the_data(quick, tmp_path):
    """Photos of 20x20 in two classes, with a test split: enlarged to 32, in color."""
    noise = numpy.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(noise.integers(0, 255, (20, 20, 3), dtype=numpy.uint8)).save(folder / f"{i}.png")
    lines = []
    found = nasspace.train(NETWORK, data=f"imagefolder:{tmp_path / 'photos'}", epochs=1, report=lines.append)
    assert found.resolution == 32
    assert found.digest == zoo.load(NETWORK, resolution=32, classes=2).digest
    assert found.folder == Path("trainings") / NETWORK
    assert lines[0] == "images of 20x20: trained at 32x32; --resolution sets another"
    assert found.test is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": tiny(input=(3, 16, 16))}, "takes 3 channels, digits has 1"),
        ({"arch": "mobilenet_v9"}, "is not an architecture"),
        ({"arch": "no-study:3"}, "there is no study"),
        ({"arch": "no-study:front"}, "there is no study"),
        ({"arch": tiny(input=(1, 16, 24))}, "16x24 is not square; give a --resolution"),
        ({"arch": "x" * 300}, "is not an architecture"),
        ({"arch": "."}, "a folder without architecture.json; name an export's folder"),
        ({"weights": "x" * 300}, "cannot be read"),
        ({"settings": "x" * 300}, "--settings x*: cannot be read"),
        ({"seed": 2**64}, "seed: .* is too large"),
        ({"seed": -1}, "seed: -1 is not a whole number of 0 or more"),
        ({"resolution": 0}, "resolution: 0 is not a whole number of 8 or more"),
        ({"resolution": 1}, "resolution: 1 is not a whole number of 8 or more"),
        ({"resolution": 7}, "resolution: 7 is not a whole number of 8 or more"),
        ({"batch_size": 1}, "batch_size: 1 is not a whole number of 2 or more"),
        ({"threads": True}, "threads: True is not a whole number of 1 or more"),
        ({"epochs": 0}, "epochs: 0 is not a whole number of 1 or more"),
        (
            {"settings": "shuflenet"},
            "neither a file nor a published training; did you mean 'shufflenet'",
        ),
        ({"weights": "none.safetensors"}, r"none\.safetensors: cannot be read"),
        ({"weights": "none.pt"}, r"none\.pt: cannot be read"),
        ({"weights": {}, "from_scratch": True}, "are mutually exclusive"),
        ({"device": "tpu"}, "'tpu' is not a device"),
        ({"data": "imagefolder:nowhere"}, "does not exist"),
    ],
)
def test_invalid_arguments_are_refused(changes, message, data):
    with pytest.raises(InputError, match=message):
        nasspace.train(**{"arch": tiny(), "data": data, "epochs": 1, **changes})


def test_other_classes_are_refused(data):
    other = Architecture.of([*LAYERS[:-1], {"block": "linear", "out": 7}], input=(1, 16, 16))
    with pytest.raises(InputError, match="has 7 classes, digits has 10; set 'classes'"):
        nasspace.train(other, data=data)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A search by training without latency: three networks, one epoch."""
    space = Space.from_text(
        "name: little\ninput: [3, 16, 16]\nstem: [{block: conv, out: 8, stride: 2}]\n"
        "stages:\n  - {depth: [1, 2], out: [8, 16], stride: 2, block: conv}\n",
        "little.yaml",
    )
    folder = tmp_path_factory.mktemp("reports") / "s"
    how = {"objectives": ["accuracy", "flops"], "fidelity": {"resolution": 16, "epochs": 1}, "sampler": "random"}
    return nasspace.search(space, data="digits", trials=3, seed=5, full={"epochs": 1}, study=folder, **how)


@pytest.mark.slow
def test_a_front_is_trained_member_by_member(study, quick, tmp_path):
    lines = []
    found = nasspace.train(f"{study.folder}:front", out=tmp_path / "f", report=lines.append)
    numbers = study.front_numbers()
    assert {one.epochs for one in found.trained} == {1}, "the study's full training"
    assert [one.folder.name for one in found.trained] == [str(number) for number in numbers]
    assert lines[0] == f"member {numbers[0]} (1 of {len(numbers)})"
    assert sum(line.startswith("starts from") for line in lines) == len(numbers)
    assert [one.digest for one in found.trained] == [study.architecture(number).digest for number in numbers]
    assert found.to_dict() == {"trained": [one.to_dict() for one in found.trained]}
    size = study.settings["task"]["resolution"]
    data = load_data("digits", resolution=size, seed=5)  # the study's split
    records = [json.loads((one.folder / "training.json").read_text()) for one in found.trained]
    assert {record["data"]["fingerprint"] for record in records} == {data.fingerprint}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Path:
    """An export whose weights were trained on another split of digits than the default one."""
    digits = load_data("digits", resolution=16, seed=3, held_out=0.3)
    folder = tmp_path_factory.mktemp("exports") / "tiny"
    export(tiny(), folder, weights=build(tiny()).state_dict(), formats=[], data=digits)
    return folder


def fingerprint(found: full_training.FullTraining) -> str:
    return json.loads((found.folder / "training.json").read_text())["data"]["fingerprint"]


def split_line(lines: list[str]) -> str:
    return next((line for line in lines if "another split" in line), "")


@pytest.mark.parametrize("how", ["folder", "weights", "weights' folder"])
def test_an_export_names_its_data_and_split(how, shipped, quick, tmp_path):
    start = {"weights": shipped / "weights.safetensors", "weights' folder": shipped}
    arch, given = (str(shipped), {}) if how == "folder" else (tiny(), {"weights": start[how]})
    lines = []
    found = nasspace.train(arch, **given, epochs=1, out=tmp_path / "t", report=lines.append)
    assert f"data of {shipped}: digits, split with held_out 0.3 and seed 3" in lines
    assert split_line(lines) == ""
    assert fingerprint(found) == load_data("digits", resolution=16, seed=3, held_out=0.3).fingerprint
    recorded = json.loads((found.folder / "training.json").read_text())["data"]
    assert (recorded["name"], recorded["seed"], recorded["held_out"]) == ("digits", 3, 0.3)


def test_another_split_than_that_of_the_weights_is_named(shipped, data, quick, tmp_path):
    expected = f"digits: another split than that of {shipped} (digits, split with held_out 0.3 and seed 3)"
    for number, (changes, effect) in enumerate([({}, True), ({"from_scratch": True}, False)]):
        lines = []
        how = {"data": data, "epochs": 1, "out": tmp_path / str(number), "report": lines.append}
        nasspace.train(str(shipped), **how, **changes)
        assert split_line(lines).startswith(expected)
        assert ("may be held out here" in split_line(lines)) == effect
    lines, own = [], load_data("digits", resolution=16, seed=3, held_out=0.3)
    nasspace.train(str(shipped), data=own, epochs=1, out=tmp_path / "own", report=lines.append)
    assert split_line(lines) == ""


def photos(folder: Path, seed: int) -> Path:
    noise = numpy.random.default_rng(seed)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(noise.integers(0, 255, (16, 16, 3), dtype=numpy.uint8)).save(folder / name / f"{i}.png")
    return folder


def test_images_that_were_moved_are_split_as_before(quick, tmp_path):
    layers = [*LAYERS[:-1], {"block": "linear", "out": 2}]
    architecture = Architecture.of(layers, input=(3, 16, 16))
    data = load_data(f"imagefolder:{photos(tmp_path / 'a', 0)}", resolution=16, seed=7)
    export(architecture, tmp_path / "x", weights=build(architecture).state_dict(), formats=[], data=data)
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(InputError, match=r"does not exist.*\(the data of .*x; --data names others\)"):
        nasspace.train(str(tmp_path / "x"), epochs=1, out=tmp_path / "t")
    lines = []
    how = {"epochs": 1, "report": lines.append}
    found = nasspace.train(str(tmp_path / "x"), data=f"imagefolder:{tmp_path / 'b'}", out=tmp_path / "t", **how)
    assert (fingerprint(found), split_line(lines)) == (data.fingerprint, "")
    other = photos(tmp_path / "c", 1)
    nasspace.train(str(tmp_path / "x"), data=f"imagefolder:{other}", out=tmp_path / "u", **how)
    assert split_line(lines).startswith(f"imagefolder:{other}: another split than that of {tmp_path / 'x'}")


def test_an_export_without_data_is_not_trained_on_digits(shipped, quick, tmp_path):
    folder = shutil.copytree(shipped, tmp_path / "x")
    changed(folder / "export.json", data=None)
    with pytest.raises(InputError, match=r"x: its export\.json names no data; name those of its training with --data"):
        nasspace.train(str(folder), epochs=1)
    (folder / "weights.safetensors").unlink()
    lines = []
    nasspace.train(str(folder), data="digits", epochs=1, report=lines.append)
    assert lines[1] == f"{folder}: holds no weights.safetensors; starts from the initial weights of seed 0"


def changed(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        None,
        {"nasspace_export": 1},
        {"data": 5},
        {"data": {"name": "digits"}},
        {"data": {"name": "digits", "seed": True, "held_out": 0.2, "fingerprint": "x"}},
        {"data": {"name": "digits", "seed": 10**30, "held_out": 0.2, "fingerprint": "x"}},
        {"data": {"name": "digits", "seed": 1, "held_out": 2.0, "fingerprint": "x"}},
        {"data": {"name": ["digits"], "seed": 1, "held_out": 0.2, "fingerprint": "x"}},
    ],
)
def test_a_damaged_export_json_is_one_message(changes, shipped, tmp_path, capsys):
    folder = shutil.copytree(shipped, tmp_path / "x")
    changed(folder / "export.json", **changes) if changes else (folder / "export.json").write_text("{")
    for arguments in ([str(folder)], [NETWORK, "--weights", str(folder)]):
        assert cli.run(["train", *arguments, "--epochs", "1"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "x/export.json" in err
        assert "export it again" in err


@pytest.mark.slow
def test_weights_of_a_study_are_trained_on_its_split(study, quick, tmp_path):
    number = study.front_numbers()[0]
    lines = []
    how = {"epochs": 1, "out": tmp_path / "t", "report": lines.append}
    found = nasspace.train(study.architecture(number), weights=study.weights(number), **how)
    assert f"data of {study.folder}: digits, split with held_out 0.2 and seed 5" in lines
    size = study.settings["task"]["resolution"]
    assert fingerprint(found) == load_data("digits", resolution=size, seed=5).fingerprint
    other = dataclasses.replace(load_data("digits", resolution=size), name="mine")
    nasspace.train(f"{study.folder}:{number}", data=other, epochs=1, out=tmp_path / "u", report=lines.append)
    assert split_line(lines).startswith(f"mine: another split than that of {study.folder}")


@pytest.mark.slow
def test_another_network_is_trained_beside_a_study_and_shown_in_its_report(study, quick, tmp_path, capsys):
    size = study.settings["task"]["resolution"]
    name = "mobilenet_v1_1.0_cifar"
    lines = []
    found = nasspace.train(name, beside=study.folder, report=lines.append)
    assert (found.epochs, found.resolution) == (1, size), "the study's full training"
    as_value = nasspace.train(tiny(input=(1, size, size)), beside=study.folder, out=tmp_path / "value")
    assert as_value.epochs == 1
    assert fingerprint(found) == load_data("digits", resolution=size, seed=5).fingerprint
    assert not split_line(lines)
    shown = trained_networks.of_study(study.snapshot()).networks
    assert [(one.network, one.is_standard) for one in shown] == [(name, True)]
    number = study.front_numbers()[0]
    for arguments, message in (
        ([name, "--beside", str(study.folder), "--data", "digits"], "beside and data are mutually exclusive"),
        ([f"{study.folder}:{number}", "--beside", str(study.folder)], "leave --beside out"),
        ([name, "--beside", "nowhere"], "there is no study 'nowhere'"),
    ):
        assert cli.run(["train", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_member_may_start_from_scratch(study, quick, tmp_path):
    lines, number = [], study.front_numbers()[0]
    nasspace.train(f"{study.folder}:{number}", epochs=1, from_scratch=True, out=tmp_path / "m", report=lines.append)
    assert not any(line.startswith("starts from") for line in lines)


def test_published_settings_scale_with_batch_size_and_epochs():
    found = resolve_settings("shufflenet", images=1438, epochs=24)
    assert (found.settings.batch_size, found.settings.learning_rate) == (64, 0.5 / 16)
    assert found.settings.jitter == (0.4, 0.4, 0.4, 0)
    assert "instead of 1,024, since 1,438 images" in found.notes[1]
    whole = resolve_settings("shufflenet", images=1_281_167, epochs=240)
    assert (whole.settings.batch_size, whole.settings.learning_rate, len(whole.notes)) == (1024, 0.5, 1)
    assert not any("without effect" in note for note in found.notes)
    assert resolve_settings("cifar100", images=50_000, epochs=20).settings.milestones == pytest.approx((6, 12, 16))


def test_settings_of_a_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("{learning_rate: 0.1, mixup: 0.2}")
    found = resolve_settings(tmp_path / "mine.yaml", images=100, epochs=1, batch_size=32, threads=2).settings
    assert (found.learning_rate, found.mixup, found.batch_size, found.threads) == (0.05, 0.2, 32, 2)
    (tmp_path / "mine.yaml").write_text("{learning_rat: 0.1}")
    with pytest.raises(InputError, match=r"mine\.yaml: training: 'learning_rat' is not a setting; did you mean"):
        resolve_settings(tmp_path / "mine.yaml", images=100, epochs=1)


def test_arch_references():
    assert arch_reference.parse_front("photos:front") == "photos"
    assert arch_reference.parse_front("photos:3") is None
    assert arch_reference.parse_trial("photos:3") == ("photos", 3)
    assert arch_reference.resolve_arch(NETWORK).is_published


def test_the_command_prints_one_document(quick, capsys):
    arguments = ["train", NETWORK, "--resolution", "16", "--epochs", "1", "--batch-size", "256", "--out", "o"]
    assert cli.run([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["epochs"], document["resolution"], document["folder"], document["test"]) == (1, 16, "o", None)
    assert "epoch 1 of 1: loss" in err
    assert cli.run(arguments) == 0
    out, err = capsys.readouterr()
    assert f"{document['validation']['accuracy']:.4f}" in out
    assert err == "o: finished before\n"
    assert cli.run(["train", NETWORK, "--settings", "none"]) == 2
    assert capsys.readouterr().err.count("\n") == 2  # the resolution, and the message


def test_an_interrupted_command_reports_how_to_continue(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(full_training, "train", interrupted)
    assert cli.run(["train", NETWORK]) == 130
    assert capsys.readouterr().err == "nas: interrupted; the checkpoint is kept, the same command continues\n"
