"""A PostgreSQL server for the tests, and searches in separate processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HBA = "host all guarded 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n"
SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
from test_loop import SPACE, flops, scored
import nasspace
from nasspace.studies import heartbeat, storage
heartbeat.GRACE, storage.PAUSE = 4.0, 0.3  # instead of a minute

def evaluated(architecture):
    with open({log!r}, "a") as log:
        log.write(architecture.digest + "\\n")
    time.sleep(0.02)
    return scored(architecture)

url, sampler, trials = sys.argv[1:]
nasspace.search(nasspace.Space.from_text(SPACE, "little.yaml"), trials=int(trials), evaluator=evaluated,
                known={{"flops": flops}}, study="s", sampler=sampler, storage=url)
"""


class Server:
    """PostgreSQL on the loopback interface with its own data; root runs it as the user `postgres`."""

    def __init__(self, programs: Path, data: Path, user: str | None) -> None:
        import pwd  # not on Windows

        self.programs, self.data = programs, data
        self.rights = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen | None = None

    def make(self) -> None:
        command = [
            self.programs / "initdb",
            "-D",
            self.data,
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
        ]
        subprocess.run([*command, "--locale=C"], **self.rights, cwd="/", check=True, capture_output=True)
        (self.data / "pg_hba.conf").write_text(HBA)

    def start(self) -> None:
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off"}
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        command = [self.programs / "postgres", "-D", self.data, *options]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, **self.rights, **quiet, cwd="/")
        end = time.monotonic() + 30
        while not self._answers():
            assert self.process.poll() is None
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Stop the server; SIGQUIT stops it immediately, as in a crash."""
        self.process.send_signal(how)
        self.process.wait(timeout=30)

    def run(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)

    def url(self, database: str, user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url("postgres")).close()
        except psycopg.OperationalError:
            return False
        return True


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="needs nasspace[postgresql]")
    found = shutil.which("postgres")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not folders:
        pytest.skip("no PostgreSQL server is installed")
    pwd = pytest.importorskip("pwd", reason="the tests start PostgreSQL only on Unix")
    user = "postgres" if os.getuid() == 0 else None
    if user and user not in {entry.pw_name for entry in pwd.getpwall()}:
        pytest.skip("PostgreSQL does not run as root, and there is no user 'postgres'")
    data = Path(tempfile.mkdtemp(prefix="nasspace-postgresql-"))
    if user:
        shutil.chown(data, user)
    made = Server(folders[-1], data, user)
    try:
        made.make()
        made.start()
        made.run("CREATE ROLE guarded LOGIN PASSWORD 'right'")
        yield made
    finally:
        if made.process and made.process.poll() is None:
            made.stop(signal.SIGINT)
        shutil.rmtree(data)


@pytest.fixture
def database(server, request) -> Iterator[str]:
    """The URL of a new database."""
    name = f"test_{abs(hash(request.node.name))}"
    server.run(f"CREATE DATABASE {name}")
    yield server.url(name)
    if server.process.poll() is not None:
        server.start()
    server.run(f"DROP DATABASE {name} WITH (FORCE)")


class Searches:
    """Searches of one study, each in its own process; `log` has the digest of every evaluation started."""

    def __init__(self, folder: Path, forked: Callable[..., Any]) -> None:
        self.folder = folder
        self._forked = forked
        self._unwaited: list[subprocess.Popen] = []

    def start(self, url: str, sampler: str = "random", trials: int = 100, place: str = "here") -> Any:
        """Start a search in a subfolder of the test's folder."""
        return self._forked(self._code(place), url, sampler, str(trials), folder=self.folder / place)

    def start_unwaited(self, url: str, sampler: str = "random", trials: int = 100) -> subprocess.Popen:
        """Start a search that remains a zombie after its end, until the test waits for it."""
        command = [sys.executable, "-W", "ignore", "-c", self._code("here"), url, sampler, str(trials)]
        self._unwaited.append(subprocess.Popen(command, cwd=self.folder / "here", env=os.environ))
        return self._unwaited[-1]

    def end(self) -> None:
        for process in self._unwaited:
            if process.poll() is None:
                process.kill()
            process.wait()

    def _code(self, place: str) -> str:
        (self.folder / place).mkdir(exist_ok=True)
        return SCRIPT.format(tests=str(Path(__file__).parent), log=str(self.folder / "log.txt"))

    def log(self) -> list[str]:
        path = self.folder / "log.txt"
        return path.read_text().split() if path.is_file() else []

    def wait_for(self, count: int, seconds: float = 60) -> None:
        """Wait until `count` evaluations have started."""
        end = time.monotonic() + seconds
        while len(self.log()) < count:
            assert time.monotonic() < end, f"{len(self.log())} evaluations started, not {count}"
            time.sleep(0.02)


@pytest.fixture
def searches(tmp_path, forked) -> Iterator[Searches]:
    made = Searches(tmp_path, forked)
    yield made
    made.end()
