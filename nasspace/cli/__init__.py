"""The command line, `nas`: each verb reads, calls and prints; errors become one message and an exit status."""

from __future__ import annotations

import errno
import sys

import typer

from nasspace.cli import explaining, networks, predicting, printing, searching, spaces, training
from nasspace.errors import NasspaceError

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
INTERRUPTED = 130
USAGE_ERRORS = typer.BadParameter.__mro__[2]  # ClickException, of the Click that this Typer carries inside


def main() -> None:
    """Run `nas`; the process ends with the exit status of DESIGN 3.5."""
    sys.exit(run())


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status; messages go to standard error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        status = app(args=arguments or ["--help"], prog_name="nas", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except NasspaceError as error:
        return _said(str(error), error.exit_status)
    except typer.Exit as stop:
        return _interrupted() if stop.exit_code == INTERRUPTED else stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return _interrupted()
    except USAGE_ERRORS as error:
        return _said(f"{error.format_message()} (`nas --help`, `nas VERB --help`)", BAD_INPUT)
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("sqlalchemy", "optuna") and not isinstance(error, OSError):
            raise
        return _environment(error)


def _environment(error: Exception) -> int:
    """What the machine refused, a full disk or a locked database, as a message; anything else is ours and raised."""
    if isinstance(error, OSError):
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise error
        where = f"{error.filename}: " if error.filename else ""
        return _said(f"{where}{error.strerror}; make room or choose another folder", BAD_INPUT)
    reason = str(getattr(error.__cause__ or error, "orig", None) or error).splitlines()[0]
    return _said(f"the study's database cannot be used ({reason}); make room or access, then go on", BAD_INPUT)


def _interrupted() -> int:
    return _said("interrupted; what is finished is kept, `nas resume` goes on", INTERRUPTED)


def _said(message: str, status: int) -> int:
    printing.say(f"nas: {message}")
    return status
