"""Size and shape of the host's code: ``python -m benchmarks.structure``.

The main path is the host without the methods of papers: neither ``research/`` and
``predictors/baselines/``, nor the commands ``study`` and ``selection``.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

HOST = Path(__file__).resolve().parent.parent / "host" / "esm_host"
MOST_PARAMETERS = 8
"""Parameters that a function should have at most, ``self`` and ``cls`` not counted."""


def main() -> None:
    """Print the figures."""
    files = sorted(HOST.rglob("*.py"))
    main_path = [file for file in files if _is_main_path(file)]
    lines = sum(len(file.read_text().splitlines()) for file in main_path)
    code = sum(map(lines_of_code, main_path))
    print(f"main path: {lines} lines in {len(main_path)} modules, {code} of them code")
    print(f"packages: {sum(file.name == '__init__.py' for file in files)}")
    long = list(long_functions(files))
    print(f"functions of more than {MOST_PARAMETERS} parameters: {len(long)}")
    for package, count in Counter(_package(file) for file, _, _ in long).most_common():
        print(f"  {package}: {count}")
        for file, name, parameters in long:
            if _package(file) == package:
                print(f"    {file.relative_to(HOST)} {name}: {parameters}")


def lines_of_code(file: Path) -> int:
    """Return the lines that are neither blank, nor comments, nor parts of a docstring."""
    text = file.read_text()
    prose: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            prose |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return sum(
        bool(line.strip()) and not line.lstrip().startswith("#") and number not in prose
        for number, line in enumerate(text.splitlines(), 1)
    )


def long_functions(files: list[Path]) -> Iterator[tuple[Path, str, int]]:
    """Yield the file, name and number of parameters of every function that has too many."""
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = _parameters(node)
                if count > MOST_PARAMETERS:
                    yield file, node.name, count


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def _package(file: Path) -> str:
    first = file.relative_to(HOST).parts[0]
    return first.removesuffix(".py")


def _is_main_path(file: Path) -> bool:
    parts = file.relative_to(HOST).parts
    papers = parts[0] == "research" or parts[:2] == ("predictors", "baselines")
    return not papers and parts not in (("cli", "study.py"), ("cli", "selection.py"))


if __name__ == "__main__":
    main()
