"""Check the shapes that signatures state while tests run.

jaxtyping's import hook wraps every function, closures each time they are made: in some
files that was three quarters of the time, spent on annotations such as `str`, which
pyright checks. Here its decorator leaves a function that states no array's shape as it
is. `NOMIC_JAX_CHECK_ALL=1` checks every annotation of every function.
"""

import functools
import inspect
import os
import typing

import jaxtyping

CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"


def has_shape(annotation: object) -> bool:
    """Whether an annotation names an array's shape, also inside a union or a list."""
    if isinstance(annotation, str):
        return "[" in annotation
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(map(has_shape, typing.get_args(annotation)))


def install() -> None:
    """Check what is imported from the package from here on."""
    wrap = jaxtyping.jaxtyped

    def where_a_shape_is_stated(*, typechecker):
        def decorate(decorated):
            function = getattr(decorated, "fget", decorated)
            function = getattr(function, "__func__", function)
            annotations = getattr(function, "__annotations__", {})
            if any(map(has_shape, annotations.values())):
                return wrap(decorated, typechecker=typechecker)
            return decorated

        return decorate

    if os.environ.get("NOMIC_JAX_CHECK_ALL") != "1":
        jaxtyping.jaxtyped = functools.wraps(wrap)(where_a_shape_is_stated)
    jaxtyping.install_import_hook("nomic_jax", CHECKER)
