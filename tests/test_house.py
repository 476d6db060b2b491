"""The rules of the house: what may import what, and where each heavy library lives."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nasspace

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nasspace"
# A module imports only modules that stand before it here (a package's name stands for its __init__.py).
ORDER = """
nasspace errors documents files temporary
blocks.options blocks.layers blocks.plain blocks.mobile blocks.sandglass blocks.shuffle blocks.fire blocks.xception
blocks.residual blocks.heads
blocks.registry blocks
architecture plan grammar space initialisation network
zoo.parts zoo.figures zoo.classic zoo.mobile zoo.shuffle zoo counting ranges
latency latency.convert latency.calibration latency.runtimes.common latency.runtimes.timing latency.runtimes.ort
latency.runtimes.pytorch latency.runtimes.handheld latency.runtimes latency.conditions latency.cache latency.estimate
latency.reference latency.meter latency.afresh latency.workload latency.predictor latency.runner latency.connection
latency.remote
latency.guidelines.graph latency.guidelines.surgery latency.guidelines.profile latency.guidelines.whatifs
latency.guidelines.subject latency.guidelines.widths latency.guidelines.fragments latency.guidelines.elementwise
latency.guidelines.explanation latency.guidelines latency.layerwise
accuracy accuracy.predict accuracy.settings accuracy.decoding accuracy.sources accuracy.folders accuracy.images
accuracy.tables accuracy.data accuracy.published accuracy.augmentation accuracy.policies accuracy.schedules
accuracy.optimisers accuracy.metrics accuracy.checkpoints accuracy.depthwise accuracy.training
studies studies.recipe studies.storage studies.schema studies.resolution studies.pareto
studies.timeouts studies.turns studies.measure
studies.failures studies.last_rung studies.evaluate studies.surrogate studies.belief
studies.gain studies.samplers studies.places studies.rows studies.frames studies.weights studies.study studies.sharing
studies.candidates studies.workers studies.workers.address studies.task studies.duration studies.driver
studies.workers.box studies.workers.parts studies.workers.watch studies.workers.cluster studies.workers.again
studies.workers.trainable studies.workers.tuning
studies.loop
outputs outputs.page outputs.rows outputs.plots outputs.report outputs.modules outputs.gather outputs.preprocessing
outputs.source outputs.weights outputs.card outputs.judging outputs.running outputs.checks outputs.export
outputs.study_report outputs.deliver
engine engine.loop engine.subjects engine.origins engine.settings engine.full_training
cli.process cli.printing cli.progress cli.listing cli.spaces cli.networks cli.predicting cli.explaining cli.searching
cli.training cli cli.__main__
""".split()  # noqa: SIM905
GRAPHS = {f"latency.guidelines.{name}" for name in ("graph", "surgery", "profile")}
HOMES = {
    "optuna": {"studies.storage", "studies.study", "studies.samplers"},
    "ray": {f"studies.workers.{name}" for name in ("box", "parts", "cluster", "again", "trainable", "tuning", "watch")},
    "plotly": {"outputs.plots"},
    "onnx": {"latency.convert", "latency.calibration", *GRAPHS},
    "onnxruntime": {
        *("accuracy.predict", "latency.convert", "latency.calibration", "latency.runtimes.ort"),
        *("latency.guidelines.profile", "outputs.judging"),
    },
    "ncnn": {"latency.runtimes.handheld"},
    "pnnx": {"latency.convert"},
}


def module_name(path: Path) -> str:
    """`blocks.layers` for nasspace/blocks/layers.py, `blocks` for its __init__.py, `nasspace` for the package's."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "nasspace"


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere below `tree`, late imports and those for types among them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name.removeprefix("nasspace.") in FILES else node.module


def for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def that_run(tree: ast.Module) -> ast.Module:
    """The module without what only a type checker imports."""
    return ast.Module([statement for statement in tree.body if not for_types(statement)], [])


def at_import(tree: ast.Module) -> ast.Module:
    """The module's statements that run when it is imported."""
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    return ast.Module([part for part in that_run(tree).body if not isinstance(part, functions | ast.ClassDef)], [])


def of_ours(tree: ast.AST) -> set[str]:
    """The modules of the package that a module imports, as in ORDER."""
    names = {name.removeprefix("nasspace.") for name in imports(tree) if name.split(".")[0] == "nasspace"}
    return names & FILES.keys()


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def test_every_module_has_its_place():
    assert sorted(FILES.keys() - set(ORDER)) == [], "give it a place in ORDER"
    assert len(ORDER) == len(set(ORDER))


def test_imports_run_downwards(trees):
    places = {name: i for i, name in enumerate(ORDER)}
    for name, tree in trees.items():
        wrong = [other for other in of_ours(tree) if other != name and places[other] > places[name]]
        assert wrong == [], f"{name} imports {wrong}, which stand below it"


def test_latency_and_accuracy_do_not_know_each_other(trees):
    for name, tree in trees.items():
        wing = name.split(".")[0]
        other = {"latency": "accuracy", "accuracy": "latency"}.get(wing)
        assert not [found for found in of_ours(tree) if found.split(".")[0] == other], name


def test_nothing_imports_the_command_line(trees):
    for name, tree in trees.items():
        if name.split(".")[0] != "cli":
            assert not [found for found in of_ours(tree) if found.split(".")[0] == "cli"], name


@pytest.mark.parametrize("library", HOMES)
def test_a_heavy_library_has_a_home_and_is_imported_late(library, trees):
    for name, tree in trees.items():
        used = {found.split(".")[0] for found in imports(that_run(tree))}
        assert library not in used or name in HOMES[library], f"{name} imports {library}"
        assert library not in {found.split(".")[0] for found in imports(at_import(tree))}, f"{name}: import it late"


def test_no_module_bears_the_name_of_a_public_function():
    functions = {name for name, home in nasspace._HOMES.items() if home is not None}
    modules = {name.split(".")[0] for name in FILES}
    assert functions & modules == set()


def test_every_public_name_is_there():
    import importlib

    for name, home in nasspace._HOMES.items():
        if home is None or home.removeprefix("nasspace.") in FILES:
            assert getattr(nasspace, name) is not None
            assert importlib.import_module(home or f"nasspace.{name}")


@pytest.mark.parametrize("folder", ["spaces", "search"])
def test_data_folders_hold_no_code(folder):
    assert list((ROOT / folder).rglob("*.py")) == []


def test_help_and_the_box_between_driver_and_workers_import_nothing_heavy():
    if not hasattr(__import__("nasspace.cli", fromlist=["main"]), "main"):
        pytest.skip("the command line is not there yet")
    heavy = ["torch", "numpy", "pandas", "optuna", "ray", "plotly", "onnx", "onnxruntime", "datasets", "sklearn"]
    script = (
        "import sys\n"
        "import nasspace.studies.workers.box\n"
        "from nasspace.cli import main\n"
        "sys.argv = ['nas', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print('HEAVY', [name for name in {heavy} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "Usage" in done.stdout
    assert done.stdout.strip().endswith("HEAVY []")
