"""Rules for imports: the order of the packages, and the modules that may import each heavy library."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import nasspace

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nasspace"
# The packages from the bottom up. A module imports only from its own row and the rows above it, without cycles. A name
# is a subpackage of nasspace, or a module directly in it.
PACKAGES = (
    ("nasspace", "the public names of `import nasspace`"),
    ("errors documents files temporary interrupts failures formatting", "used by all others"),
    ("blocks", "blocks, one file per family, and their registry"),
    ("architecture", "description of one network: JSON and digest"),
    ("initialization network memory counting", "build a network and count its cost"),
    ("zoo", "published networks"),
    ("space", "parse and sample search spaces; reachable ranges"),
    ("data", "find, check, and decode data sets"),
    ("training", "train one network for a budget"),
    ("compression", "make a trained network smaller"),
    ("latency", "measure and predict latency"),
    ("guidelines", "why a network is slow"),
    ("optuna_adapter", "all uses of undocumented Optuna names"),
    ("samplers", "propose networks"),
    ("studies", "records: recipe, objectives, trials, tables, storage"),
    ("exporting", "a folder to ship, and its verification"),
    ("reporting", "studies and trainings as HTML pages"),
    ("engine", "the search loop, in one process or on Ray"),
    ("cli", "the command line"),
)
ROWS = {name: row for row, (names, _) in enumerate(PACKAGES) for name in names.split()}
IMPORTED_LATE = {  # modules, as a library is
    "optuna_adapter",
    *(f"samplers.{name}" for name in ["evolution", "learned_space", "optuna_gain", "optuna_papers", "optuna_proposer"]),
}
HEAVY_LIBRARIES = {
    "optuna": {
        "optuna_adapter",
        "studies.storage",
        "studies.study",
        "samplers.optuna_samplers",
        "samplers.importance",
        "samplers.evolution",
        "samplers.learned_space",
        "samplers.optuna_gain",
        "samplers.optuna_papers",
        "samplers.optuna_proposer",
    },
    "ray": {
        f"engine.ray.{name}"
        for name in ["cluster", "mailbox", "payload", "actors", "runner", "climbing", "remeasure", "watch"]
    },
    "plotly": {"reporting.plots", "reporting.notebook"},
    "matplotlib": {"reporting.paper_figure", "reporting.distribution_picture", "reporting.paper_style"},
    "jinja2": {"reporting.page"},
    "tensorboard": {"engine.training_logs"},
    "mlflow": {"engine.training_logs"},
    "onnx": {
        *("latency.convert", "latency.quantization", "latency.graph", "latency.numbered", "latency.profile"),
        *("guidelines.graph_edits", "guidelines.graph_narrowing"),
        *("exporting.photo_onnx", "exporting.fake_quantization"),
    },
    "onnxruntime": {
        *("data.predict", "latency.convert", "latency.quantization", "latency.runtimes.ort"),
        *("latency.numbered", "latency.profile", "exporting.judging", "exporting.fake_quantization"),
    },
    "ncnn": {"latency.runtimes.ncnn"},
    "pnnx": {"latency.convert"},
}


def module_name(path: Path) -> str:
    """`blocks.layers` for nasspace/blocks/layers.py, `blocks` for its __init__.py, `nasspace` for the package's."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "nasspace"


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module imported anywhere in `tree`, including late imports and imports for type checkers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name.removeprefix("nasspace.") in FILES else node.module


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def without_type_imports(tree: ast.Module) -> ast.Module:
    """Return the module without imports for type checkers."""
    return ast.Module([statement for statement in tree.body if not is_for_types(statement)], [])


def at_import(tree: ast.Module) -> ast.Module:
    """Return the module's statements that run when it is imported."""
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    return ast.Module(
        [part for part in without_type_imports(tree).body if not isinstance(part, functions | ast.ClassDef)], []
    )


def own_imports(tree: ast.AST) -> set[str]:
    """Return the modules of the package that a module imports."""
    names = {name.removeprefix("nasspace.") for name in imports(tree) if name.split(".")[0] == "nasspace"}
    return names & FILES.keys()


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def package_of(name: str) -> str:
    return name.split(".")[0]


def test_every_package_has_a_row():
    assert sorted({package_of(name) for name in FILES} - ROWS.keys()) == [], "give it a row in PACKAGES"
    assert sorted(ROWS.keys() - {package_of(name) for name in FILES}) == [], "this row is empty"


def test_the_diagram_in_contributing_names_every_package():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    diagram = text.partition("## Package layout")[2].split("```")[1]
    first = {package: re.search(rf"\b{package}\b", diagram) for package in ROWS if (PACKAGE / package).is_dir()}
    assert [package for package, found in first.items() if found is None] == []


def test_imports_run_downwards(trees):
    for name, tree in trees.items():
        wrong = [other for other in own_imports(tree) if ROWS[package_of(other)] > ROWS[package_of(name)]]
        assert wrong == [], f"{name} imports {wrong}, which are in rows below it"


def test_no_import_cycles(trees):
    graph = {name: own_imports(without_type_imports(tree)) - {name} for name, tree in trees.items()}
    list(TopologicalSorter(graph).static_order())  # a CycleError names the cycle


@pytest.mark.parametrize("package", ["data", "training"])
def test_latency_and_training_do_not_import_each_other(package, trees):
    for name, tree in trees.items():
        other = {"latency": package, package: "latency"}.get(package_of(name))
        assert not [found for found in own_imports(tree) if package_of(found) == other], name


def test_reports_and_exports_read_frozen_values_and_no_study(trees):
    for name, tree in trees.items():
        if package_of(name) in ("exporting", "reporting"):
            assert not own_imports(tree) & {"studies.study", "studies.storage"}, name


def test_nothing_imports_the_command_line(trees):
    for name, tree in trees.items():
        if name.split(".")[0] != "cli":
            assert not [found for found in own_imports(tree) if found.split(".")[0] == "cli"], name


@pytest.mark.parametrize("library", HEAVY_LIBRARIES)
def test_a_heavy_library_is_imported_late_and_only_where_listed(library, trees):
    for name, tree in trees.items():
        used = {found.split(".")[0] for found in imports(without_type_imports(tree))}
        assert library not in used or name in HEAVY_LIBRARIES[library], f"{name} imports {library}"
        if name not in IMPORTED_LATE:
            assert library not in {found.split(".")[0] for found in imports(at_import(tree))}, f"{name}: import it late"
            early = set(imports(at_import(tree)))
            assert not early & {f"nasspace.{late}" for late in IMPORTED_LATE}, f"{name}: import it late"


def test_only_the_adapter_uses_what_optuna_does_not_document(trees):
    import optuna

    private: set[str] = set()
    for kind in (optuna.Study, optuna.Trial, optuna.trial.FrozenTrial, optuna.storages.RDBStorage):
        names = {*dir(kind), *kind.__init__.__code__.co_names}
        private |= {name for name in names if name.startswith("_") and not name.endswith("__")}
    assert {"_trial_id", "_storage", "_get_trials"} <= private
    for name in FILES.keys() - {"optuna_adapter"}:
        modules = [found for found in imports(trees[name]) if found.split(".")[0] == "optuna"]
        assert not [found for found in modules if "._" in found], name
        for node in ast.walk(trees[name]):
            if isinstance(node, ast.Attribute) and node.attr in private:
                assert ast.unparse(node.value) in ("self", "cls"), f"{name}: {ast.unparse(node)}"


def test_no_module_has_the_name_of_a_public_function():
    functions = {name for name, home in nasspace._HOMES.items() if home is not None}
    modules = {name.split(".")[0] for name in FILES}
    assert functions & modules == set()


def test_every_public_name_exists():
    import importlib

    for name, home in nasspace._HOMES.items():
        if home is None or home.removeprefix("nasspace.") in FILES:
            assert getattr(nasspace, name) is not None
            assert importlib.import_module(home or f"nasspace.{name}")


@pytest.mark.parametrize("folder", ["spaces", "search"])
def test_data_folders_hold_no_code(folder):
    assert list((ROOT / folder).rglob("*.py")) == []


def test_help_and_the_ray_mailbox_import_nothing_heavy():
    if not hasattr(__import__("nasspace.cli", fromlist=["main"]), "main"):
        pytest.skip("the command line is missing")
    heavy = ["torch", "numpy", "pandas", "optuna", "ray", "plotly", "onnx", "onnxruntime", "datasets", "sklearn"]
    script = (
        "import sys\n"
        "import nasspace.engine.ray.mailbox\n"
        "from nasspace.cli import main\n"
        "sys.argv = ['nas', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print('HEAVY', [name for name in {heavy} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "Usage" in done.stdout
    assert done.stdout.strip().endswith("HEAVY []")
