"""Where metrics go beside metrics.jsonl, if asked for: TensorBoard, Weights & Biases.

Both packages are optional, and imported only when a run asks for them.
"""

import hashlib
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any, TypeAlias

from nomic_jax.storage import is_remote, join


class TensorBoard:
    """Event files in the run folder, by tensorboardX."""

    def __init__(self, folder: str, *, start: int):
        """Write into a folder; what it holds of steps beyond `start` is superseded.

        Raises:
            ValueError: tensorboardX is not installed.
        """
        package = _package("tensorboardX", asked="tensorboard=True")
        self._writer = package.SummaryWriter(folder, purge_step=start + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one scalar a name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, the same one when the folder is resumed."""

    def __init__(
        self, project: str, folder: str, *, name: str, config: Mapping[str, Any]
    ):
        """Open the run of a folder.

        Args:
            project: of Weights & Biases.
            folder: the stage's; its place is what the run is known by.
            name: shown for the run.
            config: the stage's, resolved.

        Raises:
            ValueError: wandb is not installed.
        """
        self._run = _package("wandb", asked=f"wandb={project!r}").init(
            project=project,
            name=name,
            id=hashlib.sha256(folder.encode()).hexdigest()[:16],
            resume="allow",
            config=dict(config),
            # Its own files; a URL is no place for them.
            dir=None if is_remote(folder) else folder,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the numbers of a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()


Tracker: TypeAlias = TensorBoard | WeightsAndBiases


def open_trackers(
    folder: str,
    *,
    name: str,
    config: Mapping[str, Any],
    start: int,
    tensorboard: bool,
    wandb: str,
    writes: bool = True,
) -> list[Tracker]:
    """Open what is asked for.

    A package that is missing is an error on every host, not only on the one that would
    use it, while the others wait for that one.

    Args:
        folder: the stage's, absolute or a URL.
        name: the stage's.
        config: the stage's, resolved.
        start: the step the run goes on from.
        tensorboard: whether to write event files into `folder`/tensorboard.
        wandb: the project of Weights & Biases, empty for none.
        writes: whether this host is the one that writes.

    Raises:
        ValueError: a package is not installed; it is named.
    """
    trackers: list[Tracker] = []
    if tensorboard and _package("tensorboardX", asked="tensorboard=True") and writes:
        trackers.append(TensorBoard(join(folder, "tensorboard"), start=start))
    if wandb and _package("wandb", asked=f"wandb={wandb!r}") and writes:
        trackers.append(WeightsAndBiases(wandb, folder, name=name, config=config))
    return trackers


def _package(name: str, *, asked: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{asked} needs the package {name}, which is not installed; run `pip "
            f"install {name}`, or leave it out: metrics.jsonl is always written"
        ) from error
