"""The table of what other systems had and which test proves it here: `python -m tests.origins`.

Made from the marks of the tests, `@pytest.mark.origin("System: feature")`; the README has it, and a
test compares both.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAD = "| system | feature | test |\n|---|---|---|\n"


def marked() -> Iterator[tuple[str, str, str, str]]:
    """Yield system, feature, file and name of every marked test."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        source = path.read_text()
        if "mark.origin" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for feature in features_of(node):
                    system, colon, rest = feature.partition(": ")
                    assert colon, feature
                    yield system, rest, f"{path.relative_to(ROOT)}", node.name


def features_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """Yield the features that a test's marks name."""
    for mark in node.decorator_list:
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.origin":
            yield from (ast.literal_eval(argument) for argument in mark.args)


def table() -> str:
    """Return the table in Markdown."""
    rows = sorted(marked(), key=lambda row: row[0].lower())  # else in the order of the files
    return HEAD + "".join(
        f"| {system} | {feature} | `{path.removeprefix('tests/')}::{name}` |\n"
        for system, feature, path, name in rows
    )


if __name__ == "__main__":
    print(table(), end="")  # noqa: T201 - this is a program
