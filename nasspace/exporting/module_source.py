"""The source of a loaded module: its top-level statements by name, the positions of names, and edits.

The compiler's bytecode shows which names are global, and their positions.
"""

from __future__ import annotations
import __future__

import ast
import dis
import importlib.util
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator

from nasspace.errors import InputError

Edit = tuple[int, int, str]  # start and end (in bytes of the module's source), new text
Use = tuple[str, int | None]  # a global name and its position, or None if the position is unknown
_LOADS = {"LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"}
_PLAIN = {int: "int", float: "float", str: "str", bool: "bool", type(None): "None", None: "None"}


class ModuleText:
    """The source of a module, with positions in it; unreadable source raises `InputError`."""

    def __init__(self, module: types.ModuleType):
        self.module = module
        self.name = module.__name__
        try:
            text = inspect.getsource(module)
        except (OSError, TypeError):
            raise InputError(f"the source of {self.name} cannot be read; define exported blocks in a file") from None
        self.data = text.encode()
        self._starts = [0]
        for line in self.data.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._statements: dict[str, list[ast.stmt]] = {}
        for statement in ast.parse(text).body:
            for name in bound(statement):
                self._statements.setdefault(name, []).append(statement)

    def value(self, name: str) -> object:
        """The value of a global name at run time."""
        return getattr(self.module, name, None)

    def defines(self, name: str) -> bool:
        """Whether a global name is defined by the module and not by Python."""
        return name in vars(self.module) and not name.startswith("__")

    def statement(self, name: str) -> ast.stmt:
        """The one top-level statement that binds `name`."""
        found = self._statements.get(name, [])
        if len(found) != 1:
            times = "more than once at the" if found else "by no plain statement at its"
            raise InputError(f"'{name}' of {self.name} is bound {times} top level")
        return found[0]

    def place(self, node: ast.stmt | ast.expr) -> str:
        """Module and line of a node, for messages."""
        return f"{self.name}, line {node.lineno},"

    def imported_from(self, statement: ast.Import | ast.ImportFrom) -> list[str]:
        """The full names of the modules that a statement imports, or imports from."""
        if isinstance(statement, ast.Import):
            return [alias.name for alias in statement.names]
        name = "." * statement.level + (statement.module or "")
        return [importlib.util.resolve_name(name, self.module.__package__)]

    def uses(self, statement: ast.stmt) -> Iterator[Use]:
        """Yield every use of a global name in a statement, except in annotations."""
        flags = __future__.annotations.compiler_flag
        tree = ast.Module([statement], [])
        code = compile(tree, self.name, "exec", flags, dont_inherit=True)
        yield from ((name, self._definition(statement, name)) for name in bound(statement))
        for inner in _codes(code):
            instructions = list(dis.get_instructions(inner))
            own = {i.argval for i in instructions if i.opname == "STORE_NAME"} if inner is not code else set()
            for i in instructions:
                if i.opname in _LOADS and i.argval not in own:
                    yield i.argval, self._at(i.positions, i.argval)

    def _at(self, where: dis.Positions | None, name: str) -> int | None:
        """The position that the bytecode gives, if the name is really there (in f-strings it may not be)."""
        if where is None or where.lineno is None or where.col_offset is None:
            return None
        start = self._starts[where.lineno - 1] + where.col_offset
        return start if self.data[start:].startswith(name.encode()) else None

    def _definition(self, statement: ast.stmt, name: str) -> int | None:
        """The position of a name that a statement binds."""
        end = self.end(statement)
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            keyword = re.compile(rb"(?:class|def)\s+(?=" + name.encode() + rb"\b)")
            return keyword.search(self.data, self.start(statement), end).end()
        targets = (node for node in ast.walk(statement) if isinstance(node, ast.Name) and node.id == name)
        return next((self.start(node) for node in targets if isinstance(node.ctx, ast.Store)), None)

    def start(self, node: ast.stmt | ast.expr) -> int:
        """The first byte of a node."""
        return self._starts[node.lineno - 1] + node.col_offset

    def end(self, node: ast.stmt | ast.expr) -> int:
        """The byte after a node."""
        return self._starts[node.end_lineno - 1] + node.end_col_offset

    def span(self, statement: ast.stmt) -> tuple[int, int]:
        """The bytes of a statement, from the comments and decorators above it to the comment after it."""
        first = min([statement, *getattr(statement, "decorator_list", [])], key=lambda node: node.lineno).lineno - 1
        while first and self._line(first - 1).startswith(b"#"):
            first -= 1
        rest = self._line(statement.end_lineno - 1)[statement.end_col_offset :]
        comment = len(rest.rstrip()) if rest.lstrip().startswith(b"#") else 0
        return self._starts[first], self.end(statement) + comment

    def _line(self, index: int) -> bytes:
        return self.data[self._starts[index] : self._starts[index + 1]]

    def annotations(self, statement: ast.stmt) -> Iterator[tuple[int, int, ast.expr]]:
        """Yield every annotation, with the bytes to remove with it: ': int' of an argument, ' -> int' of a function."""
        for node in ast.walk(statement):
            if isinstance(node, ast.arg) and node.annotation:
                yield self.start(node) + len(node.arg.encode()), self.end(node.annotation), node.annotation
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns:
                arrow = self.data.rindex(b"->", 0, self.start(node.returns))
                yield len(self.data[:arrow].rstrip()), self.end(node.returns), node.returns

    def plain_type(self, annotation: ast.expr) -> str | None:
        """'int' for a bounded integer, 'str' for a choice of strings; None for other annotations."""
        try:
            return _plain(eval(ast.unparse(annotation), vars(self.module)))  # in the module's own namespace
        except Exception:  # a name that exists only for type checkers
            return None

    def edited(self, statement: ast.stmt, edits: Iterable[Edit]) -> str:
        """The source of a statement after edits, which are applied from the last to the first."""
        low, high = self.span(statement)
        data = self.data[:high]
        for start, end, text in sorted(set(edits), reverse=True):
            data = data[:start] + text.encode() + data[end:]
        return data[low:].decode().rstrip()


def bound(statement: ast.stmt) -> list[str]:
    """The names that a top-level statement binds; none for compound statements (`if`, `try`, ...)."""
    match statement:
        case ast.ImportFrom(module="__future__"):
            return []
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return [local_name(alias) for alias in names]
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return [name]
        case ast.Assign() | ast.AugAssign() | ast.AnnAssign():
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            nodes = (node for target in targets for node in ast.walk(target))
            return [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return []


def local_name(alias: ast.alias) -> str:
    """The name that an import binds."""
    return alias.asname or alias.name.partition(".")[0]


def allowed(module: str) -> bool:
    """Whether a module is PyTorch's or the standard library's."""
    top = module.partition(".")[0]
    return top == "torch" or top in sys.stdlib_module_names


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _plain(value: typing.Any) -> str | None:
    origin = typing.get_origin(value)
    if origin is typing.Annotated:
        return _plain(value.__origin__)
    if origin is typing.Literal:
        return " | ".join(dict.fromkeys(type(word).__name__ for word in typing.get_args(value)))
    if origin in (typing.Union, types.UnionType):
        parts = [_plain(part) for part in typing.get_args(value)]
        return None if None in parts else " | ".join(dict.fromkeys(parts))
    try:
        return _PLAIN.get(value)
    except TypeError:
        return None
