"""Several processes in one study: simultaneous claims, dead and stale processes; SQLite behind a URL."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

import nasspace
from nasspace.engine import proposals
from nasspace.engine.proposals import Proposals
from nasspace.errors import InputError
from nasspace.space.space import Space
from nasspace.studies import heartbeat, paths, storage
from nasspace.studies import study as records
from nasspace.studies.heartbeat import Heartbeat, identity, is_dead

SPACE = (
    "input: [3, 16, 16]\nstages: [{depth: [1, 2, 3], out: [8, 16, 24], each: {block: [conv: {kernel: [1, 3]}, fire]}}]"
)
URL = "sqlite:///shared.db"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def space():
    return Space.from_text(SPACE, "t.yaml")


def scored(architecture):
    return {"accuracy": int(architecture.digest[:4], 16) / 2**16, "latency": float(len(architecture.layers))}


def search(space, place="here", **settings):
    settings = {
        "trials": 3,
        "sampler": "random",
        "evaluator": scored,
        "objectives": ["accuracy", "latency"],
        **settings,
    }
    return nasspace.search(space, study=f"{place}/s", storage=URL, **settings)


@pytest.fixture
def two(space):
    """Two processes' views of one study, and the candidates of each."""
    search(space, "one")
    search(space, "two")
    studies = [records.load(f"{place}/s") for place in ("one", "two")]
    return [(study, Proposals(study, space, "random", {}, 0)) for study in studies]


def queue(study, architecture, times=1):
    for _ in range(times):
        study.record.enqueue_trial(dict(architecture.choices))


def new(space, study):
    met = {trial.user_attrs["digest"] for trial in study.frozen("COMPLETE")}
    return next(architecture for architecture in space.enumerate() if architecture.digest not in met)


def kept(found):
    return [pair for pair in found if pair is not None and pair[0] is not None]


@pytest.mark.parametrize("first_is_done", [False, True])
def test_of_two_claims_on_one_network_one_yields_even_if_the_earlier_one_arrives_late(
    two, space, monkeypatch, first_is_done
):
    monkeypatch.setattr(proposals, "WITHDRAWAL_TIMEOUT", 0.2)
    (one, ours), (other, theirs) = two
    network = new(space, one)
    queue(one, network, 2)
    found = []

    def compete(trial):
        if not found:
            found.append(theirs.next())
            if first_is_done:
                other.finish_trial(found[0][0], "COMPLETE", [0.5, 1.0])

    found.append(ours.next(on_new_trial=compete))
    digests = [architecture.digest for _, architecture in found]
    assert found[0][0].number > min(trial.number for trial in one.frozen("FAIL")), "the later claim arrived first"
    assert digests.count(network.digest) == 1
    assert len(set(digests)) == 2


def test_a_process_waits_for_another_that_yields(two, space, monkeypatch):
    (one, ours), (other, _) = two
    network = new(space, one)
    queue(one, network, 2)
    seen = []

    def claims_and_yields(trial):
        if seen:
            return
        seen.append(storage.ask(other.record))
        seen[0].set_user_attr("digest", network.digest)

    monkeypatch.setattr(time, "sleep", lambda seconds: other.finish_trial(seen[0], "FAIL"))
    trial, architecture = ours.next(on_new_trial=claims_and_yields)
    assert architecture.digest == network.digest
    assert trial.number < seen[0].number


@pytest.mark.parametrize("queued", [False, True])
def test_of_two_processes_that_ask_for_the_last_trial_one_gets_it(two, space, queued):
    (one, ours), (_, theirs) = two
    if queued:
        queue(one, new(space, one))
    found = []

    def compete(trial):
        if not found:
            found.append(theirs.next(max_trials=4))

    found.append(ours.next(on_new_trial=compete, max_trials=4))
    assert len(kept(found)) == 1
    assert not theirs.exhausted, "it may try again"
    trial = kept(found)[0][0]
    one.finish_trial(trial, "COMPLETE", [0.5, 1.0])
    assert ours.next(max_trials=4) is None


def running(study, process=None, **attributes):
    """Create a trial that a process is working on."""
    trial = storage.ask(study.record)
    trial.suggest_categorical("x", [1, 2])
    for key, value in {heartbeat.PROCESS: process, **attributes}.items():
        if value is not None:
            trial.set_user_attr(key, value)
    return trial


class Clock:
    """A clock of `heartbeat` that the test advances; no check is skipped."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(heartbeat, "INTERVAL", 0.0)


def states(study):
    return [trial.state.name for trial in study.frozen()[3:]]


def test_trials_of_a_dead_process_are_queued_again_once(two):
    (one, _), (other, _) = two
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    there = {**identity("a"), "pid": process.pid, "began": heartbeat._start_time(process.pid)}
    trial = running(one, there, digest="d")
    assert len(Heartbeat(other).others()) == 1, "its process is alive"
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie: its parent has not collected its status
    assert is_dead(there)
    process.wait()
    assert is_dead(there)
    frozen = one.frozen("RUNNING")[0]
    assert [Heartbeat(study).others() for study in (one, other)] == [[], []]
    other.requeue(frozen)  # two processes find it at the same time
    assert states(one) == ["FAIL", "WAITING"]
    assert one.frozen("WAITING")[0].system_attrs["fixed_params"] == trial.params


def test_dead_processes_are_recognized():
    me = identity("a")
    assert is_dead(me), "no such search in this process"
    heartbeat._active_searches.add("a")
    assert not is_dead(me)
    heartbeat._active_searches.discard("a")
    assert is_dead({**me, "began": "1"}), "another process has its PID now"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert is_dead({**me, "pid": ended.pid})
    assert not is_dead({**me, "pid": ended.pid, "host": "elsewhere"})
    assert not is_dead({**me, "pid": ended.pid, "space": "another container"})
    assert not is_dead(None)


def test_a_stale_process_elsewhere_is_given_up_after_a_second_check(two, monkeypatch):
    (one, _), (other, _) = two
    trial = running(one, {**identity("a"), "host": "elsewhere"}, digest="d")
    storage.record_heartbeat(one.record, trial._trial_id)
    stale = set()
    clock = Clock(monkeypatch)
    monkeypatch.setattr(storage, "stale_trials", lambda study: stale)
    beat = Heartbeat(other)
    for found in ({trial._trial_id}, set(), {trial._trial_id}):
        stale = found
        assert len(beat.others()) == 1, "after an outage of the database its heartbeat may be delayed"
        clock.now += 1.5 * heartbeat.DOUBT
    assert beat.others() == []
    assert states(one) == ["FAIL", "WAITING"]
    with storage.unless_finished():
        trial.set_user_attr("values", {})
        raise AssertionError("its process is too late")
    assert not one.finish_trial(trial, "COMPLETE", [0.5, 1.0])


def test_a_trial_whose_process_died_before_marking_it(two, space, monkeypatch):
    (one, _), (other, _) = two
    queue(one, new(space, one))
    storage.ask(one.record)
    clock = Clock(monkeypatch)
    beat = Heartbeat(other)
    assert len(beat.others()) == 1
    clock.now += 1.5 * heartbeat.GRACE
    assert beat.others() == []
    assert states(one) == ["FAIL", "WAITING"]


def test_heartbeats_are_sent_until_a_trial_finishes(two, monkeypatch):
    (one, _), (other, _) = two
    monkeypatch.setattr(heartbeat, "BEAT", 0.05)
    beats, sent = [], threading.Semaphore(0)

    def record_heartbeat(_, trial_id):
        beats.append(trial_id)
        sent.release()

    monkeypatch.setattr(storage, "record_heartbeat", record_heartbeat)
    with Heartbeat(one) as beat:
        trial, refused = (storage.ask(one.record) for _ in range(2))
        beat.begin(trial)
        beat.begin(refused)
        one.finish_trial(refused, "FAIL")
        assert beat.others() == []
        beats.clear()
        while sent.acquire(blocking=False):
            pass
        for _ in range(3):
            assert sent.acquire(timeout=60)
        assert set(beats[1:]) == {trial._trial_id}, "the first one may have been sent already"
        assert len(Heartbeat(other).others()) == 1
    assert states(one) == ["FAIL", "FAIL"], "an interrupted process queues its trials at once"


def test_other_settings_and_another_space_are_refused(space):
    search(space)
    with pytest.raises(InputError, match="seed"):
        search(space, "there", seed=7)
    with pytest.raises(InputError, match="another space"):
        search(Space.from_text(SPACE.replace("24", "32"), "t.yaml"), "there")


def test_a_study_whose_creator_was_killed_before_its_settings_is_taken_over(space, monkeypatch):
    import optuna

    monkeypatch.setattr(records, "JOIN_TIMEOUT", 0.3)
    database = storage.connect(paths.storage_url(URL))
    optuna.create_study(study_name="s", storage=database, directions=["maximize", "minimize"])
    assert search(space).evaluated == 3


def test_a_study_of_other_software_is_refused(space, monkeypatch):
    import optuna

    monkeypatch.setattr(records, "JOIN_TIMEOUT", 0.3)
    study = optuna.create_study(study_name="s", storage=storage.connect(paths.storage_url(URL)))
    study.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(InputError, match="choose another --study"):
        search(space)


@pytest.mark.slow
def test_processes_share_a_study_in_a_sqlite_file(searches):
    url = f"sqlite:///{searches.folder / 'shared.db'}"
    both = [searches.start(url, trials=16, place=place) for place in ("here", "there")]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    studies = [records.load(searches.folder / place / "reports" / "s") for place in ("here", "there")]
    for study in studies:
        found = [trial.user_attrs["digest"] for trial in study.frozen("COMPLETE")]
        assert sorted(found) == sorted(searches.log())
        assert len(set(found)) == 16
    assert studies[0].front_numbers() == studies[1].front_numbers()
