"""Reads the code as a careful colleague would: `python3 tools/lint.py`. Exit status 1 if there is something to say.

Checks syntax, imports that nobody uses, bare excepts, defaults that are shared between calls, missing docstrings,
forgotten breakpoints, long lines and stray blanks.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_LINE = 120
Fault = tuple[int, str]


def check(source: str, *, needs_docstrings: bool) -> Iterator[Fault]:
    """(line, what is wrong) of one file."""
    yield from check_lines(source)
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        yield error.lineno or 0, f"not Python: {error.msg}"
        return
    yield from unused_imports(tree)
    for node in ast.walk(tree):
        yield from check_node(node)
    if needs_docstrings:
        yield from missing_docstrings(tree)


def check_lines(source: str) -> Iterator[Fault]:
    for number, line in enumerate(source.split("\n"), start=1):
        if len(line) > MAX_LINE:
            yield number, f"{len(line)} characters, {MAX_LINE} are enough"
        if line != line.rstrip():
            yield number, "blanks at the end of the line"
        if "\t" in line:
            yield number, "a tab"


def check_node(node: ast.AST) -> Iterator[Fault]:
    if isinstance(node, ast.ExceptHandler) and node.type is None:
        yield node.lineno, "a bare except hides every mistake: name the exception"
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if isinstance(default, ast.List | ast.Dict | ast.Set):
                yield default.lineno, f"{node.name}: this default is shared between all calls"
    if isinstance(node, ast.Call) and ast.unparse(node.func) in {"breakpoint", "pdb.set_trace"}:
        yield node.lineno, "a forgotten breakpoint"


def unused_imports(tree: ast.Module) -> Iterator[Fault]:
    imported = {
        (alias.asname or alias.name).split(".")[0]: node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for name in imported.keys() - used:
        yield imported[name], f"{name} is imported and not used"


def missing_docstrings(tree: ast.Module) -> Iterator[Fault]:
    """Of the module, its public classes and its public functions; methods speak for themselves."""
    for node in (tree, *tree.body):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            name = getattr(node, "name", "the module")
            if not name.startswith("_") and name != "main" and not ast.get_docstring(node):
                yield getattr(node, "lineno", 1), f"{name} has no docstring"


def main() -> None:
    files = [path for folder in ("src", "tests", "tools") for path in sorted((ROOT / folder).rglob("*.py"))]
    count = 0
    for path in files:
        source = path.read_text()
        for line, message in sorted(check(source, needs_docstrings=path.is_relative_to(ROOT / "src"))):
            count += 1
            print(f"{path.relative_to(ROOT)}:{line}: {message}")
    print(f"lint: {len(files)} files, {count or 'no'} fault{'s' if count != 1 else ''}")
    sys.exit(1 if count else 0)


if __name__ == "__main__":
    main()
