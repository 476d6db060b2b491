"""Searches on Ray expose nothing to others, clean up (sockets, folders, processes), and replace dead workers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nasspace import temporary as leftovers
from nasspace.studies import study as records

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::Warning")]  # raised by Ray
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.fixture
def temporary(searches, monkeypatch) -> Path:
    """The temporary folder of the searches; Ray's sockets need a short path."""
    folder = Path("/tmp") / f"t{os.getpid()}"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    for process in searches.processes:  # before its folder is removed
        if process.poll() is None:
            process.kill()
            process.wait()
    subprocess.run(["rm", "-rf", folder], check=True)


def family(pid: int) -> set[int]:
    """Return a process and all its descendants."""
    found, parents = {pid}, {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal():
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def listening(pids: set[int]) -> dict[str, str]:
    """Return the local addresses that processes listen on, in the hexadecimal form of /proc/net, with process names."""
    sockets, names = {}, {}
    for pid in pids:
        with contextlib.suppress(OSError):
            names[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    sockets[os.readlink(descriptor)] = names[pid]
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            part = line.split()
            if part[3] == "0A" and (name := sockets.get(f"socket:[{part[9]}]")):
                found[part[1]] = name
    return found


def check_private(pid: int, temporary: Path) -> None:
    """Check that the search's Ray is accessible to this user on this machine only."""
    found = listening(family(pid))
    assert "gcs_server" in found.values(), found
    assert "raylet" in found.values(), found
    assert {where.partition(":")[0] for where in found} <= LOOPBACK, found
    (folder,) = temporary.glob(f"{leftovers.PREFIX}*/{leftovers.LOCK}")
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    assert list(folder.parent.glob(f"{leftovers.RAY}/session_*/sockets/raylet"))
    assert (temporary / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


def check_replaced(searches) -> None:
    """Check that a killed worker is replaced while the other works.

    Trials are shorter than the start of a worker, so the other worker never waits for it.
    """
    before = {pid for _, pid, _ in searches.log()}
    os.kill(int(next(iter(before))), signal.SIGKILL)
    searches.wait_until(lambda log: len({pid for _, pid, _ in log}) == 3, "a third worker is working")
    count = len(searches.log())
    searches.wait_until(lambda log: len({pid for _, pid, _ in log[count:]}) == 2, "two workers are working again")


@linux
def test_ray_on_one_machine_is_private_replaces_a_killed_worker_and_ends_with_the_search(
    searches, temporary, monkeypatch
):
    """One search for all checks, since each search starts Ray; after an interrupt, it continues without Ray."""
    monkeypatch.setenv("HOME", str(temporary))
    monkeypatch.delenv("RAY_worker_niceness")
    process = searches.start("SLEEP = 0.1\nsearch(study='s', workers=2, trials=100000)")
    searches.wait_until(lambda log: len({pid for _, pid, _ in log}) == 2, "both workers are working")
    searches.wait_for(4)
    check_private(process.pid, temporary)
    assert {os.getpriority(os.PRIO_PROCESS, int(pid)) for _, pid, _ in searches.log()} == {os.nice(0)}
    check_replaced(searches)
    process.send_signal(signal.SIGTERM)
    _, output = process.communicate(timeout=500)
    assert "KeyboardInterrupt" in output
    assert process.returncode != 0
    assert not list(temporary.glob(f"{leftovers.PREFIX}*/{leftovers.LOCK}"))
    kept = records.load(searches.folder / "reports" / "s").evaluated
    assert kept >= 2
    done = searches.run(f"search(study='s', trials={kept + 3})")
    assert done.returncode == 0, done.stderr
    study = records.load(searches.folder / "reports" / "s")
    finished = [trial.user_attrs["digest"] for trial in study.frozen("COMPLETE", "PRUNED")]
    assert len(finished) == len(set(finished)) == kept + 3


@linux
def test_the_folder_of_a_killed_driver_is_removed_by_the_next_run(searches, temporary):
    process = searches.start("search(study='s', workers=2, trials=1000)")
    searches.wait_for(3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (lock,) = temporary.glob(f"{leftovers.PREFIX}*/{leftovers.LOCK}")
    assert lock.read_text().split()[0] == str(process.pid)
    done = searches.run("search(study='t', trials=1)")  # without Ray
    assert done.returncode == 0, done.stderr
    assert not lock.parent.exists()
    assert not leftovers._processes(lock.parent)
    assert records.load(searches.folder / "reports" / "s").evaluated >= 1


@linux
def test_only_folders_and_processes_of_dead_searches_are_removed(temporary):
    held = "import sys, time\nfrom nasspace import temporary\n"
    held += "with temporary.private() as folder:\n    print(folder, flush=True)\n    sys.stdin.read()\n"
    command = [sys.executable, "-c", held]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    folder = Path(process.stdout.readline().strip())
    inside = folder / "r" / "session"
    inside.mkdir(parents=True)
    other = temporary / "nasspace-other"
    other.mkdir()
    link = temporary / "nasspace-link"
    link.symlink_to(other)
    program = temporary / "ray" / "program.py"
    program.parent.mkdir()
    program.write_text("import time\ntime.sleep(600)\n")
    left = subprocess.Popen([sys.executable, str(program), f"--dir={inside}"])
    reading = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", f"{inside}/log"])
    try:
        with leftovers.private(leftovers.for_ray()) as ours:
            leftovers.clear()
            assert folder.is_dir(), "its process is alive"
            assert left.poll() is None
            process.kill()
            process.wait()
            leftovers.clear()
            assert not folder.exists()
            assert left.wait(timeout=60) == -signal.SIGKILL
            assert reading.poll() is None, "it is not a Ray process"
            assert ours.is_dir()
            assert other.is_dir()
            assert link.is_symlink()
        assert not ours.exists()
    finally:
        for each in (process, left, reading):
            each.kill()
            each.wait()
        process.stdin.close()
        process.stdout.close()


LOST = """
from nasspace.cli import app, run, searching
from nasspace.engine.ray import watch

watch.PATIENCE = 2.0  # seconds
SLEEP = 0.5


@app.command()
def mine(ray: str = ""):
    searching._run(lambda on_event: search(study='s', ray=ray or None, trials=12, on_event=on_event), False)


"""


@pytest.mark.parametrize("graceful", [True, False])
def test_stopping_a_cluster_loses_no_finished_trial(searches, own_cluster, graceful):
    cluster, address = own_cluster, own_cluster.address
    process = searches.start(f"{LOST}sys.exit(run(['mine', '--ray', '{address}']))")
    searches.wait_for(4)
    if graceful:  # as `ray stop`, which would stop all clusters of this machine
        cluster.remove_node(cluster.head_node)
    else:
        for processes in cluster.head_node.all_processes.values():
            for each in processes:
                each.process.kill()
    _, output = process.communicate(timeout=500)
    assert process.returncode == 130, output
    assert f"nas: the Ray cluster ({address}) was stopped or cannot be reached; what is finished is kept" in output
    assert "`nas resume s`" in output
    assert "GCS" not in output
    assert "Traceback" not in output
    kept = [trial.user_attrs["digest"] for trial in records.load(searches.folder / "reports" / "s").frozen("COMPLETE")]
    assert len(kept) >= 2
    done = searches.run(f"{LOST}sys.exit(run(['mine']))")
    assert done.returncode == 0, done.stderr
    study = records.load(searches.folder / "reports" / "s")
    finished = [trial.user_attrs["digest"] for trial in study.frozen("COMPLETE")]
    assert len(finished) == len(set(finished)) == 12
    assert finished[: len(kept)] == kept


def test_a_process_blocked_in_ray_ends_with_the_same_message(tmp_path):
    code = (
        "import time\nfrom nasspace.engine.ray import watch\nwatch.PATIENCE = watch.BLOCKED = 0.1\n"
        "with watch.ClusterMonitor('127.0.0.1:1', 'it is gone').running():\n    time.sleep(600)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 130
    assert done.stderr == "nas: it is gone\n"


def test_a_cluster_that_answers_again_is_not_reported_as_lost(monkeypatch):
    import socket

    from nasspace.engine.ray import watch

    monkeypatch.setattr(watch, "PAUSE", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as server:
        watching = watch.ClusterMonitor(f"127.0.0.1:{server.getsockname()[1]}", "it is gone")
        monkeypatch.setattr(watch, "PATIENCE", 600.0)
        with watching.running():
            server.accept()[0].close()
            server.accept()[0].close()
            watching.check()
            assert watching.answers()
    assert not watching.answers()
    assert time.monotonic() - watching._last_answer < 600
