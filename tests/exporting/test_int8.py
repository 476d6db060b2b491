"""Int8 files: the scheme that changes least, what it loses, and layers that stay in float where int8 fails."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy
import onnx
import pytest
import torch

from nasspace import cli
from nasspace.architecture import Architecture
from nasspace.data.loading import load_data
from nasspace.errors import InputError
from nasspace.exporting import checks, int8
from nasspace.exporting.export import export, verify
from nasspace.exporting.int8 import INT8, Loss, Quantized, divergence
from nasspace.latency.quantization import RANGES, Scheme, calibrated, has_cache, to_int8
from nasspace.network import build
from nasspace.training.trainer import Fidelity, TrainingSettings, network_inputs, train

SIDE, WIDER = 16, 1e4
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_model_py")]


def architecture() -> Architecture:
    plain = {"block": "conv", "norm": "none"}
    layers = [
        {**plain, "out": 8},
        {**plain, "out": 16, "stride": 2},
        {**plain, "out": 16},
        {**plain, "out": 24, "stride": 2},
        {"block": "global_pool"},
        {"block": "linear", "out": 10},
    ]
    return Architecture.of(layers, input=(1, SIDE, SIDE), name="little")


@pytest.fixture(scope="module")
def data():
    return load_data("digits", resolution=SIDE)


@pytest.fixture(scope="module")
def network(data):
    model = build(architecture())
    found = train(model, data, Fidelity(resolution=SIDE, epochs=6), TrainingSettings(batch_size=32))
    assert found.accuracy > 0.9
    return model


@pytest.fixture(scope="module")
def exported(network, data, tmp_path_factory) -> Path:
    return export(
        architecture(), tmp_path_factory.mktemp("int8") / "net", weights=network.state_dict(), data=data
    ).folder


def widened(network, factor: float) -> dict[str, torch.Tensor]:
    """The same function, but one channel between the first two layers has `factor` times its range."""
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    names = [name for name in state if state[name].dim() == 4]
    for name in (names[0], names[0].replace("weight", "bias")):
        state[name][0] *= factor
    state[names[1]][:, 0] /= factor
    return state


@pytest.fixture(scope="module")
def uneven(network, data, tmp_path_factory) -> Path:
    """A network that int8 ruins."""
    folder = tmp_path_factory.mktemp("int8") / "uneven"
    return export(architecture(), folder, weights=widened(network, WIDER), data=data).folder


@pytest.fixture(scope="module")
def trainable(network, data, tmp_path_factory) -> Path:
    """A network that loses about 20 points in int8."""
    folder = tmp_path_factory.mktemp("int8") / "trainable"
    return export(architecture(), folder, weights=widened(network, 200), data=data).folder


def test_the_scheme_that_changes_least_is_kept_and_recorded(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "net")
    steps: list[str] = []
    result, quantized = int8.quantize(folder, on_step=steps.append)
    assert result.ok
    assert len(quantized.tried) == 2 * len(RANGES)
    assert quantized.scheme == min(quantized.tried, key=lambda each: each[1])[0]
    assert quantized.loss.value <= int8.LOSS
    assert quantized.loss.interval[0] < quantized.loss.value < quantized.loss.interval[1]
    assert not quantized.scheme.float_nodes
    assert not quantized.warning
    assert str(quantized.scheme) in steps[0]
    record = json.loads((folder / "export.json").read_text())
    assert record["int8"] == quantized.to_json()
    lost = result.accuracy["model.onnx"] - result.accuracy[INT8]
    assert quantized.loss.value == pytest.approx(lost, abs=0.005)
    assert "points of accuracy" in (folder / "README.md").read_text()
    assert verify(folder, data="digits").ok


def test_quantizing_again_replaces_the_file_and_its_record(exported, monkeypatch, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "net")
    int8.quantize(folder)
    first = json.loads((folder / "export.json").read_text())
    first["accuracy"][INT8] -= 0.3  # as of an earlier file
    (folder / "export.json").write_text(json.dumps(first))
    monkeypatch.setattr(int8, "RANGES", ("percentile",))
    result, quantized = int8.quantize(folder)
    assert quantized.scheme.ranges == "percentile"
    assert result.accuracy[INT8] > 0.9
    assert verify(folder, data="digits").ok


def test_a_missing_int8_file_names_the_command_that_writes_it(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "copy")
    int8.quantize(folder, "digits")
    (folder / INT8).unlink()
    with pytest.raises(InputError, match=r"model\.int8\.onnx: this file .* is missing; run `nas quantize` again"):
        verify(folder)
    int8.quantize(folder, "digits")
    assert verify(folder).ok


def test_a_kill_leaves_an_export_that_is_complete(exported, monkeypatch, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "net")
    int8.quantize(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(int8, "loss_of", killed)  # in the midst of choosing
        with pytest.raises(KeyboardInterrupt):
            int8.quantize(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    with monkeypatch.context() as patch:
        patch.setattr(checks, "judge_int8", killed)  # after the file is in its place
        with pytest.raises(KeyboardInterrupt):
            int8.quantize(folder)
    assert verify(folder, data="digits").ok
    assert INT8 not in json.loads((folder / "export.json").read_text())["files"]
    assert int8.quantize(folder)[0].ok


def test_layers_that_int8_ruins_stay_in_float(uneven, data, tmp_path):
    folder = shutil.copytree(uneven, tmp_path / "net")
    images = network_inputs(data.train.pixels[:32], data, SIDE)
    plain = to_int8(folder / "model.onnx", tmp_path / "plain.onnx", images)
    assert int8.loss_of(folder / "model.onnx", plain, data).value > 0.3
    result, quantized = int8.quantize(folder)
    assert int8.layers_of(quantized.scheme.float_nodes) == [0, 1]
    assert set(quantized.sensitive[:2]) == set(quantized.scheme.float_nodes)
    assert quantized.loss.value <= int8.LOSS
    assert result.accuracy[INT8] > 0.9
    assert "2 operations stay in float" in (folder / "README.md").read_text()
    weights = {one.name: one.data_type for one in onnx.load(folder / INT8).graph.initializer if len(one.dims) == 4}
    assert sorted(weights.values()).count(onnx.TensorProto.FLOAT) == 2


def test_a_loss_that_float_layers_do_not_lower_is_a_warning(uneven, monkeypatch, tmp_path):
    monkeypatch.setattr(int8, "MOST_FLOAT", 0.2)  # one of five, and two are needed
    _, quantized = int8.quantize(shutil.copytree(uneven, tmp_path / "net"))
    assert not quantized.scheme.float_nodes
    assert quantized.loss.value > int8.LOSS
    assert "layers 0, 1" in quantized.warning
    assert "points of accuracy" in quantized.warning


def test_a_fine_tuned_network_loses_less_in_int8_and_changes_no_other_file(trainable, monkeypatch, tmp_path):
    monkeypatch.setattr(int8, "MOST_FLOAT", 0)
    folder = shutil.copytree(trainable, tmp_path / "net")
    before = contents(folder)
    _, quantized = int8.quantize(folder, fine_tune=2)
    tuning = quantized.fine_tuning
    assert tuning.is_kept
    assert tuning.loss.value < 0.08 < 0.15 < tuning.other.value
    assert quantized.loss == tuning.loss
    assert not quantized.scheme.float_nodes
    assert "fine-tuning do not suffice" in quantized.warning
    changed = {name for name, content in contents(folder).items() if before.get(name) != content}
    assert changed == {INT8, "export.json", "README.md"}
    record = json.loads((folder / "export.json").read_text())["int8"]
    assert record["fine_tuning"]["kept"]
    assert record["fine_tuning"]["epochs"] == 2
    assert record["fine_tuning"]["loss_without"]["value"] == tuning.other.value
    assert "It has weights of its own" in (folder / "README.md").read_text()
    assert verify(folder, data="digits").ok
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_file_that_loses_less_is_kept(trainable, data, tmp_path):
    folder = shutil.copytree(trainable, tmp_path / "net")
    _, quantized = int8.quantize(folder, fine_tune=1)
    assert not quantized.fine_tuning.is_kept
    assert quantized.loss == quantized.fine_tuning.other
    assert int8.loss_of(folder / "model.onnx", folder / INT8, data) == quantized.loss
    assert quantized.scheme.float_nodes
    assert "weights of its own" not in (folder / "README.md").read_text()


def test_an_interrupted_fine_tuning_continues_and_ends_in_the_same_file(trainable, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(int8, "MOST_FLOAT", 0)
    whole, halted = (shutil.copytree(trainable, tmp_path / name) for name in ("whole", "halted"))
    int8.quantize(whole, fine_tune=2)

    printed: list[str] = []

    def stop(text):
        printed.append(text)
        if "epoch 2" in text:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cli.printing, "print_message", stop)
        assert cli.run(["quantize", str(halted), "--fine-tune", "2"]) == 130
    assert "the same command continues" in printed[-1]
    assert (tmp_path / ".halted.fine-tuning.pt").is_file()
    assert cli.run(["quantize", str(halted), "--fine-tune", "3"]) == 2
    assert "another training (epochs or resolution differ)" in capsys.readouterr().err
    assert cli.run(["quantize", str(halted), "--fine-tune", "2"]) == 0
    output = capsys.readouterr()
    assert "continues from" in output.err
    assert "the fine-tuned file is kept" in " ".join(output.out.split())
    assert (halted / INT8).read_bytes() == (whole / INT8).read_bytes()
    assert not (tmp_path / ".halted.fine-tuning.pt").exists()


def test_a_network_that_loses_little_is_not_fine_tuned(exported, tmp_path):
    _, quantized = int8.quantize(shutil.copytree(exported, tmp_path / "net"), fine_tune=2)
    assert quantized.fine_tuning is None


def test_images_are_augmented_as_in_the_recorded_training(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "net")
    settings = TrainingSettings(flip=False, rotation=5.0, optimizer="adamw", batch_size=16)
    (folder / "training.json").write_text(json.dumps({"training": dataclasses.asdict(settings)}))
    found = int8._settings(folder)
    assert (found.flip, found.rotation, found.batch_size) == (False, 5.0, 16)
    assert (found.optimizer, found.learning_rate) == ("sgd", 0.01)
    (folder / "training.json").write_text('{"training": {"flip": 3}}')
    with pytest.raises(InputError, match=r"training\.json.*train again"):
        int8._settings(folder)


def test_an_untrained_network_is_not_fine_tuned(tmp_path, data):
    folder = export(architecture(), tmp_path / "net").folder
    with pytest.raises(InputError, match="never trained"):
        int8.quantize(folder, data, fine_tune=1)


@pytest.mark.parametrize("kind", RANGES)
def test_every_way_finds_ranges_of_its_own(kind, exported, data, tmp_path):
    """ONNX Runtime's own options make entropy equal to the smallest and largest value."""
    if not has_cache():
        pytest.skip("this ONNX Runtime reads no ranges from a file")
    images = network_inputs(data.train.pixels[:32], data, SIDE)
    with calibrated(exported / "model.onnx", images) as calibration:
        scales = [
            scales_of(calibration.quantize(tmp_path / "one.onnx", Scheme(ranges=each))) for each in (kind, "minmax")
        ]
    assert numpy.array_equal(*scales) == (kind == "minmax")
    assert (scales[0] <= scales[1] * 1.001).all()


def scales_of(path: Path) -> numpy.ndarray:
    """The scales of the activations in an int8 file, in order."""
    graph = onnx.load(path).graph
    values = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    return numpy.array([float(values[n.input[1]]) for n in graph.node if n.op_type == "QuantizeLinear"])


def test_the_command_prints_the_schemes_and_the_loss(exported, tmp_path, capsys):
    folder = shutil.copytree(exported, tmp_path / "net")
    assert cli.run(["quantize", str(folder)]) == 0
    printed = capsys.readouterr()
    assert "per tensor" in printed.out
    assert "chosen" in printed.out
    assert "validation images" in printed.out
    assert cli.run(["quantize", str(folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["accuracy"][INT8] > 0.9
    assert document["loss"]["images"] > 300
    assert document["warning"] == ""


def test_what_cannot_be_quantized_is_refused(exported, tmp_path, capsys):
    folder = shutil.copytree(exported, tmp_path / "net")
    (folder / "model.onnx").unlink()
    assert cli.run(["quantize", str(folder)]) == 2
    assert "model.onnx" in capsys.readouterr().err
    assert cli.run(["quantize", str(tmp_path)]) == 2
    assert "not an export folder" in capsys.readouterr().err
    assert cli.run(["quantize", str(exported), "--data", "fashion-mnist:x"]) == 2
    alone = export(architecture(), tmp_path / "untrained").folder
    with pytest.raises(InputError, match="--data"):
        int8.quantize(alone)
    folder = shutil.copytree(exported, tmp_path / "changed")
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model.onnx: was changed since the export; export it again"):
        int8.quantize(folder)
    assert not (folder / int8.INT8).exists()
    record = json.loads((exported / "export.json").read_text())
    folder = shutil.copytree(exported, tmp_path / "damaged")
    (folder / "export.json").write_text(json.dumps({**record, "int8": 3}))
    with pytest.raises(InputError, match="int8"):
        verify(folder)


def test_an_untrained_network_is_quantized_without_a_loss(data, tmp_path):
    folder = export(architecture(), tmp_path / "net").folder
    _, quantized = int8.quantize(folder, data)
    assert quantized.loss is None
    assert quantized.to_json()["loss"] is None


@pytest.mark.parametrize(("lost", "gained", "count"), [(9, 1, 341), (0, 0, 341), (40, 10, 372)])
def test_the_interval_of_a_loss_holds_what_resampled_images_show(lost, gained, count):
    rng = numpy.random.default_rng(0)
    shares = [lost / count, gained / count, 1 - (lost + gained) / count]
    draws = rng.multinomial(count, shares, 20_000)
    found = numpy.quantile((draws[:, 0] - draws[:, 1]) / count, [0.025, 0.975])
    assert numpy.allclose(found, Loss(lost, gained, count).interval, atol=0.009)


def test_a_divergence_is_zero_only_for_equal_probabilities():
    one, other = torch.randn(2, 5, 10).double().log_softmax(-1).numpy()
    assert divergence(one, one) == 0
    assert divergence(one, other) > 0
    assert divergence(one, numpy.full_like(other, numpy.nan)) == numpy.inf


def test_no_warning_without_a_loss():
    scheme = Scheme()
    assert Quantized(scheme, ()).warning == ""
    assert "2.9 points" in Quantized(scheme, (), Loss(12, 2, 341), ("/4/layers/Conv",)).warning
