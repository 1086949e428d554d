"""Imports go one way, modules stay readable, and importing costs little."""

import ast
import functools
import graphlib
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

import nomic_jax
from tools import api

PACKAGE = Path(nomic_jax.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# A name at the top imports from itself and from those before it.
ORDER = (
    *(
        "lazy",
        "config",
        "storage",
        "batch",
        "distributed",
        "data",
        "model",
        "checkpoints",
    ),
    *("training", "inference", "curation", "evaluation", "downstream"),
    *("pipeline", "cli"),
)
# What one row of a registry, or one lazy import, brings in: a file each, and no more.
PLUGINS = (
    *("checkpoints.families", "cli", "data.sources", "evaluation.kinds"),
    *("model.attention", "training.losses"),
)
EXTRAS = ("data.store.beam", "evaluation.mteb", "pipeline.curate", "pipeline.prepare")
HEAVY = ("jax", "flax", "transformers", "orbax", "torch", "grain", "matplotlib")


def name_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


NAMES = {name_of(path): path for path in FILES}


def imported(tree):
    """Every imported module of ours, lazy ones too, but for the type checker's."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in NAMES else node.module
        yield from imported(node)


@functools.cache
def imports_of(name):
    tree = ast.parse(NAMES[name].read_text())
    return {found for found in imported(tree) if found in NAMES} - {name}


def top(name):
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("name", NAMES)
def test_packages_import_one_way(name):
    own = top(name)
    assert own in ("", *ORDER), f"{own} has no place in the order of packages"
    for other in imports_of(name):
        if own:
            assert top(other) in ORDER[: ORDER.index(own) + 1], (
                f"{name} imports {other}"
            )


def test_no_module_imports_itself_through_others():
    modules = {name: imports_of(name) for name in NAMES}
    list(graphlib.TopologicalSorter(modules).static_order())  # raises at a circle


@pytest.mark.parametrize("name", NAMES)
def test_a_module_is_at_most_600_lines_and_says_what_it_is(name):
    text = NAMES[name].read_text()
    assert len(text.splitlines()) <= 600
    assert ast.get_docstring(ast.parse(text))


def test_a_module_that_only_one_other_imports_is_a_plugin():
    importers = {name: set() for name in NAMES}
    for name in NAMES:
        for other in imports_of(name):
            importers[other].add(name)
    for package, face in FACES.items():  # what is public has users elsewhere
        for node in ast.parse(face.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                importers[f"{package}.{node.module}"].add(f"{package}, its face")
    alone = {
        name.removeprefix("nomic_jax.")
        for name, by in importers.items()
        if len(by) == 1 and NAMES[name].name != "__init__.py"
    }
    pieces = {
        name
        for name in alone
        if not name.startswith(tuple(f"{plugin}." for plugin in PLUGINS))
        and name not in EXTRAS
    }
    # Each is a concept of its own, and would not make the one that imports it better.
    assert pieces == PIECES


PIECES = {
    "data.store.tokenize",
    "downstream.sentence_pairs",
    "inference.embed_parts",
    "inference.vector_files",
    "pipeline.glue",
    "training.planning.flops",
    "training.planning.hlo",
}


def loaded_after(statement):
    """Which heavy packages a fresh interpreter has loaded after a statement."""
    code = f"import sys; {statement}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(HEAVY) & set(result.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    assert not loaded_after("import nomic_jax")
    assert not loaded_after("import nomic_jax.config")


@pytest.mark.slow
def test_the_model_loads_jax_and_nothing_heavier():
    assert loaded_after("import nomic_jax.model.heads") <= {"jax", "flax"} | {"orbax"}


FACES = dict(api.faces())


@pytest.mark.parametrize("package", FACES)
def test_every_public_name_is_there(package):
    module = importlib.import_module(package)
    offered = api.names(FACES[package])
    assert len(set(offered)) == len(offered) and set(offered) <= set(module.__all__)
    for name in offered:
        assert hasattr(module, name)
        # Importing a module of this name would put it in the place of what is offered.
        assert f"{package}.{name}" not in NAMES
    with pytest.raises(AttributeError, match="it offers"):
        _ = module.Missing


def test_the_documented_api_is_that_of_the_faces():
    # If a face changed on purpose: python -m tools.api > docs/api.md
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == api.document()


MODULES = ("nomic_jax.batch", "nomic_jax.config", "nomic_jax.storage")
OUTSIDE = [*ROOT.glob("configs/*.py"), *ROOT.glob("examples/*.py")]
OUTSIDE += ROOT.glob("benchmarks/*.py")


def imports_from_us(text):
    """The modules of ours that a file imports from, with the names."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            if str(node.module).split(".")[0] == "nomic_jax":
                yield node.module, {alias.name for alias in node.names}


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: path.stem)
def test_configs_examples_and_benchmarks_import_from_faces(path):
    found = list(imports_from_us(path.read_text()))
    for module, names in found:
        assert module in FACES or module in MODULES, module
        assert module in MODULES or names <= set(api.names(FACES[module])), module
    if path.parent.name == "configs":
        assert len({module for module, _ in found}) <= 4


@pytest.mark.parametrize("path", [*ROOT.glob("docs/*.md")], ids=lambda path: path.stem)
def test_the_docs_import_from_faces(path):
    for line in re.findall("^from nomic_jax.*$", path.read_text(), re.MULTILINE):
        ((module, names),) = imports_from_us(line)
        assert module in MODULES or names <= set(api.names(FACES[module])), line
