"""The plugin in examples/, as nasspace finds it once it is installed, and the guide that shows it."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import nasspace
from nasspace import blocks, cli
from nasspace.blocks import registry
from nasspace.latency import runtimes

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "examples" / "plugin"
SPACE = PLUGIN / "spaces" / "ghost.yaml"


@pytest.fixture
def plugin(own_blocks, monkeypatch, tmp_path):
    """Install the plugin for one test: its metadata, as pip writes it, and its code are on the path."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    metadata = tmp_path / "installed" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(groups))
    for folder in (metadata.parent, PLUGIN):
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))
    found = (registry._entry_points, runtimes._entry_points)
    for cached in found:
        cached.cache_clear()
    yield
    monkeypatch.undo()
    for cached in found:
        cached.cache_clear()


@pytest.mark.parametrize("ratio", [2, 3, 4])
@pytest.mark.parametrize(("width", "stride"), [(1, 1), (7, 2), (24, 2)])
def test_the_block_of_the_plugin_accepts_every_width(plugin, width, stride, ratio):
    block = blocks.get("ghost").cls(5, width, stride, ratio=ratio).eval()
    assert block(torch.rand(2, 5, 8, 8)).shape == (2, width, 8 // stride, 8 // stride)


def test_the_space_of_the_plugin_has_its_block(plugin):
    space = nasspace.Space.load(SPACE, classes=10)
    layers = {layer.block for architecture in _some(space) for layer in architecture.layers}
    assert {"ghost", "inverted_residual"} <= layers


def _some(space):
    return (space.architecture(lambda _name, options, i=i: options[i % len(options)]) for i in range(2))


def test_the_runtime_of_the_plugin_gives_pytorchs_outputs(plugin):
    architecture = next(_some(nasspace.Space.load(SPACE, classes=10)))
    model = nasspace.build(architecture).eval()
    images = np.random.default_rng(0).random((3, *architecture.input), dtype=np.float32)
    network = runtimes.get("channels-last")(2, 3).load(model, architecture.input)
    network.run()
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    assert np.abs(network.outputs(images) - expected).max() < 1e-4 * np.abs(expected).max()
    assert runtimes.versions("channels-last")["ghost-plugin"] == "0.1.0"
    assert runtimes.known()[-1] == "channels-last"
    with pytest.raises(nasspace.InputError, match="device 'cuda': channels-last runs on the cpu only"):
        runtimes.get("channels-last")(device="cuda")


@pytest.mark.slow
@pytest.mark.usefixtures("forked_model_py")
def test_a_search_with_the_plugin(plugin, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "brief.yaml"
    recipe.write_text("trials: 1\nfidelity: {resolution: 8, epochs: 1}\n")
    arguments = ["--space", str(SPACE), "--recipe", str(recipe), "--runtime", "channels-last"]
    assert cli.run(["search", *arguments, "--latency-target", "500ms", "--study", "s", "--json"]) == 0
    (member,) = json.loads(capsys.readouterr().out)["front"]
    assert member["latency_again_ms"] > 0
    assert "class Ghost(" in (tmp_path / "reports/s/exports/0/model.py").read_text()


@pytest.mark.parametrize(
    ("language", "file"),
    [("toml", "pyproject.toml"), ("python", "ghost_plugin/ghost.py"), ("yaml", "spaces/ghost.yaml")],
)
def test_the_guide_shows_the_files_of_the_plugin(language, file):
    (shown,) = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs/plugins.md").read_text(), re.S)
    text = (PLUGIN / file).read_text().partition("from __future__ import annotations\n\n")
    assert shown.strip() in (text[2] or text[0])


def test_the_guide_names_every_attribute_of_a_runtime():
    table = (ROOT / "docs/plugins.md").read_text().partition("## A runtime")[2]
    assert {"name", *runtimes.ATTRIBUTES} <= set(re.findall(r"^\| `(\w+)", table, re.M))
