"""Print the figures of the layout: `python -m tools.layout`.

Names at the top, modules and their sizes, imports, and the frames of this project on
the stack when a contrastive step is differentiated. Next to them is what they were
before the packages were rebuilt, measured by this script.
"""

import ast
import inspect
import json
import statistics
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "nomic_jax"
BEFORE: dict[str, int | float] = {
    "names at the top": 53,
    "imports between them": 275,
    "levels of imports": 19,
    "modules": 237,
    "median lines of a module": 134,
    "lines of the largest": 270,
    "modules with one importer": 64,
    "lines of nomic_jax": 33194,
    "files on the stack": 7,
    "frames on the stack": 11,
}
SMALL = (
    "--model.num_layers=1 --model.width=32 --model.mlp_width=32 --model.num_heads=2 "
    "--train.steps=1 --train.batch_size=4 --data.row_length=32 --data.vocab_size=300"
).split()


def modules() -> dict[str, Path]:
    """Return all modules by name, but for the packages' own."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py"
    }


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Return the modules of ours that a module imports, lazily too."""
    found = set()

    def look(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.ImportFrom) and child.module:
                for alias in child.names:
                    found.add(f"{child.module}.{alias.name}")
                    found.add(child.module)
            look(child)

    look(ast.parse(path.read_text(encoding="utf-8")))
    return found & known.keys()


def top(name: str) -> str:
    """Return the name at the top that a module belongs to."""
    return name.split(".")[1]


def levels(arrows: set[tuple[str, str]]) -> int:
    """Return how many names the longest chain of imports has."""
    below: dict[str, set[str]] = {}
    for one, other in arrows:
        below.setdefault(one, set()).add(other)
    depth: dict[str, int] = {}

    def of(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max(map(of, below.get(name, ())), default=0)
        return depth[name]

    return max(of(one) for one, _ in arrows)


def static() -> dict[str, int | float]:
    """Return the figures that follow from the files."""
    known = modules()
    lines = [
        len(path.read_text(encoding="utf-8").splitlines()) for path in known.values()
    ]
    importers: dict[str, set[str]] = {name: set() for name in known}
    arrows = set()
    for name, path in known.items():
        for other in imports(path, known) - {name}:
            importers[other].add(name)
            if top(other) != top(name):
                arrows.add((top(name), top(other)))
    return {
        "names at the top": len({top(name) for name in known}),
        "imports between them": len(arrows),
        "levels of imports": levels(arrows),
        "modules": len(known),
        "median lines of a module": statistics.median(lines),
        "lines of the largest": max(lines),
        "modules with one importer": sum(len(by) == 1 for by in importers.values()),
        "lines of nomic_jax": sum(
            len(path.read_text(encoding="utf-8").splitlines())
            for path in PACKAGE.rglob("*.py")
        ),
    }


def stack() -> dict[str, int]:
    """Return the project's files and frames on the stack at `jax.value_and_grad`."""
    import jax

    import nomic_jax.cli.main as cli

    seen: list[list[str]] = []
    real = jax.value_and_grad

    def value_and_grad(function, *arguments, **options):
        found = [frame.filename for frame in inspect.stack()]
        seen.append([name for name in found if name.startswith(str(PACKAGE))])
        return real(function, *arguments, **options)

    jax.value_and_grad = value_and_grad
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.jsonl"
        texts = ({"query": f"what is {n}", "document": f"it is {n}"} for n in range(60))
        pairs.write_text("".join(f"{json.dumps(text)}\n" for text in texts))
        config = Path(folder) / "small.py"
        quickstart = str(ROOT / "configs" / "quickstart.py")
        config.write_text(
            f"import runpy\nstages = runpy.run_path({quickstart!r})['stages'][:3]\n"
        )
        out = ["--out", f"{folder}/run", f"--data.pairs={pairs}"]
        status = cli.train(["--config", str(config), *out, *SMALL])
    jax.value_and_grad = real
    assert status == 0 and seen, status
    return {
        "files on the stack": 1 + len(set(seen[-1])),  # and train.py
        "frames on the stack": 1 + len(seen[-1]),
    }


def main() -> None:
    """Print the figures, and what they were."""
    for name, value in {**static(), **stack()}.items():
        print(f"{name:28} {value:8,} {BEFORE.get(name, ''):>8}")


if __name__ == "__main__":
    main()
