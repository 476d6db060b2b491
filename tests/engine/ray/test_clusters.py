"""Searches on real clusters give the same results as without Ray, even if workers, nodes, and drivers are killed."""

from __future__ import annotations

import contextlib
import os
import platform
import random
import signal
import socket
from pathlib import Path

import pytest
import ray

from nasspace import Space
from nasspace.engine import rungs
from nasspace.engine.ray import address, climbing
from nasspace.engine.ray.actors import serializable
from nasspace.errors import InputError, NasspaceError
from nasspace.studies import study as records
from nasspace.studies.objectives import COUNTED
from nasspace.training.settings import Fidelity

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


def resumed(address: str, workers: int = 1, **settings: int) -> str:
    """Code that resumes the study `there` on a cluster and prints its events.

    The log has the trial and the number of checkpoints that each process got; a process waits while there is a `hold`.
    """
    return (
        "from nasspace.engine import loop\n"
        "from nasspace.engine.ray import climbing\n"
        "class Watched(climbing.Mailbox):\n"
        "    async def checkpoints(self, number, log=str(FOLDER / 'log.txt')):\n"
        "        found = await super().checkpoints(number)\n"
        "        with open(log, 'a') as file:\n"
        "            file.write(f'{number} {len(found)} -\\n')\n"
        "        return found\n"
        "    async def put_checkpoint(self, number, name, content, hold=FOLDER / 'hold'):\n"
        "        import asyncio\n"
        "        await super().put_checkpoint(number, name, content)\n"
        "        while hold.exists():\n"
        "            await asyncio.sleep(0.05)\n"
        "climbing.Mailbox = Watched\n"
        f"loop.resume('there', ray={address!r}, workers={workers}, **{settings},\n"
        "    on_event=lambda kind, text='', **_: print(text, flush=True))\n"
    )


def checkpoints_there(folder: Path) -> list[Path]:
    return list((folder / "reports" / "there" / "checkpoints").glob("[!.]*.pt"))


def processes_that_climb(node) -> list[int]:
    """Processes of a node that train a network at a rung."""
    raylet = f"RAY_RAYLET_PID={node.all_processes['raylet'][0].process.pid}\0".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_climbing = (path / "cmdline").read_bytes().startswith(b"ray::_climb")
            if is_climbing and raylet in (path / "environ").read_bytes():
                found.append(int(path.name))
    return found


def assert_same_rungs(here: Path, folder: Path) -> None:
    """The study `there` ended as the study `here` did."""
    one, other = records.load(here / "here"), records.load(folder / "reports" / "there")
    (first, _) = one.planned_rungs
    assert len(first["networks"]) == 2
    assert other.planned_rungs == one.planned_rungs
    for number in first["networks"]:
        assert other.rung(0, number)["accuracy"] == one.rung(0, number)["accuracy"]
        assert other.rung(0, number)["log_loss"] == one.rung(0, number)["log_loss"]
    assert front(folder, "there") == front(here.parent, "here")
    assert checkpoints_there(folder) == []


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path):
    architecture = Space.load("shuffle", resolution=32).sample(random.Random(0))
    (tmp_path / f"{architecture.digest}-1-12345678.pt").mkdir()
    with pytest.raises(InputError, match=r"12345678\.pt: cannot be read \(Is a directory\); delete it"):
        rungs.read_checkpoints(tmp_path, architecture)


def test_networks_climb_a_rung_on_the_cluster_as_they_do_here(rungs_there, rungs_here, one_node):
    """A checkpoint that does not fit, here a damaged one, is dropped."""
    study = records.load(rungs_here / "here")
    steps = [Fidelity(8, 1), Fidelity(8, 4)]
    name = rungs._checkpoint_name(study.architecture(study.planned_rungs[0]["networks"][0]), steps)
    (rungs_there.folder / "reports" / "there" / "checkpoints").mkdir(exist_ok=True)
    (rungs_there.folder / "reports" / "there" / "checkpoints" / name).write_bytes(b"damaged")
    done = rungs_there.run(resumed(one_node.address, workers=2))
    assert done.returncode == 0, done.stderr
    assert any("2 done" in line and "on Ray" in line for line in done.stderr.splitlines()), done.stderr
    assert any("on Ray, 0 done; trial" in line and "of 4" in line for line in done.stderr.splitlines()), done.stderr
    number = study.planned_rungs[0]["networks"][0]
    assert f"trial {number}: a checkpoint was dropped: not a sound checkpoint" in done.stderr
    assert_same_rungs(rungs_here, rungs_there.folder)


has_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc")


@has_proc
def test_a_rung_whose_process_is_killed_continues_from_its_checkpoint(rungs_there, rungs_here, one_node):
    hold = rungs_there.folder / "hold"
    hold.touch()
    process = rungs_there.start(resumed(one_node.address))
    rungs_there.wait_until(lambda _: checkpoints_there(rungs_there.folder), "a network has a checkpoint")
    (climbing,) = processes_that_climb(one_node.head_node)
    os.kill(climbing, signal.SIGKILL)
    hold.unlink()
    _, output = process.communicate(timeout=500)
    assert process.returncode == 0, output
    given = [count for _, count, _ in rungs_there.log()]
    assert given == ["0", "1", "0"], "the second process got the checkpoint of the first"
    assert_same_rungs(rungs_here, rungs_there.folder)


@has_proc
def test_a_network_whose_process_dies_at_every_attempt_leaves_the_front(rungs_there, one_node):
    hold = rungs_there.folder / "hold"
    hold.touch()
    process = rungs_there.start(resumed(one_node.address, retries=1))
    for attempt in (1, 2):
        rungs_there.wait_until(lambda log, attempt=attempt: len(log) == attempt, f"attempt {attempt}")
        *_, climbing = sorted(processes_that_climb(one_node.head_node))  # the one before may still be ending
        os.kill(climbing, signal.SIGKILL)
    hold.unlink()
    _, output = process.communicate(timeout=500)
    assert process.returncode == 0, output
    number = int(rungs_there.log()[0][0])
    why = "its process died 2 times (such as by a signal)"
    assert f"trial {number} leaves the front: {why}" in output
    assert records.load(rungs_there.folder / "reports" / "there").undeployable() == {number: why}


@has_proc
@pytest.mark.parametrize("retries", [2, 0])
def test_a_rung_moves_to_another_node(rungs_there, rungs_here, two_nodes, retries):
    hold = rungs_there.folder / "hold"
    hold.touch()
    node = two_nodes.add_node(num_cpus=1)
    process = rungs_there.start(resumed(two_nodes.address, workers=2, retries=retries))
    rungs_there.wait_until(lambda _: len(checkpoints_there(rungs_there.folder)) == 2, "both nodes train")
    (climbing,) = processes_that_climb(node)
    two_nodes.remove_node(node, allow_graceful=False)
    with contextlib.suppress(ProcessLookupError):
        os.kill(climbing, signal.SIGKILL)
    hold.unlink()
    _, output = process.communicate(timeout=500)
    assert process.returncode == 0, output
    given = [count for _, count, _ in rungs_there.log()]
    assert given == ["0", "0", "1"], "the other node got the checkpoint of the dead one"
    assert_same_rungs(rungs_here, rungs_there.folder)


def test_a_training_is_given_up_after_deaths_of_its_process_or_of_many_nodes():
    killed, memory, node = (
        ray.exceptions.WorkerCrashedError(),
        ray.exceptions.OutOfMemoryError("full"),
        ray.exceptions.NodeDiedError("gone"),
    )
    given_up = climbing._reason_to_give_up
    assert given_up([killed, node, node], retries=1) == ""
    assert given_up([node, killed, killed], retries=1) == "its process died 2 times (such as by a signal)"
    assert given_up([killed], retries=0) == "its process died once (such as by a signal)"
    with pytest.raises(
        NasspaceError, match="Ray killed its process 2 times, as the node had no memory left; free memory"
    ):
        given_up([memory, memory], retries=1)
    assert given_up([node] * 4, retries=9) == "4 nodes died while they trained it"


def test_a_rung_whose_driver_is_killed_continues_from_its_checkpoint(rungs_there, rungs_here, one_node):
    """Without Ray, too: the checkpoints are those of a training in one process."""
    (rungs_there.folder / "hold").touch()
    process = rungs_there.start(resumed(one_node.address))
    rungs_there.wait_until(lambda _: checkpoints_there(rungs_there.folder), "a network has a checkpoint")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = rungs_there.run(
        "from nasspace.engine import loop\n"
        "loop.resume('there', workers=1, on_event=lambda kind, text='', **_: print(text, flush=True))\n"
    )
    assert done.returncode == 0, done.stderr
    epochs = [line for line in done.stderr.splitlines() if "training at 8x8, 1 of 2" in line]
    assert epochs, done.stderr
    assert "epoch 2 of 4" in epochs[0]
    assert_same_rungs(rungs_here, rungs_there.folder)
