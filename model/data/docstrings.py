"""Code documentation from Python's standard library: no download, a module is a user.

The prompt is a definition's name and signature, the completion the first paragraph of its docstring.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from model.data.source import MOST_EXAMPLES, Example, newest
from model.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Some distributions lack these, some Pythons have dropped them, and they make half of the parsing.
_LEFT_OUT = frozenset(
    {"distutils", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "tkinter", "turtledemo"}
)
# Other people's test files and vendored copies are no documentation.
_TESTS = frozenset({"test", "tests", "idle_test", "site-packages", "_vendor", "_bundled"})


class DocstringSource:
    """Modules of this Python's standard library; nothing is imported, only parsed."""

    def __init__(self, *, min_examples: int = 20, max_examples: int = MOST_EXAMPLES) -> None:
        """Choose whom to take.

        Args:
            min_examples: Modules with at least as many docstrings are trained on, the others held out.
            max_examples: Cap per module.
        """
        self._min_examples = min_examples
        self._max_examples = max_examples

    def users(self) -> tuple[str, ...]:
        """Names of the modules with enough docstrings."""
        return tuple(name for name, found in self._by_module.items() if len(found) >= self._min_examples)

    def held_out_users(self) -> tuple[str, ...]:
        """Names of the modules with fewer, but at least one."""
        return tuple(name for name, found in self._by_module.items() if len(found) < self._min_examples)

    def examples(self, user: str) -> tuple[Example, ...]:
        """Docstrings of one module in the order of its lines, which stand for time.

        Raises:
            DataError: There is no such module.
        """
        if user not in self._by_module:
            raise DataError(f"the standard library has no module {user!r} with docstrings")
        return newest(self._by_module[user], self._max_examples)

    @cached_property
    def _by_module(self) -> dict[str, tuple[Example, ...]]:
        folder = Path(sysconfig.get_path("stdlib"))
        names = sorted(name for name in sys.stdlib_module_names - _LEFT_OUT if not name.startswith("_"))
        found = {name: tuple(_examples_of(folder, name)) for name in names}
        return {name: examples for name, examples in found.items() if examples}


def _examples_of(folder: Path, module: str) -> Iterator[Example]:
    """Docstrings of a module, or of every file of a package, numbered as if written one after the other."""
    paths = [folder / f"{module}.py", *sorted((folder / module).rglob("*.py"))]
    kept = (path for path in paths if path.is_file() and not _TESTS & set(path.relative_to(folder).parts))
    pairs = (pair for path in kept for pair in _docstrings(path))
    for number, (prompt, completion) in enumerate(pairs):
        yield Example(prompt=prompt, completion=completion, timestamp=float(number))


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    # Only parsed: modules such as `this` and `antigravity` do things when they are run.
    for node in _definitions(ast.parse(path.read_bytes(), filename=str(path))):
        docstring = (ast.get_docstring(node) or "").strip()
        if docstring:
            yield _heading(node), docstring.split("\n\n", 1)[0]


def _definitions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Classes and functions in the order of the lines; looks at statements only, which most nodes of a tree are not."""
    for part in ("body", "handlers", "orelse", "finalbody"):
        children = getattr(node, part, ())
        for child in children if isinstance(children, list) else ():
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield child
            yield from _definitions(child)


def _heading(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}"
    return f"def {node.name}({ast.unparse(node.args)})"
