"""Databases behind a URL: their addresses, and joining a study."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from nasspace import files
from nasspace.documents import Document
from nasspace.studies import storage
from nasspace.studies import study as records
from nasspace.studies.schema import study_settings

RECORDED = Path(__file__).parents[1] / "recorded" / "study"


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:se:cr@et@host/db", "postgresql://me:***@host/db"),  # SQLAlchemy shows `et`
        ("postgresql://host/db?user=me&password=secret", "postgresql://host/db?user=me&password=***"),  # and this
        ("postgresql://me:secret@host:port/db", "postgresql://me:***@host:port/db"),  # and raises on these two
        ("not a url", "not a url"),
        ("redis://:secret@host", "redis://:***@host"),
        ("sqlite:////folder/study.db", "sqlite:////folder/study.db"),
    ],
)
def test_passwords_are_masked(url, masked):
    assert storage.without_password(url) == masked


def test_sqlalchemy_masks_less():
    """If this fails, `without_password` can use SQLAlchemy's own masking."""
    url = sqlalchemy.make_url("postgresql://host/db?user=me&password=secret")
    assert "secret" in url.render_as_string(hide_password=True)


def test_a_shared_study_of_an_earlier_version_is_joined_with_the_current_names(tmp_path):
    """An earlier version stored `training.optimiser`; with that name, the study looked as one with other settings."""
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    written = files.load_yaml(RECORDED / "study.yaml").value
    study = optuna.create_study(
        study_name=written["name"], storage=url, directions=["maximize", "minimize", "minimize"]
    )
    study.set_user_attr(records.SETTINGS, json.loads(json.dumps(written)))
    settings = {**study_settings(Document(written, "")), "storage": url}
    joined = records.create(tmp_path / "joined", settings, None)
    assert joined.settings["recipe"]["training"] == settings["recipe"]["training"]
    assert "optimizer" in files.load_yaml(tmp_path / "joined" / "study.yaml").value["recipe"]["training"]
