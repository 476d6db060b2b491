"""A Python process on another device, reached by the system's own `ssh`; what goes wrong is told in words."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import tempfile
import weakref
from dataclasses import dataclass
from typing import IO, Any

from nasspace.errors import InputError, NasspaceError
from nasspace.latency.remote_server import MARK

SECONDS = 10  # until a device that does not answer counts as unreachable
_OPTIONS = ("BatchMode=yes", f"ConnectTimeout={SECONDS}", "ServerAliveInterval=5", "ServerAliveCountMax=3")
_FORM = re.compile(
    r"ssh://(?:(?P<user>\w[\w.+-]*)@)?(?P<host>\w[\w.-]*|\[[0-9A-Fa-f:.]+(?:%\w+)?\])"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<python>/.*)?"
)
# What the far end runs: it takes the number of bytes, a zip of modules and the reference network, and serves. It goes
# through standard input, since not every shell takes several lines as one argument.
_BOOTSTRAP = b"""
import sys
if sys.version_info < (3, 11):
    sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0])
import os, tempfile, zipfile
given = sys.stdin.buffer
with tempfile.TemporaryDirectory(prefix="nasspace-") as folder:
    path = os.path.join(folder, "nasspace.zip")
    with open(path, "wb") as file:
        file.write(given.read(int(given.readline())))
    sys.path.insert(0, path)
    from nasspace.latency import remote_server
    remote_server.serve(given, zipfile.ZipFile(path).read("reference.onnx"))
"""


@dataclass(frozen=True)
class Address:
    """Where a device is: `ssh://[user@]host[:port][/path/of/python]`; `python3` of its search path unless said."""

    shown: str
    target: str
    port: int | None
    python: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """The parts of an address; an `InputError` for what is none."""
        match = _FORM.fullmatch(text)
        if not match:
            raise InputError(
                f"latency device '{text}' is none; write local, or ssh://user@host[:port][/path/of/python]"
            )
        user, host, port, python = match.group("user", "host", "port", "python")
        target = f"{user}@{host.strip('[]')}" if user else host.strip("[]")
        shown = text.removesuffix(python or "")
        return cls(shown, target, int(port) if port else None, python if python not in (None, "/") else "python3")

    def __str__(self) -> str:
        """The device, however its Python is named."""
        return self.shown

    def command(self) -> list[str]:
        """The ssh command that begins the far end; NASSPACE_SSH may hold another `ssh` with options of its own."""
        options = [part for option in _OPTIONS for part in ("-o", option)]
        port = ["-p", str(self.port)] if self.port else []
        begin = f"exec {shlex.quote(self.python)} -c 'import sys; exec(sys.stdin.buffer.read({len(_BOOTSTRAP)}))'"
        return [*shlex.split(os.environ.get("NASSPACE_SSH", "ssh")), *options, *port, "-T", "--", self.target, begin]


class Connection:
    """The far end while it lasts: JSON documents and bytes there, JSON lines back."""

    def __init__(self, address: Address, code: bytes) -> None:
        self.address = address
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the process
        try:
            self._process = subprocess.Popen(
                address.command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
            )
        except OSError as error:
            self._errors.close()
            raise InputError(f"{address}: cannot run ssh ({error}); install openssh-client") from None
        self.close = weakref.finalize(self, _terminate, self._process, self._errors)
        self._send(_BOOTSTRAP, f"{len(code)}\n".encode(), code)
        self.hello = self._received("while it was reached")

    def ask(self, request: dict[str, Any], *contents: bytes) -> dict[str, Any]:
        """One request with its bytes, and the answer."""
        self._send(json.dumps(request).encode() + b"\n", *contents)
        return self._received("while it was measuring")

    def _send(self, *parts: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # what became of the far end is told when its answer is missing
            for part in parts:
                self._process.stdin.write(part)
            self._process.stdin.flush()

    def _received(self, when: str) -> dict[str, Any]:
        for line in self._process.stdout:
            text = line.decode(errors="replace")
            if text.startswith(MARK):
                answer = json.loads(text.removeprefix(MARK))
                if "error" in answer:
                    raise InputError(f"{self.address}: {answer['error']}")
                return answer
        raise self._lost(when)

    def _lost(self, when: str) -> NasspaceError:
        """Why the far end has ended, from its exit status and what it and ssh said."""
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace")
        self.close()
        return connection_error(self.address, status, said, when)


def connection_error(address: Address, status: int, said: str, when: str) -> NasspaceError:
    """What an end of the far process means, and what to do about it."""
    last = (said.strip().splitlines() or [f"exit status {status}"])[-1].strip()
    place = f"-p {address.port} {address.target}" if address.port else address.target
    if "IDENTIFICATION HAS CHANGED" in said:
        return InputError(
            f"{address}: its host key is not the one that is known; if the device was set up anew, "
            f"forget the old one (ssh-keygen -R) and accept the new one: ssh {place}"
        )
    if "Host key verification failed" in said:
        return InputError(f"{address}: its host key is not known yet; look at it and accept it once: ssh {place}")
    if "Permission denied" in said:
        return InputError(f"{address}: does not let you in without a password; give it your key: ssh-copy-id {place}")
    if status in (126, 127):
        return InputError(
            f"{address}: there is no {address.python}; install Python 3.11 there, or name it: {address}/path/of/python"
        )
    if status > 0 and status != 255:
        return InputError(f"{address}: the measuring process failed there: {last}")
    if when.endswith("reached"):
        return InputError(f"{address}: cannot be reached: {last}")
    return InputError(
        f"{address}: the connection was lost {when} ({last}); what was measured is kept: "
        "go on when the device is back (a search with nas resume)"
    )


def _terminate(process: subprocess.Popen, errors: IO[bytes]) -> None:
    """Close standard input, on which the far end ends by itself; no longer than a moment is waited for it."""
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
    errors.close()
