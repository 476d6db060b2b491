"""The database of a study: a SQLite file of its own, or one behind a URL that several search processes share."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nasspace.errors import InputError, NasspaceError

PATIENCE = 300.0  # seconds that a shared database may be gone
PAUSE = 2.0  # seconds between two attempts
BEAT = 10  # seconds between two signs of life of a running trial, for the other processes
GRACE = 60  # seconds without one, after which a trial's process is taken for dead
CONNECT = 10  # seconds for a first answer
ATTEMPTS = 5  # at the tables, where several processes make them at once
log = logging.getLogger(__name__)


def own(path: Path) -> Any:
    """The SQLite file of a study: a write-ahead log, which a killed process cannot harm and which commits quickly."""
    import optuna
    import sqlalchemy

    storage = optuna.storages.RDBStorage(f"sqlite:///{path.resolve()}")
    storage.engine.dispose()

    @sqlalchemy.event.listens_for(storage.engine, "connect")
    def _log_ahead(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    return storage


def shared(url: str) -> Any:
    """The storage behind a URL: patient when its database is gone for a while; its trials give signs of life."""
    import sqlalchemy.exc

    for attempt in range(ATTEMPTS):
        try:
            return _patient_class()(
                url,
                engine_kwargs={"pool_pre_ping": True, **_wait(url)},
                heartbeat_interval=BEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=ask_again,
            )
        except sqlalchemy.exc.DBAPIError as error:
            if attempt == ATTEMPTS - 1 or not any(word in str(error) for word in ("already exists", "duplicate key")):
                raise
            time.sleep(1)  # another process was making the tables
    raise AssertionError("not reached")


def _wait(url: str) -> dict[str, Any]:
    if url.startswith("postgresql"):
        return {"connect_args": {"connect_timeout": CONNECT}}
    return {"connect_args": {"timeout": 30}} if url.startswith("sqlite") else {}


def ask(study: Any) -> Any:
    """The next trial of an Optuna study."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)  # `sharing` gives the signs of life
        return study.ask()


def fail_stale(study: Any) -> None:
    """Fail the trials that gave no sign of life for a minute, which asks for them again."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)


def name_objectives(study: Any, names: list[str]) -> None:
    """Names of the objectives, as optuna-dashboard shows them."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(names)


def ask_again(study: Any, trial: Any) -> None:
    """What was asked of a process that died is asked of the next one."""
    if "digest" in trial.user_attrs:
        study.enqueue_trial(trial.params)


@functools.cache
def _patient_class() -> type:
    """Optuna's storage whose every question is asked again while the database is gone."""
    import optuna

    class Patient(optuna.storages.RDBStorage):
        def __init__(self, url: str, **settings: Any) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of the signs of life
                super().__init__(url, **settings)

    base = optuna.storages.BaseStorage
    for name in [*vars(base), "record_heartbeat", "_get_stale_trial_ids"]:
        method = getattr(optuna.storages.RDBStorage, name, None)
        if callable(method) and not name.startswith("__"):
            setattr(Patient, name, _patiently(method))
    return Patient


def _patiently(method: Callable[..., Any]) -> Callable[..., Any]:
    from optuna.exceptions import StorageInternalError

    @functools.wraps(method)
    def asked(storage: Any, *args: Any, **kwargs: Any) -> Any:
        gone_since = None
        while True:
            try:
                return method(storage, *args, **kwargs)
            except StorageInternalError as error:
                if not _is_gone(error, storage.engine.dialect.name):
                    raise
                if gone_since is None:
                    gone_since = time.monotonic()
                    log.warning("the study's database is gone (%s); asking again for %.0f s", reason(error), PATIENCE)
                elif time.monotonic() - gone_since > PATIENCE:
                    raise
                time.sleep(PAUSE)

    return asked


def _is_gone(error: Exception, dialect: str) -> bool:
    """Whether a later attempt may succeed: a server that does not answer, a SQLite file that another one holds."""
    import sqlalchemy.exc

    cause = error.__cause__
    if not isinstance(cause, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError):
        return False
    return "locked" in str(cause) if dialect == "sqlite" else True


def reason(error: BaseException) -> str:
    """The first line of what the database itself said."""
    cause = error.__cause__ or error
    return str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]


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
    except ImportError as error:
        why = str(error.__cause__ or error)
        remedy = "pip install 'nasspace[postgresql]'" if "psycopg" in why else "install its driver"
        raise InputError(f"{folder}: the study's database cannot be used ({why}); {remedy}") from error
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError, KeyError) as error:
        if isinstance(error, KeyError) and "ecord" not in str(error):  # Optuna's "Record does not exist."
            raise
        raise InputError(
            f"{folder}: the study's database cannot be used ({reason(error)}); make room or access, then "
            "`nas resume` goes on"
        ) from error
