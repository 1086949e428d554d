"""A cell's file: what it is made with, written first, and its figures, written last.

All cells of a folder are of one model and number of steps, and those of a task of one
start and data: a table of others would compare what cannot be compared.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from nomic_jax.fields import JsonConfig, differing_fields
from nomic_jax.glue.grid import TASKS, Cell
from nomic_jax.glue.table import Result
from nomic_jax.glue.tasks import GLUE
from nomic_jax.storage import read_json, write_json

CELL = "cell.json"


@dataclasses.dataclass(frozen=True)
class CellFile(JsonConfig):
    """A cell, what it is made with, and what it came to."""

    task: str
    rate: float
    batch: int
    seed: int
    steps: int
    fixed_steps: int | None  # that all cells were told to take; None: ten epochs
    model: str  # as it was given
    model_digest: str
    start: str  # the model, or the cell of MNLI that left it
    start_digest: str
    data: str  # as it was given
    data_digest: str  # of the examples of the task's files
    figures: tuple[float, ...] = ()  # on each of the task's files; none: not done
    left_digest: str = ""  # of the model that a cell of MNLI left

    def __post_init__(self) -> None:
        """Refuse a task that is not GLUE's, and figures of other files than its own.

        Raises:
            ValueError: with the field.
        """
        if self.task not in TASKS:
            raise ValueError(f"task={self.task!r} is none of GLUE's")
        if self.figures and len(self.figures) != len(GLUE[self.task].splits):
            raise ValueError(
                f"figures={self.figures} are not one of each of "
                f"{', '.join(GLUE[self.task].splits)}"
            )

    @property
    def cell(self) -> Cell:
        """The cell."""
        return Cell(self.task, self.rate, self.batch, self.seed)

    @property
    def result(self) -> Result:
        """What goes into the table."""
        return Result(self.cell, self.start, self.steps, self.figures)


def folder_of(out: Path, cell: Cell) -> Path:
    """Return the folder of a cell."""
    return out / cell.task / cell.name


def write_cell(out: Path, made: CellFile) -> None:
    """Write a cell's file."""
    write_json(folder_of(out, made.cell) / CELL, made.to_json())


def read_cell(folder: Path) -> CellFile | None:
    """Read the file of a cell's folder; None where there is none.

    Raises:
        ValueError: it is damaged, or of another cell.
    """
    file = folder / CELL
    if not file.exists():
        return None
    try:
        found = read_json(file)
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
        made = CellFile.from_json(found)
        if folder.parts[-2:] != (made.task, made.cell.name):
            raise ValueError(f"it is of {made.task}/{made.cell.name}")
    except ValueError as error:
        raise ValueError(
            f"{file} is not what this version writes for a cell ({error}); remove "
            f"{folder}, and it is trained again"
        ) from error
    return made


def read_cells(out: Path, task: str = "*") -> list[CellFile]:
    """Read the cells of a sweep that are done, those of earlier commands too.

    Raises:
        ValueError: one is damaged.
    """
    files = sorted(out.glob(f"{task}/*/{CELL}"))
    found = [read_cell(file.parent) for file in files]
    return [made for made in found if made is not None and made.figures]


def check_same(
    out: Path, found: Iterable[CellFile], now: CellFile, fields: Iterable[str]
) -> None:
    """Refuse cells that were made with something else than a cell would be now.

    Args:
        out: of the sweep.
        found: cells that are there.
        now: the cell.
        fields: that must be the same.

    Raises:
        ValueError: with the first such cell's folder and all that differs.
    """
    fields = tuple(fields)
    for made in found:
        old, new = made.to_json(), now.to_json()
        if all(old[name] == new[name] for name in fields):
            continue
        # Digests tell apart what lies at one place; the places are for the reader.
        places = [name.removesuffix("_digest") for name in fields]
        told = {name: (old[name], new[name]) for name in (*fields, *places)}
        changed = differing_fields(
            {name: old for name, (old, _) in told.items()},
            {name: new for name, (_, new) in told.items()},
        )
        raise ValueError(
            f"{folder_of(out, made.cell)} holds a cell of another sweep: "
            f"{'; '.join(changed)}; use another --out, or remove "
            f"{out / made.task}"
        )
