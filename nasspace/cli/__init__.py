"""The command line, `nas`: commands parse, call and print; an error is one message and an exit status."""

from __future__ import annotations

import errno
import sys
import traceback
from typing import Annotated

import typer

from nasspace import __version__
from nasspace.cli import (
    comparing,
    completion,
    compressing,
    explaining,
    networks,
    predicting,
    printing,
    process,
    quantizing,
    scoring,
    searching,
    spaces,
    starting,
    training,
)
from nasspace.errors import MAX_MESSAGE, NasspaceError, cut, first_line

app = typer.Typer(
    name="nas",
    help="Search for lightweight convolutional networks within a latency, FLOPs or parameter budget on your device.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_modules = (
    *(starting, spaces, networks, quantizing, compressing, scoring, predicting, explaining),
    *(searching, comparing, training),
)
for _module in _modules:
    _module.add_to(app)

BAD_INPUT = 2
INTERNAL_ERROR = 1
USAGE_ERRORS = typer.BadParameter.__mro__[2]  # ClickException, of the Click that Typer bundles
SYSTEM_ERRORS = (  # of the operating system, which the user can resolve
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"nasspace {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of `nas` itself."""


def main() -> None:
    """Run `nas`, and end the process with its exit status."""
    process.open_streams()
    with process.signals(), completion.whole_words():
        status = run()
        sys.stdout.flush()
        sys.stderr.flush()
    sys.exit(status)


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status; messages go to standard error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        status = app(args=arguments or ["--help"], prog_name="nas", standalone_mode=False)
        if status == process.INTERRUPTED:  # Typer returns it if a command was interrupted
            return _interrupted()
        return status if isinstance(status, int) else 0
    except NasspaceError as error:
        return _fail(str(error), error.exit_status)
    except typer.Exit as stop:
        return _interrupted() if stop.exit_code == process.INTERRUPTED else stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted()
    except USAGE_ERRORS as error:
        return _fail(f"{error.format_message()} (`nas --help`, `nas VERB --help`)", BAD_INPUT)
    except Exception as error:
        return _system_error(error) or _internal_error(error)


def _system_error(error: Exception) -> int | None:
    """Report an error of the system, such as a full disk or a locked database; None for any other error."""
    if isinstance(error, OSError) and error.errno in SYSTEM_ERRORS:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror}; free disk space or choose another folder", BAD_INPUT)
    if type(error).__module__.partition(".")[0] in ("sqlalchemy", "optuna"):
        reason = first_line(getattr(error.__cause__ or error, "orig", None) or error)
        remedy = "free disk space or correct its permissions, then run the command again"
        return _fail(f"the study's database cannot be used ({reason}); {remedy}", BAD_INPUT)
    return None


def _internal_error(error: Exception) -> int:
    """Report an error in nasspace itself; its traceback goes to a file."""
    text = (str(error).strip().splitlines() or [""])[0][:200]
    name = f"{type(error).__name__}: {text}" if text else type(error).__name__
    path = process.keep_traceback(error)
    if path is None:
        traceback.print_exception(error)
    where = f"its traceback is in {path}" if path else "its traceback is above"
    return _fail(f"internal error ({name}); {where}, please report it", INTERNAL_ERROR)


def _interrupted() -> int:
    return _fail("interrupted", process.INTERRUPTED)


def _fail(message: str, status: int) -> int:
    """Print an error message, and return the exit status."""
    printing.print_message(f"nas: {cut(printing.escape(message), MAX_MESSAGE)}")
    return status
