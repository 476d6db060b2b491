"""The command line: exit status, one message per error, JSON documents; README is true."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from nasspace import cli
from nasspace.latency import benchmark

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def nas(capsys, *arguments):
    """Exit status, standard output, standard error."""
    status = cli.run(list(arguments))
    return status, *capsys.readouterr()


def verbs():
    return sorted(typer.main.get_command(cli.app).commands)


def test_every_verb_and_flag_has_help(capsys):
    for verb in verbs():
        command = typer.main.get_command(cli.app).commands[verb]
        assert command.help, verb
        missing = [p.name for p in command.params if not p.help and p.name not in ("name",)]
        assert not missing, f"{verb}: {missing}"
        assert nas(capsys, verb, "--help")[0] == 0


def test_readme_names_every_verb_and_no_other():
    named = set(re.findall(r"`nas ([a-z]+)", (ROOT / "README.md").read_text()))
    assert named - {"VERB"} == set(verbs())


@pytest.mark.parametrize("document", ["README.md", "docs/spaces.md"])
def test_spaces_in_the_documents_are_valid(capsys, document):
    text = (ROOT / document).read_text()
    Path("spaces").mkdir()
    Path("spaces/my-space.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.S)[1])
    status, out, _ = nas(capsys, "spaces", "my-space", "--json")
    assert status == 0
    assert json.loads(out)["exact"] is True


DOCUMENTS = ["README.md", *(f"docs/{name}.md" for name in ("compare", "plugins", "python", "spaces", "zoo"))]


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_in_the_documents_runs(document, own_blocks, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.S)
    assert blocks
    for code in blocks:
        exec(compile(code, document, "exec"), {})


def test_every_document_with_python_is_run():
    with_python = {path for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")] if "```python" in path.read_text()}
    assert with_python == {ROOT / document for document in DOCUMENTS}


@pytest.mark.slow
def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys, nasspace.cli; status = nasspace.cli.run(['--help']);"
        "heavy = {'torch', 'optuna', 'ray', 'pandas', 'numpy', 'plotly', 'onnx'} & set(sys.modules);"
        "assert not heavy, heavy; import time; print(time.process_time(), file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "search" in done.stdout
    assert float(done.stderr.splitlines()[-1]) < 2  # seconds of the processor: this machine may be busy


BAD = {
    "no such verb": (["serch"], "search"),
    "no such flag": (["search", "--spaec", "shuffle"], "--space"),
    "a misspelt space": (["spaces", "shufle"], "did you mean 'shuffle'"),
    "a latency without unit": (["search", "--space", "shuffle", "--latency-target", "20"], "--latency-target"),
    "a negative latency": (["search", "--space", "shuffle", "--latency-target", "-3ms"], "above 0"),
    "a misspelt objective": (["search", "--space", "shuffle", "--objectives", "acuracy"], "accuracy"),
    "a misspelt sampler": (["search", "--space", "shuffle", "--sampler", "tep"], "did you mean 'tpe'"),
    "a misspelt runtime": (["search", "--space", "shuffle", "--runtime", "onnxruntim"], "onnxruntime"),
    "a misspelt recipe": (["search", "--space", "shuffle", "--recipe", "quik"], "did you mean 'quick'"),
    "no trials": (["search", "--space", "shuffle", "--trials", "0"], "trials"),
    "no such image folder": (["search", "--space", "shuffle", "--data", "imagefolder:nowhere"], "nowhere"),
    "no such data": (["search", "--space", "shuffle", "--data", "digitz"], "digits"),
    "no such study": (["resume", "nothing"], "there is no study 'nothing'"),
    "no name of a network": (["show", ""], "an architecture needs a name"),
    "no such file": (["show", "nothing.json"], "nothing.json"),
    "no such network": (["show", "mobilnet_v2_1.0"], "mobilenet_v2_1.0"),
    "no such export": (["verify", "nowhere"], "nowhere"),
    "no export to predict with": (["predict", "nowhere", "a.png"], "nowhere"),
    "one pixel": (["train", "resnet18_cifar", "--resolution", "1"], "resolution: 1 is not a whole number of 8 or more"),
    "no batch": (["export", "mobilenet_v1_0.25", "--batch", "many"], "'many'"),
}


@pytest.mark.parametrize(("arguments", "named"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_message_and_exit_status_2(capsys, arguments, named):
    status, out, err = nas(capsys, *arguments)
    assert status == 2
    assert out == ""
    assert named in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert not Path("reports").exists(), "bad input starts nothing"


@pytest.mark.parametrize(
    "command",
    [
        "search --space mobile",
        "compare mobile fire --budget flops=1M..9G",
        "latency shufflenet_v2_0.5",
        "explain shufflenet_v2_0.5",
        "train shufflenet_v2_0.5 --resolution 32",
    ],
)
def test_more_threads_than_a_machine_can_run_are_refused(capsys, monkeypatch, command):
    monkeypatch.setattr(benchmark, "machine", lambda: {"cores": 2})
    status, _, err = nas(capsys, *command.split(), "--threads", "9")
    assert (status, err) == (2, "nas: threads: 9 are too many for a machine with 2 logical cores; give at most 8\n")


def test_json_documents(capsys):
    Path("a.json").write_text(
        '{"nasspace": 1, "input": [3, 32, 32], "classes": 10, "layers": '
        '[{"block": "conv", "out": 8}, {"block": "global_pool"}, {"block": "linear", "out": 10}]}'
    )
    status, out, err = nas(capsys, "show", "a.json", "--json")
    shown = json.loads(out)
    assert (status, err) == (0, "")
    assert shown["flops"] == 32 * 32 * 8 * 27 + 80
    assert [layer["out_shape"] for layer in shown["layers"]] == [[8, 32, 32], [8, 1, 1], [10]]
    status, out, _ = nas(capsys, "latency", "a.json", "--json", "--seconds", "0.2")
    measured = json.loads(out)
    assert status == 0
    assert measured["low_ms"] <= measured["median_ms"] <= measured["high_ms"]
    assert measured.keys() >= {"runtime", "threads", "batch_size", "rounds", "contended", "machine"}
    status, out, _ = nas(capsys, "export", "a.json", "--json", "--out", "out", "--batch", "2")
    assert status == 0
    checks = json.loads(out)["checks"]
    assert not any(check["ok"] is False for check in checks)
    nulls = {check["name"]: check["why"] for check in checks if check["ok"] is None}
    assert nulls == {f"accuracy of {name}": "never trained" for name in ("model.onnx", "model.py", "weights.pt")}
    assert not any("why" in check for check in checks if check["ok"])
    assert "runs the code in out" in nas(capsys, "verify", "out")[2]
    status, out, err = nas(capsys, "verify", "out", "--json", "--no-code")
    assert (status, err) == (0, "")
    assert len([check for check in json.loads(out)["checks"] if check["ok"] is None]) == 5
    assert "runs code from the folder" in " ".join(nas(capsys, "verify", "--help")[1].split())


@pytest.mark.slow
def test_a_search_on_real_digits_from_the_command_line(capsys):
    stage = "{depth: [1, 2], out: [8, 16], stride: 2, block: [inverted_residual, shuffle_v2]}"
    Path("few.yaml").write_text(f"name: few\ninput: [3, 32, 32]\nstages: [{stage}]\n")
    arguments = ["--space", "few.yaml", "--latency-target", "50ms", "--resolution", "16", "--trials", "2"]
    arguments += ["--study", "d"]
    recipe = "trials: 2\nfidelity: {resolution: 16, epochs: 1, share: 0.2}\n"
    Path("tiny.yaml").write_text(recipe)
    status, out, err = nas(capsys, "search", *arguments, "--recipe", "tiny.yaml", "--json")
    assert status == 0, err
    document = json.loads(out)
    assert document["evaluated"] == 2
    for member in document["front"]:
        assert 0 <= member["accuracy"] <= 1
        assert member["latency_again_high_ms"] <= 50
        assert {path.name for path in Path(f"reports/d/exports/{member['id']}").iterdir()} >= {
            "architecture.json", "model.py", "weights.pt", "weights.safetensors", "model.onnx",
        }  # fmt: skip
    assert "://" not in re.sub(r"<script.*?</script>", "", Path("reports/d/report.html").read_text(), flags=re.S)
    again = nas(capsys, "resume", "d", "--json")
    assert again[0] == 0
    assert json.loads(again[1]) == document, "a finished study is printed unchanged"
    number = document["front"][0]["id"]
    status, out, err = nas(capsys, "export", f"d:{number}", "--out", "mine", "--json")
    assert status == 0, err
    assert nas(capsys, "front", "d", "--csv")[1].startswith("id,digest,accuracy")
    status, _, err = nas(capsys, "search", "--space", "mobile", "--study", "d")
    assert status == 2
    assert "another space" in err


def test_the_default_folder_of_an_export_is_not_overwritten_by_another_network(capsys):
    text = (
        '{"nasspace": 1, "name": "mine", "input": [3, 16, 16], "classes": 10, "layers": '
        '[{"block": "conv", "out": 8}, {"block": "global_pool"}, {"block": "linear", "out": 10}]}'
    )
    Path("a.json").write_text(text)
    export = ["export", "a.json", "--format", "torch", "--json"]
    folder = Path("exports/mine")
    assert nas(capsys, *export)[0] == nas(capsys, *export)[0] == 0
    (folder / "__pycache__").mkdir()
    assert nas(capsys, *export)[0] == 0
    weights = (folder / "weights.safetensors").read_bytes()

    def refused(why, *flags):
        status, out, err = nas(capsys, *export, *flags)
        assert (status, out, len(err.splitlines())) == (2, "", 1)
        assert f"exports/mine: {why}" in err
        assert "--out names another folder, --force writes over" in err
        assert (folder / "weights.safetensors").read_bytes() == weights

    refused("holds an export of this network with other weights", "--seed", "1")
    Path("a.json").write_text(text.replace('"out": 8', '"out": 12'))
    refused("holds the export of another network (digest ")
    Path("a.json").write_text(text)
    (folder / "notes.txt").write_text("mine")
    refused("holds files that do not belong to an export (notes.txt)")
    (folder / "notes.txt").unlink()
    (folder / "training.json").write_text("{}")
    refused("holds the result of a full training (training.json)")
    assert nas(capsys, *export, "--seed", "1", "--force")[0] == 0
    assert (folder / "weights.safetensors").read_bytes() != weights
    assert not (folder / "training.json").exists()
    assert nas(capsys, *export, "--out", str(folder))[0] == 0, "a folder given by --out is overwritten"
    assert (folder / "weights.safetensors").read_bytes() == weights
