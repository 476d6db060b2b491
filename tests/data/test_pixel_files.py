"""Decoded images in mapped files: the same pixels as in memory, and nothing half-written is read."""

from __future__ import annotations

import gc
import os
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from nasspace.data import decoding, pixel_files
from nasspace.data.images import DataSet, prepared
from nasspace.data.loading import load_data
from nasspace.engine.problem import Problem
from nasspace.engine.ray.payload import Payload
from nasspace.errors import InputError
from nasspace.space.space import Space
from nasspace.studies.recipe import Recipe


@pytest.fixture
def photos(tmp_path) -> str:
    """Twelve images of noise in two classes, and a test split."""
    for number in range(16):
        folder = tmp_path / "photos" / ("test" if number > 11 else "train") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return f"imagefolder:{tmp_path / 'photos'}"


def folder() -> Path:
    return Path(os.environ["NASSPACE_CACHE"]) / "images"


def names() -> list[str]:
    """Kinds of the files in the folder, without those of locks."""
    return sorted(path.suffix for path in folder().iterdir() if path.suffix != ".lock")


def same(one: DataSet, other: DataSet) -> bool:
    return (one.fingerprint, one.mean, one.preprocessing) == (other.fingerprint, other.mean, other.preprocessing)


def cut_off(spec: str, name: str) -> Path:
    """Cut an image, so that its header can be read and its pixels cannot."""
    path = Path(spec.partition(":")[2], name)
    path.write_bytes(path.read_bytes()[:-400])
    return path


@pytest.mark.parametrize("spec", ["photos", "digits"])
def test_the_pixels_and_the_splits_are_those_in_memory(spec, photos):
    spec, said = photos if spec == "photos" else spec, []
    held = load_data(spec, resolution=10)
    mapped, again = (load_data(spec, resolution=10, on_disk=True, report=said.append) for _ in range(2))
    assert same(held, mapped)
    assert same(held, again)
    assert names() == [".pixels"]
    assert mapped.train.file.stat().st_size == 3 * 100 * 16 if spec == photos else 100 * 1797
    assert [("decodes" in line, "reads" in line, str(mapped.train.file) in line) for line in said] == [
        (True, False, True),
        (False, True, True),
    ]
    some = torch.tensor([2, 0, 1])
    assert torch.equal(mapped.train.at(some).pixels, held.train.pixels[some])
    assert (mapped.train.at(some).file, held.train.file, mapped.validation.originals is None) == (None, None, False)


def test_arrays_of_the_right_size_stay_in_memory():
    assert load_data("digits", on_disk=True).train.file is None
    assert not folder().exists()


def test_images_that_take_more_than_half_of_the_memory_are_kept_on_disk(photos, monkeypatch):
    said = []
    monkeypatch.setattr(pixel_files, "usable_memory", lambda: 2 * 16 * 300 - 1)
    data = load_data(photos, resolution=10, report=said.append)
    assert data.train.file is not None
    assert "more than half of the memory" in said[0]
    notes = Problem.from_data(Recipe(data=photos, resolution=10), Space.load("shuffle")).notes
    assert "more than half of the memory" in notes[0]
    monkeypatch.setattr(pixel_files, "usable_memory", lambda: 16 * 300)
    with pytest.raises(InputError, match="resized to 9x9 are held in memory"):
        prepared(data, 9)
    with pytest.raises(InputError, match="Ray"):
        Payload.from_data(Recipe(data=photos), data)


def test_the_usable_memory_is_at_most_the_machines():
    usable = pixel_files.usable_memory()
    assert usable is None or 2**20 < usable <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert not pixel_files.exceeds_memory(1)
    assert pixel_files.exceeds_memory(2**60)


def test_a_changed_image_is_decoded_again(photos):
    before = load_data(photos, resolution=10, on_disk=True)
    path = Path(photos.partition(":")[2], "train/a/0.png")
    Image.new("RGB", (20, 20), "red").save(path)
    after = load_data(photos, resolution=10, on_disk=True)
    assert before.train.file != after.train.file
    assert same(after, load_data(photos, resolution=10))


def test_a_broken_image_is_refused_or_left_out_as_in_memory(photos, monkeypatch):
    path = cut_off(photos, "train/a/2.png")
    for _ in range(2):
        with pytest.raises(InputError, match=re.escape(str(path))):
            load_data(photos, resolution=10, on_disk=True)
        assert names() == []
    held, mapped = (load_data(photos, resolution=10, skip_broken=True, on_disk=disk) for disk in (False, True))
    assert same(held, mapped)
    assert held.skipped == mapped.skipped == (str(path),)
    assert names() == [".json", ".pixels"]
    monkeypatch.setattr(decoding, "decode", None)  # nothing is decoded again
    assert same(held, load_data(photos, resolution=10, skip_broken=True, on_disk=True))


KILLED = """
import os, signal
from nasspace.data.loading import load_data
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
load_data(sys.argv[1], resolution=10, on_disk=True)
"""


def test_what_a_killed_process_wrote_is_not_read(photos, forked):
    killed = forked(KILLED, photos)
    assert killed.wait(60) == -signal.SIGKILL, killed.output()
    assert names() == [".partial"]
    assert same(load_data(photos, resolution=10, on_disk=True), load_data(photos, resolution=10))
    assert names() == [".pixels"]


FULL = """
import resource
from nasspace.data.loading import load_data
from nasspace.errors import InputError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    load_data(sys.argv[1], resolution=10, on_disk=True)
except InputError as error:
    print(error)
"""


def test_a_write_that_fails_is_one_message(photos, forked):
    process = forked(FULL, photos)
    assert process.wait(60) == 0
    assert re.fullmatch(r".*\.pixels: cannot be written \(File too large\); .*NASSPACE_CACHE.*\n", process.output())
    assert names() == []


def test_a_disk_without_room_is_refused_before_anything_is_decoded(photos):
    with pytest.raises(
        InputError, match="no room for the decoded images; choose a lower resolution, or set NASSPACE_C"
    ):
        load_data(photos, resolution=10_000_000)


def test_a_file_that_another_process_removes_before_it_is_used_is_written_again(photos, monkeypatch):
    mapped, removed = pixel_files._mapped, []

    def slow(path, shape):
        if not removed:
            removed.append(path.unlink())
        return mapped(path, shape)

    monkeypatch.setattr(pixel_files, "_mapped", slow)
    assert same(load_data(photos, resolution=8, on_disk=True), load_data(photos, resolution=8))
    assert removed


def test_nothing_is_removed_for_room_that_there_cannot_be(photos):
    load_data(photos, resolution=8, on_disk=True)
    gc.collect()
    with pytest.raises(InputError, match="no room for the decoded images"):
        load_data(photos, resolution=10_000_000)
    assert names() == [".pixels"]


def test_a_folder_that_cannot_be_written_is_named(photos, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NASSPACE_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"images/.*cannot be written"):
        load_data(photos, resolution=10, on_disk=True)


def test_files_that_were_not_used_for_a_month_or_have_no_room_are_removed_but_none_in_use(photos, monkeypatch):
    def written(resolution: int, days: int) -> Path:
        before = set(folder().glob("*.pixels"))
        kept.append(load_data(photos, resolution=resolution, on_disk=True))
        (path, *_) = files = sorted(set(folder().glob("*.pixels")) - before)
        for one in files:
            os.utime(one, (time.time() - days * 86400,) * 2)
        return path

    kept: list[DataSet] = []
    old, in_use, older = written(8, 40), written(9, 50), written(10, 3)
    del kept[0], kept[-1]
    gc.collect()
    recent = written(11, 0)
    assert not old.exists()
    assert in_use.exists(), "a process has mapped it"
    assert older.exists(), "there is room"
    monkeypatch.setattr(
        pixel_files.shutil, "disk_usage", lambda _: SimpleNamespace(free=0 if older.exists() else 2**40)
    )
    written(12, 0)
    assert not older.exists()
    assert recent.exists(), "the least recently used file made room"
