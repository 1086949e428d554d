"""The libraries of the `eval` extra, imported when a measurement asks for them."""

import importlib
from types import ModuleType


def extra(name: str) -> ModuleType:
    """Import a library that only evaluation needs.

    Raises:
        ValueError: it is not installed; the line says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"this evaluation needs {error.name}, which is not installed; "
            'run pip install "nomic-jax[eval]"'
        ) from error
