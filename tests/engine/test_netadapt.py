"""`nas compress`: the path to a latency target, and what a stopped one continues from."""

import dataclasses
import itertools
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import nasspace
from nasspace import cli
from nasspace.architecture import Architecture
from nasspace.counting import cost
from nasspace.engine import full_training, netadapt
from nasspace.errors import InputError, NothingFound
from nasspace.exporting.export import export
from nasspace.exporting.weights import read_safetensors
from nasspace.latency.benchmark import Latency
from nasspace.network import build

LAYERS = [
    {"block": "conv", "out": 16, "kernel": 3, "stride": 2},
    {"block": "inverted_residual", "out": 16, "hidden": 64},
    {"block": "inverted_residual", "out": 16, "hidden": 64},
    {"block": "inverted_residual", "out": 32, "hidden": 64, "stride": 2},
    {"block": "global_pool"},
    {"block": "linear", "out": 10},
]
ARCHITECTURE = Architecture.of(LAYERS, input=(1, 16, 16), name="small")
OPTIONS = {"data": "digits", "resolution": 16, "epochs": 1, "step": 0.1, "proposals": 2}


def latency_of(architecture, factor=1.0):
    """A latency that follows the FLOPs, with the wide interval of a busy machine."""
    ms = factor * cost(architecture).flops / 1e5
    return Latency(
        *("onnxruntime", "cpu", 1, 1, architecture.input, ms, 0.8 * ms, 1.3 * ms, 12, False),
        *((ms,) * 12, (), None, {}, {}, "2026-11-29T00:00:00+00:00"),
    )


@pytest.fixture(autouse=True)
def _latencies_without_noise(monkeypatch):
    def evaluator(recipe, data, **options):
        return lambda architecture: SimpleNamespace(latency=latency_of(architecture), layers_ms=None)

    def in_turn(networks, recipe, data):
        return {
            name: [latency_of(architecture, 1 + share) for share in (-0.001, 0.0, 0.0, 0.001)]
            for name, (architecture, _) in networks.items()
        }

    monkeypatch.setattr(netadapt, "LatencyEvaluator", evaluator)
    monkeypatch.setattr(netadapt, "measured_in_turn", in_turn)


def compress(folder, **options):
    weights = build(ARCHITECTURE, seed=3).state_dict()
    return nasspace.compress(ARCHITECTURE, weights=weights, out=folder, **({"latency_share": 0.7} | OPTIONS | options))


def test_a_network_is_pruned_to_the_target_trained_and_exported(tmp_path, capsys):
    result = compress(tmp_path / "out")
    first, last = result.original, result.compressed
    assert last.latency_ms <= result.target_ms == pytest.approx(0.7 * first.latency_ms)
    assert 0.6 * first.latency_ms < last.latency_ms, "a wide interval does not make it smaller than asked for"
    assert result.latency_change[2] <= -0.3
    assert result.steps[-1].digest == last.digest == result.training.digest
    latencies = [first.latency_ms, *(step.latency_ms for step in result.steps)]
    assert len(result.steps) > 1
    assert all(b <= a - 0.04 * latencies[0] for a, b in itertools.pairwise(latencies))
    assert all(step.trained == 2 for step in result.steps)
    assert last.file_bytes < first.file_bytes
    assert last.deflated_bytes < last.file_bytes
    assert "inverted_residual" in (tmp_path / "out" / "architecture.json").read_text()
    assert "Pruned by NetAdapt" in (tmp_path / "out" / "README.md").read_text()
    assert cli.run(["verify", str(tmp_path / "out"), "--json"]) == 0
    capsys.readouterr()
    again = compress(tmp_path / "out")
    assert again.to_dict() == result.to_dict()
    assert not list(tmp_path.glob(".out*"))
    copy = shutil.copytree(tmp_path / "out", tmp_path / "copy")
    export(ARCHITECTURE, copy)
    assert not (copy / "compression.json").exists(), "it was of another network"
    with pytest.raises(InputError, match="holds another compression \\(latency_share differ"):
        compress(tmp_path / "out", latency_share=0.6)


def test_a_target_in_milliseconds_holds_for_the_interval(tmp_path):
    first = latency_of(ARCHITECTURE)
    result = compress(tmp_path / "out", latency_share=None, latency_target_ms=0.9 * first.median_ms)
    assert result.compressed.latency_high_ms <= 0.9 * first.median_ms
    assert result.latency_change is None


def test_a_ratio_that_is_measured_in_turn_decides_about_a_share(tmp_path, monkeypatch):
    """The first measurement in turn does not confirm what single ones say."""
    asked = []

    def in_turn(networks, recipe, data):
        asked.append(networks["current"][0].digest)
        factor = 1.2 if len(asked) == 1 else 1.0
        return {
            name: [latency_of(one, factor if name == "current" else 1.0) for _ in range(4)]
            for name, (one, _) in networks.items()
        }

    monkeypatch.setattr(netadapt, "measured_in_turn", in_turn)
    result = compress(tmp_path / "out")
    digests = [step.digest for step in result.steps]
    assert asked == [*digests[-2:], digests[-1]], "the last two steps, and the last one after its training"


def test_a_size_that_is_much_faster_than_asked_for_is_not_taken(tmp_path, monkeypatch):
    """Predictions of a predictor that expects too little to be gained."""

    class Slow:
        def __init__(self, *measured):
            pass

        def predict(self, architectures):
            flops = np.array([cost(each).flops for each in architectures])
            return 1 + 0.2 * flops / flops[0], None

    monkeypatch.setattr(netadapt.Run, "_predictor", lambda self: Slow())
    result = compress(tmp_path / "out", latency_share=0.8)
    latencies = [result.original.latency_ms, *(step.latency_ms for step in result.steps)]
    assert all(b > a - 0.25 * latencies[0] for a, b in itertools.pairwise(latencies)), latencies


def test_a_stopped_compression_continues_to_the_same_network(tmp_path, monkeypatch):
    expected = compress(tmp_path / "whole")
    train, calls = netadapt.trainer.train, []

    def stopped(*args, **options):
        calls.append(1)
        if len(calls) in (1, 2, 4, 7):
            raise KeyboardInterrupt
        return train(*args, **options)

    monkeypatch.setattr(netadapt.trainer, "train", stopped)
    stops = 0
    while True:
        try:
            found = compress(tmp_path / "out")
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 3
    assert [step.digest for step in found.steps] == [step.digest for step in expected.steps]
    assert found.compressed.accuracy == expected.compressed.accuracy


def test_what_cannot_be_compressed_is_refused(tmp_path):
    with pytest.raises(InputError, match="give one, in milliseconds or as a share"):
        compress(tmp_path, latency_share=None)
    with pytest.raises(InputError, match="'prune' is not a method; known: "):
        compress(tmp_path, method="prune")
    with pytest.raises(InputError, match=r"within the target of .* ms; give a smaller one"):
        compress(tmp_path / "a", latency_share=None, latency_target_ms=100.0)
    with pytest.raises(InputError, match="starts from a trained network; give its --weights"):
        nasspace.compress("mobilenet_v2_0.35", data="digits", latency_share=0.5, out=tmp_path / "b")
    with pytest.raises(NothingFound, match="no narrower network is measured to be faster"):
        compress(tmp_path / "c", latency_share=0.01, step=0.9)


def test_a_state_of_another_compression_is_refused(tmp_path):
    work = tmp_path / ".out.compression"
    work.mkdir()
    (work / "state.json").write_text(json.dumps({"nasspace_compression": 1, "identity": {"seed": "7"}}))
    with pytest.raises(InputError, match=r"is of another compression .*delete"):
        compress(tmp_path / "out")
    (work / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"state\.json"):
        compress(tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--latency-target", "fast"], "--latency-target"),
        (["--latency-target", "140%"], "'140%' is not a share"),
        (["--latency-target", "70%", "--step", "x"], "--step: 'x' is not a share between 0 and 100 %, such as 5%"),
    ],
)
def test_flags_are_checked(arguments, message, capsys):
    assert cli.run(["compress", "mobilenet_v2_0.35", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_refused_compression_leaves_no_folder(tmp_path):
    with pytest.raises(InputError, match="give a smaller one"):
        compress(tmp_path / "out", latency_share=None, latency_target_ms=100.0)
    assert not list(tmp_path.iterdir())
    compress(tmp_path / "out", latency_share=None, latency_target_ms=latency_of(ARCHITECTURE).median_ms)


def test_the_lock_of_work_in_progress_leaves_the_work(tmp_path):
    work = tmp_path / ".out.compression"
    with full_training.locked(work, "busy"):
        (work / "state.json").write_text("{}")
    assert (work / "state.json").is_file()


def test_a_busy_machine_is_measured_in_turn_once_more(tmp_path, monkeypatch):
    said, measured = [], []

    def in_turn(networks, recipe, data):
        measured.append(networks["current"][1].state_dict())
        loads = {name: [latency_of(one)] * 4 for name, (one, _) in networks.items()}
        if len(measured) == 1:
            loads["first"] = [dataclasses.replace(each, contended=True) for each in loads["first"]]
        return loads

    monkeypatch.setattr(netadapt, "measured_in_turn", in_turn)
    result = compress(tmp_path / "out", report=said.append)
    assert sum("was busy while the networks were measured in turn; measures again" in text for text in said) == 1
    assert len(measured) == 3
    shipped = read_safetensors(result.folder / "weights.safetensors")
    assert all(torch.equal(measured[-1][name], tensor) for name, tensor in shipped.items()), "the trained network's"
