"""Reading gzip from the middle: points to start at, found once by indexed_gzip.

A point holds the 32 KiB before it, which is all that deflate can refer to (RFC 1951,
section 2; the `zran` example of zlib is the same idea).
"""

import contextlib
import io
from collections.abc import Iterator
from typing import IO, Any

from nomic_jax.sources.files import open_file
from nomic_jax.storage import size

MIN_SPACING = 4 << 20  # bytes of text between two points
MAX_POINTS = 1024  # 32 MiB of them, whatever the file's size
_GUESSED_RATIO = 4  # of text to its gzip, to space the points


def find_points(place: str) -> bytes:
    """Read a whole gzip file and return the points to start at.

    The file must be sound: damage is not always noticed here.
    """
    import indexed_gzip

    spacing = max(MIN_SPACING, _GUESSED_RATIO * size(place) // MAX_POINTS)
    points = io.BytesIO()
    with (
        open_file(place) as raw,
        indexed_gzip.IndexedGzipFile(fileobj=raw, spacing=spacing) as file,
    ):
        inner: Any = file.raw
        inner.build_full_index()
        inner.export_index(fileobj=points)
    return points.getvalue()


@contextlib.contextmanager
def open_at(place: str, *, offset: int, points: bytes) -> Iterator[IO[bytes]]:
    """Open a gzip file's text at a byte of it."""
    import indexed_gzip

    with open_file(place) as raw, indexed_gzip.IndexedGzipFile(fileobj=raw) as file:
        inner: Any = file.raw
        inner.import_index(fileobj=io.BytesIO(points))
        file.seek(offset)
        yield file
