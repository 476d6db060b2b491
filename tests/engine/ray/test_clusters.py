"""Searches on real clusters give the same results as without Ray, even if workers, nodes, and drivers are killed."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import socket
from pathlib import Path

import pytest

from nasspace.engine.ray import address
from nasspace.engine.ray.actors import serializable
from nasspace.errors import InputError
from nasspace.studies import study as records
from nasspace.studies.objectives import COUNTED

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::Warning")]  # raised by Ray


def digests(folder: Path, name: str) -> list[str]:
    study = records.load(folder / "reports" / name)
    return [trial.user_attrs["digest"] for trial in study.frozen("COMPLETE", "PRUNED")]


def front(folder: Path, name: str) -> list[tuple]:
    study = records.load(folder / "reports" / name)
    return [(row.digest, row.accuracy, row.latency_ms, row.flops) for row in study.front().itertuples()]


def test_one_worker_gives_the_same_study_as_without_ray(searches, one_node):
    done = searches.run(
        f"search(study='here', sampler='gain')\nsearch(study='there', sampler='gain', ray='{one_node.address}')\n"
    )
    assert done.returncode == 0, done.stderr
    assert digests(searches.folder, "there") == digests(searches.folder, "here")
    assert front(searches.folder, "there") == front(searches.folder, "here")


def test_a_dead_node_loses_no_trial_and_the_measuring_node_evaluates_nothing(searches, two_nodes):
    """The measuring node always has a free core."""
    node = two_nodes.add_node(num_cpus=1)
    hold = searches.folder / "hold"
    hold.touch()
    process = searches.start(f"search(study='s', ray='{two_nodes.address}', workers=2, trials=8)")
    searches.wait_until(lambda log: len({node for _, _, node in log}) == 2, "both nodes are working")
    two_nodes.remove_node(node, allow_graceful=False)
    for _, pid, where in searches.log():  # a worker that outlives its node could still finish the trial
        with contextlib.suppress(ProcessLookupError):
            if where == node.node_id:
                os.kill(int(pid), signal.SIGKILL)
    hold.unlink()
    _, output = process.communicate(timeout=500)
    assert process.returncode == 0, output
    finished = digests(searches.folder, "s")
    assert len(finished) == len(set(finished)) == 8
    evaluated = [digest for digest, _, _ in searches.log()]
    assert len(evaluated) == 9, "the trial of the dead node was restarted"
    assert {where for _, _, where in searches.log()} == {two_nodes.head_node.node_id, node.node_id}


def test_a_search_whose_driver_was_killed_continues(searches, one_node):
    process = searches.start(f"search(study='s', ray='{one_node.address}', workers=2, trials=8)")
    searches.wait_for(4)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = digests(searches.folder, "s")
    done = searches.run("search(study='s', trials=8)")
    assert done.returncode == 0, done.stderr
    finished = digests(searches.folder, "s")
    assert len(finished) == len(set(finished)) == 8
    assert set(kept) <= set(finished)


def test_a_gpu_is_shared_by_fraction(searches, one_node):
    code = f"search(study='s', ray='{one_node.address}', workers=4, gpus=0.5, trials=6)"
    hold = searches.folder / "hold"
    hold.touch()
    process = searches.start(f"{code}\nsearch(study='t', ray='{one_node.address}', workers=2, gpus=2)")
    searches.wait_for(2)
    hold.unlink()
    _, output = process.communicate(timeout=500)
    assert len({process for _, process, _ in searches.log()}) == 2, "two halves of a GPU, although there are four cores"
    found = digests(searches.folder, "s")
    assert len(found) == len(set(found)) == 6
    assert "no node of the Ray cluster has 1 CPU and 2 GPU" in output


def test_latency_is_measured_on_the_measuring_node(searches, two_nodes, monkeypatch):
    """A real search with training."""
    (searches.folder / "short.yaml").write_text("{trials: 2, fidelity: {resolution: 8, epochs: 1}, sampler: random}")
    done = searches.run(
        "space = nasspace.Space.from_text(SPACE, 'little.yaml')\n"
        f"study = nasspace.search(space, recipe='short.yaml', ray='{two_nodes.address}', resolution=16,"
        " study='s', storage_path='kept')\n"
        f"cached = nasspace.latency.cache.LatencyCache(Path('{two_nodes.cache}') / 'latency.db')\n"
        "assert len(cached._execute('SELECT * FROM latency_2', ())) >= 2\n"
    )
    assert done.returncode == 0, done.stderr
    study = records.load(searches.folder / "reports" / "s")
    for trial in study.frozen("COMPLETE"):
        assert trial.user_attrs["latency_host"] == platform.node()
        assert trial.user_attrs["latency_interval"]["machine"] == study.latency_machine()
    for store, numbers in (("weights/deployed", study.deployed()), ("weights", range(2))):
        kept = {path.name for path in (searches.folder / "kept").glob(f"s-*/{store}/*.safetensors")}
        assert kept == {f"{number}.safetensors" for number in numbers}


def test_invalid_settings_are_one_message(searches, one_node):
    expected = {
        "ray='127.0.0.1:1'": "127.0.0.1:1: nothing answers there",
        "ray='ray://127.0.0.1:10001'": "on a node of its cluster",
        "ray='somewhere'": "not an address; write HOST:PORT",
        "workers=2, storage_path='/proc/nowhere'": "/proc/nowhere: it cannot be written",
        "workers=2, storage_path='nothing://bucket'": "nothing://bucket: it cannot be written",
        f"ray='{one_node.address}'": "other versions",
    }
    lines = [f"import ray\nray.__version__ = '2.59.0'\nsettings = {list(expected)}\n"]
    lines.append("for i, text in enumerate(settings):\n    try:\n        eval(f'search(study=\"s{i}\", {text})')\n")
    lines.append(
        "    except nasspace.errors.InputError as error:\n        print('refused', i, error, file=sys.stderr)\n"
    )
    done = searches.run("".join(lines))
    refused = {line.split(" ", 2)[1]: line for line in done.stderr.splitlines() if line.startswith("refused ")}
    for i, (settings, message) in enumerate(expected.items()):
        assert message in refused[str(i)], settings
    assert "2.59.0" in refused[str(len(expected) - 1)]


def test_a_machine_without_a_cluster_is_reported():
    message = str(address.connection_error("auto", "Could not find any running Ray instance."))
    assert message == "--ray auto: no cluster runs on this machine; start one with `ray start --head`"


def test_an_error_of_the_evaluator_is_raised_in_the_driver(searches, one_node):
    settings = f"study='s', workers=2, ray='{one_node.address}'"
    done = searches.run(f"search({settings}, evaluator=lambda architecture: {{'accuracy': 7.0}})")
    assert "InputError: the evaluator's 'accuracy' is 7.0" in done.stderr


def test_an_error_that_cannot_be_serialized_keeps_its_text():
    class Odd(Exception):
        def __init__(self, one, other):
            super().__init__(f"{one} {other}")

    found = serializable(Odd("out of", "luck"))
    assert str(found) == "Odd: out of luck"
    assert type(serializable(KeyError("x"))) is KeyError


def test_another_server_is_not_taken_for_a_cluster(monkeypatch):
    """The server accepts connections and sends nothing."""
    monkeypatch.setattr(address, "CONNECT_TIMEOUT", 0.5)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(InputError, match="no Ray cluster can be used"),
    ):
        address.connection_environment(f"127.0.0.1:{server.getsockname()[1]}")


def failures_of(folder, name):
    os.chdir(folder)
    study = records.load(name)
    found = [study.failure(trial.number) for trial in study.frozen("FAIL")]
    return study, [failure for failure in found if failure]


def test_a_trial_that_never_returns_is_stopped(searches, one_node, monkeypatch):
    monkeypatch.chdir(searches.folder)
    hanging = (
        "def hanging(architecture):\n"
        "    if not (FOLDER / 'hung').exists():\n"
        "        (FOLDER / 'hung').touch()\n"
        "        while True:\n"
        "            pass\n"
        f"    return {dict.fromkeys(['accuracy', 'latency', *COUNTED], 0.5)}  # in no time, also on a busy machine\n"
    )
    settings = f"study='s', trials=2, ray='{one_node.address}', trial_timeout='10s', evaluator=hanging"
    done = searches.run(f"{hanging}search({settings})")
    assert done.returncode == 0, done.stderr
    study, failed = failures_of(searches.folder, "s")
    assert study.evaluated == 2
    assert [failure["failure"] for failure in failed] == ["failed: it took more than 10 s (--trial-timeout)"]
    assert "hanging" in failed[0]["traceback"]


def test_a_candidate_whose_process_dies_is_retried(searches, one_node, monkeypatch):
    """One candidate dies on every attempt, another only once."""
    monkeypatch.chdir(searches.folder)
    killing = (
        "def role(digest):\n"
        "    for name in ('always', 'once'):\n"
        "        try:\n"
        "            return os.symlink(digest, FOLDER / name) or name\n"
        "        except FileExistsError:\n"
        "            if os.readlink(FOLDER / name) == digest:\n"
        "                return name\n"
        "def killing(architecture):\n"
        "    found, before = role(architecture.digest), list(FOLDER.glob(f'{architecture.digest}.*'))\n"
        "    if found == 'always' or (found == 'once' and not before):\n"
        "        (FOLDER / f'{architecture.digest}.{os.getpid()}').touch()\n"
        "        os.kill(os.getpid(), signal.SIGSEGV if found == 'always' else signal.SIGKILL)\n"
        "    return evaluated(architecture)\n"
    )
    settings = f"study='s', trials=6, workers=2, retries=1, ray='{one_node.address}', evaluator=killing"
    done = searches.run(f"{killing}search({settings})")
    assert done.returncode == 0, done.stderr
    study, failed = failures_of(searches.folder, "s")
    always, once = (os.readlink(searches.folder / name) for name in ("always", "once"))
    assert [failure["digest"] for failure in failed] == [always]
    assert failed[0]["failure"] == "failed: its process died 2 times (such as by a signal)"
    assert len(list(searches.folder.glob(f"{always}.*"))) == 2
    assert len(list(searches.folder.glob(f"{once}.*"))) == 1
    finished = digests(searches.folder, "s")
    assert once in finished
    assert len(finished) == len(set(finished)) == study.evaluated == 6


@pytest.mark.slow
def test_networks_climb_a_rung_on_the_cluster_as_they_do_here(searches, one_node):
    """The weights of the search are on this node only; the trainings give the same accuracies on any."""
    done = searches.run(
        "import shutil\n"
        "space = nasspace.Space.from_text(SPACE, 'little.yaml')\n"
        "nasspace.search(space, data='digits', trials=6, sampler='random', objectives=['accuracy', 'flops'],\n"
        "    resolution=8, fidelity={'resolution': 8, 'epochs': 1}, rungs=[{'epochs': 1}, {'epochs': 1}],\n"
        "    study='here', deliver=False)\n"
        "shutil.copytree('reports/here', 'reports/there')\n"
        "from nasspace.engine import loop\n"
        "loop.resume('here')\n"
        "events = []\n"
        f"loop.resume('there', ray='{one_node.address}', workers=2,\n"
        "    on_event=lambda kind, text='', **_: events.append(text))\n"
        "assert any('2 done' in text and 'on Ray' in text for text in events), events\n"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    here, there = (records.load(searches.folder / "reports" / name) for name in ("here", "there"))
    (first, _) = here.planned_rungs
    assert len(first["networks"]) == 2
    assert there.planned_rungs == here.planned_rungs
    for number in first["networks"]:
        assert there.rung(0, number)["accuracy"] == here.rung(0, number)["accuracy"]
        assert there.rung(0, number)["log_loss"] == here.rung(0, number)["log_loss"]
    assert front(searches.folder, "there") == front(searches.folder, "here")
