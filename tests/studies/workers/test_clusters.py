"""Searches on real clusters: the same as without, with workers, nodes and drivers lost in the middle."""

from __future__ import annotations

import os
import platform
import signal
import socket
import time
from pathlib import Path

import pytest

from nasspace.errors import InputError
from nasspace.studies import study as records
from nasspace.studies.workers import address
from nasspace.studies.workers.trainable import travelling

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::Warning")]  # Ray's own


def digests(folder: Path, name: str) -> list[str]:
    study = records.load(folder / "reports" / name)
    return [trial.user_attrs["digest"] for trial in study.frozen("COMPLETE", "PRUNED")]


def front(folder: Path, name: str) -> list[tuple]:
    study = records.load(folder / "reports" / name)
    return [(row.digest, row.accuracy, row.latency_ms, row.flops) for row in study.front().itertuples()]


def test_one_worker_gives_the_study_that_is_had_without_ray(searches, clusters):
    address = clusters({"num_cpus": 1}).address
    done = searches.run(
        "search(study='here', sampler='gain')\n"
        f"search(study='there', sampler='gain', ray='{address}')\n"
        "search(study='two', workers=2)\n"
    )
    assert done.returncode == 0, done.stderr
    assert digests(searches.folder, "there") == digests(searches.folder, "here")
    assert front(searches.folder, "there") == front(searches.folder, "here")
    two = digests(searches.folder, "two")
    assert len(two) == len(set(two)) == 10


def test_a_node_that_is_lost_takes_nothing_with_it(searches, clusters):
    cluster = clusters({"num_cpus": 1})
    node = cluster.add_node(num_cpus=1)
    process = searches.start(f"SLEEP = 1.0\nsearch(study='s', ray='{cluster.address}', workers=2, trials=12)")
    searches.wait_for(5)
    assert len({node for _, _, node in searches.log()}) == 2, "both nodes are at work"
    cluster.remove_node(node, allow_graceful=False)
    _, said = process.communicate(timeout=180)
    assert process.returncode == 0, said
    finished = digests(searches.folder, "s")
    assert len(finished) == len(set(finished)) == 12
    begun = [digest for digest, _, _ in searches.log()]
    assert len(begun) > 12, "what the node worked on was begun again"


def test_a_worker_that_is_killed_is_made_up_for(searches):
    killing = (
        "def killed(architecture):\n"
        "    marks = FOLDER / f'{architecture.digest}.killed'\n"
        "    if architecture.digest[0] in '01234567' and not marks.exists():\n"
        "        marks.touch()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return evaluated(architecture)\n"
    )
    done = searches.run(killing + "search(study='s', workers=2, evaluator=killed)", timeout=180)
    assert done.returncode == 0, done.stderr
    finished = digests(searches.folder, "s")
    assert len(finished) == len(set(finished)) == 10
    assert list(searches.folder.glob("*.killed")), "none was killed"


def test_a_driver_that_is_killed_is_taken_up(searches, clusters):
    address = clusters({"num_cpus": 2}).address
    code = f"search(study='s', ray='{address}', workers=2, trials=12)"
    for count in (3, 7):
        process = searches.start(code)
        searches.wait_for(count)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = searches.run(code)
    assert done.returncode == 0, done.stderr
    finished = digests(searches.folder, "s")
    assert len(finished) == len(set(finished)) == 12


def test_an_interrupted_search_with_workers_goes_on(searches):
    code = "search(study='s', workers=2, trials=8)"
    process = searches.start(code)
    searches.wait_for(3)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in said
    assert process.returncode != 0
    assert searches.run(code).returncode == 0
    finished = digests(searches.folder, "s")
    assert len(finished) == len(set(finished)) == 8


def test_no_candidate_is_evaluated_on_a_node_that_measures(searches, clusters):
    cluster = clusters({"num_cpus": 1, "resources": {"latency": 1}}, {"num_cpus": 1})
    done = searches.run(f"search(study='s', ray='{cluster.address}', workers=2, trials=6)")
    assert done.returncode == 0, done.stderr
    assert {node for _, _, node in searches.log()} == {cluster.list_all_nodes()[1].node_id}


def test_a_gpu_is_shared_by_fraction(searches, clusters):
    """A node that only says it has a GPU: how Ray shares it out is what is looked at."""
    address = clusters({"num_cpus": 4, "num_gpus": 1}).address
    done = searches.run(f"SLEEP = 1.0\nsearch(study='s', ray='{address}', workers=4, gpus=0.5, trials=6)")
    assert done.returncode == 0, done.stderr
    assert len({process for _, process, _ in searches.log()}) == 2, "two halves, though there are four cores"
    refused = searches.run(f"search(study='t', ray='{address}', workers=2, gpus=2)")
    assert "no node of the Ray cluster has 1 CPU and 2 GPU" in refused.stderr


def test_latency_is_taken_on_the_node_that_measures(searches, clusters, monkeypatch):
    """A real search with training; each node has a cache of its own."""
    measuring = {"NASSPACE_CACHE": str(searches.folder / "measuring")}
    cluster = clusters({"num_cpus": 1}, {"num_cpus": 1, "resources": {"latency": 1}, "env_vars": measuring})
    (searches.folder / "short.yaml").write_text("{trials: 2, fidelity: {resolution: 8, epochs: 1}, sampler: random}")
    done = searches.run(
        f"study = nasspace.search('shuffle', recipe='short.yaml', ray='{cluster.address}', resolution=32,"
        " study='s', storage_path='kept')\n"
        "cached = nasspace.latency.cache.LatencyCache(FOLDER / 'measuring' / 'latency.db')\n"
        "assert len(cached._do('SELECT * FROM latency_2', ())) >= 2\n"
    )
    assert done.returncode == 0, done.stderr
    study = records.load(searches.folder / "reports" / "s")
    for trial in study.frozen("COMPLETE"):
        assert trial.user_attrs["latency_host"] == platform.node()
        assert trial.user_attrs["latency_interval"]["machine"] == study.latency_machine()
    for store, numbers in (("weights/deployed", study.deployed()), ("weights", range(2))):
        kept = {path.name for path in (searches.folder / "kept").glob(f"s-*/{store}/*.safetensors")}
        assert kept == {f"{number}.safetensors" for number in numbers}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("ray='127.0.0.1:1'", "127.0.0.1:1: nothing answers there"),
        ("ray='ray://127.0.0.1:10001'", "on a node of its cluster"),
        ("ray='somewhere'", "not an address; write HOST:PORT"),
        ("ray='auto'", "no cluster runs on this machine"),
        ("workers=2, storage_path='/proc/nowhere'", "/proc/nowhere: it cannot be written"),
        ("workers=2, storage_path='nothing://bucket'", "nothing://bucket: it cannot be written"),
    ],
)
def test_what_cannot_be_is_told_in_one_sentence(asked, says, searches, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(searches.folder))  # other clusters of this machine are not looked up
    began = time.monotonic()
    done = searches.run(f"search(study='s', {asked})")
    assert done.returncode != 0
    assert "nasspace.errors.InputError" in done.stderr
    assert says in done.stderr
    assert time.monotonic() - began < 30


def test_a_cluster_of_another_version_is_told(searches, clusters):
    address = clusters({"num_cpus": 1}).address
    done = searches.run(f"import ray\nray.__version__ = '2.59.0'\nsearch(study='s', ray='{address}')")
    assert "InputError" in done.stderr
    assert "other versions" in done.stderr
    assert "2.59.0" in done.stderr


def test_what_the_evaluator_raises_is_raised_here(searches):
    done = searches.run("search(study='s', workers=2, evaluator=lambda architecture: {'accuracy': 7.0})")
    assert "InputError: the evaluator's 'accuracy' is 7.0" in done.stderr


def test_an_error_that_cannot_travel_says_what_it_is():
    class Odd(Exception):
        def __init__(self, one, other):
            super().__init__(f"{one} {other}")

    found = travelling(Odd("out of", "luck"))
    assert str(found) == "Odd: out of luck"
    assert type(travelling(KeyError("x"))) is KeyError


def test_something_else_that_answers_is_no_cluster(monkeypatch):
    """A server that takes connections and says nothing."""
    monkeypatch.setattr(address, "TRIED", 3.0)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(InputError, match="no Ray cluster can be used"),
    ):
        address.reached(f"127.0.0.1:{server.getsockname()[1]}")


def failures_of(folder, name):
    os.chdir(folder)
    study = records.load(name)
    found = [study.failure(trial.number) for trial in study.frozen("FAIL")]
    return study, [failure for failure in found if failure]


def test_a_trial_that_never_returns_is_stopped(searches, monkeypatch):
    monkeypatch.chdir(searches.folder)
    hanging = (
        "def hanging(architecture):\n"
        "    while architecture.digest[0] in '01234':\n"
        "        pass\n"
        "    return evaluated(architecture)\n"
    )
    asked = "study='s', trials=6, trial_timeout='8s', evaluator=hanging"
    done = searches.run(f"{hanging}search({asked})", timeout=300)
    assert done.returncode == 0, done.stderr
    study, failed = failures_of(searches.folder, "s")
    assert study.evaluated == 6
    assert failed, "the seed gives some of them"
    assert {failure["failure"] for failure in failed} == {"failed: it took more than 8 s (--trial-timeout)"}
    assert "hanging" in failed[0]["traceback"]


def test_a_block_that_kills_its_process_is_tried_a_few_times(searches, monkeypatch):
    monkeypatch.chdir(searches.folder)
    killing = (
        "def killing(architecture):\n"
        "    if architecture.digest[0] in '01234':\n"
        "        (FOLDER / f'{architecture.digest}.{os.getpid()}').touch()\n"
        "        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    return evaluated(architecture)\n"
    )
    done = searches.run(f"{killing}search(study='s', trials=6, workers=2, retries=1, evaluator=killing)", timeout=300)
    assert done.returncode == 0, done.stderr
    study, failed = failures_of(searches.folder, "s")
    assert study.evaluated == 6
    assert failed, "the seed gives some of them"
    for failure in failed:
        assert failure["failure"] == "failed: its process died 2 times (such as by a signal)"
        assert len(list(searches.folder.glob(f"{failure['digest']}.*"))) == 2
