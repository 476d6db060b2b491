"""The images of a study for the trainings and exports after its search."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nasspace.architecture import Architecture
from nasspace.documents import Document
from nasspace.engine.devices import device_here
from nasspace.engine.problem import data_of
from nasspace.errors import InputError
from nasspace.studies import recipe as recipes
from nasspace.studies.study import Study

if TYPE_CHECKING:
    from nasspace.data.images import DataSet


class StudyData:
    """The study's data set, loaded on demand at the resolution of the current network.

    `device` is where networks are trained: the recipe's device, or the CPU if this machine lacks it.
    """

    def __init__(self, study: Study, report: Callable[..., None]):
        self.study = study
        self.recipe = recipes.read(Document(study.settings["recipe"], str(study.folder / "study.yaml")))
        self.device = device_here(self.recipe.device, "the front", report)

    def of(self, architecture: Architecture) -> DataSet:
        """The data set at a network's resolution, decoded from the original files."""
        side = min(architecture.input[1:])
        data = self.study.data
        if data is None or data.resolution != side:
            data = self.study.data = data_of(self.recipe, side)
            self._check(data)
        return data

    def _check(self, data: DataSet) -> None:
        """Refuse images that differ from the study's; the fingerprint holds for one resolution."""
        settings = self.study.settings
        if data.resolution == settings["task"]["resolution"] and data.fingerprint != settings["data"]["fingerprint"]:
            raise InputError(
                f"{self.study.folder}: {data.name} are not the images of the search (fingerprint "
                f"{settings['data']['fingerprint']}, now {data.fingerprint}); restore them"
            )
