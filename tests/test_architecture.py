import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nomic_jax

PACKAGE = Path(nomic_jax.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# Imports go one way: a room imports from itself and from those above it.
ROOMS = (
    *(
        "fields",
        "allocator",
        "config",
        "published",
        "whole_file",
        "storage",
        "folder_copy",
        "hosts",
        "shared_folder",
        "backend",
        "own_devices",
        "batch",
    ),
    *("tokenizer", "batching"),
    *("sharding_rules", "sharding", "sources", "store", "data", "model"),
    *("checkpoints", "training"),
    *("ahead", "text_vectors", "embedder", "document_scan", "search"),
    *("curation", "evaluation", "report", "stage_order"),
    "stages",
    "plan",
    *(
        "verify",
        "fill_mask",
        "embed_files",
        "results",
        "held_out",
        "task_run",
        "preflight",
        "memory_budget",
        "encoder_run",
        "curation_run",
        "recipe",
        "glue",
        "overrides",
        "prepare_command",
        "filter_pairs_command",
        "mine_negatives_command",
        "evaluate_command",
        "plan_command",
        "glue_command",
        "cli",
    ),
)
HEAVY = ("jax", "flax", "transformers", "orbax", "torch", "grain", "matplotlib")


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imported(tree):
    """Every imported module of ours, lazy ones too, but for the type checker's."""
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imported(node)


def room_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    assert room in ROOMS, f"{room} has no place in the order of rooms"
    for name in imported(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] != "nomic_jax":
            continue
        assert parts[1] in ROOMS, f"{path.name} imports {name}"
        assert ROOMS.index(parts[1]) <= ROOMS.index(room), f"{room} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_is_at_most_270_lines_and_says_what_it_is(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 270
    assert ast.get_docstring(ast.parse(text))


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


def test_every_public_name_is_there():
    assert sorted(nomic_jax.__all__) == list(nomic_jax.__all__)
    for name in nomic_jax.__all__:
        assert getattr(nomic_jax, name).__name__ == name
    with pytest.raises(AttributeError, match="it offers"):
        _ = nomic_jax.Missing
