"""The database of a study: a SQLite file of its own, or one behind a URL that several search processes share."""

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

PATIENCE = 300.0  # seconds that a shared database may be gone
PAUSE = 2.0  # seconds between two attempts
BEAT = 10  # seconds between two signs of life of a running trial, for the other processes
GRACE = 60  # seconds without one, after which a trial's process is taken for dead
CONNECT = 10  # seconds for a first answer
ATTEMPTS = 5  # at the tables, where several processes make them at once
REMEDY = "restore the file from a copy, or search again under another --study name"
UNAFFECTED = "its exports and tables are not affected"
MAGIC, HEADER = b"SQLite format 3\0", 100  # bytes that a SQLite file begins with
TABLES = {  # of Optuna, in every database of a study
    *("studies", "study_directions", "study_user_attributes", "trials", "trial_values", "trial_params"),
    *("trial_user_attributes", "trial_system_attributes", "version_info", "alembic_version"),
}
log = logging.getLogger(__name__)
_thread = threading.local()


def make(path: Path, name: str, directions: list[str], objectives: list[str]) -> None:
    """Write a new database with one study in which nothing is recorded; it is moved into place whole."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # nasspace shows its own progress
    with files.replacing(path) as target:
        database = optuna.storages.RDBStorage(_url(target))
        record = optuna.create_study(study_name=name, storage=database, directions=directions)
        name_objectives(record, objectives)
        database.remove_session()
        database.engine.dispose()


def own(path: Path) -> Any:
    """The SQLite file of a study: a write-ahead log, which a killed process cannot harm and which commits quickly.

    On a disk that cannot be written, a copy of it. An `InputError` for what is not the database of a study.
    """
    import optuna
    import sqlalchemy

    place, copied = path, contextlib.ExitStack()
    if not all(os.access(part, os.W_OK) for part in (path, path.parent)):  # SQLite writes beside what it reads
        path = _copy(path, copied.enter_context(temporary.private()))
    try:
        _refuse_foreign(path, place)
        with errors_of_reading(str(place)):
            storage = optuna.storages.RDBStorage(_url(path), skip_table_creation=True)
    except BaseException:
        copied.close()
        raise
    storage.engine.dispose()
    weakref.finalize(storage, copied.close)

    @sqlalchemy.event.listens_for(storage.engine, "connect")
    def _log_ahead(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    return storage


def _url(path: Path) -> str:
    """The URL of a file; Optuna takes braces for fields to fill in."""
    return f"sqlite:///{path.resolve()}".replace("{", "{{").replace("}", "}}")


def _copy(path: Path, folder: Path) -> Path:
    """A copy of a database, with what a killed process left in its log."""
    for part in (path, path.with_name(f"{path.name}-wal")):
        if part.exists():
            try:
                shutil.copyfile(part, folder / part.name)
            except OSError as error:
                raise InputError(f"{part}: cannot be read ({error.strerror or error})") from None
    return folder / path.name


def recorded(path: Path) -> int:
    """How many trials a database of a study holds; an `InputError` if it is none."""
    _refuse_foreign(path, path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT COUNT(*) FROM trials").fetchone()[0]


def _refuse_foreign(path: Path, place: Path) -> None:
    """An empty file, and one that holds something else, must not be taken for a new study.

    The file is read by SQLite only, as long as SQLite takes it. A process that opens and closes a database by other
    means loses the locks of all its connections to it (POSIX), and the next process that closes the database then
    removes a log that is still in use: the record was malformed for the one and lacked trials for the other.
    """
    size = path.stat().st_size
    if size == 0:
        raise InputError(f"{place}: the file is empty: the study's record is lost; {REMEDY}")
    if size < HEADER:  # SQLite may take it for an empty database
        raise InputError(f"{place}: the file is cut off after {size} bytes, in its header; {REMEDY}; {UNAFFECTED}")
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            pages, page = (connection.execute(f"PRAGMA page_{name}").fetchone()[0] for name in ("count", "size"))
            lost = _cut_off(path, pages * page)
    except sqlite3.OperationalError as error:  # locked for long, out of memory
        raise InputError(f"{place}: cannot be read ({error}); try again, or {REMEDY}") from None
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if lost := _cut_off(path, _whole(path)):
            raise InputError(f"{place}: {lost}; {REMEDY}; {UNAFFECTED}") from None
        raise InputError(f"{place}: not the database of a study ({error}); {REMEDY}") from None
    if lost:
        raise InputError(f"{place}: {lost}; {REMEDY}; {UNAFFECTED}")
    if missing := sorted(TABLES - tables):
        raise InputError(f"{place}: not the database of a study (no table '{missing[0]}'); {REMEDY}")


def _cut_off(path: Path, whole: int) -> str:
    """What is missing of a SQLite file that has fewer bytes than the `whole`, in words; else empty.

    SQLite reads what is missing of the last page as zeros, and a study would lose trials silently. A log or
    journal next to the file may hold the pages that the file lacks.
    """
    logs = [path.with_name(f"{path.name}-{kind}") for kind in ("wal", "journal")]
    if any(log.exists() and log.stat().st_size for log in logs):
        return ""
    size = path.stat().st_size
    return f"the file is cut off: {size:,} of {whole:,} bytes are there" if size < whole else ""


def _whole(path: Path) -> int:
    """The bytes that a file which SQLite refuses should have by its header; 0 where it does not say."""
    try:
        header = path.read_bytes()[:HEADER]
    except OSError:  # SQLite says why it cannot be read
        return 0
    if not header.startswith(MAGIC):
        return 0
    page = int.from_bytes(header[16:18], "big")
    counted = header[24:28] == header[92:96]  # else an older SQLite wrote last, and the count of pages is not of now
    return (65536 if page == 1 else page) * int.from_bytes(header[28:32], "big") if counted else 0


@contextlib.contextmanager
def errors_of_reading(place: str) -> Iterator[None]:
    """Whatever Optuna raises on the content of a damaged database, as one message; nothing else runs in the body."""
    import sqlalchemy.exc
    from optuna.exceptions import StorageInternalError

    try:
        yield
    except (NasspaceError, sqlalchemy.exc.OperationalError, StorageInternalError):
        raise
    except KeyError as error:
        if "ecord" in str(error):  # Optuna's "Record does not exist."
            raise
        raise _unreadable(place, error) from error
    except Exception as error:
        raise _unreadable(place, error) from error


def _unreadable(place: str, error: Exception) -> InputError:
    said = f"{type(error).__name__}: {reason(error)}"[:200]
    return InputError(f"{place}: the database cannot be read ({said}); {REMEDY}")


def shared(url: str) -> Any:
    """The storage behind a URL: patient when its database is gone for a while; one that cannot be had is refused."""
    import sqlalchemy.exc
    from optuna.exceptions import StorageInternalError

    for attempt in range(ATTEMPTS):
        try:
            storage = _patient_class()(
                _address(url),
                engine_kwargs={"pool_pre_ping": True, "connect_args": _waits(_address(url))},
                heartbeat_interval=BEAT,
                grace_period=GRACE,
            )
            weakref.finalize(storage, storage.engine.dispose)  # its connections end with it
            return storage
        except ImportError as error:
            why = str(error.__cause__ or error)
            ours = _address(url).startswith("postgresql+psycopg:")
            remedy = "pip install 'nasspace[postgresql]'" if ours else "install its driver"
            raise InputError(f"--storage {shown(url)}: its driver is missing ({why}); {remedy}") from error
        except (sqlalchemy.exc.ArgumentError, ValueError) as error:
            raise InputError(
                f"--storage {shown(url)}: not the URL of a database ({reason(error)}); write "
                "postgresql://USER:PASSWORD@HOST:PORT/DATABASE or sqlite:///FILE"
            ) from error
        except RuntimeError as error:  # tables of another Optuna, which says so
            raise InputError(f"--storage {shown(url)}: {reason(error)}") from error
        except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
            met = any(word in str(error) for word in ("already exists", "duplicate key", "UNIQUE constraint"))
            if attempt == ATTEMPTS - 1 or not met:
                raise InputError(
                    f"--storage {shown(url)}: the database cannot be used ({reason(error)}); start it, or correct "
                    "its address, user or password"
                ) from error
            time.sleep(1)  # another process was making the tables
    raise AssertionError("not reached")


def _address(url: str) -> str:
    """The URL as SQLAlchemy and Optuna take it: PostgreSQL with the driver that `nasspace[postgresql]` installs."""
    kind, separator, rest = url.partition("://")
    kind = "postgresql+psycopg" if kind in ("postgres", "postgresql") else kind
    return f"{kind}{separator}{rest}".replace("{", "{{").replace("}", "}}")


def _waits(address: str) -> dict[str, Any]:
    """How long a connection waits, in seconds: a network that drops everything does not hold a search for ever."""
    if address.startswith(("postgresql+psycopg:", "postgresql+psycopg2:")):
        waits = {"connect_timeout": CONNECT, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
        waits["tcp_user_timeout"] = 60_000  # ms
        return {name: value for name, value in waits.items() if f"{name}=" not in address}
    return {"timeout": 30} if address.startswith("sqlite") else {}


def shown(url: str) -> str:
    """A URL without its password."""
    return re.sub(r"(password=)[^&]*", r"\1***", re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url))


def ask(study: Any) -> Any:
    """The next trial of an Optuna study."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)  # `heartbeat` gives the signs of life
        return study.ask()


def silent(study: Any) -> set[int]:
    """Identities of the running trials whose last sign of life is a minute ago."""
    from nasspace import optuna_adapter

    return optuna_adapter.stale_trial_ids(study)


def sign_of_life(study: Any, trial_id: int) -> None:
    """Tell the other processes of a shared storage that a trial is being worked on."""
    from nasspace import optuna_adapter

    optuna_adapter.record_heartbeat(study, trial_id)


def name_objectives(study: Any, names: list[str]) -> None:
    """Names of the objectives, as optuna-dashboard shows them."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(names)


def ask_again(study: Any, trial: Any) -> None:
    """What was asked of a process that died is asked of the next one; once, whoever finds it."""
    from nasspace.optuna_adapter import enqueued_params

    asked = trial.params if "digest" in trial.user_attrs else enqueued_params(trial)
    waiting = [other for other in study.get_trials(deepcopy=False) if other.state.name == "WAITING"]
    if asked and all(enqueued_params(other) != asked for other in waiting):
        study.enqueue_trial(dict(asked))


@contextlib.contextmanager
def unless_finished() -> Iterator[None]:
    """What is written into a trial ends here if another process has finished the trial, which it took for lost."""
    import optuna

    with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
        yield


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Questions of this thread that are not asked again while the database is gone."""
    _thread.hurries = True
    try:
        yield
    finally:
        _thread.hurries = False


@functools.cache
def _patient_class() -> type:
    """Optuna's storage whose every question is asked again while the database is gone."""
    import optuna

    from nasspace import optuna_adapter

    # It asks again on the connection that was lost, and warns of that at length; `_patiently` says it in a line.
    logging.getLogger(optuna_adapter.STORAGE_LOGGER).addFilter(lambda said: "Falling back" not in said.getMessage())

    class Patient(optuna.storages.RDBStorage):
        def __init__(self, url: str, **settings: Any) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of the signs of life
                super().__init__(url, **settings)

    for name, method in optuna_adapter.storage_methods():
        setattr(Patient, name, _patiently(method))
    return Patient


def _patiently(method: Callable[..., Any]) -> Callable[..., Any]:
    import sqlalchemy.exc
    from optuna.exceptions import StorageInternalError

    @functools.wraps(method)
    def asked(storage: Any, *args: Any, **kwargs: Any) -> Any:
        gone_since = None
        while True:
            try:
                return method(storage, *args, **kwargs)
            except (StorageInternalError, sqlalchemy.exc.DBAPIError) as error:
                if getattr(_thread, "hurries", False) or not _is_gone(error, storage.engine.dialect.name):
                    raise
                now = time.monotonic()
                if gone_since is None:
                    gone_since = now
                    log.warning("the study's database does not answer (%s); asking for %.0f s", reason(error), PATIENCE)
                elif now - gone_since > PATIENCE:
                    raise InputError(
                        f"--storage {shown(storage.url)}: the study's database did not answer for {PATIENCE:.0f} s "
                        f"({reason(error)}); once it does, `nas resume` goes on"
                    ) from error
                time.sleep(PAUSE)

    return asked


def _is_gone(error: Exception, dialect: str) -> bool:
    """Whether a later attempt may succeed: a server that does not answer, a SQLite file that another one holds."""
    import sqlalchemy.exc

    cause = error if isinstance(error, sqlalchemy.exc.DBAPIError) else error.__cause__
    kinds = (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError, sqlalchemy.exc.PendingRollbackError)
    if not isinstance(cause, kinds):  # the last is of a question within one that was lost
        return False
    return "locked" in str(cause) if dialect == "sqlite" else True


def reason(error: BaseException) -> str:
    """What the database itself said, in a line."""
    cause = error.__cause__ or error
    lines = str(getattr(cause, "orig", None) or cause).strip().splitlines() or [type(cause).__name__]
    attempts = [line for line in lines if " failed: " in line]  # of a host with several addresses
    return (attempts or lines)[0].strip(" -")


@contextlib.contextmanager
def errors_of_storage(folder: Path) -> Iterator[None]:
    """What a database can do to us, as one message: unreachable, full, damaged, not writable, without its driver."""
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
        raise InputError(
            f"{folder}: the study's database cannot be used ({reason(error)}); make room or access, then "
            "`nas resume` goes on"
        ) from error
