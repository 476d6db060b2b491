"""Names of studies: as arguments of commands that can be copied."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from nasspace.studies import paths


@pytest.mark.parametrize("name", ["one", "my photos", 'it\'s "$(one)"', "-x", "größe", "*", "~", "<script>"])
def test_an_argument_that_is_copied_names_the_same_study(name):
    (argument,) = shlex.split(paths.as_argument(Path("reports") / name))
    assert not argument.startswith("-")
    assert paths.folder_of(argument) == Path("reports") / name
    assert shlex.split(paths.as_argument(Path("reports") / name, 7)) == [f"{argument}:7"]


def test_a_study_elsewhere_is_named_by_its_folder(tmp_path):
    assert paths.as_argument(tmp_path / "my photos", 7) == f"'{tmp_path}/my photos:7'"
