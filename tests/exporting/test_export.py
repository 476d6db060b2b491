"""Export folders: all files hold the same network and run without nasspace; tampering is detected."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nasspace import blocks, cli
from nasspace.architecture import Architecture
from nasspace.counting import cost
from nasspace.errors import InputError, VerificationError
from nasspace.exporting import export as module
from nasspace.exporting.checks import fvcore_flops
from nasspace.exporting.export import FORMATS, TRAINED, export, verify
from nasspace.exporting.weights import as_safetensors, as_torch, read_safetensors
from nasspace.network import build
from nasspace.space.space import Space

pytestmark = pytest.mark.usefixtures("forked_model_py")  # tests/exporting/test_code_runner.py tests that process

CARD = {
    "title": "A <b>network</b> | of `mine`",
    "study": "demo",
    "id": 7,
    "accuracy": 0.9312,
    "accuracy_is_of": "held-out training images at 32x32",
    "latency_ms": 1.234,
    "latency_low_ms": 1.2,
    "latency_high_ms": 1.3,
    "runtime": "onnxruntime",
    "threads": 1,
    "machine": {"processor": "A CPU", "cores": 2},
    "mean": [0.1],
    "std": [0.3],
}


def tiny(**kwargs) -> Architecture:
    layers = [
        {"block": "conv", "out": 8, "stride": 2},
        {"block": "inverted_residual", "out": 8, "expansion": 2, "se": 0.25},
        {"block": "global_pool"},
        {"block": "linear", "out": 3},
    ]
    return Architecture.of(layers, input=(1, 16, 16), **kwargs)


@pytest.fixture(scope="module")
def searched():
    return Space.load("shuffle", classes=10, resolution=32, channels=1).sample(random.Random(0))


@pytest.fixture(scope="module")
def trained(searched):
    """Weights that differ from the initial ones in every tensor."""
    state = build(searched, seed=3).state_dict()
    generator = torch.Generator().manual_seed(1)
    return {
        name: value + 0.01 * torch.rand(value.shape, generator=generator) if value.is_floating_point() else value + 5
        for name, value in state.items()
    }


@pytest.fixture(scope="module")
def exported(searched, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "member"
    names = [f"digit '{i}'" for i in range(10)]
    return export(searched, folder, weights=trained, classes=names, card=CARD)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return export(tiny(), tmp_path_factory.mktemp("small") / "net").folder


@pytest.fixture
def copied(small, tmp_path):
    return shutil.copytree(small, tmp_path / "copy")


@pytest.mark.slow
def test_a_folder_has_every_file_and_passes_every_check(exported, searched):
    names = sorted(path.name for path in exported.folder.iterdir())
    assert names == exported.files
    assert {"architecture.json", "model.py", "weights.pt", "weights.safetensors", "model.onnx"} <= set(names)
    assert exported.ok
    assert {"parameters", "FLOPs by fvcore", "model.py equals PyTorch", "model.onnx equals PyTorch"} <= {
        check.name for check in exported.checks
    }
    text = (exported.folder / "architecture.json").read_text()
    assert Architecture.from_json(text) == searched
    assert json.dumps(exported.to_dict())
    assert list(exported.folder.parent.iterdir()) == [exported.folder]


@pytest.mark.slow
def test_model_py_runs_alone_with_the_trained_weights(exported, searched, trained, tmp_path):
    images = torch.rand(2, *searched.input, generator=torch.Generator().manual_seed(5))
    torch.save(images, tmp_path / "images.pt")
    program = f"""
import sys, torch
sys.modules["nasspace"] = None
sys.path.insert(0, {str(exported.folder)!r})
import model
network = model.load()
assert isinstance(network, model.Model) and not network.training
assert model.CLASSES[3] == "digit '3'" and model.MEAN == (0.1,) and model.STD == (0.3,)
with torch.inference_mode():
    torch.save(network(torch.load({str(tmp_path / "images.pt")!r})), {str(tmp_path / "out.pt")!r})
"""
    subprocess.run([sys.executable, "-I", "-B", "-c", program], check=True)
    network = build(searched)
    network.load_state_dict(trained)
    with torch.inference_mode():
        expected = network.eval()(images)
    torch.testing.assert_close(torch.load(tmp_path / "out.pt", weights_only=True), expected)
    assert "nasspace" not in (exported.folder / "model.py").read_text()


@pytest.mark.slow
def test_weights_are_the_same_in_both_files(exported, trained):
    found = torch.load(exported.folder / "weights.pt", weights_only=True)
    other = read_safetensors(exported.folder / "weights.safetensors")
    assert trained.keys() == found.keys() == other.keys()
    assert all(torch.equal(trained[k], found[k]) and torch.equal(trained[k], other[k]) for k in trained)


@pytest.mark.slow
def test_the_readme_has_figures_and_escaped_names(exported, searched):
    text = (exported.folder / "README.md").read_text()
    for part in (
        "93.12%",
        "held-out training images at 32x32",
        "1.20 to 1.30 ms",
        "1 thread",
        f"{cost(searched).params:,}",
    ):
        assert part in text
    assert "<b>" not in text.replace("\\<b\\>", "")
    assert "never trained" not in text


@pytest.mark.slow
def test_programs_in_the_readme_run(exported, monkeypatch):
    """Every Python block of the card runs in the folder."""
    text = (exported.folder / "README.md").read_text()
    programs = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    assert len(programs) == 3
    for program in programs:
        line = "\nassert tuple(scores.shape) == (1, 10)" if "scores" in program else ""
        subprocess.run([sys.executable, "-W", "error", "-B", "-c", program + line], cwd=exported.folder, check=True)


@pytest.mark.slow
def test_verify_passes_again(exported):
    again = verify(exported.folder)
    assert again.ok
    assert again.files == exported.files
    assert {check.name for check in exported.checks} <= {check.name for check in again.checks}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
@pytest.mark.parametrize("honest_record", [True, False])
def test_tampered_weights_fail(copied, name, honest_record):
    state = read_safetensors(copied / "weights.safetensors")
    state["3.linear.weight"][0, 0] += 0.5
    write = as_torch if name.endswith("pt") else as_safetensors
    (copied / name).write_bytes(write(state))
    if not honest_record:  # the record is changed to match
        record = json.loads((copied / "export.json").read_text())
        record["files"][name] = module.digest(copied / name)
        (copied / "export.json").write_text(json.dumps(record))
    result = verify(copied)
    failed = {check.name for check in result.checks if check.ok is False}
    assert not result.ok
    assert "weights.pt equals weights.safetensors" in failed
    assert (f"{name} unchanged" in failed) is honest_record


@pytest.mark.slow
def test_tampered_program_and_architecture_fail(copied):
    text = (copied / "model.py").read_text()
    (copied / "model.py").write_text(
        text.replace("return x.flatten(1)", "return 2 * x.flatten(1)").replace("else x", "else 2 * x")
    )
    assert {check.name for check in verify(copied).checks if check.ok is False} == {"model.py unchanged"}
    record = json.loads((copied / "export.json").read_text())
    record["files"]["model.py"] = module.digest(copied / "model.py")
    (copied / "export.json").write_text(json.dumps(record))
    assert {check.name for check in verify(copied).checks if check.ok is False} == {"model.py equals PyTorch"}
    text = (copied / "architecture.json").read_text()
    (copied / "architecture.json").write_text(text.replace('"stride": 2', '"stride": 1'))
    assert [check.name for check in verify(copied).checks if check.ok is False] == ["architecture.json unchanged"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("architecture.json", "weights.safetensors", "weights.pt", "model.py", "model.onnx", "export.json"),
        "preprocessing.json",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "cut", "noise"])
def test_missing_and_broken_files_are_named(copied, name, damage):
    path = copied / name
    if damage == "missing":
        path.unlink()
    else:
        data = path.read_bytes()
        middle = data.index(b"(", len(data) // 2) + 1 if name == "model.py" else len(data) // 2  # no valid program
        path.write_bytes(data[:middle] if damage == "cut" else b"\x00\xff(" * 99)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        verify(copied)


@pytest.mark.slow
def test_an_untrained_network_is_labeled_everywhere(tmp_path):
    result = export(tiny(), tmp_path / "new" / "net", seed=4)
    assert "never trained" in result.checks[0].value
    text = (result.folder / "README.md").read_text()
    assert "never trained" in text
    assert "| accuracy of model.onnx | not run | never trained |" in text
    assert "never trained" in (result.folder / "model.py").read_text()
    expected = build(tiny(), seed=4).state_dict()
    found = read_safetensors(result.folder / "weights.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_formats_choose_files_and_an_earlier_export_is_replaced(tmp_path):
    first = export(tiny(), tmp_path / "net", formats=["torch"])
    kept = ["README.md", "architecture.json", "export.json", "preprocessing.json", "weights.pt", "weights.safetensors"]
    assert first.files == kept
    (tmp_path / "net" / "notes.txt").write_text("mine")
    second = export(tiny(), tmp_path / "net", formats=["onnx"], batch_size=3)
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == sorted([*second.files, "notes.txt"])
    assert "weights.pt" not in second.files
    assert verify(tmp_path / "net").ok


def test_the_record_of_a_training_is_removed_with_its_network(tmp_path):
    folder = export(tiny(), tmp_path / "net", formats=[]).folder
    for name in TRAINED:
        (folder / name).write_text("of the first network")
    export(tiny(), folder, formats=[], seed=1)
    assert [name for name in TRAINED if (folder / name).exists()] == []


def test_weights_from_a_file(tmp_path):
    state = build(tiny(), seed=9).state_dict()
    (tmp_path / "w.safetensors").write_bytes(as_safetensors(state))
    result = export(tiny(), tmp_path / "net", weights=tmp_path / "w.safetensors", formats=())
    found = read_safetensors(result.folder / "weights.safetensors")
    assert all(torch.equal(state[name], found[name]) for name in state)
    assert result.checks[0].value == "as given"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"formats": ["sourc"]}, "did you mean 'source'"),
        ({"card": {"acuracy": 0.9}}, "did you mean 'accuracy'"),
        ({"card": {"accuracy": 93.0}}, "not a fraction"),
        ({"card": {"mean": [0.1, 0.2]}}, "2 values for 1 channels"),
        ({"classes": ["a", "b"]}, "2 names for 3 classes"),
        ({"weights": "missing.safetensors"}, "missing.safetensors"),
        ({"weights": {}}, "is missing"),
        ({"batch_size": "dynamik"}, "'dynamik' is neither 'dynamic' nor a whole number"),
        ({"batch_size": 0}, "0 is neither 'dynamic'"),
        ({"preprocessing": {"resise": {"size": [16, 16]}}}, "did you mean 'resize'"),
        ({"preprocessing": {"crop": [8, 8]}}, "do not give 16x16"),
        ({"preprocessing": {"resize": {"shorter_side": 8}}}, "crop is larger"),
        ({"preprocessing": {"input": [3, 16, 16]}}, "the network takes"),
        ({"preprocessing": {"color": "RGB"}}, "does not give 1 channels"),
        ({"preprocessing": {"mean": [0.1, 0.2]}}, "mean is not 1 numbers"),
        ({"preprocessing": {"std": [0.0]}}, "std is not 1 numbers above 0"),
        ({"preprocessing": {"classes": ["a"]}}, "1 classes, but the network has 3"),
        ({"preprocessing": {"interpolation": "cubic"}}, "'cubic' is not one of"),
    ],
)
def test_wrong_input_is_refused(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        export(tiny(), tmp_path / "net", **{"formats": (), **arguments})
    assert not any(tmp_path.iterdir())


def test_weights_of_another_network_are_refused(tmp_path):
    state = build(tiny()).state_dict()
    state["3.linear.weight"] = torch.zeros(4, 8)
    with pytest.raises(InputError, match=r"3\.linear\.weight.*\(4, 8\).*\(3, 8\)"):
        export(tiny(), tmp_path / "net", weights=state)


def test_a_foreign_folder_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="no earlier export"):
        export(tiny(), tmp_path)
    with pytest.raises(InputError, match="is a file"):
        export(tiny(), tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(InputError, match="no such folder"):
        verify(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"export\.json"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: "import nasspace\n" + text.replace("from __future__ import annotations", ""),
            "import of nasspace halted",
        ),
        (lambda text: text.replace("x = block(x)", "x = block(x) + 0.01"), "model.py equals PyTorch"),
        (lambda text: text + "\nimport numpy\n", "numpy"),
    ],
)
@pytest.mark.slow
def test_a_failed_check_writes_nothing(tmp_path, monkeypatch, change, message):
    write = module.model_source
    export(tiny(), tmp_path / "net", formats=["source"])
    before = {path.name: path.read_bytes() for path in (tmp_path / "net").iterdir()}
    monkeypatch.setattr(module, "model_source", lambda *args, **kwargs: change(write(*args, **kwargs)))
    with pytest.raises(VerificationError, match=message):
        export(tiny(), tmp_path / "net", formats=["source"], seed=8)
    assert {path.name: path.read_bytes() for path in (tmp_path / "net").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_weights_that_are_not_finite_fail(tmp_path):
    state = build(tiny()).state_dict()
    state["0.layers.0.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(VerificationError, match=r"model\.onnx"):
        export(tiny(), tmp_path / "net", weights=state, formats=["onnx"])


AWKWARD = ["{0} {x}", 'it\'s "quoted"\\', "two\nlines\ttab \udcff \u2028 é"]


def test_unusual_class_names_are_kept_everywhere(tmp_path):
    import onnxruntime

    folder = export(tiny(), tmp_path / "net", classes=AWKWARD).folder
    assert json.loads((folder / "preprocessing.json").read_text())["classes"] == AWKWARD
    names = {"__file__": str(folder / "model.py")}
    exec(compile((folder / "model.py").read_text(), "model.py", "exec"), names)
    assert names["CLASSES"] == tuple(AWKWARD)
    ((name, _),) = names["predict"](torch.zeros(1, 30, 20, dtype=torch.uint8))
    assert name in AWKWARD
    found = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    metadata = found.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == AWKWARD == json.loads(metadata["preprocessing"])["classes"]
    assert metadata["digest"] == tiny().digest
    assert verify(folder, code=False).ok


def test_preprocessing_without_data_is_completed_by_the_default(tmp_path):
    wide = Architecture.of(json.loads(tiny().to_json())["layers"], input=(3, 16, 24))
    folder = export(wide, tmp_path / "wide", formats=["onnx"], card={"mean": [0.5, 0.4, 0.3]}).folder
    found = json.loads((folder / "preprocessing.json").read_text())
    assert found["resize"] == {"size": [16, 24]}
    assert (found["crop"], found["color"], found["mean"], found["std"]) == (None, "RGB", [0.5, 0.4, 0.3], [1, 1, 1])
    assert found["classes"] == ["0", "1", "2"]
    given = {"resize": {"shorter_side": 20}, "interpolation": "bicubic", "classes": ["a", "b", "c"], "std": (0.25,)}
    result = export(tiny(), tmp_path / "given", formats=["source"], preprocessing=given)
    assert result.ok
    assert not [check for check in result.checks if check.ok is None and "preprocess" in check.name]
    found = json.loads((result.folder / "preprocessing.json").read_text())
    assert (found["resize"], found["crop"], found["std"]) == ({"shorter_side": 20}, [16, 16], [0.25])
    assert "predict.py" not in result.files, "it runs model.onnx"
    assert "| 1 | b |" in (result.folder / "README.md").read_text()


def test_predict_says_that_a_file_was_changed_since_the_export(copied, tmp_path, capsys):
    import onnx
    from PIL import Image

    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    arguments = ["predict", str(copied), str(tmp_path / "a.png"), "--json"]
    assert cli.run(arguments) == 0
    before = capsys.readouterr()
    assert before.err == ""
    network = onnx.load(copied / "model.onnx")
    network.doc_string = "another file of the same network"
    onnx.save(network, copied / "model.onnx")
    assert cli.run(arguments) == 0
    after = capsys.readouterr()
    assert after.out == before.out
    assert after.err == f"nas: {copied / 'model.onnx'} was changed since the export: `nas verify` checks the folder\n"


def test_predict_py_is_a_copy_of_the_module_and_runs_alone(small, tmp_path):
    from PIL import Image

    from nasspace.data import predict

    assert (small / "predict.py").read_text() == Path(predict.__file__).read_text()
    Image.new("L", (30, 20), 90).save(tmp_path / "a.png")
    command = [sys.executable, "-I", "-B", str(small / "predict.py"), str(tmp_path / "a.png"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (found,) = json.loads(done.stdout)["predictions"]
    assert found["class"] in ("0", "1", "2")


@pytest.mark.parametrize("batch_size", [None, "dynamic", 3])
def test_the_batch_size_is_dynamic_unless_it_is_fixed(tmp_path, batch_size):
    from nasspace.latency.quantization import agreement, to_int8
    from nasspace.latency.subprocess_benchmark import measure_file

    result = export(tiny(), tmp_path / "net", formats=["onnx"], batch_size=batch_size)
    record = json.loads((result.folder / "export.json").read_text())
    assert record["batch_size"] == (batch_size or "dynamic")
    path, images = result.folder / "model.onnx", torch.rand(7, 1, 16, 16).numpy()
    int8 = to_int8(path, tmp_path / "int8.onnx", images)
    assert 0 <= agreement(path, int8, images) <= 1
    assert measure_file(path, batch_size=3, seconds=0.05).batch_size == 3
    if batch_size != 3:
        assert measure_file(path, seconds=0.05).batch_size == 1


@pytest.mark.parametrize("wrong", [0, -3, True, "all"])
def test_a_wrong_batch_in_the_record_is_one_message(tmp_path, wrong):
    folder = export(tiny(), tmp_path / "net", formats=["onnx"]).folder
    record = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps({**record, "batch_size": wrong}))
    with pytest.raises(InputError, match=r"export\.json.*batch .* whole number from 1 to 4096; export it again"):
        verify(folder)


def test_ncnn_converts_a_dynamic_batch(tmp_path):
    pytest.importorskip("pnnx")
    from nasspace.latency.convert import to_ncnn

    path = export(tiny(), tmp_path / "net", formats=["onnx"]).folder / "model.onnx"
    assert all(part.is_file() for part in to_ncnn(Path(shutil.copy(path, tmp_path)), (1, 16, 16)))


def test_a_record_without_digests_is_refused(copied):
    record = json.loads((copied / "export.json").read_text())
    record["files"]["model.py"] = None
    (copied / "export.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"export\.json"):
        verify(copied)


OPTIONS = {  # non-default options that need other code
    "conv": [{"groups": 2, "activation": "hard_swish", "norm": "none", "padding": 2}],
    "inverted_residual": [
        {"se": 0.25, "se_from": "input", "se_gate": "hard_sigmoid", "skip": "pool"},
        {"hidden": 20, "activation": "silu", "se": 0.5},
    ],
    "depthwise_separable": [{"middle": "relu", "activation": "none", "skip": True}],
    "sandglass": [{"reduction": 2, "identity": 0.5, "first_depthwise": False}],
    "shuffle_v1": [{"groups": 2, "first_groups": 1}],
    "shuffle_v2": [{"split": "half", "se": 0.5, "kernel": 5}],
    "fire": [{"bypass": "complex", "norm": "bn"}],
    "ghost_bottleneck": [{"ratio": 3, "se": 0.25, "kernel": 5, "hidden": 20}],
    "fasternet": [{"partial": 1, "activation": "gelu"}],
    "starnet": [{"kernel": 3, "expansion": 1.5}],
    "universal_inverted_bottleneck": [{"first_kernel": 5, "kernel": 0, "activation": "gelu"}],
    "max_pool": [{"kernel": 2, "ceil": True}],
}
HEADS = ("global_pool", "flatten", "dropout", "linear")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Constant folding")  # of the ONNX exporter, at lrn
def test_every_block_of_the_library_is_exported(tmp_path):
    """One network with every block: at its defaults, with a stride and another width, and with options."""
    own = [name for name in blocks.known() if blocks.get(name).cls.__module__.startswith("nasspace.blocks.")]
    layers = [{"block": "conv", "out": 8}]
    for name in own:
        if name not in HEADS:
            layers += [{"block": name}, {"block": name, "out": 12, "stride": 1}]
            layers += [{"block": name, "out": 8, **options} for options in OPTIONS.get(name, [{}])]
    layers += [{"block": "max_pool", "stride": 2}, {"block": "shuffle_v2", "out": 16, "stride": 2}]
    layers += [
        {"block": "global_pool", "out": 12},
        {"block": "flatten"},
        {"block": "dropout"},
        {"block": "linear", "out": 5},
    ]
    architecture = Architecture.of(layers, input=(2, 12, 12))
    result = export(architecture, tmp_path / "all")
    assert result.ok
    assert set(FORMATS) == {"source", "onnx", "torch"}


def test_fvcore_counts_all_flops():
    assert fvcore_flops(build(tiny()).eval(), (1, 16, 16)) == cost(tiny()).flops
