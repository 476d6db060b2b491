"""Damaged, replaced and foreign studies are read, or refused in one message."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from nasspace import cli
from nasspace.errors import InputError
from nasspace.samplers.accuracy_belief import Prior
from nasspace.studies import study as records

RECORDED = Path(__file__).parents[1] / "recorded" / "study"  # of the version before the schema
LONGEST = 1500  # characters of a message
VALUES = [
    *(None, True, False, -1, 0, 7, 1.5, 10**30, float("inf"), float("nan"), "", "x", "1e3", "[red]x", "a" * 3000),
    *([], [1], {}, {"a": 1}, [[]]),
]


@pytest.fixture
def study(restore_study, tmp_path, monkeypatch):
    """The records of a finished search on digits, without exports."""
    monkeypatch.chdir(tmp_path)
    place = restore_study(tmp_path)
    (place / "trials.csv").write_text("id,digest\n0,a\n")
    return place


def is_one_message(capsys, verb, *arguments):
    """Check that a verb succeeds or prints one message; returns its exit status."""
    status = cli.run([verb, *arguments])
    err = capsys.readouterr().err
    assert status in (0, 2), f"{verb}: {status}: {err}"
    assert "Traceback" not in err
    if status == 2:
        assert len(err) < LONGEST
        assert err.startswith("nas: ")
    return status


def places(value, at=()):
    """Yield the keys of every part of a document."""
    yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*at, key))


def changed(document, at, rng):
    """Remove, rename, double or replace one part of a document."""
    parent = document
    for key in at[:-1]:
        parent = parent[key]
    how = rng.choice(["remove", "rename", "replace", "replace", "replace"])
    if how == "remove":
        del parent[at[-1]]
    elif how == "rename" and isinstance(parent, dict):
        parent[f"{at[-1]}_"] = parent.pop(at[-1])
    else:
        parent[at[-1]] = rng.choice(VALUES)
    return document


def changed_text(text, rng):
    """Remove, move or replace characters or a line of a text."""
    i, j = sorted(rng.randrange(len(text)) for _ in range(2))
    lines = text.splitlines(keepends=True)
    line = rng.randrange(len(lines))
    return rng.choice(
        [
            text[:i],
            text[:i] + text[j:],
            text[:i] + rng.choice("\0\x1b:-[]{}'\"&*!%\t\n#é") + text[i:],
            "".join([*lines[:line], *lines[line + 1 :]]),
            "".join([*lines[:line], lines[line], *lines[line:]]),
            "".join([*lines[:line], " " + lines[line], *lines[line + 1 :]]),
        ]
    )


def test_a_study_of_the_previous_version_opens(study):
    found = records.load("real")
    assert found.front_numbers() == [0]
    assert found.document()["front"][0]["accuracy"] == pytest.approx(0.2256, abs=1e-4)


def test_mutated_settings_open_or_are_one_message(study, capsys):
    path, rng = study / "study.yaml", random.Random(11)
    text = path.read_text()
    at = [keys for keys in places(yaml.safe_load(text)) if keys]
    refused = 0
    for case in range(180):
        if case % 4:
            document = changed(yaml.safe_load(text), rng.choice(at), rng)
            path.write_text(yaml.safe_dump(document, sort_keys=False))
        else:
            path.write_text(changed_text(text, rng))
        mutated = path.read_text()
        verb = rng.choice(["front", "front", "front", "show"])
        try:
            refused += is_one_message(capsys, verb, "real:0" if verb == "show" else "real") == 2
        except BaseException:
            Path("failed.yaml").write_text(mutated)
            raise
    assert 36 < refused < 180


COLUMNS = [
    ("trial_user_attributes", "value_json", "key"),
    ("study_user_attributes", "value_json", "key"),
    ("trial_values", "value", None),
    ("trial_params", "distribution_json", None),
    ("trial_params", "param_value", None),
    ("trials", "state", None),
    ("trials", "number", None),
    ("trials", "datetime_complete", None),
    ("studies", "study_name", None),
    ("study_directions", "direction", None),
    ("version_info", "schema_version", None),
    ("alembic_version", "version_num", None),
]
TABLES = ["trials", "studies", "trial_user_attributes", "study_user_attributes", "trial_values", "study_directions"]


def tamper(path, rng):
    """Change a value in a document, a cell, a row, a table, or bytes of a database; returns a description."""
    how = rng.choice(["document", "document", "document", "cell", "cell", "row", "table", "bytes", "cut"])
    if how in ("bytes", "cut"):
        data = bytearray(path.read_bytes())
        if how == "cut":
            del data[rng.randrange(len(data)) :]
        for _ in range(20 if how == "bytes" else 0):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        return f"{how} of the file"
    connection = sqlite3.connect(path)
    with connection:
        if how == "table":
            table = rng.choice(TABLES)
            connection.execute(rng.choice([f"DROP TABLE {table}", f"DELETE FROM {table}"]))
            description = f"table {table}"
        else:
            table, column, _ = rng.choice(COLUMNS[:2] if how == "document" else COLUMNS)
            rows = connection.execute(f"SELECT rowid, {column} FROM {table}").fetchall()
            row, value = rng.choice(rows)
            description = f"{how} of {table}.{column}, row {row}: {str(value)[:40]}"
            if how == "row":
                connection.execute(f"DELETE FROM {table} WHERE rowid = ?", (row,))
            else:
                new = rng.choice([None, "", "x", -1, 10**6, "null", "[]", "{}", '"x"', "1e999", "NaN", "{", b"\xff"])
                if how == "document":
                    document = {"": json.loads(value)}
                    at = rng.choice([keys for keys in places(document) if keys])
                    new = json.dumps(changed(document, at, rng).get(""))
                    description += f" at {at}"
                try:
                    connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (new, row))
                except sqlite3.IntegrityError:
                    description = "nothing"
    connection.close()
    return description


def test_tampered_databases_open_or_are_one_message(study, tmp_path, capsys):
    rng = random.Random(5)
    database = (study / "study.db").read_bytes()
    refused = 0
    for case in range(120):
        for part in study.glob("study.db*"):
            part.unlink()
        (study / "study.db").write_bytes(database)
        description = tamper(study / "study.db", rng)
        verbs = [("front", "real"), ("show", "real:0")]
        if case % 12 == 0:
            verbs += [("report", "real"), ("export", "real:0", "--format", "torch", "--out", f"out-{case}")]
        for verb in verbs:
            try:
                refused += is_one_message(capsys, *verb) == 2
            except BaseException:
                print(case, description)
                raise
    assert refused > 60


def outcome(function, folder):
    """What opening a study gives: its results, or the message."""
    try:
        study = function(folder)
    except InputError as error:
        return str(error)
    trials = [
        (each.number, each.state.name, repr([each.values, each.params, each.user_attrs])) for each in study.frozen()
    ]
    return [repr(study.snapshot().document()), trials]


def replace_database(path, content):
    for part in path.parent.glob("study.db*"):
        part.unlink()
    path.write_bytes(content)


@pytest.mark.slow
def test_both_readers_of_a_tampered_database_agree(study):
    path, rng = study / "study.db", random.Random(17)
    database, refused = path.read_bytes(), 0
    for case in range(90):
        replace_database(path, database)
        description = tamper(path, rng)
        damaged = path.read_bytes()
        found = outcome(records.read, study)
        replace_database(path, damaged)
        assert found == outcome(records.load, study), (case, description)
        refused += isinstance(found, str)
    assert 30 < refused < 90


def content_of(path):
    """The content of a database, whose header may change when it is opened, or the bytes of another file."""
    if not path.read_bytes().startswith(b"SQLite"):
        return path.read_bytes()
    connection = sqlite3.connect(path)
    content = list(connection.iterdump())
    connection.close()
    return content


@pytest.mark.parametrize("content", ["empty", "text", "another database", "another study"])
def test_a_foreign_file_is_never_used_as_a_new_study(study, capsys, content):
    path, table = study / "study.db", (study / "trials.csv").read_text()
    if content == "another study":
        connection = sqlite3.connect(path)
        with connection:
            connection.execute("UPDATE studies SET study_name = 'other'")
        connection.close()
    else:
        path.write_bytes(b"" if content == "empty" else b"notes\n" * 900)
    if content == "another database":
        path.unlink()
        connection = sqlite3.connect(path)
        with connection:
            connection.execute("CREATE TABLE notes (text TEXT)")
        connection.close()
    before = content_of(path)
    verbs = [("front", "real"), ("report", "real"), ("resume", "real"), ("show", "real:0"), ("export", "real:0")]
    for verb in verbs:
        assert is_one_message(capsys, *verb) == 2
    assert content_of(path) == before
    assert (study / "trials.csv").read_text() == table


def test_checking_a_database_keeps_the_locks_of_this_process(study):
    """Opening and closing the file without SQLite releases them, and another process would remove a log in use."""
    path = study / "study.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("SELECT COUNT(*) FROM trials").fetchall()
        assert records.load(study).evaluated
        other = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA user_version = 7'); c.close()"
        subprocess.run([sys.executable, "-c", other, str(path)], check=True)
        assert path.with_name("study.db-wal").exists(), "it is in use"
        assert connection.execute("PRAGMA user_version").fetchall() == [(7,)]


@pytest.mark.parametrize("left", [1, 50, 4096, 50_000, -500])
def test_a_truncated_database_is_reported(study, capsys, left):
    path = study / "study.db"
    data = path.read_bytes()
    path.write_bytes(data[:left])
    for verb in (("front", "real"), ("resume", "real"), ("export", "real:0")):
        assert cli.run([*verb]) == 2
        message = capsys.readouterr().err
        assert "study.db: the file is cut off" in message
        assert (f"{len(data[:left]):,} of {len(data):,} bytes are there" in message) == (left not in (1, 50))
        assert "; restore the file from a copy, or search again under another --study name; its exports" in message
    assert path.read_bytes() == data[:left]


def test_a_database_without_its_settings_is_not_overwritten(study, capsys):
    (study / "study.yaml").unlink()
    arguments = ["--space", "shuffle", "--study", "real", "--trials", "1"]
    assert is_one_message(capsys, "search", *arguments) == 2
    assert not (study / "study.yaml").exists()


@pytest.mark.parametrize("resolution", [8, 32])
def test_an_edited_resolution_is_refused(study, capsys, resolution):
    path = study / "study.yaml"
    settings = yaml.safe_load(path.read_text())
    assert settings["task"]["resolution"] == 16
    settings["task"]["resolution"] = settings["recipe"]["resolution"] = resolution
    path.write_text(yaml.safe_dump(settings))
    for verb in ("front", "resume", "report"):
        assert is_one_message(capsys, verb, "real") == 2
    with pytest.raises(InputError, match=rf"task\.resolution is {resolution}, .* take images of 16x16; .*write 16"):
        records.load("real")


BELIEF = asdict(Prior())
EXTREMES = [-1e300, -1e9, -20.0, 0.0, 1e-300, 1e-6, 20.0, 1e9, 1e300]


def with_belief(study, **changes):
    document = yaml.safe_load((RECORDED / "study.yaml").read_text())
    (study / "study.yaml").write_text(yaml.safe_dump({**document, "belief": {**BELIEF, **changes}}))


@pytest.mark.filterwarnings("error")
def test_a_belief_with_extreme_numbers_gives_intervals_or_is_refused(study, capsys):
    """Also with several extreme numbers at once."""
    allowed = {}
    for name, value in BELIEF.items():
        allowed[name] = [value]
        for extreme in EXTREMES:
            with_belief(study, **{name: extreme})
            if is_one_message(capsys, "front", "real") == 0:
                allowed[name].append(extreme)
        assert not {-1e300, -1e9, 1e9, 1e300}.intersection(allowed[name])
    rng = random.Random(3)
    for _ in range(40):
        with_belief(study, **{name: rng.choice(values) for name, values in allowed.items()})
        for member in records.load("real").document()["front"]:
            assert 0 <= member["accuracy_low"] <= member["accuracy_expected"] <= member["accuracy_high"] <= 1


def test_a_negative_count_is_refused(study):
    with_belief(study)
    of_values = "key = 'values' AND trial_id = 1"
    with contextlib.closing(sqlite3.connect(study / "study.db")) as database:
        (text,) = database.execute(f"SELECT value_json FROM trial_user_attributes WHERE {of_values}").fetchone()
        negative = json.dumps({**json.loads(text), "flops": -1.0})
        database.execute(f"UPDATE trial_user_attributes SET value_json = ? WHERE {of_values}", (negative,))
        database.commit()
    with pytest.raises(InputError, match=r"trial 0: -1.0 is not a number of flops; the database is damaged"):
        records.load("real")


RUNG_0 = {"resolution": 64, "epochs": 1, "seconds": 1.0, "accuracy": 0.5, "steps": [[32, 4, 1.0], [64, 1, 1.0]]}
PLAN = {"resolution": None, "epochs": 1, "share": 1.0, "count": 1, "networks": [77]}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rung:x:0", RUNG_0, "'rung:x:0' belongs to no trial"),
        ("rung:0", RUNG_0, "'rung:0' belongs to no trial"),
        ("rung:0:-1", RUNG_0, "'rung:0:-1' belongs to no trial"),
        ("rung:0:99", RUNG_0, "'rung:0:99' belongs to no trial"),
        ("rung:0:0", {**RUNG_0, "steps": [[32, 1e300, 1.0]]}, "rung:0:0: steps[0][1]: 1e+300 is not allowed"),
        ("rungs", [PLAN], "rungs: trial 77 does not exist"),
    ],
)
def test_a_damaged_rung_is_refused(study, key, value, message):
    with contextlib.closing(sqlite3.connect(study / "study.db")) as database:
        row = (key, json.dumps(value))
        database.execute("INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (1, ?, ?)", row)
        database.commit()
    with pytest.raises(InputError, match=re.escape(message)):
        records.load("real")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0", b"[1,2"])
def test_settings_that_are_no_yaml_are_refused_with_the_remedy(study, content):
    (study / "study.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"study\.yaml:1: .*; restore the file from a copy"):
        records.load("real")


def test_damaged_pages_of_a_database_are_not_blamed_on_the_disk(study, capsys):
    with (study / "study.db").open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 40_000)
    assert is_one_message(capsys, "front", "real") == 2
    with pytest.raises(InputError, match=r"malformed.*; restore the file from a copy"):
        records.load("real")


def test_an_error_names_the_line_and_the_remedy(study):
    path = study / "study.yaml"
    path.write_text(path.read_text().replace("classes: 10", "classes: ten"))
    with pytest.raises(InputError, match=r"study\.yaml:\d+: task\.classes: 'ten' is not allowed.*restore the file"):
        records.load("real")


def bound_by_permissions():
    """The start of a command that respects file permissions even if root runs the tests."""
    if not hasattr(os, "getuid"):
        pytest.skip("needs Unix file permissions")
    if os.getuid():
        return []
    if not shutil.which("setpriv"):
        pytest.skip("root ignores file permissions, and setpriv is missing")
    dropped = "-dac_override,-dac_read_search,-fowner"
    return ["setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}"]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_a_finished_study_is_read_from_a_read_only_disk(study, tmp_path, killed):
    """`killed`: a killed process left its last writes in the log."""
    begin = bound_by_permissions()
    if killed:
        leave_log(study / "study.db")
    for folder in (tmp_path / "elsewhere", tmp_path / "temporary"):
        folder.mkdir()
    for path in (study, *study.iterdir()):
        path.chmod(0o555 if path.is_dir() else 0o444)
    verbs = ["front real", "show real:0", "front real --csv"]
    verbs += ["resume real"]
    code = "import sys; from nasspace import cli; sys.exit(max(cli.run(a.split()) for a in sys.argv[1:]))"
    command = [*begin, sys.executable, "-c", code, *verbs]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    finally:
        study.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert "2be9f137b56d" in done.stdout
    left = [path.name for path in (tmp_path / "temporary").iterdir() if (path / "study.db").exists()]
    assert left == [], "the copy is removed"


def leave_log(database):
    """Finish the study in the write-ahead log alone, as a killed process leaves it."""
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA journal_mode=WAL")
    with connection:
        connection.execute("DELETE FROM study_user_attributes WHERE key = 'finished'")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with connection:
        connection.execute("INSERT INTO study_user_attributes VALUES (99, 1, 'finished', 'true')")
    kept = {name: Path(name).read_bytes() for name in (str(database), f"{database}-wal")}
    connection.close()
    for name, content in kept.items():
        Path(name).write_bytes(content)


@pytest.mark.parametrize(("free", "remedy"), [(0, "the disk is full"), (10**9, "try again, or restore")])
def test_a_full_disk_is_named_where_sqlite_cannot_even_read(study, monkeypatch, capsys, free, remedy):
    def refuse(*_, **__):
        raise sqlite3.OperationalError("disk I/O error")

    usage = shutil.disk_usage(study)
    monkeypatch.setattr(sqlite3, "connect", refuse)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    assert cli.run(["front", "real"]) == 2
    err = capsys.readouterr().err
    assert "reports/real/study.db: cannot be read" in err
    assert remedy in err
