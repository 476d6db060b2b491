"""`nas report --check`: whether published tables and reports still follow from their study."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from nasspace import cli, files
from nasspace.reporting import publication
from nasspace.reporting.report import write_report
from nasspace.studies import study as records

PAGES = {"report.html", "front.svg", "front.png"}  # made of the front
RECORDED = Path(__file__).parents[1] / "recorded" / "study"


@pytest.fixture(scope="module")
def published(restore_study, tmp_path_factory) -> Path:
    """The folder of a finished search on digits, with its tables and its report."""
    folder = restore_study(tmp_path_factory.mktemp("published"))
    write_report(records.write_tables(records.read(folder)))
    return folder


@pytest.fixture
def study(published, tmp_path, monkeypatch) -> Path:
    """A copy of the folder, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(published, tmp_path / "reports" / "real"))


def checked(capsys, *arguments) -> tuple[int, dict[str, dict]]:
    """The exit status of `nas report --check --json`, and its checks by the file that they are of."""
    status = cli.run(["report", *(arguments or ("real",)), "--check", "--json"])
    document = json.loads(capsys.readouterr().out)
    return status, {check["name"].split()[0]: check for check in document["checks"]}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("study.db")}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("database", [True, False])
def test_what_was_published_follows_from_its_study(study, capsys, database):
    if not database:
        (study / "study.db").unlink()
    before = contents(study)
    status, checks = checked(capsys)
    assert status == 0
    assert [name for name, check in checks.items() if check["ok"] is not True] == ([] if database else ["the"])
    assert contents(study) == before, "--check writes nothing"
    assert cli.run(["report", "real", "--check"]) == 0
    assert f"{6 if database else 5} checks ok, 0 failed" in capsys.readouterr().out


PUBLISHED = sorted(path.parent for path in Path(__file__).parents[2].glob("reports/published/*/study.yaml"))


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: folder.name)
def test_the_published_studies_of_the_repository_hold(folder, capsys):
    assert cli.run(["report", str(folder), "--check", "--json"]) == 0
    assert all(check["ok"] is not False for check in json.loads(capsys.readouterr().out)["checks"])


def test_another_name_or_place_is_no_difference(study, tmp_path, capsys):
    moved = study.rename(tmp_path / "elsewhere")
    assert checked(capsys, str(moved))[0] == 0


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("trials.csv", "\n1,", "\n2,", "line 3, id: 2"),
        ("trials.csv", "evaluated", "rejected", "line 2, state: rejected"),
        ("front.csv", "0.2256", "0.9256", "line 2, accuracy: 0.9256"),
        ("front.csv", "accuracy,", "precision,", "line 1: without accuracy; with precision"),
        ("front.csv", "\n0,", '\n"0,', "line 2, row: 0,2be9"),
        ("front.csv", "\n0,", "\n\n0,", "2 rows"),
        ("front.json", '"limits"', '"bounds"', "limits: null"),
        ("front.json", '"kernel": 3', '"kernel": 5', "front[0].architecture.layers[0].kernel: 5"),
        ("front.json", "{", "[", "not JSON"),
        ("report.html", "Pareto front", "Pareto fronts", "was changed after it was written"),
        ("report.html", "</html>", "</html>\n", "was changed after it was written"),
    ],
)
def test_a_changed_file_is_found_with_the_place(study, capsys, name, old, new, message):
    edit(study / name, old, new)
    status, checks = checked(capsys)
    assert status == 1
    assert message in str(checks[name]["value"]) or message in str(checks[name]["limit"])
    assert [each for each, check in checks.items() if not check["ok"]] == [name]


@pytest.mark.parametrize("left", [0, 100, -200])
def test_a_report_that_was_cut_off_is_found(study, capsys, left):
    page = (study / "report.html").read_bytes()
    (study / "report.html").write_bytes(page[:left])
    status, checks = checked(capsys)
    assert (status, checks["report.html"]["ok"]) == (1, False)
    assert checks["report.html"]["value"] in ("is cut off", "does not say what it was made of")


@pytest.mark.parametrize("name", ["front.svg", "front.png"])
def test_a_picture_that_was_cut_off_is_found(study, capsys, name):
    picture = (study / name).read_bytes()
    (study / name).write_bytes(picture[:-100])
    status, checks = checked(capsys)
    assert (status, checks[name]["value"]) == (1, "is cut off")


@pytest.mark.parametrize("left", [0, 1])
def test_a_front_without_members_is_found_without_the_study(study, capsys, left):
    (study / "study.db").unlink()
    lines = (study / "front.csv").read_text().splitlines(keepends=True)
    (study / "front.csv").write_text("".join(lines[:left]))
    status, checks = checked(capsys)
    assert status == 1
    assert checks["front.json"]["limit"] == "none in front.csv"
    assert checks["front.csv"]["ok"] is bool(left)


def test_a_study_of_a_later_version_needs_a_later_nasspace(study, capsys):
    edit(study / "study.yaml", "nasspace_study: 1", "nasspace_study: 2")
    assert cli.run(["report", "real"]) == 2
    assert capsys.readouterr().err.endswith("version 2; this nasspace reads version 1: update nasspace\n")


def test_a_study_that_went_on_no_longer_gives_its_report(study, capsys):
    with sqlite3.connect(study / "study.db") as connection:
        where = "WHERE key = 'deployed:0'"
        (text,) = connection.execute(f"SELECT value_json FROM study_user_attributes {where}").fetchone()
        value = json.dumps({**json.loads(text), "accuracy": 0.5})
        connection.execute(f"UPDATE study_user_attributes SET value_json = ? {where}", (value,))
    connection.close()
    status, checks = checked(capsys)
    assert status == 1
    assert checks["front.csv"]["value"].startswith("line 2, accuracy: 0.225626740947")
    assert checks["front.csv"]["limit"] == "0.5"
    assert all(checks[name]["value"].startswith("was made of another front") for name in PAGES)
    assert cli.run(["report", "real"]) == 0
    capsys.readouterr()
    assert checked(capsys)[0] == 0


@pytest.mark.parametrize(
    ("name", "old", "new", "found"),
    [
        ("trials.csv", "0.2256", "0.9256", {"front.csv", *PAGES}),
        ("front.csv", "0.2256", "0.9256", {"front.csv", "front.json", *PAGES}),
        ("front.json", "0.2256", "0.9256", {"front.json"}),
        ("front.json", '"latency_ms": 0.0', '"latency_ms": 9', {"front.json"}),
        ("front.json", '"kernel": 3', '"kernel": 5', {"front.json"}),
        ("front.json", '"front": [', '"front": [7, ', {"front.json"}),
        ("front.json", '"evaluated": ', '"evaluated": 4', {"front.json"}),
        ("front.json", '"accuracy": 0.2256', '"accuracy": null, "was": 0.2256', {"front.json"}),
        ("front.json", '"accuracy_ties": null', '"accuracy_ties": [7]', {"front.json"}),
        ("report.html", "Pareto front", "Pareto fronts", {"report.html"}),
    ],
)
def test_published_files_are_compared_with_each_other(study, capsys, name, old, new, found):
    (study / "study.db").unlink()
    edit(study / name, old, new)
    status, checks = checked(capsys)
    assert status == 1
    assert {each for each, check in checks.items() if check["ok"] is False} == found


def test_what_was_not_published_is_not_checked(study, capsys):
    for name in ("study.db", "trials.csv", "front.json"):
        (study / name).unlink()
    status, checks = checked(capsys)
    assert status == 0
    assert {name for name, check in checks.items() if check["ok"]} == PAGES
    for name in ("front.csv", *PAGES):
        (study / name).unlink()
    assert cli.run(["report", "real", "--check"]) == 2
    err = capsys.readouterr().err
    assert "holds none of trials.csv" in err
    assert "`nas report real` writes them" in err


@pytest.mark.parametrize("name", ["study.yaml", "study.db"])
def test_a_damaged_or_foreign_study_is_one_message(study, capsys, name):
    kept = (study / "study.yaml").read_text()
    before = contents(study)
    for text in ("", "text\n", kept.replace("nasspace_study: 1", "nasspace_study: 2")):
        (study / name).write_text(text)
        for arguments in (["report", "real"], ["report", "real", "--check"]):
            assert cli.run(arguments) == 2
            err = capsys.readouterr().err
            assert err.startswith("nas: ")
            assert name in err
            assert len(err.strip().splitlines()) == 1
        (study / "study.yaml").write_text(kept)
    assert contents(study) == before


@pytest.mark.parametrize("number", range(6))
def test_a_full_disk_leaves_the_old_files(study, capsys, monkeypatch, number):
    """The disk is full at one of the files; the tables change together, and so do the report and its pictures."""
    for name in publication.FILES:
        (study / name).write_text("old")
    write, written = Path.write_bytes, []

    def full(path, data):
        written.append(path)
        if len(written) > number:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert cli.run(["report", "real"]) == 2
    err = capsys.readouterr().err
    assert "cannot be written (No space left on device)" in err
    assert len(err.strip().splitlines()) == 1
    old = publication.FILES if number < 3 else PAGES
    assert all((study / name).read_text() == "old" for name in old)
    assert not [path for path in study.iterdir() if path.name.startswith(".")], "no temporary file is left"


def test_fingerprints_ignore_rounding_and_names_only(study):
    front = records.read(study).snapshot()
    found = publication.fingerprint(front)
    rows = tuple({**row, "accuracy_expected": (row["accuracy_expected"] or 0.1) * (1 + 1e-12)} for row in front.trials)
    with_null = tuple({**row, "accuracy_expected": row["accuracy_expected"] or 0.1} for row in front.trials)
    same, other = (publication.fingerprint(dataclasses.replace(front, trials=each)) for each in (rows, with_null))
    assert same == other
    assert publication.fingerprint(dataclasses.replace(front, name="x", folder=Path("y"), is_finished=False)) == found
    assert publication.fingerprint(dataclasses.replace(front, may_belong={1: 0.3})) == found
    for change in ({"members": ()}, {"trials": front.trials[:1]}, {"ended_early": "time"}, {"machine": {"cores": 9}}):
        assert publication.fingerprint(dataclasses.replace(front, **change)) != found


def test_files_are_written_together(tmp_path):
    paths = [tmp_path / "a" / "x", tmp_path / "b"]
    files.write_together(dict.fromkeys(paths, "é\udce9"))
    assert [path.read_text() for path in paths] == ["é\\udce9"] * 2
