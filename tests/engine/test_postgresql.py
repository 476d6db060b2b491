"""Several processes search one study in a real PostgreSQL database; processes are killed, the server is restarted."""

from __future__ import annotations

import os
import re
import signal
import sys
import time

import pytest
import sqlalchemy

import nasspace
from nasspace import cost
from nasspace.errors import InputError
from nasspace.space.space import Space
from nasspace.studies import storage
from nasspace.studies import study as records
from nasspace.studies.dashboard import Dashboard

SPACE = (
    "input: [3, 16, 16]\nstages: [{depth: [1, 2, 3], out: [8, 16, 24], each: {block: [conv: {kernel: [1, 3]}, fire]}}]"
)


def scored(architecture):
    return {"accuracy": int(architecture.digest[:4], 16) / 2**16, "flops": cost(architecture).flops}


def search(url, evaluator=scored, **settings):
    settings = {"trials": 6, "sampler": "random", "objectives": ["accuracy", "flops"], "study": "s", **settings}
    return nasspace.search(Space.from_text(SPACE, "t.yaml"), evaluator=evaluator, storage=url, **settings)


def checked(folder, count=100):
    """Check that each network occurs once and nothing is running; return digests, front, and process IDs."""
    study = records.load(folder)
    found = [trial.user_attrs["digest"] for trial in study.frozen("COMPLETE", "PRUNED")]
    assert study.evaluated == count
    assert len(set(found)) == len(found)
    assert study.frozen("RUNNING", "WAITING") == []
    processes = {trial.user_attrs["process"]["pid"] for trial in study.frozen("COMPLETE")}
    return sorted(found), study.front_numbers(), processes


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "places"), [("random", ["here", "here"]), ("gain", ["here", "there"])])
def test_processes_share_a_study_and_evaluate_nothing_twice(database, searches, sampler, places):
    count = 60 if sampler == "random" else 16
    both = [searches.start(database, sampler, count, place) for place in places]
    assert [process.wait(timeout=500) for process in both] == [0, 0]
    seen = [checked(searches.folder / place / "reports" / "s", count) for place in places]
    assert seen[0] == seen[1]
    assert seen[0][0] == sorted(searches.log()), "no evaluation was wasted"
    assert seen[0][2] == {process.pid for process in both}
    tables = [(searches.folder / place / "reports/s/front.csv").read_text() for place in places]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_a_killed_process_loses_nothing(database, searches):
    killed = searches.start_unwaited(database, trials=40)
    searches.wait_for(1)
    left = searches.start(database, trials=40)
    searches.wait_for(12)
    os.kill(killed.pid, signal.SIGKILL)  # it remains a zombie, since nobody waits for it yet
    assert left.wait(timeout=500) == 0
    digests, _, processes = checked(searches.folder / "here/reports/s", 40)
    assert left.pid in processes
    assert set(searches.log()) <= set(digests), "the other process evaluated the trials of the killed one"
    assert searches.start(database, trials=43).wait(timeout=500) == 0
    checked(searches.folder / "here/reports/s", 43)


@pytest.mark.slow
def test_a_server_that_is_down_for_seconds_is_waited_for(server, database, searches):
    both = [searches.start(database, trials=40), searches.start(database, trials=40)]
    for count in (8, 24):
        searches.wait_for(count)
        server.stop()
        time.sleep(2)
        server.start()
    assert [process.wait(timeout=500) for process in both] == [0, 0]
    digests, *_ = checked(searches.folder / "here/reports/s", 40)
    assert set(searches.log()) <= set(digests)


@pytest.mark.slow
def test_a_server_that_stays_down_is_reported_once_and_the_study_continues(
    server, database, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(storage, "PATIENCE", 1.0)
    monkeypatch.setattr(storage, "PAUSE", 0.1)
    calls = []

    def scored_then_stopped(architecture):
        calls.append(architecture)
        if len(calls) == 3:
            server.stop()
        return scored(architecture)

    with pytest.raises(InputError, match=r"did not answer for 1 s \(.*\); once it does, run `nas resume`"):
        search(database, scored_then_stopped, trials=6)
    assert len([record for record in caplog.records if "does not answer" in record.message]) == 1
    server.start()
    assert search(database, scored_then_stopped, trials=6).evaluated == 6
    checked("s", 6)


def test_a_database_that_cannot_be_opened_is_named_with_the_remedy(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    guarded = f"postgresql://guarded:wrong@127.0.0.1:{server.port}/postgres"
    for url, message in {
        "postgresql://postgres@127.0.0.1:1/nas": "Connection refused); start it",
        server.url("nowhere"): '"nowhere" does not exist); start it, or correct',
        guarded: 'password authentication failed for user "guarded"',
        "postgresql://host:port/nas": "not the URL of a database",
        "mongodb://host/nas": "write postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
        "mysql://user:secret@host/nas": "install its driver",
    }.items():
        with pytest.raises(InputError, match=re.escape(message)) as caught:
            search(url)
        assert "--storage " + url.partition("://")[0] in str(caught.value)
        assert "wrong" not in str(caught.value)
        assert "secret" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InputError, match=r"pip install 'nasspace\[postgresql\]'"):
        search(server.url("postgres"))


def test_a_password_is_used_and_never_shown(server, database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server.run("GRANT pg_write_all_data, pg_read_all_data TO guarded")
    search(database)
    url = database.replace("postgres@", "guarded:right@")
    other = search(url, study=tmp_path / "elsewhere" / "s", trials=8)
    assert other.evaluated == 8
    assert "right" not in str(other.record.user_attrs)


def test_what_the_dashboard_shows_is_stored(database, tmp_path, monkeypatch):
    """Notes, a figure, and an intermediate value of a finished trial, which a rung records."""
    monkeypatch.chdir(tmp_path)
    study = search(database, trials=2)
    for value in (0.4, 0.5):
        study.report_rung(0, {"steps": [[8, 2, 1.0], [16, 3, 1.0]], "accuracy": value})
    loaded = records.load("s")
    assert loaded.frozen()[0].intermediate_values == {5: 0.5}
    board = Dashboard(loaded.record)
    assert board.note().startswith("A search of the space t: 2 evaluated")
    assert all(f"Network `{trial.user_attrs['digest']}`" in board.note(trial) for trial in loaded.frozen("COMPLETE"))


def test_heartbeats_are_timed_by_the_server(database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = search(database)
    trial = storage.ask(study.record)
    storage.record_heartbeat(study.record, trial._trial_id)
    assert storage.stale_trials(study.record) == set()
    backend = study.record._storage._backend
    with backend.engine.begin() as connection:  # as if it had been sent an hour ago
        connection.execute(sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = heartbeat - INTERVAL '1 hour'"))
    assert storage.stale_trials(study.record) == {trial._trial_id}
    storage.record_heartbeat(study.record, trial._trial_id)
    assert storage.stale_trials(study.record) == set()


def test_other_settings_are_refused(database, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    search(database)
    for settings, message in (({"seed": 5}, "seed"), ({"objectives": ["accuracy", "params"]}, "objectives")):
        with pytest.raises(InputError, match=message):
            search(database, study=tmp_path / "other" / "s", **settings)
    other = Space.from_text(SPACE.replace("24", "32"), "t.yaml")
    with pytest.raises(InputError, match="another space"):
        nasspace.search(other, evaluator=scored, storage=database, study=tmp_path / "third" / "s")
