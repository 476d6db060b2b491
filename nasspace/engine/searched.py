"""The study that `nasspace.search` returns: a record with pictures, for notebooks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nasspace.studies import study as records
from nasspace.studies.study import Study

if TYPE_CHECKING:
    import plotly.graph_objects


class SearchedStudy(Study):
    """A study that can draw what it found. `Study` itself knows nothing of pictures."""

    @classmethod
    def of(cls, study: Study) -> SearchedStudy:
        """The same study, with its record and all that it holds."""
        searched = cls(study.folder, study.settings, study.record)
        vars(searched).update(vars(study))
        return searched

    def plot(self) -> plotly.graph_objects.Figure:
        """The Pareto plot of the report: one panel for each cost, 95 % intervals, rejected candidates, limits."""
        from nasspace.reporting.notebook import front_figure

        return front_figure(self.snapshot())

    def _repr_html_(self) -> str:
        """The front as a table and a picture, which notebooks show."""
        from nasspace.reporting.notebook import front_html

        return front_html(self.snapshot())


def load_study(name: str | Path) -> SearchedStudy:
    """Load a study for its results, by its name below `./reports` or its folder.

    A missing, damaged or foreign one raises `InputError`. `nasspace.search` and `nas resume` continue a study.
    """
    return SearchedStudy.of(records.read(name))
