"""Names and descriptions of strangers are printed as text: no markup, nothing that a terminal obeys."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from nasspace import cli
from nasspace.cli import printing
from nasspace.cli.progress import Display

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
def test_what_a_terminal_would_obey_is_escaped(capsys, text):
    printing.print_table([text], [(text,)], title=text, caption=text)
    printing.say(text)
    found = "".join(capsys.readouterr())
    assert found.count(printing.shown(text)) == 5
    assert found.replace("\n", "").isprintable()
    found.encode()


def test_json_documents_are_printable_and_say_the_same(capsys):
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


def test_an_error_escapes_what_it_names(capsys):
    assert cli.run(["spaces", "a\x1b[2J\udce9"]) == 2
    assert r"'a\x1b[2J\udce9' is not a space" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../../x", "/x", "..", "a\0b", "caf\udce9", "x" * 300, "a\x1b[2J"], ids=ascii)
def test_a_name_that_leads_elsewhere_is_refused_before_anything_is_written(capsys, tmp_path, name):
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
