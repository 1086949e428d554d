"""A `jax.profiler` trace of some steps, written into the run folder.

TensorBoard's profile plugin, XProf and Perfetto read it.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax

from nomic_jax.storage import is_remote, join, local_path, publish


class Trace:
    """Traces the steps `first`, ..., `first + steps - 1`, counted from 1."""

    def __init__(self, folder: str, *, first: int, steps: int):
        """Trace into a folder or URL; with `first` 0, nothing."""
        self.folder, self.first, self.last = folder, first, first + steps - 1
        self._local: Path | None = None  # while a trace runs

    def __enter__(self) -> "Trace":
        """Return itself."""
        return self

    def before(self, step: int) -> None:
        """Begin if this step is the first one."""
        if step == self.first:
            remote = is_remote(self.folder)
            self._local = (
                Path(tempfile.mkdtemp()) if remote else local_path(self.folder)
            )
            jax.profiler.start_trace(self._local)

    def after(self, step: int, results: Any) -> None:
        """End if this step was the last one, once the devices have finished it."""
        if self._local is not None and step == self.last:
            jax.block_until_ready(results)
            self._stop()

    def __exit__(self, *_: object) -> None:
        """End a trace that the end of the run cut short."""
        if self._local is not None:
            self._stop()

    def _stop(self) -> None:
        assert self._local is not None
        local, self._local = self._local, None
        jax.profiler.stop_trace()
        if is_remote(self.folder):
            for file in [path for path in local.rglob("*") if path.is_file()]:
                publish(file, join(self.folder, *file.relative_to(local).parts))
            shutil.rmtree(local)
