"""Rules by which rows of text become records: as pairs, or packed into long rows."""

import dataclasses
from typing import ClassVar, Literal, TypeAlias

from nomic_jax.sources.pairs import PairColumns

Kind: TypeAlias = Literal["pairs", "rows"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairRule:
    """A record is a query, its document and a fixed number of hard negatives."""

    kind: ClassVar[Kind] = "pairs"

    query_prefix: str  # put before the text as it stands: "search_query: "
    document_prefix: str  # before documents and negatives
    query_length: int  # tokens at most, special ones included
    document_length: int  # of negatives too
    columns: PairColumns = PairColumns()
    num_negatives: int = 0  # stored with each pair: the first ones it has
    # What becomes of a pair with fewer: `repeat` goes through those it has again.
    too_few_negatives: Literal["error", "drop", "repeat"] = "error"
    too_long: Literal["cut", "error"] = "cut"  # a cut text keeps its closing token
    # What a blank or null text does to its pair; a negative is left out alone.
    blank: Literal["error", "drop"] = "error"

    def __post_init__(self) -> None:
        """Refuse numbers that no text can meet.

        Raises:
            ValueError: with every problem found.
        """
        problems = []
        for name in ("query_length", "document_length"):
            if getattr(self, name) < 3:
                problems.append(
                    f"{name}={getattr(self, name)} must be at least 3: "
                    "[CLS] token [SEP]"
                )
        if self.num_negatives < 0:
            problems.append(f"num_negatives={self.num_negatives} must be at least 0")
        if self.num_negatives and self.columns.negatives is None:
            problems.append(
                f"num_negatives={self.num_negatives} needs a column of negatives"
            )
        problems += _choices(self, "too_few_negatives", ("error", "drop", "repeat"))
        problems += _choices(self, "too_long", ("cut", "error"))
        problems += _choices(self, "blank", ("error", "drop"))
        if problems:
            raise ValueError("PairRule: " + "; ".join(problems))

    @property
    def texts_per_record(self) -> int:
        """Texts that every record holds."""
        return 2 + self.num_negatives

    @property
    def needed_columns(self) -> tuple[str, ...]:
        """Columns of a source that the records are made of."""
        further = self.columns.negatives if self.num_negatives else None
        return (
            self.columns.query,
            self.columns.document,
            *((further,) if further else ()),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowRule:
    """A record is a row of documents packed one after another, of a fixed length.

    Documents carry over from row to row within a range of the source; the last row of
    a range, which they do not fill, is lost.
    """

    kind: ClassVar[Kind] = "rows"
    texts_per_record: ClassVar[int] = 0  # as many as a row happens to hold

    row_length: int  # tokens of every row
    column: str = "text"
    rows_per_range: int = 100_000  # of the source; each range becomes one shard
    blank: Literal["error", "drop"] = "error"  # or leave a blank or null text out

    def __post_init__(self) -> None:
        """Refuse numbers that give no rows.

        Raises:
            ValueError: with every problem found.
        """
        problems = []
        if self.row_length < 3:
            problems.append(
                f"row_length={self.row_length} must be at least 3: [CLS] token [SEP]"
            )
        if self.rows_per_range < 1:
            problems.append(f"rows_per_range={self.rows_per_range} must be at least 1")
        problems += _choices(self, "blank", ("error", "drop"))
        if problems:
            raise ValueError("RowRule: " + "; ".join(problems))

    @property
    def needed_columns(self) -> tuple[str, ...]:
        """Columns of a source that the records are made of."""
        return (self.column,)


Rule: TypeAlias = PairRule | RowRule


def _choices(rule: object, name: str, known: tuple[str, ...]) -> list[str]:
    value = getattr(rule, name)
    return [] if value in known else [f"{name}={value!r} must be one of {known}"]
