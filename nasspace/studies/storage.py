"""The database of a study: a SQLite file in its folder, or a shared database at a URL."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import shutil
import sqlite3
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nasspace import files, temporary
from nasspace.errors import InputError, NasspaceError
from nasspace.studies import sqlite_reader
from nasspace.studies.objectives import OBJECTIVES

PATIENCE = 300.0  # seconds that a shared database may be unreachable
PAUSE = 2.0  # seconds between two attempts
BEAT = 10  # seconds between two heartbeats of a running trial
GRACE = 60  # seconds without a heartbeat after which a trial is stale
CONNECT = 10  # seconds to connect
ATTEMPTS = 5  # to create the tables while other processes do the same
LEAST_ROOM = 2**16  # bytes that SQLite needs next to a database to read it: an index of its log
REMEDY = "restore the file from a copy, or search again under another --study name"
UNAFFECTED = "its exports and tables are not affected"
MAGIC, HEADER = b"SQLite format 3\0", 100  # first bytes of a SQLite file, length of its header
TABLES = {  # of Optuna; every database of a study has them
    *("studies", "study_directions", "study_user_attributes", "trials", "trial_values", "trial_params"),
    *("trial_user_attributes", "trial_system_attributes", "version_info", "alembic_version"),
}
log = logging.getLogger(__name__)
_thread = threading.local()


def create(path: Path, name: str, directions: list[str], objectives: list[str]) -> None:
    """Create a database with one empty study, atomically."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # nasspace prints its own progress
    with files.replacing(path) as target:
        database = optuna.storages.RDBStorage(_url(target))
        record = optuna.create_study(study_name=name, storage=database, directions=directions)
        name_objectives(record, objectives)
        database.remove_session()
        database.engine.dispose()


def open_file(path: Path) -> Any:
    """Open a study's SQLite file; on a disk that cannot be written, a copy of it.

    The file has a write-ahead log, which survives a killed process and commits quickly. A file that is not the database
    of a study raises `InputError`.
    """
    import optuna
    import sqlalchemy

    place, copied = path, contextlib.ExitStack()
    try:
        path = copied.enter_context(_writable(path))
        _refuse_foreign(path, place)
        _ignore_fallbacks()
        with errors_of_reading(str(place)):
            storage = optuna.storages.RDBStorage(_url(path), skip_table_creation=True)
    except BaseException:
        copied.close()
        raise
    storage.engine.dispose()
    weakref.finalize(storage, copied.close)

    @sqlalchemy.event.listens_for(storage.engine, "connect")
    def _use_write_ahead_log(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    return storage


def read_file(path: Path, name: str) -> sqlite_reader.RecordedStudy | None:
    """Read the study of this name from its SQLite file without Optuna; None if that needs Optuna.

    A file that is not the database of a study raises `InputError`, as in `open_file`.
    """
    with _writable(path) as readable:
        _refuse_foreign(readable, path)
        with (
            contextlib.suppress(sqlite_reader.UnfamiliarError),
            contextlib.closing(sqlite3.connect(readable, timeout=30)) as connection,
        ):
            return sqlite_reader.read(connection, name)
    return None


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[Path]:
    """The database, or a copy if its disk cannot be written: SQLite writes next to the file that it reads."""
    if all(os.access(part, os.W_OK) for part in (path, path.parent)):
        yield path
        return
    with temporary.private() as folder:
        yield _copy(path, folder)


def _url(path: Path) -> str:
    """The URL of a file; Optuna formats the URL, so braces are doubled."""
    return f"sqlite:///{path.resolve()}".replace("{", "{{").replace("}", "}}")


def _copy(path: Path, folder: Path) -> Path:
    """Copy a database with the log that a killed process may have left."""
    for part in (path, path.with_name(f"{path.name}-wal")):
        if part.exists():
            try:
                shutil.copyfile(part, folder / part.name)
            except OSError as error:
                raise InputError(f"{part}: cannot be read ({error.strerror or error})") from None
    return folder / path.name


def count_trials(path: Path) -> int:
    """Count the trials in the database of a study; another file raises `InputError`."""
    _refuse_foreign(path, path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT COUNT(*) FROM trials").fetchone()[0]


def _refuse_foreign(path: Path, place: Path) -> None:
    """Refuse an empty file, a truncated one, and one that is not the database of a study; `place` names it in errors.

    The file is read by SQLite alone, unless SQLite refuses it. A process that opens and closes a database by other
    means loses the locks of all its connections to it (POSIX). The next process that closes the database then removes a
    log that is still in use, which corrupted the record for one process and removed trials for the other.
    """
    size = path.stat().st_size
    if size == 0:
        raise InputError(f"{place}: the file is empty: the study's trials are gone; {REMEDY}")
    if size < HEADER:  # SQLite may read it as an empty database
        raise InputError(f"{place}: the file is cut off after {size} bytes, in its header; {REMEDY}; {UNAFFECTED}")
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            pages, page = (connection.execute(f"PRAGMA page_{name}").fetchone()[0] for name in ("count", "size"))
            missing_bytes = _truncated(path, pages * page)
    except sqlite3.OperationalError as error:  # locked for long, out of memory
        if shutil.disk_usage(path.parent).free < LEAST_ROOM:
            raise InputError(
                f"{place}: cannot be read: the disk is full ({error}), and SQLite writes next to the file; make room"
            ) from None
        raise InputError(f"{place}: cannot be read ({error}); try again, or {REMEDY}") from None
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if missing_bytes := _truncated(path, _expected_size(path)):
            raise InputError(f"{place}: {missing_bytes}; {REMEDY}; {UNAFFECTED}") from None
        raise InputError(f"{place}: not the database of a study ({error}); {REMEDY}") from None
    if missing_bytes:
        raise InputError(f"{place}: {missing_bytes}; {REMEDY}; {UNAFFECTED}")
    if missing := sorted(TABLES - tables):
        raise InputError(f"{place}: not the database of a study (no table '{missing[0]}'); {REMEDY}")


def _truncated(path: Path, expected: int) -> str:
    """Why a SQLite file is incomplete; empty if it has the `expected` number of bytes.

    SQLite reads missing bytes of the last page as zeros, so that a study would lose trials silently. A log or journal
    next to the file may hold the missing pages.
    """
    logs = [path.with_name(f"{path.name}-{kind}") for kind in ("wal", "journal")]
    if any(log.exists() and log.stat().st_size for log in logs):
        return ""
    size = path.stat().st_size
    return f"the file is cut off: {size:,} of {expected:,} bytes are there" if size < expected else ""


def _expected_size(path: Path) -> int:
    """The size in bytes that the header of a file states which SQLite refuses; 0 if unavailable."""
    try:
        header = path.read_bytes()[:HEADER]
    except OSError:  # SQLite's own error says why
        return 0
    if not header.startswith(MAGIC):
        return 0
    page = int.from_bytes(header[16:18], "big")
    is_current = header[24:28] == header[92:96]  # else an old SQLite wrote last, without updating the page count
    return (65536 if page == 1 else page) * int.from_bytes(header[28:32], "big") if is_current else 0


@contextlib.contextmanager
def errors_of_reading(place: str) -> Iterator[None]:
    """Turn any error of Optuna about a damaged database into one message; the body only reads the database."""
    try:
        yield
    except NasspaceError:
        raise
    except Exception as error:
        import sqlalchemy.exc
        from optuna.exceptions import StorageInternalError

        if isinstance(error, sqlalchemy.exc.OperationalError | StorageInternalError):
            raise
        if isinstance(error, KeyError) and "ecord" in str(error):  # Optuna's "Record does not exist."
            raise
        raise _unreadable(place, error) from error


def _unreadable(place: str, error: Exception) -> InputError:
    why = f"{type(error).__name__}: {reason(error)}"[:200]
    return InputError(f"{place}: the database cannot be read ({why}); {REMEDY}")


def connect(url: str) -> Any:
    """Connect to the storage at a URL; calls are retried while its database is unreachable.

    A database that cannot be used raises `InputError`.
    """
    import sqlalchemy.exc
    from optuna.exceptions import StorageInternalError

    for attempt in range(ATTEMPTS):
        try:
            storage = _retrying_storage()(
                _address(url),
                engine_kwargs={"pool_pre_ping": True, "connect_args": _timeouts(_address(url))},
                heartbeat_interval=BEAT,
                grace_period=GRACE,
            )
            weakref.finalize(storage, storage.engine.dispose)  # closes its connections
            return storage
        except ImportError as error:
            why = str(error.__cause__ or error)
            is_postgresql = _address(url).startswith("postgresql+psycopg:")
            remedy = "pip install 'nasspace[postgresql]'" if is_postgresql else "install its driver"
            raise InputError(f"--storage {without_password(url)}: its driver is missing ({why}); {remedy}") from error
        except (sqlalchemy.exc.ArgumentError, ValueError) as error:
            raise InputError(
                f"--storage {without_password(url)}: not the URL of a database ({reason(error)}); write "
                "postgresql://USER:PASSWORD@HOST:PORT/DATABASE or sqlite:///FILE"
            ) from error
        except RuntimeError as error:  # tables of another version of Optuna
            raise InputError(f"--storage {without_password(url)}: {reason(error)}") from error
        except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
            raced = any(word in str(error) for word in ("already exists", "duplicate key", "UNIQUE constraint"))
            if attempt == ATTEMPTS - 1 or not raced:
                raise InputError(
                    f"--storage {without_password(url)}: the database cannot be used ({reason(error)}); "
                    "start it, or correct its address, user or password"
                ) from error
            time.sleep(1)  # another process was creating the tables
    raise AssertionError("not reached")


def _address(url: str) -> str:
    """The URL for SQLAlchemy and Optuna: PostgreSQL with the driver that `nasspace[postgresql]` installs."""
    kind, separator, rest = url.partition("://")
    kind = "postgresql+psycopg" if kind in ("postgres", "postgresql") else kind
    return f"{kind}{separator}{rest}".replace("{", "{{").replace("}", "}}")


def _timeouts(address: str) -> dict[str, Any]:
    """Timeouts of a connection in seconds, so that a network that drops packets does not block a search forever."""
    if address.startswith(("postgresql+psycopg:", "postgresql+psycopg2:")):
        timeouts = {"connect_timeout": CONNECT, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
        timeouts["tcp_user_timeout"] = 60_000  # ms
        return {name: value for name, value in timeouts.items() if f"{name}=" not in address}
    return {"timeout": 30} if address.startswith("sqlite") else {}


def without_password(url: str) -> str:
    """A URL with its password masked.

    SQLAlchemy's `render_as_string(hide_password=True)` shows what follows an @ in a password and passwords in the
    query, and raises on a malformed URL, which is what most messages are about.
    """
    return re.sub(r"(password=)[^&]*", r"\1***", re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url))


def ask(study: Any) -> Any:
    """Create the next trial of an Optuna study."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)  # `heartbeat` records heartbeats
        return study.ask()


def stale_trials(study: Any) -> set[int]:
    """Storage ids of the running trials whose last heartbeat is older than GRACE seconds."""
    from nasspace import optuna_adapter

    return optuna_adapter.stale_trial_ids(study)


def report(study: Any, trial: Any, value: float, step: int) -> None:
    """Record an intermediate value of a trial, for `optuna-dashboard`: the accuracy after `step` epochs."""
    from nasspace import optuna_adapter

    optuna_adapter.report(study, trial, value, step)


def report_finished(study: Any, trial: Any, value: float, step: int) -> None:
    """Record an intermediate value of a finished trial, for `optuna-dashboard`: of a rung after the search."""
    from nasspace import optuna_adapter

    _retried(optuna_adapter.report_finished)(optuna_adapter.backend(study), trial, value, step)


def record_heartbeat(study: Any, trial_id: int) -> None:
    """Record that a trial is in progress, for the other processes of a shared storage."""
    from nasspace import optuna_adapter

    optuna_adapter.record_heartbeat(study, trial_id)


def name_objectives(study: Any, names: list[str]) -> None:
    """Store the names of the objectives with their units, as columns of tables, which optuna-dashboard shows."""
    import optuna

    names = [OBJECTIVES[name].column for name in names]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(names)


def requeue(study: Any, trial: Any) -> None:
    """Enqueue the parameters of a trial whose process died, unless they are enqueued already."""
    from nasspace.optuna_adapter import enqueued_params

    parameters = trial.params if "digest" in trial.user_attrs else enqueued_params(trial)
    waiting = [other for other in study.get_trials(deepcopy=False) if other.state.name == "WAITING"]
    if parameters and all(enqueued_params(other) != parameters for other in waiting):
        study.enqueue_trial(dict(parameters))


@contextlib.contextmanager
def unless_finished() -> Iterator[None]:
    """Leave the body if another process has finished the trial, which it considered stale."""
    import optuna

    with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
        yield


@contextlib.contextmanager
def without_retries() -> Iterator[None]:
    """Disable retries in this thread."""
    _thread.no_retries = True
    try:
        yield
    finally:
        _thread.no_retries = False


@functools.cache
def _retrying_storage() -> type:
    """Optuna's storage with every call retried while the database is unreachable."""
    import optuna

    from nasspace import optuna_adapter

    _ignore_fallbacks()

    class RetryingStorage(optuna.storages.RDBStorage):
        def __init__(self, url: str, **settings: Any) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of heartbeats
                super().__init__(url, **settings)

    for name, method in optuna_adapter.storage_methods():
        setattr(RetryingStorage, name, _retried(method))
    return RetryingStorage


@functools.cache
def _ignore_fallbacks() -> None:
    """Leave Optuna's long warning out of the log: it retries on a broken connection or a damaged file in vain.

    `_retried` logs one line instead, and the error of a damaged file is one message.
    """
    from nasspace import optuna_adapter

    logging.getLogger(optuna_adapter.STORAGE_LOGGER).addFilter(lambda line: "Falling back" not in line.getMessage())


def _retried(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method of a storage: retry it for PATIENCE seconds while the database is unreachable."""
    import sqlalchemy.exc
    from optuna.exceptions import StorageInternalError

    @functools.wraps(method)
    def call(storage: Any, *args: Any, **kwargs: Any) -> Any:
        since = None
        while True:
            try:
                return method(storage, *args, **kwargs)
            except (StorageInternalError, sqlalchemy.exc.DBAPIError) as error:
                if getattr(_thread, "no_retries", False) or not _is_unreachable(error, storage.engine.dialect.name):
                    raise
                now = time.monotonic()
                if since is None:
                    since = now
                    log.warning(
                        "the study's database does not answer (%s); retrying for %.0f s", reason(error), PATIENCE
                    )
                elif now - since > PATIENCE:
                    raise InputError(
                        f"--storage {without_password(storage.url)}: the study's database did not answer for "
                        f"{PATIENCE:.0f} s ({reason(error)}); once it does, run `nas resume`"
                    ) from error
                time.sleep(PAUSE)

    return call


def _is_unreachable(error: Exception, dialect: str) -> bool:
    """Whether a later attempt may succeed: the server does not answer, or another process locks the SQLite file."""
    import sqlalchemy.exc

    cause = error if isinstance(error, sqlalchemy.exc.DBAPIError) else error.__cause__
    kinds = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError, sqlalchemy.exc.PendingRollbackError)
    if not isinstance(cause, kinds):  # the last one: a call inside a transaction whose connection broke
        return False
    return "locked" in str(cause) if dialect == "sqlite" else True


def reason(error: BaseException) -> str:
    """The database's own message in one line."""
    cause = error.__cause__ or error
    lines = str(getattr(cause, "orig", None) or cause).strip().splitlines() or [type(cause).__name__]
    attempts = [line for line in lines if " failed: " in line]  # one for each address of the host
    return (attempts or lines)[0].strip(" -")


@contextlib.contextmanager
def errors_of_storage(folder: Path) -> Iterator[None]:
    """Turn errors of a database (unreachable, full, damaged, read-only) into one message that names the folder."""
    import sqlalchemy.exc
    from optuna.exceptions import DuplicatedStudyError, StorageInternalError

    try:
        yield
    except NasspaceError:
        raise
    except DuplicatedStudyError:
        raise InputError(f"{folder}: its storage holds a study of this name already; choose another --study") from None
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError, KeyError) as error:
        if isinstance(error, KeyError) and "ecord" not in str(error):  # Optuna's "Record does not exist."
            raise
        remedy, why = "free disk space or restore access, then run `nas resume`", reason(error)
        if "malformed" in why or "not a database" in why:  # SQLite's words for a damaged file
            remedy = REMEDY
        raise InputError(f"{folder}: the study's database cannot be used ({why}); {remedy}") from error
