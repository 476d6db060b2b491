"""Trained weights: stored, copied to another storage, fetched from it, deleted."""

from __future__ import annotations

import threading

import pytest
import torch
from safetensors.torch import load_file

from nasspace.errors import InputError
from nasspace.studies import weight_store
from nasspace.studies.weight_store import Weights

STATE = {"0.weight": torch.arange(6.0).reshape(2, 3)}


@pytest.mark.parametrize("place", ["{}/shared", "file://{}/shared", "memory://{}/shared"])
def test_weights_are_fetched_from_another_machine(place, tmp_path):
    place = place.format(tmp_path)
    here, there = Weights(tmp_path / "here", place), Weights(tmp_path / "there", place)
    assert there.path(3) is None
    here.keep(3, STATE)
    assert torch.equal(load_file(there.path(3))["0.weight"], STATE["0.weight"])
    assert there.path(3).parent == tmp_path / "there"
    here.drop([3, 4])
    assert here.path(3) is None


def test_without_copies_weights_are_in_the_folder(tmp_path):
    kept = Weights(tmp_path)
    kept.keep(1, STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["1.safetensors"]
    kept.drop([1])
    assert kept.path(1) is None


def test_a_storage_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    weight_store.check(str(tmp_path / "new"))
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--storage-path .*file.*cannot be written"):
        weight_store.check(str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot be written"):
        weight_store.check("nothing://bucket")
    monkeypatch.setattr(weight_store, "ANSWER", 0.05)
    answered = threading.Event()
    monkeypatch.setattr(weight_store, "_put", lambda *_: answered.wait(60))
    with pytest.raises(InputError, match="no answer within"):
        weight_store.check("s3://bucket")
    answered.set()
