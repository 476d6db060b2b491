"""Addresses of databases."""

from __future__ import annotations

import pytest
import sqlalchemy

from nasspace.studies import storage


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
