"""The command line, `nas`: each verb reads, calls and prints; errors become one message and an exit status."""

from __future__ import annotations

import errno
import sys
import traceback

import typer

from nasspace.cli import explaining, networks, predicting, printing, process, searching, spaces, training
from nasspace.errors import MAX_MESSAGE, NasspaceError, cut, first_line

app = typer.Typer(
    name="nas",
    help="Search light-weight convolutional networks that keep a latency, FLOPs or parameter budget on your device.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _verbs in (spaces, networks, predicting, explaining, searching, training):
    _verbs.add_to(app)

BAD_INPUT = 2
OURS = 1
USAGE_ERRORS = typer.BadParameter.__mro__[2]  # ClickException, of the Click that this Typer carries inside
REFUSED = (  # what a machine refuses
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
)


def main() -> None:
    """Run `nas`; the process ends with the exit status of DESIGN 3.5."""
    process.open_streams()
    with process.signals():
        status = run()
        sys.stdout.flush()
        sys.stderr.flush()
    sys.exit(status)


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status; messages go to standard error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        status = app(args=arguments or ["--help"], prog_name="nas", standalone_mode=False)
        if status == process.INTERRUPTED:  # Typer returns it where a verb was interrupted
            return _interrupted()
        return status if isinstance(status, int) else 0
    except NasspaceError as error:
        return _said(str(error), error.exit_status)
    except typer.Exit as stop:
        return _interrupted() if stop.exit_code == process.INTERRUPTED else stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted()
    except USAGE_ERRORS as error:
        return _said(f"{error.format_message()} (`nas --help`, `nas VERB --help`)", BAD_INPUT)
    except Exception as error:
        return _environment(error) or _ours(error)


def _environment(error: Exception) -> int | None:
    """What the machine refused, a full disk or a locked database, as a message; None for anything else."""
    if isinstance(error, OSError) and error.errno in REFUSED:
        where = f"{error.filename}: " if error.filename else ""
        return _said(f"{where}{error.strerror}; make room or choose another folder", BAD_INPUT)
    if type(error).__module__.partition(".")[0] in ("sqlalchemy", "optuna"):
        reason = first_line(getattr(error.__cause__ or error, "orig", None) or error)
        return _said(f"the study's database cannot be used ({reason}); make room or access, then go on", BAD_INPUT)
    return None


def _ours(error: Exception) -> int:
    """An error of our own: its traceback is for those who fix it, and goes to a file."""
    said = (str(error).strip().splitlines() or [""])[0][:200]
    name = f"{type(error).__name__}: {said}" if said else type(error).__name__
    path = process.keep_traceback(error)
    if path is None:
        traceback.print_exception(error)
    where = f"its traceback is in {path}" if path else "its traceback is above"
    return _said(f"an error of nasspace's own ({name}); {where}, please report it", OURS)


def _interrupted() -> int:
    return _said("interrupted", process.INTERRUPTED)


def _said(message: str, status: int) -> int:
    printing.say(f"nas: {cut(printing.shown(message), MAX_MESSAGE)}")
    return status
