"""`nasspace.search`: a search to its end, which with data is a front of exported and judged files."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from nasspace.engine import loop
from nasspace.engine.delivery import deliver

if TYPE_CHECKING:
    from nasspace.studies.study import Study


def search(*arguments: Any, **settings: Any) -> Study:
    study = loop.search(*arguments, **settings)
    return deliver(study, settings.get("on_event")) if study.settings["data"] else study


search.__doc__ = f"""{inspect.getdoc(loop.search)}

    With `data` the members of the front are then trained at their deployment resolution, exported, judged and measured
    again, as `nas search` does; a search with an `evaluator` has nothing to export.
    """
search.__signature__ = inspect.signature(loop.search)  # type: ignore[attr-defined]
