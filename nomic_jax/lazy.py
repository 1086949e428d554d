"""Packages offer what their `__init__.pyi` lists, and import it when it is first used.

A stub is read by type checkers and by people; here it also says where each name is, so
that a package is listed once and `import nomic_jax` loads nothing heavy (PEP 562).
"""

import ast
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def offer(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package.

    Args:
        package: its `__name__`.
        file: its `__file__`; the stub is next to it.
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    homes = {
        alias.name: f"{package}.{node.module}"
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}; it offers "
                f"{', '.join(homes)}"
            )
        return getattr(importlib.import_module(homes[name]), name)

    return load, lambda: sorted(homes), list(homes)
