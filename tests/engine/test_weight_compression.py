"""`nas compress` with methods that compress weights: figures before and after, resuming, and refusals."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch

import nasspace
from nasspace import cli
from nasspace.architecture import Architecture
from nasspace.compression.weights import large_weights
from nasspace.data.loading import load_data
from nasspace.engine import full_training, weight_compression
from nasspace.engine.compression_record import Compression, Figures
from nasspace.errors import InputError
from nasspace.exporting.weights import read_safetensors
from nasspace.network import build

LAYERS = [
    {"block": "conv", "out": 16, "kernel": 3, "stride": 2},
    {"block": "inverted_residual", "out": 32, "hidden": 64, "stride": 2},
    {"block": "conv", "out": 128, "kernel": 1},
    {"block": "global_pool"},
    {"block": "linear", "out": 10},
]
ARCHITECTURE = Architecture.of(LAYERS, input=(1, 16, 16), name="small")
METHODS = {"magnitude": {"keep": 0.3}, "svd": {"keep": 0.5}, "cluster": {"bits": 3}}


def compress(folder, **options):
    weights = build(ARCHITECTURE, seed=3).state_dict()
    given = {"data": "digits", "resolution": 16, "epochs": 1, "weights": weights, "out": folder}
    return nasspace.compress(ARCHITECTURE, **(given | options))


@pytest.mark.parametrize("method", METHODS)
def test_a_network_is_compressed_fine_tuned_and_exported(method, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "out"
    result = compress(folder, method=method, **METHODS[method])
    before, after = result.original, result.compressed
    assert after.deflated_bytes < 0.9 * before.deflated_bytes
    assert all(one.accuracy_low < one.accuracy < one.accuracy_high for one in (before, after))
    assert before.latency_low_ms <= before.latency_ms <= before.latency_high_ms
    assert result.latency_change[1] < result.latency_change[0] < result.latency_change[2]
    assert f"Method `{method}`" in (folder / "README.md").read_text(encoding="utf-8")
    architecture = Architecture.from_json((folder / "architecture.json").read_text(encoding="utf-8"))
    network = build(architecture)
    network.load_state_dict(read_safetensors(folder / "weights.safetensors"))
    check(method, result, before, after, network)
    assert cli.run(["verify", str(folder), "--data", "digits", "--json"]) == 0
    assert not [one for one in json.loads(capsys.readouterr().out)["checks"] if one["ok"] is False]
    monkeypatch.setattr(full_training.trainer, "train", None)  # a finished compression is read
    assert compress(folder, method=method, **METHODS[method]).to_dict() == result.to_dict()
    assert not list(tmp_path.glob(".out*"))
    with pytest.raises(InputError, match="holds another compression \\(epochs or resolution, epochs differ"):
        compress(folder, method=method, **METHODS[method], **{"epochs": 2})


def check(method, result, before, after, network):
    """What the method promises about the network and its file."""
    if method == "magnitude":
        assert after.file_bytes == pytest.approx(before.file_bytes, rel=0.01)
        zeros = torch.cat([weight.flatten() for weight in large_weights(network).values()]) == 0
        assert result.details["zeros"] == pytest.approx(float(zeros.float().mean())) == pytest.approx(0.7, abs=1e-3)
    if method == "cluster":
        assert after.file_bytes == pytest.approx(before.file_bytes, rel=0.01)
        assert [len(weight.unique()) for weight in large_weights(network).values()] == [8] * 4
        assert result.details["values"] == 8
        assert result.details["computed_bytes"] == 3 * 8448 / 8 + 4 * (4 * 8 + 9786 - 8448)
    if method == "svd":
        assert after.file_bytes < 0.9 * before.file_bytes
        assert after.flops < before.flops
        assert len(network) == len(LAYERS) + len(result.details["ranks"])
        assert result.compressed.digest == result.digest != result.original.digest


def test_a_stopped_compression_continues(tmp_path, monkeypatch):
    export = full_training.export
    monkeypatch.setattr(full_training, "export", lambda *a, **b: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        compress(tmp_path / "out", method="magnitude")
    monkeypatch.setattr(full_training, "export", export)
    lines = []
    found = compress(tmp_path / "out", method="magnitude", report=lines.append)
    assert any("continues from" in line for line in lines)
    assert found.details["zeros"] == pytest.approx(0.8, abs=1e-3)


def test_a_network_without_a_layer_to_factorize_is_refused(tmp_path):
    layers = [{"block": "conv", "out": 10, "kernel": 3}, {"block": "global_pool"}]
    architecture = Architecture.of(layers, input=(1, 16, 16), name="tiny")
    options = {"weights": build(architecture).state_dict(), "data": "digits", "out": tmp_path / "out"}
    with pytest.raises(InputError, match="tiny: has no layer to factorize"):
        nasspace.compress(architecture, method="svd", **options)


def test_weights_keep_their_normalization_and_branches_are_counted_folded(tmp_path, monkeypatch, capsys):
    layers = [{"block": "conv", "out": 8}, {"block": "repvgg", "out": 8, "stride": 2}, *LAYERS[-2:]]
    architecture = Architecture.of(layers, input=(1, 16, 16), name="branches")
    data = load_data("digits", resolution=16)
    dark = dataclasses.replace(data, mean=(10.0,), std=(20.0,))
    nasspace.train(architecture, data=dark, epochs=1, out=tmp_path / "one")
    loads = [SimpleNamespace(median_ms=1.0, low_ms=1.0, high_ms=1.0, ratio=None, contended=False)] * 4
    monkeypatch.setattr(weight_compression, "measured_in_turn", lambda networks, *_: dict.fromkeys(networks, loads))
    given = {"method": "magnitude", "data": "digits", "epochs": 1, "out": tmp_path / "two"}
    result = nasspace.compress(tmp_path / "one", **given)
    assert result.details["weights"] == 8 * 8 * 9 + 80
    starts_from = json.loads((tmp_path / "two" / "training.json").read_text(encoding="utf-8"))["starts_from"]
    assert starts_from[-1] == f"starts from {tmp_path / 'one' / 'weights.safetensors'}"
    assert cli.run(["verify", str(tmp_path / "two"), "--data", "digits", "--json"]) == 0
    capsys.readouterr()
    with pytest.raises(InputError, match="two: holds the network to compress; choose another --out folder"):
        nasspace.compress(tmp_path / "two", **given)


def figures(low, high, deflated):
    return Figures("0", (low + high) / 2, low, high, 0.9, 1, 1, 1000, deflated)


@pytest.mark.parametrize(
    ("after", "change", "expected"),
    [
        (figures(1.05, 1.2, 400), None, "after deflate is 56 % smaller; no difference in latency is measured: the"),
        (figures(0.5, 0.6, 900), None, "after deflate has the same size; the latency is 48 % lower"),
        (figures(1.0, 1.2, 900), (0.01, -0.02, 0.03), "no difference in latency is measured (+1.0 %, -2.0 to +3.0)"),
        (figures(1.0, 1.2, 900), (0.05, 0.02, 0.08), "the latency is 5 % higher (+5.0 %, +2.0 to +8.0)"),
    ],
)
def test_a_difference_in_latency_is_claimed_only_where_it_is_measured(after, change, expected, tmp_path):
    result = Compression("svd", "", tmp_path, None, figures(1.0, 1.1, 900), after, (), None, latency_change=change)
    assert expected in result.bought


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "latency target: give one"),
        (
            ["--latency-target", "5ms", "--keep", "20%"],
            "keep: an option of magnitude and svd, not of the method netadapt",
        ),
        (["--method", "magnitude", "--latency-target", "5ms"], "latency target: an option of netadapt, not of"),
        (["--method", "magnitude", "--proposals", "3"], "proposals: an option of netadapt"),
        (["--method", "magnitude", "--keep", "120%"], "--keep: '120%' is not a share"),
        (["--method", "magnitude", "--threshold", "all"], "threshold: 'all' is not one of adaptive, global, layer"),
        (["--method", "cluster", "--keep", "20%"], "keep: an option of magnitude and svd, not of the method cluster"),
        (["--method", "cluster", "--bits", "9"], "bits: 9 is not a whole number from 1 to 8"),
        (["--method", "cluster", "--threads", "1000"], "threads: 1000 are too many for a machine"),
        (["--method", "cluster", "--runtime", "onnx"], "'onnx' is not a runtime"),
        (["--method", "cluster", "--seed", "99999999999999999999"], "seed: 99999999999999999999 is too large"),
        (["--method", "cluster", "--resolution", "1"], "resolution: 1 is not a whole number of 8 or more"),
        (["--method", "magnitud"], "did you mean 'magnitude'?"),
        (["--method", "magnitude"], "compression starts from a trained network; give its --weights"),
    ],
)
def test_flags_are_checked(arguments, message, capsys):
    assert cli.run(["compress", "mobilenet_v2_0.35", "--data", "digits", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
