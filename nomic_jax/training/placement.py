"""Where and how a stage trains: its mesh, its microbatches, its attention backend."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, TypeVar, get_args

import jax
import numpy as np
from jax.sharding import Mesh

from nomic_jax.distributed.mesh import MeshConfig, make_mesh, row_parts, shardings
from nomic_jax.model.attention.backends import AttentionBackend, check_backend
from nomic_jax.model.encoder import NomicBert, Remat, set_attention
from nomic_jax.training.optimizer import parameter_name

Tree = TypeVar("Tree")
# On two cores, 614 masked tokens in 784 slots, of width 768, took 0.98 of the processor
# time of all logits at once, and 1,229 in 1,888, of width 192, 0.78 of it; in blocks of
# 256 it was 1.08 and 0.74, of 512 1.35 and 0.85.
CPU_MASKED_AT_ONCE = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """What a device keeps at a time; no choice changes the gradient."""

    tokens_at_once: int | None = None  # of a device's rows, padding too; None: all
    # what a layer keeps for its backward pass: all, products with weights, its input
    remat: Remat = "none"
    # GiB of a device that a step may need: the first settings that do are taken, of
    # those above; see plan.budget. None: the two above stand as they are.
    budget: float | None = None

    def __post_init__(self) -> None:
        """Refuse a number of tokens that holds none, and a budget next to it.

        Raises:
            ValueError: with the number.
        """
        if self.budget is not None and (
            self.budget <= 0 or self.tokens_at_once is not None or self.remat != "none"
        ):
            raise ValueError(
                f"budget={self.budget} GiB must be above 0, and says what becomes of "
                f"tokens_at_once={self.tokens_at_once} and remat={self.remat!r}: leave "
                "them at None and 'none', or leave the budget out"
            )
        if self.tokens_at_once is not None and self.tokens_at_once < 1:
            raise ValueError(
                f"tokens_at_once={self.tokens_at_once} must be at least 1, or None"
            )
        if self.remat not in get_args(Remat):
            raise ValueError(f"remat={self.remat!r} must be none, dots or full")


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a step runs, and how many rows it takes at once."""

    mesh: Mesh | None = None  # None: a single device
    most_rows: int | None = None  # of a microbatch on a device; None: all
    # Whether the layers are compiled one after another. A scan stacks what each keeps
    # for the backward pass, copies that a processor waits for and an accelerator hides.
    unroll: bool = False
    # Masked tokens whose logits are held at once. Each block adds to the gradient of
    # the whole word table: more tokens make up for that, fewer stay in a cache.
    masked_at_once: int = 1024

    @classmethod
    def of(
        cls,
        mesh: MeshConfig,
        memory: MemoryConfig,
        *,
        batch_size: int,
        row_length: int,
        devices: Sequence[Any] | None = None,
    ) -> "Placement":
        """Lay out devices for batches of a size.

        Args:
            mesh: sizes of its axes.
            memory: tokens at once.
            batch_size: rows, or queries, of a whole batch.
            row_length: tokens of a row.
            devices: all there are where not given.

        Raises:
            ValueError: the mesh does not fit the devices, the batch does not split
                over it, or a row has more tokens than are taken at once.
        """
        made = make_mesh(mesh, devices)
        parts = row_parts(made)
        if batch_size % parts:
            raise ValueError(
                f"batch_size={batch_size} does not split over the {parts} devices that "
                "take rows (data x fsdp); use a multiple of them"
            )
        processor = (devices or jax.devices())[0].platform == "cpu"
        # Layers to be redone stay in their loop: else XLA would redo them all at once.
        unroll = made is None and processor and memory.remat == "none"
        masked = CPU_MASKED_AT_ONCE if processor else cls.masked_at_once
        if memory.tokens_at_once is None:
            return cls(made, unroll=unroll, masked_at_once=masked)
        if memory.tokens_at_once < row_length:
            raise ValueError(
                f"tokens_at_once={memory.tokens_at_once} holds no row of {row_length} "
                "tokens; raise it, or shorten the texts"
            )
        return cls(made, memory.tokens_at_once // row_length, unroll, masked)

    def in_parts(self, rows: int) -> bool:
        """Say whether a device takes its rows in parts."""
        return self.most_rows is not None and self.most_rows < rows


def place_state(state: Tree, mesh: Mesh | None) -> Tree:
    """Put a state's arrays where the rules say; moments lie where their parameters do.

    Args:
        state: a tree of arrays, the same on all hosts.
        mesh: None: the arrays stay on their device, and are committed to it as those of
            a restored state are, so that a run begun and a run resumed are one compiled
            program.

    Raises:
        ValueError: an axis of the mesh does not divide an array's.
    """
    if mesh is None:
        return jax.device_put(state, jax.tree.map(lambda x: x.sharding, state))
    places = state_places(state, mesh)
    if all(d.process_index == jax.process_index() for d in mesh.devices.flat):
        return jax.device_put(state, places)
    # Every host has the same whole state, and takes its devices' parts from it.
    return jax.tree.map(
        lambda array, place: jax.make_array_from_callback(
            array.shape, place, np.asarray(array).__getitem__
        ),
        state,
        places,
    )


def keep_placed(state: Tree, mesh: Mesh | None) -> Tree:
    """Say inside a compiled step that a state is where `place_state` put it."""
    if mesh is None:
        return state
    return jax.lax.with_sharding_constraint(state, state_places(state, mesh))


def state_places(state: Any, mesh: Mesh) -> Any:
    """Return the sharding of each array of a state, or of each shape.

    Raises:
        ValueError: an axis of the mesh does not divide an array's.
    """
    return shardings(state, parameter_names(state), mesh)


def parameter_names(state: Any) -> Any:
    """Return a state's structure with the name of each array in its place."""
    return jax.tree_util.tree_map_with_path(lambda p, _: parameter_name(p), state)


logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """What computes; no choice changes a figure but by rounding."""

    attention: AttentionBackend = "auto"  # or blockwise, splash (TPU), cudnn, tokamax

    def __post_init__(self) -> None:
        """Refuse a backend that there is not.

        Raises:
            ValueError: with those there are.
        """
        check_backend(self.attention)

    def of(
        self,
        encoder: NomicBert,
        *,
        stage: str,
        row_length: int,
        texts: int | None,
        mesh: Mesh | None,
    ) -> None:
        """Set what computes an encoder, and say what that comes to.

        Args:
            encoder: that the stage trains.
            stage: its name.
            row_length: columns of its rows.
            texts: the most that a row holds; None: any number.
            mesh: of its devices.

        Raises:
            ValueError: the attention backend cannot compute the stage.
        """
        said = set_attention(
            encoder,
            self.attention,
            rows=[(row_length, texts)],
            devices=1 if mesh is None else mesh.size,
        )
        logger.info("%s: attention: %s", stage, said)
