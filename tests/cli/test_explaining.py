"""`nas explain` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nasspace import cli

ELU = {"block": "conv", "out": 32, "kernel": 1, "activation": "elu"}
NETWORK = {"nasspace": 1, "input": [3, 32, 32], "classes": 4, "layers": [ELU, ELU, {"block": "linear", "out": 4}]}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text(json.dumps(NETWORK))


def nas(capsys, *arguments):
    """Exit status, standard output, standard error."""
    status = cli.run(list(arguments))
    return status, *capsys.readouterr()


@pytest.mark.slow
def test_the_document_has_time_and_findings(capsys):
    status, out, _ = nas(capsys, "explain", "a.json", "--json", "--seconds", "0.05", "--measure")
    document = json.loads(out)
    assert status == 0
    assert [row["layer"] for row in document["time"]] == [0, 1, 2, None]
    assert sum(row["share"] for row in document["time"]) == pytest.approx(1, abs=1e-6)
    assert document["time"][1].keys() >= {"block", "ms", "flops", "memory_access", "intensity"}
    for finding in document["findings"]:
        assert finding.keys() >= {"guideline", "layer", "text", "change", "share", "saving_ms", "measured_ms"}


@pytest.mark.slow
def test_people_get_a_table_and_sentences(capsys):
    status, out, _ = nas(capsys, "explain", "a.json", "--seconds", "0.05")
    assert status == 0
    assert "memory access" in out
    assert "rest" in out
    assert "What if: " in out or "G1 to G4: no change" in out


BAD = {
    "no such network": (["explain", "shuflenet_v2_1.0"], "shufflenet_v2_1.0"),
    "no such file": (["explain", "nothing.json"], "nothing.json"),
    "no threads": (["explain", "a.json", "--threads", "0"], "--threads"),
    "an empty batch": (["explain", "a.json", "--batch-size", "0"], "--batch-size"),
    "no time": (["explain", "a.json", "--seconds", "0"], "--seconds"),
    "no resolution": (["explain", "a.json", "--resolution", "-1"], "-1"),
}


@pytest.mark.parametrize(("arguments", "named"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_message_and_exit_status_2(capsys, arguments, named):
    status, out, err = nas(capsys, *arguments)
    assert (status, out) == (2, "")
    assert named in err
    assert len(err.strip().splitlines()) == 1
