"""Write docs/api.md from the packages' faces: `python -m tools.api > docs/api.md`.

A face is a package's `__init__.pyi`: what it lists is public, everything else may move.
"""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "nomic_jax"
TOP = """\
# The public API

<!-- Written by `python -m tools.api > docs/api.md`; a test holds it so. -->

These names are public; modules behind them may move. `nomic_jax.config`,
`nomic_jax.batch` and `nomic_jax.storage` are public modules. Nothing is imported before
it is used.
"""


def faces() -> Iterator[tuple[str, Path]]:
    """Yield every package that has a face, and the face."""
    for path in sorted(PACKAGE.rglob("__init__.pyi")):
        yield ".".join(path.parent.relative_to(PACKAGE.parent).parts), path


def names(face: Path) -> list[str]:
    """Return the names of a face in its order."""
    tree = ast.parse(face.read_text(encoding="utf-8"))
    return [
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]


def first_line(thing: object) -> str:
    """Return the first line of a docstring; of a constant, its value if it is short."""
    if inspect.ismodule(thing) or inspect.isclass(thing) or inspect.isroutine(thing):
        return (inspect.getdoc(thing) or "").partition("\n")[0]
    shown = repr(thing).replace("|", "\\|").removeprefix("typing.")
    return f"`{shown}`" if len(shown) <= 80 else f"A constant {type(thing).__name__}."


def document() -> str:
    """Return the whole of docs/api.md."""
    parts = [TOP]
    for package, face in faces():
        module = importlib.import_module(package)
        parts.append(f"## {package}\n\n{first_line(module)}\n")
        rows = [f"| `{n}` | {first_line(getattr(module, n))} |" for n in names(face)]
        parts.append(
            "\n".join(["| name | what it is |", "| --- | --- |", *rows]) + "\n"
        )
    return "\n".join(parts)


if __name__ == "__main__":
    print(document(), end="")
