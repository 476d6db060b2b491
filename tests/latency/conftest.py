"""A test device: a real sshd on loopback with its own keys and a Python that only has numpy and ONNX Runtime."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = "/usr/sbin/sshd"
NOT_THERE = (
    "torch",
    "pandas",
    "scipy",
    "sklearn",
    "optuna",
    "ray",
    "onnx",
    "pydantic",
    "yaml",
    "platformdirs",
    "fvcore",
)


@dataclass
class Board:
    """The device: its folder, port and sshd process."""

    folder: Path
    port: int
    process: subprocess.Popen

    def address(self, python: str = "python") -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{self.folder / python}"

    def cut(self) -> int:
        """Kill the process of every connection and return their number."""
        found = children(self.process.pid)
        for pid in found:
            os.kill(pid, 9)
        return len(found)


def children(parent: int) -> list[int]:
    """Return the child processes from /proc, since a container may lack `pgrep`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has just ended
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.name))
    return found


def write_python(folder: Path, name: str, missing: tuple[str, ...]) -> None:
    """Write a Python launcher that cannot import some packages."""
    blocking = folder / f"without-{name}"
    blocking.mkdir()
    (blocking / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({missing!r}))\n")
    script = folder / name
    script.write_text(f'#!/bin/sh\nPYTHONPATH={blocking} exec {sys.executable} "$@"\n')
    script.chmod(0o755)


def write_keys(folder: Path) -> None:
    for name in ("host", "other", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")


def write_settings(folder: Path, port: int) -> None:
    key = (folder / "host.pub").read_text().split()[1]
    (folder / "known").write_text(f"[127.0.0.1]:{port} ssh-ed25519 {key}\n")
    server = {"Port": port, "ListenAddress": "127.0.0.1", "HostKey": folder / "host", "PidFile": "none"}
    server |= {"AuthorizedKeysFile": folder / "authorized", "StrictModes": "no", "UsePAM": "no"}
    client = {"IdentityFile": folder / "user", "IdentitiesOnly": "yes", "UserKnownHostsFile": folder / "known"}
    client |= {"GlobalKnownHostsFile": "/dev/null", "StrictHostKeyChecking": "yes"}
    for name, settings in (("server", server), ("client", client)):
        (folder / name).write_text("".join(f"{key} {value}\n" for key, value in settings.items()))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="session")
def sshd(tmp_path_factory) -> Iterator[Board]:
    if not os.path.exists(SSHD) or not shutil.which("ssh"):
        pytest.skip("openssh-server is not installed")
    folder, port = tmp_path_factory.mktemp("board"), free_port()
    write_keys(folder)
    write_settings(folder, port)
    write_python(folder, "python", NOT_THERE)
    write_python(folder, "bare", (*NOT_THERE, "onnxruntime"))
    if os.getuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)  # as its service does before the start
    process = subprocess.Popen([SSHD, "-D", "-f", str(folder / "server"), "-E", str(folder / "log")])
    try:
        wait_for(port, process, folder / "log")
        yield Board(folder, port, process)
    finally:
        process.terminate()
        process.wait()


def wait_for(port: int, process: subprocess.Popen, log: Path) -> None:
    for _ in range(100):
        if process.poll() is not None:
            pytest.skip(f"sshd does not start: {log.read_text().strip()}")
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)


@pytest.fixture
def board(sshd, monkeypatch) -> Board:
    """The device, in the known hosts of this test's `ssh`."""
    monkeypatch.setenv("NASSPACE_SSH", f"ssh -F {sshd.folder / 'client'}")
    return sshd
