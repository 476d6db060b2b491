"""Everything nasspace uses of Optuna that Optuna does not document; its presence is checked at import.

Like Optuna itself, this module is imported late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial

from nasspace.errors import NasspaceError

SUPPORTED = "optuna>=5.0,<6"  # as in pyproject.toml
STORAGE_LOGGER = "optuna.storages._rdb.storage"
# Methods that Optuna's cache calls on `RDBStorage`, in addition to those of `BaseStorage`.
BACKEND_METHODS = ("_create_new_trial", "_get_trials", "_set_trial_param", "record_heartbeat", "_get_stale_trial_ids")
METHODS = {optuna.Study: ("_get_trials",), RDBStorage: BACKEND_METHODS}
ATTRIBUTES = {optuna.Study: ("_storage", "_study_id"), optuna.Trial: ("_trial_id",), FrozenTrial: ("_trial_id",)}


def missing_names() -> list[str]:
    """The private names used here that the installed Optuna lacks."""
    methods = [(kind, name) for kind, names in METHODS.items() for name in names if not hasattr(kind, name)]
    attributes = [  # set in the constructor
        (kind, name) for kind, names in ATTRIBUTES.items() for name in names if name not in _assigned(kind)
    ]
    return [f"{kind.__name__}.{name}" for kind, name in (*methods, *attributes)]


def _assigned(kind: type) -> tuple[str, ...]:
    """The names that occur in a class's constructor."""
    return kind.__init__.__code__.co_names  # type: ignore[misc]


def check_names() -> None:
    """Raise a `NasspaceError` that names the supported versions if Optuna lacks a private name used here."""
    if missing := missing_names():
        raise NasspaceError(
            f"optuna {optuna.__version__} lacks {', '.join(missing)}, which nasspace uses; pip install '{SUPPORTED}'"
        )


check_names()


def trial_id(trial: optuna.Trial | FrozenTrial) -> int:
    """The trial's key in its storage, unique over all studies there."""
    return trial._trial_id


def reopened_trial(study: optuna.Study, trial: FrozenTrial) -> optuna.Trial:
    """A running trial of the record as one that this process continues."""
    return optuna.Trial(study, trial._trial_id)


def report(study: optuna.Study, trial: optuna.Trial, value: float, step: int) -> None:
    """Record an intermediate value, which `Trial.report` refuses in a study of several objectives."""
    study._storage.set_trial_intermediate_value(trial._trial_id, step, value)  # type: ignore[attr-defined]


def record_heartbeat(study: optuna.Study, trial_id: int) -> None:
    """Record in the storage that a trial's process is alive."""
    study._storage.record_heartbeat(trial_id)  # type: ignore[attr-defined]


def stale_trial_ids(study: optuna.Study) -> set[int]:
    """Running trials without a heartbeat for the storage's grace period."""
    return set(study._storage._get_stale_trial_ids(study._study_id))  # type: ignore[attr-defined]


def enqueued_params(trial: FrozenTrial) -> dict[str, Any] | None:
    """The parameters that a trial was enqueued with; None if it was not."""
    return trial.system_attrs.get("fixed_params")


def storage_methods() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every method by which Optuna reads from or writes to an `RDBStorage`, with its name."""
    for name in [*vars(BaseStorage), *BACKEND_METHODS]:
        method = getattr(RDBStorage, name, None)
        if callable(method) and not name.startswith("__"):
            yield name, method


class FinishedTrials:
    """A study as Optuna's samplers see it, without its unfinished trials."""

    def __init__(self, study: optuna.Study):
        self.study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self.study, name)

    def _get_trials(self, *args: Any, **options: Any) -> list[FrozenTrial]:
        return [trial for trial in self.study._get_trials(*args, **options) if trial.state.is_finished()]
