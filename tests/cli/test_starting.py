"""`nas init`: the folder that it writes works as its README says, and nothing is overwritten."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest
import typer

from nasspace import cli, files
from nasspace.cli import starting
from nasspace.studies import recipe as recipes

FILES = ["README.md", "search/my-recipe.yaml", "spaces/my-space.yaml"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def written(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def commands():
    """The commands of the README, as arguments of `nas`."""
    blocks = re.findall(r"```sh\n(.*?)```", Path("README.md").read_text(), re.S)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert {line[0] for line in lines} == {"nas"}
    return [line[1:] for line in lines]


@pytest.mark.parametrize("arguments", [[], ["new/folder"]])
def test_a_working_folder_is_written(capsys, arguments):
    assert cli.run(["init", *arguments]) == 0
    captured = capsys.readouterr()
    assert written(*(arguments or ["."])) == FILES
    assert all(name in captured.out for name in FILES)
    assert "nas spaces my-space" in captured.err


def test_a_line_break_in_the_name_of_the_folder_is_escaped(capsys):
    assert cli.run(["init", "a\nb"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "a\\nb: spaces/my-space.yaml, search/my-recipe.yaml, README.md\n"
    assert captured.err.startswith("next: read a\\nb/README.md, or run")


def test_the_document(capsys):
    assert cli.run(["init", "a", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {**document, "files": sorted(document["files"])} == {
        "folder": "a",
        "files": FILES,
        "space": "my-space",
        "recipe": "my-recipe",
    }


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_overwritten(capsys, name):
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).symlink_to("nowhere")
    assert cli.run(["init"]) == 2
    assert f"has {name} already" in capsys.readouterr().err
    assert not written(".")
    assert os.readlink(name) == "nowhere"


@pytest.mark.parametrize(("folder", "name"), [("file", "file/spaces"), ("half", "half/search")])
def test_a_folder_that_cannot_be_written_is_one_message_and_stays_as_it_was(capsys, folder, name):
    Path("file").write_text("")
    Path("half").mkdir()
    Path("half/search").write_text("")
    assert cli.run(["init", folder]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"nas: {name}")
    assert "choose another folder" in " ".join(message.split())
    assert written(".") == ["file", "half/search"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(capsys):
    Path("locked").mkdir(mode=0o555)
    assert cli.run(["init", "locked"]) == 2
    assert "Permission denied" in capsys.readouterr().err


def test_the_copies_are_the_shipped_files_under_new_names():
    assert cli.run(["init"]) == 0
    for kind, (shipped, name) in starting.COPIED.items():
        copy = files.load_yaml(files.find(kind, name)).value
        assert copy == {**files.load_yaml(files.find(kind, shipped)).value, "name": name}


def test_the_optional_settings_of_the_recipe_are_valid():
    plain = re.sub("^# (?=[a-z_]+:)", "", starting.OPTIONAL, flags=re.M)
    Path("all.yaml").write_text(plain)
    found = recipes.load("all.yaml")
    assert found.limits.given() == {"latency": 20.0, "flops": 150e6}
    assert found.runtime == recipes.Recipe().runtime
    assert found.full == recipes.Full()


@pytest.mark.slow
def test_the_commands_of_the_readme_work(capsys):
    assert cli.run(["init"]) == 0
    path = Path("search/my-recipe.yaml")
    path.write_text(path.read_text().replace("epochs: 4", "epochs: 1").replace("trials: 8", "trials: 1"))
    verbs = typer.main.get_command(cli.app).commands
    spaces, search, front, *others = commands()
    for arguments in (spaces, search, front):
        assert cli.run(arguments) == 0, capsys.readouterr().err
    assert "first: 1 evaluated, 0 rejected" in capsys.readouterr().out
    assert Path("reports/first/report.html").is_file()
    assert len(list(Path("reports/first/exports").iterdir())) == 1
    for verb, *arguments in others:
        verbs[verb].make_context(verb, arguments)  # raises if a flag does not exist
