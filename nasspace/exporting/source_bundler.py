"""Bundle the source of blocks with everything they need, each definition once, after its own dependencies.

A block's class is followed to the functions, constants and classes that its code uses, and so on. What comes from
PyTorch or the standard library is imported; the rest is copied as its author wrote it, with two changes: annotations
that bound an option become the plain type, and where two modules use one name for different things, one is renamed.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nasspace import blocks
from nasspace.errors import InputError
from nasspace.exporting.module_source import Edit, ModuleText, allowed, bound, local_name


@dataclass(frozen=True)
class Bundle:
    """Import lines, definitions in order, and the names of the classes in the file, by block."""

    imports: list[str]
    definitions: list[str]
    names: dict[str, str]


def bundle(block_names: Iterable[str], base: type, reserved: Mapping[str, object]) -> Bundle:
    """Bundle the source of blocks and of the class `base`.

    `reserved` maps names that are taken in the file to their values. `names` of the result has a key for each block,
    and "" for `base`. A block whose source is unavailable, or needs more than PyTorch and the standard library, is an
    `InputError`.
    """
    bundler = _Bundler(reserved)
    names = {}
    for name in block_names:
        try:
            names[name] = bundler.class_named(blocks.get(name).cls)
        except InputError as error:
            raise InputError(
                f"block '{name}' cannot be written into model.py: {error}; "
                "leave out the format 'source' (--format onnx,torch)"
            ) from None
    names[""] = bundler.class_named(base)
    return Bundle(sorted(bundler.imports), bundler.definitions, names)


class _Bundler:
    """Follow names from module to module; a definition is identified by its module and its name there."""

    def __init__(self, reserved: Mapping[str, object]) -> None:
        self.imports: set[str] = set()
        self.definitions: list[str] = []
        self._names: dict[tuple[str, str], str] = {}  # module and name there: name in the file
        self._taken: dict[str, object] = dict(reserved)  # name in the file: its owner
        self._modules: dict[str, ModuleText] = {}

    def class_named(self, cls: type) -> str:
        """Add a class with its dependencies; returns its name in the file."""
        module = self._module(cls.__module__)
        if module.value(cls.__qualname__) is not cls:
            raise InputError(f"{cls.__qualname__} is not a class at the top level of {module.name}")
        return self._need(module, cls.__qualname__)

    def _module(self, name: str) -> ModuleText:
        if name not in sys.modules:
            raise InputError(f"the module {name} is not loaded")
        if name not in self._modules:
            self._modules[name] = ModuleText(sys.modules[name])
        return self._modules[name]

    def _need(self, module: ModuleText, name: str) -> str:
        """Add a definition after its dependencies, unless it is there; returns its name in the file."""
        if (module.name, name) not in self._names:
            statement = module.statement(name)
            if isinstance(statement, ast.Import | ast.ImportFrom):
                return self._imported(module, statement, name)
            for other in bound(statement):
                self._names[module.name, other] = self._free(module, other)
            self.definitions.append(self._text(module, statement))
        return self._names[module.name, name]

    def _imported(self, module: ModuleText, statement: ast.Import | ast.ImportFrom, name: str) -> str:
        """Import a name of PyTorch or the standard library; follow one of nasspace or of the same package."""
        alias = next(alias for alias in statement.names if local_name(alias) == name)
        home = alias.name if isinstance(statement, ast.Import) else module.imported_from(statement)[0]
        if allowed(home):
            return self._library(module, statement, home, alias)
        if home.partition(".")[0] not in ("nasspace", module.name.partition(".")[0]):
            raise InputError(
                f"{module.place(statement)} imports {home}, which is neither PyTorch nor the standard library"
            )
        if isinstance(statement, ast.Import) or f"{home}.{alias.name}" in sys.modules:
            raise InputError(f"{module.place(statement)} imports a whole module; import from it the names it uses")
        return self._need(self._module(home), alias.name)

    def _library(self, module: ModuleText, statement: ast.stmt, home: str, alias: ast.alias) -> str:
        name = local_name(alias)
        value = module.value(name)
        if self._taken.setdefault(name, value) is not value:
            raise InputError(f"{module.place(statement)} imports '{name}', a name that means something else here")
        source = f"from {home} import" if isinstance(statement, ast.ImportFrom) else "import"
        self.imports.add(f"{source} {alias.name}" + (f" as {alias.asname}" if alias.asname else ""))
        return name

    def _free(self, module: ModuleText, name: str) -> str:
        """A free name: `name`, with its module's name appended if it is taken."""
        home = module.name.rpartition(".")[2].strip("_")
        candidates = [name, f"{name}_{home}", *(f"{name}_{home}_{i}" for i in range(2, 1000))]
        free = next(each for each in candidates if each not in self._taken)
        self._taken[free] = (module.name, name)
        return free

    def _text(self, module: ModuleText, statement: ast.stmt) -> str:
        """The source of a definition after the two changes; its dependencies are added first."""
        edits = list(self._annotations(module, statement))
        self._check_inner_imports(module, statement)
        for name, start in module.uses(statement):
            if not module.defines(name):
                continue
            final = self._need(module, name)
            if final != name and start is None:
                raise InputError(f"{module.place(statement)} uses '{name}' where it cannot be renamed to '{final}'")
            if final != name:
                edits.append((start, start + len(name.encode()), final))
        return module.edited(statement, edits)

    def _annotations(self, module: ModuleText, statement: ast.stmt) -> Iterable[Edit]:
        """Yield edits of annotations: bounded types become plain, PyTorch's stay, others are removed."""
        for start, end, annotation in module.annotations(statement):
            plain = module.plain_type(annotation)
            names = [node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)]
            if plain is not None:
                yield module.start(annotation), end, plain
            elif all(self._importable(module, name) for name in names):
                for name in filter(module.defines, names):
                    self._need(module, name)
            else:
                yield start, end, ""

    @staticmethod
    def _importable(module: ModuleText, name: str) -> bool:
        """Whether a name in an annotation is built in, or imported from a library that the file may use."""
        if not module.defines(name):
            return True
        try:
            statement = module.statement(name)
        except InputError:
            return False
        return isinstance(statement, ast.Import | ast.ImportFrom) and all(map(allowed, module.imported_from(statement)))

    @staticmethod
    def _check_inner_imports(module: ModuleText, statement: ast.stmt) -> None:
        """Refuse imports inside functions, which are not followed, of other libraries."""
        for node in ast.walk(statement):
            if isinstance(node, ast.Import | ast.ImportFrom):
                foreign = [name for name in module.imported_from(node) if not allowed(name)]
                if foreign:
                    raise InputError(f"{module.place(node)} imports {foreign[0]} inside a function")
