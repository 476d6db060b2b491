"""Connection to a Python process on another device over the system's `ssh`, with errors that name the remedy."""

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

SECONDS = 10  # after which a device that does not respond counts as unreachable
CONNECTING = "reached"
_OPTIONS = ("BatchMode=yes", f"ConnectTimeout={SECONDS}", "ServerAliveInterval=5", "ServerAliveCountMax=3")
_FORM = re.compile(
    r"ssh://(?:(?P<user>\w[\w.+-]*)@)?(?P<host>\w[\w.-]*|\[[0-9A-Fa-f:.]+(?:%\w+)?\])"
    r"(?::(?P<port>[0-9]{1,5}))?(?P<python>/.*)?"
)
# Runs on the device: reads the size and bytes of a zip with modules and the reference network, then serves requests. It
# is sent through standard input, since not every shell accepts several lines as one argument.
_BOOTSTRAP = b"""
import sys
if sys.version_info < (3, 11):
    sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0])
import os, tempfile, zipfile
requests = sys.stdin.buffer
with tempfile.TemporaryDirectory(prefix="nasspace-") as folder:
    path = os.path.join(folder, "nasspace.zip")
    with open(path, "wb") as file:
        file.write(requests.read(int(requests.readline())))
    sys.path.insert(0, path)
    from nasspace.latency import remote_server
    remote_server.serve(requests, zipfile.ZipFile(path).read("reference.onnx"))
"""


@dataclass(frozen=True)
class Address:
    """The address of a device, `ssh://[user@]host[:port][/path/of/python]`; Python defaults to `python3`."""

    label: str
    target: str
    port: int | None
    python: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse an address; `InputError` if it is invalid."""
        match = _FORM.fullmatch(text)
        if not match:
            raise InputError(
                f"latency device '{text}' is not valid; write local, or ssh://user@host[:port][/path/of/python]"
            )
        user, host, port, python = match.group("user", "host", "port", "python")
        target = f"{user}@{host.strip('[]')}" if user else host.strip("[]")
        label = text.removesuffix(python or "")
        return cls(label, target, int(port) if port else None, python if python not in (None, "/") else "python3")

    def __str__(self) -> str:
        """The address without the path of Python."""
        return self.label

    def command(self) -> list[str]:
        """Return the ssh command that starts the remote process; NASSPACE_SSH may name another `ssh` with options."""
        options = [part for option in _OPTIONS for part in ("-o", option)]
        port = ["-p", str(self.port)] if self.port else []
        start = f"exec {shlex.quote(self.python)} -c 'import sys; exec(sys.stdin.buffer.read({len(_BOOTSTRAP)}))'"
        return [*shlex.split(os.environ.get("NASSPACE_SSH", "ssh")), *options, *port, "-T", "--", self.target, start]


class Connection:
    """A running remote process: sends JSON requests with bytes, receives JSON lines."""

    def __init__(self, address: Address, code: bytes) -> None:
        self.address = address
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # stays open as long as the process
        try:
            self._process = subprocess.Popen(
                address.command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
            )
        except OSError as error:
            self._errors.close()
            raise InputError(f"{address}: cannot run ssh ({error}); install openssh-client") from None
        self.close = weakref.finalize(self, _terminate, self._process, self._errors)
        self._send(_BOOTSTRAP, f"{len(code)}\n".encode(), code)
        self.hello = self._receive(f"while it was {CONNECTING}")

    def request(self, document: dict[str, Any], *contents: bytes) -> dict[str, Any]:
        """Send one request with its bytes and return the response."""
        self._send(json.dumps(document).encode() + b"\n", *contents)
        return self._receive("while it was measuring")

    def _send(self, *parts: bytes) -> None:
        """Write to the remote process."""
        with contextlib.suppress(BrokenPipeError):  # reported when the response is missing
            for part in parts:
                self._process.stdin.write(part)
            self._process.stdin.flush()

    def _receive(self, when: str) -> dict[str, Any]:
        """Return the next response; an error in it, or the end of the process, is raised."""
        for line in self._process.stdout:
            text = line.decode(errors="replace")
            if text.startswith(MARK):
                response = json.loads(text.removeprefix(MARK))
                if "error" in response:
                    raise InputError(f"{self.address}: {response['error']}")
                return response
        raise self._end_error(when)

    def _end_error(self, when: str) -> NasspaceError:
        """Describe why the remote process ended, from its exit status and standard error."""
        status = self._process.wait()
        self._errors.seek(0)
        stderr = self._errors.read().decode(errors="replace")
        self.close()
        return connection_error(self.address, status, stderr, when)


def connection_error(address: Address, status: int, stderr: str, when: str) -> NasspaceError:
    """Return the error for an ended remote process, with its remedy."""
    last = (stderr.strip().splitlines() or [f"exit status {status}"])[-1].strip()
    place = f"-p {address.port} {address.target}" if address.port else address.target
    if "IDENTIFICATION HAS CHANGED" in stderr:
        return InputError(
            f"{address}: its host key has changed; if the device was reinstalled, "
            f"remove the old key (ssh-keygen -R) and accept the new one: ssh {place}"
        )
    if "Host key verification failed" in stderr:
        return InputError(f"{address}: its host key is not known yet; check it and accept it once: ssh {place}")
    if "Permission denied" in stderr:
        return InputError(f"{address}: login without a password is refused; install your key: ssh-copy-id {place}")
    if status in (126, 127):
        return InputError(
            f"{address}: {address.python} not found; install Python 3.11, or give its path: {address}/path/of/python"
        )
    if status > 0 and status != 255:
        return InputError(f"{address}: the measuring process failed: {last}")
    if when.endswith(CONNECTING):
        return InputError(f"{address}: cannot be reached: {last}")
    return InputError(
        f"{address}: the connection was lost {when} ({last}); finished measurements are cached: "
        "run the command again when the device is back (nas resume for a search)"
    )


def _terminate(process: subprocess.Popen, errors: IO[bytes]) -> None:
    """Close standard input, which ends the remote process; kill ssh if that takes too long."""
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
    errors.close()
