"""The front's networks are explained once, on the machine of the search, and the report shows what was found."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from nasspace import cli
from nasspace.engine import explaining
from nasspace.errors import InputError
from nasspace.guidelines.explanation import Explanation, Finding
from nasspace.studies import study as records

FINDING = Finding("G4", "relu", 2, (2, 5), "two ReLUs", "leave <them> out", 0.2, 0.125, 0.01)


@pytest.fixture
def study(restore_study, tmp_path, monkeypatch):
    """A finished search on digits, with a front of one network; its latencies are taken for this machine's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(explaining, "is_same_machine", lambda one, other: True)
    return restore_study(tmp_path)


@pytest.fixture
def explained(monkeypatch):
    """The networks that are explained, with a finding; the first time it fails, the second time the machine is busy."""
    found = []

    def explain(architecture, *, threads, batch_size, fresh):
        assert fresh
        found.append(architecture.name)
        if len(found) == 1:
            raise InputError("outputs differ")
        is_busy = len(found) == 2
        return Explanation(1.0, 0.9, 1.1, is_busy, 5, (), (FINDING,), threads, batch_size)

    monkeypatch.setattr(explaining, "explain", explain)
    return found


def test_findings_are_kept_and_shown(study, explained, capsys):
    said = []
    for _ in range(4):
        assert cli.run(["report", "real", "--explain"]) == 0
        said.append(capsys.readouterr().err)
    assert explained == 3 * ["real-0"], "it is not measured again"
    assert "trial 0 cannot be explained: outputs differ" in said[0]
    assert "trial 0: the machine was busy" in said[1]
    assert "were explained before" in said[3]
    member = records.read("real").snapshot().members[0]
    assert [finding["guideline"] for finding in member.explained["findings"]] == ["G4"]
    page = (study / "report.html").read_text()
    assert "leave &lt;them&gt; out" in page
    assert "0.125 ± 0.0100" in page
    assert "took 1.00 ms (0.900 to 1.10) then" in page
    assert cli.run(["report", "real", "--check"]) == 0


def test_a_search_on_another_machine_or_runtime_is_refused(study, explained, monkeypatch, capsys):
    monkeypatch.setattr(explaining, "is_same_machine", lambda one, other: False)
    assert cli.run(["report", "real", "--explain"]) == 2
    assert "real measured on another machine" in capsys.readouterr().err
    path = study / "study.yaml"
    path.write_text(path.read_text().replace("runtime: onnxruntime", "runtime: eager"))
    assert cli.run(["report", "real", "--explain"]) == 2
    assert "real measured with eager on local; only searches with onnxruntime" in capsys.readouterr().err
    assert cli.run(["report", "real", "--explain", "--check"]) == 2
    assert "give one" in capsys.readouterr().err
    assert explained == []


def test_an_interrupt_keeps_what_is_measured(study, explained, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(explaining, "explain", interrupted)
    assert cli.run(["report", "real", "--explain"]) == 130
    assert "what is measured is kept and in the report; run the same command" in capsys.readouterr().err
    assert (study / "report.html").is_file()
    assert records.read("real").explained() == set()


def test_damaged_findings_are_one_message(study, explained, capsys):
    for _ in range(2):
        assert cli.run(["report", "real", "--explain"]) == 0
    change = "UPDATE study_user_attributes SET value_json = replace(value_json, '\"G4\"', '4') WHERE key = ?"
    with contextlib.closing(sqlite3.connect(study / "study.db")) as connection, connection:
        connection.execute(change, ["explained:0"])
    capsys.readouterr()
    assert cli.run(["report", "real"]) == 2
    assert "explained:0: findings[0].guideline: 4 is not allowed" in capsys.readouterr().err
