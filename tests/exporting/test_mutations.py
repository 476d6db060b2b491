"""Mistakes in exported files are detected, before the export is complete and in a finished folder.

The data set is made so that each mistake costs accuracy: the class is the color of a blob near the edge of a wide
picture, on a background that differs from image to image, and of two colors that a swap of channels exchanges.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nasspace import cli
from nasspace.architecture import Architecture
from nasspace.data.loading import load_data
from nasspace.errors import InputError, VerificationError
from nasspace.exporting import checks, preprocessing
from nasspace.exporting import export as module
from nasspace.exporting.export import HASHED, add_int8, export, verify
from nasspace.exporting.model_source import model_source
from nasspace.exporting.weights import as_safetensors, as_torch, load_into, read_safetensors
from nasspace.latency.convert import to_onnx
from nasspace.network import build
from nasspace.training.trainer import Fidelity, TrainingSettings, train

SIDE = 24
COLORS = {"blue {x}": (40, 60, 200), 'green "y"\\': (50, 190, 60), "red": (200, 60, 40)}
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_model_py")]


def architecture(side: int = SIDE) -> Architecture:
    layers = [
        {"block": "conv", "out": 12, "stride": 2},
        {"block": "shuffle_v2", "out": 24, "stride": 2},
        {"block": "global_pool"},
        {"block": "linear", "out": 3},
    ]
    return Architecture.of(layers, input=(3, side, side), name="little")


def picture(color: tuple[int, int, int], generator: np.random.Generator) -> Image.Image:
    """A blob of the class's color in a corner, and one of another class's color outside the center square."""
    gray = generator.integers(70, 150)
    pixels = np.full((40, 60, 3), gray) + generator.normal(0, 12, (40, 60, 3))
    row, column = generator.choice([0, 30]), generator.choice([12, 38])
    pixels[row : row + 10, column : column + 10] = np.array(color) + generator.normal(0, 12, (10, 10, 3))
    other = list(COLORS.values())[generator.integers(3)]
    pixels[5:35, :8] = pixels[5:35, -8:] = other
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, color in COLORS.items():
        (root / name).mkdir()
        for i in range(60):
            picture(color, generator).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def data(photos):
    return load_data(f"imagefolder:{photos}", resolution=SIDE, seed=3, held_out=0.3)


def trained(data, side: int = SIDE, epochs: int = 12, seed: int = 0):
    network = build(architecture(side), seed=seed)
    fidelity = Fidelity(resolution=side, epochs=epochs, share=1.0)
    found = train(network, data, fidelity, TrainingSettings(batch_size=16), seed=seed)
    return network.state_dict(), found.accuracy


@pytest.fixture(scope="module")
def member(data):
    weights, accuracy = trained(data)
    assert accuracy > 0.97
    return weights, accuracy


@pytest.fixture(scope="module")
def exported(member, data, tmp_path_factory):
    weights, accuracy = member
    folder = tmp_path_factory.mktemp("export") / "member"
    return export(architecture(), folder, weights=weights, data=data, card={"accuracy": accuracy})


@pytest.fixture(scope="module")
def other(data):
    """The weights of another member, which is correct about half the time."""
    network = build(architecture(), seed=7)
    found = train(network, data, Fidelity(resolution=SIDE, epochs=2, share=0.3), TrainingSettings(batch_size=16))
    assert found.accuracy < 0.9
    return network.state_dict()


def rewritten(folder: Path, change) -> None:
    """Change preprocessing.json, and with it the metadata of model.onnx and the constants of model.py."""
    spec = preprocessing.read(folder)
    change(spec)
    write_all(folder, spec, read_safetensors(folder / "weights.safetensors"))


def write_all(folder: Path, spec: dict, state: dict, side: int = SIDE) -> None:
    network = build(architecture(side)).eval()
    load_into(network, state, "weights")
    preprocessing.write(folder, spec, program=True)
    (folder / "weights.safetensors").write_bytes(as_safetensors(state))
    (folder / "weights.pt").write_bytes(as_torch(state))
    (folder / "model.py").write_text(model_source(architecture(side), preprocessing=spec))
    about = preprocessing.metadata(spec, architecture().digest)
    to_onnx(network, (3, side, side), folder / "model.onnx", dynamic_batch=True, metadata=about)


def settled_again(folder: Path, record: dict) -> None:
    """Record the digests of all files as they are now."""
    record["files"] = {name: checks.digest(folder / name) if name in HASHED else None for name in record["files"]}
    record["preprocessing"] = record["files"]["preprocessing.json"]


def wrong_mean(spec: dict) -> None:
    spec["mean"] = [spec["mean"][0] - 0.4, spec["mean"][1], spec["mean"][2] + 0.4]


def larger_crop(spec: dict) -> None:
    """Crop the center of a larger image, without its edges."""
    spec["resize"] = {"shorter_side": 2 * SIDE}


def whole_picture(spec: dict) -> None:
    """Resize instead of cropping: the area outside the center square is visible."""
    spec["resize"], spec["crop"] = {"size": [SIDE, SIDE]}, None


def wrong_order(spec: dict) -> None:
    spec["classes"] = [*spec["classes"][1:], spec["classes"][0]]


def swapped(folder: Path) -> None:
    """Make the first convolution of every file expect blue, green, red."""
    state = read_safetensors(folder / "weights.safetensors")
    state["0.layers.0.weight"] = state["0.layers.0.weight"].flip(1)
    write_all(folder, preprocessing.read(folder), state)


SPECIFICATIONS = {"mean": wrong_mean, "crop": larger_crop, "squeeze": whole_picture, "classes": wrong_order}


def failed(result) -> set[str]:
    return {check.name for check in result.checks if check.ok is False}


def test_a_valid_export_is_evaluated(exported, member, data):
    names = {"model.onnx", "model.py", "weights.pt", "weights.safetensors"}
    assert exported.ok
    assert exported.accuracy.keys() == names
    assert set(exported.accuracy.values()) == {member[1]}, "one pipeline: identical decisions"
    values = {check.name: check.value for check in exported.checks}
    assert all(values[f"decisions of {name} that differ"] == 0 for name in names - {"weights.safetensors"})
    assert not any(check.ok is None for check in exported.checks)
    record = json.loads((exported.folder / "export.json").read_text())
    assert record["accuracy"] == exported.accuracy
    assert record["data"] == data.origin
    assert record["checks"] == exported.to_dict()["checks"]
    spec = json.loads((exported.folder / "preprocessing.json").read_text())
    assert spec == data.preprocessing
    assert record["preprocessing"] == checks.digest(exported.folder / "preprocessing.json")
    text = (exported.folder / "README.md").read_text()
    assert "| `model.py` | " in text
    assert "cropped to 24x24 pixels" in text


def test_verify_evaluates_again(exported, photos, capsys):
    assert cli.run(["verify", str(exported.folder), "--data", f"imagefolder:{photos}", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    names = {check["name"] for check in document["checks"]}
    assert {"accuracy of model.onnx", "accuracy of model.onnx as recorded", "accuracy of model.py"} <= names
    assert document["accuracy"] == exported.accuracy
    assert all(check["ok"] for check in document["checks"])


def test_without_data_accuracy_is_not_run(exported, capsys):
    result = verify(exported.folder)
    nulls = {check.name: check.why for check in result.checks if check.ok is None}
    assert nulls.keys() == {f"accuracy of {name}" for name in ("model.onnx", "model.py", "weights.pt")}
    assert all("--data" in why for why in nulls.values())
    assert result.ok
    assert cli.run(["verify", str(exported.folder)]) == 0
    out = capsys.readouterr().out
    assert "not run" in out
    assert "0 failed, 3 not run" in out


def test_other_images_are_refused(exported, photos, tmp_path, capsys):
    copy = shutil.copytree(photos, tmp_path / "photos")
    Image.new("RGB", (60, 40), (9, 9, 9)).save(copy / "red" / "0.png")
    assert cli.run(["verify", str(exported.folder), "--data", f"imagefolder:{copy}"]) == 2
    assert "fingerprint" in capsys.readouterr().err
    with pytest.raises(InputError, match="1 x 24 x 24"):
        verify(exported.folder, data="digits")


@pytest.fixture(scope="module")
def smaller(data):
    """The weights of the member trained at another size."""
    return trained(load_data(data.name, resolution=16, seed=data.seed, held_out=data.held_out), 16, epochs=4)[0]


@pytest.fixture(scope="module")
def others(other, smaller):
    return {"weights": other, "size": smaller}


def tampering(name: str, folder: Path, others) -> None:
    """One mistake, made consistently in all files."""
    if name in SPECIFICATIONS:
        rewritten(folder, SPECIFICATIONS[name])
    elif name == "channels":
        swapped(folder)
    elif name == "weights":
        write_all(folder, preprocessing.read(folder), others[name])
    else:
        sizes = {"input": [3, 16, 16], "crop": [16, 16], "resize": {"shorter_side": 16}}
        write_all(folder, preprocessing.read(folder) | sizes, others[name], 16)


MISTAKES = [*SPECIFICATIONS, "channels", "weights", "size"]
SEEN_BY = dict.fromkeys(("channels", "weights"), "accuracy of weights.safetensors in the training pipeline") | {
    "size": "model.onnx takes the network's input"
}
ACCURACY = {f"accuracy of {name}" for name in ("model.onnx", "model.py", "weights.pt")}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_fails_the_export(name, member, data, others, tmp_path, monkeypatch):
    weights, accuracy = member
    write = module._write

    def wrongly(new, architecture, network, spec, record):
        found = write(new, architecture, network, spec, record)
        tampering(name, new, others)
        settled_again(new, changed := {"files": found})
        return changed["files"]

    monkeypatch.setattr(module, "_write", wrongly)
    with pytest.raises(VerificationError) as caught:
        export(architecture(), tmp_path / "net", weights=weights, data=data, card={"accuracy": accuracy})
    assert SEEN_BY.get(name, "accuracy of model.onnx") in str(caught.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", MISTAKES)
def test_a_consistent_mistake_is_detected_in_a_finished_folder(name, exported, others, photos, tmp_path, capsys):
    """All digests, metadata and constants were rewritten: the accuracy on the images shows it."""
    folder = shutil.copytree(exported.folder, tmp_path / "net")
    tampering(name, folder, others)
    record = json.loads((folder / "export.json").read_text())
    settled_again(folder, record)
    (folder / "export.json").write_text(json.dumps(record))
    assert cli.run(["verify", str(folder), "--data", f"imagefolder:{photos}", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    wrong = {check["name"] for check in document["checks"] if check["ok"] is False}
    if name in ("channels", "weights"):
        assert wrong >= {"accuracy of model.onnx as recorded", "accuracy of model.py as recorded"}
    elif name == "size":
        assert wrong >= {"model.onnx takes the network's input", "preprocessing.json fits the network"}
    else:
        assert wrong > ACCURACY
        assert "preprocessing.json equals the data's" in wrong


@pytest.mark.parametrize("name", MISTAKES)
def test_a_change_of_one_file_is_detected_without_data(name, exported, others, tmp_path, capsys):
    """One file was changed: the digest and the other files show it."""
    folder = shutil.copytree(exported.folder, tmp_path / "net")
    tampering(name, copy := shutil.copytree(exported.folder, tmp_path / "wrong"), others)
    changed = "preprocessing.json" if name in SPECIFICATIONS else "model.onnx"
    shutil.copy(copy / changed, folder / changed)
    assert cli.run(["verify", str(folder), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    wrong = {check["name"] for check in document["checks"] if check["ok"] is False}
    assert f"{changed} unchanged" in wrong
    assert len(wrong) > 1, "not the digest alone"


def test_a_changed_program_is_not_run(exported, tmp_path, capsys):
    folder = shutil.copytree(exported.folder, tmp_path / "net")
    trace = tmp_path / "trace"
    with (folder / "model.py").open("a") as file:
        file.write(f"\nPath({str(trace)!r}).write_text('ran')\n")
    assert cli.run(["verify", str(folder), "--json"]) == 1
    found = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert found["model.py unchanged"]["ok"] is False
    assert found["model.py equals PyTorch"]["ok"] is None
    assert "changed" in found["model.py equals PyTorch"]["why"]
    assert not trace.exists()


def test_no_code_is_run_with_no_code(exported, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(checks.code_runner, "run", lambda *_: pytest.fail("model.py was run"))
    result = verify(exported.folder, data=f"imagefolder:{photos}", code=False)
    nulls = {check.name for check in result.checks if check.ok is None}
    assert nulls == {"model.py equals PyTorch", "model.py preprocesses as predict.py", "accuracy of model.py"}
    assert result.ok


@pytest.mark.parametrize("name", ["preprocessing.json", "predict.py"])
def test_every_byte_of_text_files_is_checked(name, exported, tmp_path):
    folder = shutil.copytree(exported.folder, tmp_path / "net")
    with (folder / name).open("a") as file:
        file.write("\n")
    assert failed(verify(folder)) == {f"{name} unchanged"}


def test_int8_has_its_own_accuracy(exported, data, photos, tmp_path):
    from nasspace.latency.quantization import to_int8

    folder = shutil.copytree(exported.folder, tmp_path / "net")
    images = checks.predict.normalize(data.train.pixels[:32].numpy(), data.preprocessing)
    path = to_int8(folder / "model.onnx", tmp_path / checks.INT8, images)
    result = add_int8(folder, path, data)
    assert result.ok
    assert result.accuracy[checks.INT8] > 0.8
    assert checks.INT8 in (folder / "README.md").read_text()
    again = verify(folder, data=f"imagefolder:{photos}")
    assert again.ok
    assert f"accuracy of {checks.INT8} as recorded" in {check.name for check in again.checks}
    record = json.loads((folder / "export.json").read_text())
    record["accuracy"][checks.INT8] -= 0.2
    (folder / "export.json").write_text(json.dumps(record))
    assert failed(verify(folder, data=data)) == {f"accuracy of {checks.INT8} as recorded"}


def test_predict_classifies_the_folders_photos(exported, photos, capsys):
    files = [str(photos / name / "7.png") for name in COLORS]
    assert cli.run(["predict", str(exported.folder), *files, "--json", "--top", "2"]) == 0
    document = json.loads(capsys.readouterr().out)["predictions"]
    assert [found["class"] for found in document] == list(COLORS)
    assert all(len(found["top"]) == 2 and found["probability"] > 0.5 for found in document)
    assert cli.run(["predict", str(exported.folder), files[0]]) == 0
    assert capsys.readouterr().out.startswith(f"{files[0]}\t{next(iter(COLORS))}\t")
    broken = photos.parent / "broken.png"
    broken.write_bytes(b"no image")
    assert cli.run(["predict", str(exported.folder), files[0], str(broken)]) == 2
    out, err = capsys.readouterr()
    assert (out, "broken.png" in err) == ("", True)
    assert cli.run(["predict", str(photos), files[0]]) == 2
    assert "model.onnx" in capsys.readouterr().err


@pytest.mark.parametrize("resolution", [SIDE, 20])
def test_an_export_is_exported_again_with_its_preprocessing(exported, resolution, tmp_path, capsys):
    arguments = ["export", str(exported.folder), "--out", str(tmp_path / "net"), "--resolution", str(resolution)]
    assert cli.run([*arguments, "--format", "onnx", "--json"]) == 0
    spec, before = preprocessing.read(tmp_path / "net"), preprocessing.read(exported.folder)
    assert spec == {**before, "input": [3, resolution, resolution], "crop": [resolution] * 2, "draft": None} | {
        "resize": {"shorter_side": resolution}
    }


def test_data_that_does_not_fit_is_one_message(exported, photos, tmp_path, capsys):
    folder = shutil.copytree(exported.folder, tmp_path / "net")
    spec = preprocessing.read(folder)
    spec |= {"input": [3, 16, 16], "crop": [16, 16]}
    (folder / "preprocessing.json").write_text(json.dumps(spec))
    assert cli.run(["predict", str(folder), str(photos / "red" / "1.png")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_model_py_predicts_decoded_images(exported, photos):
    """Run in this process, since the program is ours."""
    text = (exported.folder / "model.py").read_text()
    names = {"__file__": str(exported.folder / "model.py"), "__name__": "model"}
    exec(compile(text, "model.py", "exec"), names)
    for name in COLORS:
        pixels = torch.from_numpy(np.asarray(Image.open(photos / name / "9.png")).copy()).permute(2, 0, 1)
        ((found, probability),) = names["predict"](pixels)
        assert found == name
        assert probability > 0.5
    assert names["CLASSES"] == tuple(COLORS)


def test_the_first_line_of_an_error_without_text_is_its_type():
    from nasspace.errors import first_line

    assert first_line(EOFError()) == "EOFError"
    assert first_line(ValueError("  one\ntwo")) == "one"


def test_an_empty_file_of_weights_is_one_message(tmp_path):
    from nasspace.exporting.weights import read_state

    path = tmp_path / "weights.pt"
    path.touch()
    with pytest.raises(InputError, match=r"weights\.pt: not a valid file of weights \(EOFError\)"):
        read_state(path)
