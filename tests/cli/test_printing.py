"""Names and descriptions are printed as plain text: no markup, no control characters."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from nasspace import cli
from nasspace.cli import explaining, networks, printing
from nasspace.cli.progress import Display
from nasspace.exporting.checks import Check
from nasspace.exporting.export import Exported
from nasspace.guidelines.explanation import Explanation, LayerTime

SPACE = """\
name: small
description: {description}
input: [3, 32, 32]
stages:
  - {{depth: 1, out: [8, 16], stride: 2, block: fire}}
"""
NETWORK = {
    "nasspace": 1,
    "input": [1, 8, 8],
    "classes": 2,
    "layers": [{"block": "global_pool"}, {"block": "linear", "out": 2}],
}
TEXTS = ["[/b]", "[red]x[/red]", "run[v2]", "[link=file:///etc]x[/link]", ":bug:", "{0} {x}", "\\[b]", "a\\"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("text", TEXTS)
def test_a_table_shows_texts_as_they_are(capsys, text):
    printing.print_table([text, "b"], [(text, 1)], title=text, caption=text)
    assert capsys.readouterr().out.count(text) == 4


@pytest.mark.parametrize("text", ["a\x1b[2Jb", "\x9b31m", "\x07", "a\rb", "\x7f", "\u202ecba", "x\u200b", "caf\udce9"])
def test_control_characters_are_escaped(capsys, text):
    printing.print_table([text], [(text,)], title=text, caption=text)
    printing.print_message(text)
    found = "".join(capsys.readouterr())
    assert found.count(printing.escape(text)) == 5
    assert found.replace("\n", "").isprintable()
    found.encode()


def test_json_documents_are_printable_and_unchanged(capsys):
    texts = ["a\x1b[2Jb", "\x9b31m", "\x7f", "caf\udce9", "é 猫"]
    printing.print_json(texts)
    out = capsys.readouterr().out
    assert json.loads(out) == texts
    assert out.replace("\n", "").isprintable()
    assert "é 猫" in out


def test_a_description_with_markup_is_listed(capsys):
    Path("spaces").mkdir()
    Path("spaces/mk.yaml").write_text(SPACE.format(description='"blocks [/b] of [red]x \\e[2J"'))
    for arguments in (["spaces"], ["spaces", "mk"]):
        assert cli.run(arguments) == 0
        assert r"blocks [/b] of [red]x \x1b[2J" in " ".join(capsys.readouterr().out.split())


def test_an_error_escapes_names(capsys):
    assert cli.run(["spaces", "a\x1b[2J\udce9"]) == 2
    assert r"'a\x1b[2J\udce9' is not a space" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../../x", "/x", "..", "a\0b", "caf\udce9", "x" * 300, "a\x1b[2J"], ids=ascii)
def test_a_name_that_is_a_path_is_refused_before_anything_is_written(capsys, tmp_path, name):
    work = tmp_path / "deep" / "deeper"
    work.mkdir(parents=True)
    (work / "net.json").write_text(json.dumps({**NETWORK, "name": name}))
    (work / "space.yaml").write_text(SPACE.format(description="x").replace("small", json.dumps(name)))
    before = sorted(tmp_path.rglob("*"))
    for verb in ("show", "export", "train"):
        assert cli.run([verb, str(work / "net.json")]) == 2
        assert "net.json:1: name: the name " in capsys.readouterr().err
    for arguments in (["spaces", str(work / "space.yaml")], ["search", "--space", str(work / "space.yaml")]):
        assert cli.run(arguments) == 2
        assert "space.yaml:1: name: the name " in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_live_display_shows_texts_as_they_are():
    from rich.console import Console

    shown = Display()
    shown.report("note", text="[b] a\x1b[2J")
    shown.study, shown.trials = SimpleNamespace(name="run[v2]\x9b"), 3
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(shown.render())
    text = console.export_text()
    assert r"[b] a\x1b[2J" in text
    assert r"run[v2]\x9b" in text


def words(text):
    return [word for word in text.split() if set(word) != {"─"}]


EXPORTED = Exported(
    Path("exports/front"),
    [f"{number}/weights.safetensors" for number in range(9)],
    [
        Check("1: preprocessing.json unchanged", True, "a5fe4c17541c3db1", "a5fe4c17541c3db1"),
        Check("1: model.onnx equals PyTorch", True, 1.8459612277615735e-06, 0.0005),
        Check(
            "1: accuracy of weights.pt", None, None, None, "no data given; `nas verify FOLDER --data SPEC` judges it"
        ),
    ],
)
TIMES = [(layer, "inverted_residual", 123.4567, 0.123, 1_234_567_890, 123_456_789, 10.0) for layer in range(3)]
EXPLAINED = Explanation(12.3, 11.2, 13.4, False, 15, tuple(LayerTime(*time) for time in TIMES), ())


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize(
    ("show", "whole"),
    [
        (lambda: networks._print_checks(EXPORTED, False), {"a5fe4c17541c3db1", "preprocessing.json", "1.846e-06"}),
        (lambda: explaining._show(EXPLAINED, "net (digest 2be9f137b56d)"), {"inverted_residual", "123.4567", "1.235G"}),
    ],
    ids=["verify", "explain"],
)
def test_no_word_number_or_digest_is_broken(capsys, monkeypatch, show, whole, width):
    monkeypatch.setenv("COLUMNS", str(width))
    show()
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert whole <= set(words(out))
    monkeypatch.setenv("COLUMNS", "118")  # narrow as well: counts are rounded
    show()
    about = {"Not", "shown", "in", f"{width}", "columns:", "(--json", "has", "all)."}
    fewer = {word.rstrip(",") for word in words(out)} - about
    assert fewer <= {word.rstrip(",") for word in words(capsys.readouterr().out)}


@pytest.mark.parametrize("width", [30, 45, 60, 80, 120])
def test_columns_are_dropped_and_named_before_a_word_is_broken(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    columns = ("name", "first number", "a long description", "digest")
    row = dict(
        zip(columns, ("weights.pt", "123,456,789", "some words, none of them long", "0123456789ab"), strict=True)
    )
    printing.print_fitted(columns, [row] * 2, ("digest", "first number"), wrapped="a long description")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    table, _, _ = out.partition("Not shown")
    assert set(words(table)) <= set(" ".join([*columns, *row.values()]).split())
    assert ("0123456789ab" in out) == ("digest" not in out.partition("Not shown")[2])
    assert "weights.pt" in words(out)


def test_a_pipe_without_columns_breaks_no_lines_of_text(capsys, monkeypatch):
    text = " ".join(["word"] * 100)
    monkeypatch.delenv("COLUMNS", raising=False)
    printing.print_text(text)
    assert capsys.readouterr().out == text + "\n"
    monkeypatch.setenv("COLUMNS", "60")
    printing.print_text(text)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60


def test_a_front_without_accuracy_has_no_such_column():
    member = {"id": 3, "digest": "2be9f137b56d", "accuracy": None, "latency_ms": 0.2, "flops": 5e6, "params": 1e5}
    member |= {"latency_low_ms": 0.1, "latency_high_ms": 0.3, "memory_access": 1e5}
    table = printing.front_table([member], "the exported file", width=200)
    assert [column.header for column in table.columns][:2] == ["id", "latency ms (95 %)"]
    assert "Accuracy" not in table.caption
    table = printing.front_table([{**member, "accuracy": 0.9}], "the exported file", width=200)
    assert table.columns[1].header == "accuracy"
    assert "Accuracy is of the exported file" in table.caption
