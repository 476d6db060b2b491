"""Tables of spaces, networks and fronts: the recorded data is true, needs no PyTorch, and fits any width."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nasspace import cli
from nasspace.cli import listing
from nasspace.studies import study as records
from nasspace.studies.schema import PREDICTOR

RECORDED = Path(__file__).parents[1] / "recorded" / "study"
OWN = """
name: own
input: [3, 16, 16]
stages: [{depth: [1, 2], out: [8, 16], stride: 2, each: {block: [conv, shuffle_v2: {kernel: [3, 5]}]}}]
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("spaces").mkdir()
    Path("spaces/own.yaml").write_text(OWN)


@pytest.fixture
def study(restore_study):
    restore_study(Path())


@pytest.mark.slow
def test_the_recorded_data_of_shipped_spaces_and_networks_is_true():
    assert json.loads(listing.RECORDED.read_text()) == listing.computed_all(), "python -m nasspace.cli.listing"


def test_choices_among_blocks_have_their_names(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "180")
    assert cli.run(["spaces", "mixed"]) == 0
    assert "shuffle_v2, shuffle_v1, inverted_residual, sandglass, fire" in capsys.readouterr().out
    assert cli.run(["spaces", "own", "--json"]) == 0
    choices = json.loads(capsys.readouterr().out)["choices"]
    assert choices["stages.0.1.block"] == ["conv", "shuffle_v2"]
    assert choices["stages.0.1.shuffle_v2.kernel"] == [3, 5]


def test_spaces_are_listed_by_the_names_that_commands_take(capsys):
    Path("spaces/copied.yaml").write_text(Path("spaces/own.yaml").read_text())
    assert cli.run(["spaces", "--json"]) == 0
    names = [space["name"] for space in json.loads(capsys.readouterr().out)]
    assert names[:2] == ["copied", "own"]
    assert cli.run(["spaces", "copied"]) == 0


def test_a_broken_space_does_not_hide_the_others(capsys):
    Path("spaces/broken.yaml").write_text("name: broken\nstages: [\n")
    Path("spaces/folder.yaml").mkdir()
    assert cli.run(["spaces", "--json"]) == 0
    printed = capsys.readouterr()
    assert "own" in [space["name"] for space in json.loads(printed.out)]
    assert printed.err.count("not listed: ") == 2
    assert "not listed: spaces/broken.yaml:2: not valid YAML" in printed.err
    assert cli.run(["spaces", "broken"]) == 2


def test_a_users_own_space_is_cached_by_its_text(capsys):
    first = listing.space("own")
    kept = listing._cache_path(listing._key(OWN, 10, None))
    assert json.loads(kept.read_text()) == first
    kept.write_text("{}")
    assert listing.space("own") == first, "a damaged file is computed again"
    Path("spaces/own.yaml").write_text(OWN.replace("[8, 16]", "[8, 16, 24]"))
    assert listing.space("own")["size"] > first["size"]
    assert listing.space("own", classes=3)["params"] < listing.space("own")["params"]


@pytest.mark.parametrize("name", ["real", "real:front", "real:-1", "reports/real", "reports/real:x"])
def test_a_study_is_no_network_but_has_some(study, capsys, name):
    assert cli.run(["show", name]) == 2
    message = f"nas: '{name}' names a study, not a network; give STUDY:ID with an id of `nas front real`\n"
    assert capsys.readouterr().err == message


@pytest.mark.slow
def test_tables_need_no_heavy_library(study):
    """A report does: it counts its networks layer by layer, and asks Optuna for the importance of choices."""
    assert cli.run(["spaces"]) == 0  # own.yaml is computed here
    code = (
        "import sys; from nasspace import cli\n"
        "for arguments in sys.argv[1:]:\n"
        "    assert cli.run(arguments.split()) == 0, arguments\n"
        "    heavy = {'torch', 'ray', 'optuna', 'sqlalchemy', 'alembic', 'scipy', 'pandas', 'plotly', 'jinja2'}\n"
        "    assert not heavy & set(sys.modules), arguments\n"
    )
    judged = {"networks": 4, "median_error": 0.1, "error_90": 0.2, "tau": 1.0, "sentence": "as recorded"}
    records.load("real").record.set_user_attr(PREDICTOR, judged)
    verbs = ["spaces", "spaces mixed", "spaces own", "zoo", "front real", "front real --json", "front real --csv"]
    done = subprocess.run([sys.executable, "-c", code, *verbs], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_number_or_digest_is_cut_in_a_narrow_terminal(study, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    assert cli.run(["front", "real"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    words = out.split()
    assert "0.2256" in words
    assert "0.014" in words
    assert ("2be9f137b56d" in words) == (width >= 120)
    assert ("Not shown" in " ".join(words)) == (width < 120)
    assert cli.run(["zoo"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    names = {line.split()[0] for line in out.splitlines() if line.strip()}
    if width >= 60:
        assert {network["name"] for network in listing.zoo()} <= names


def test_networks_that_may_belong_to_the_front_are_named_on_standard_error(study, capsys, monkeypatch):
    from nasspace.studies.front import Front

    monkeypatch.setattr(Front, "may_belong_note", "may also belong to the front: trial 7 (30%)")
    assert cli.run(["front", "real"]) == 0
    found = capsys.readouterr()
    assert "may also belong to the front: trial 7 (30%)" in found.err
    assert "trial 7" not in found.out


def test_a_pipe_is_as_wide_as_it_needs_or_as_columns_says(study, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert cli.run(["front", "real"]) == 0
    wide = capsys.readouterr().out
    assert "2be9f137b56d" in wide
    monkeypatch.setenv("COLUMNS", "60")
    assert cli.run(["front", "real"]) == 0
    assert capsys.readouterr().out != wide
