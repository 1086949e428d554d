"""Files of tensors: read one tensor at a time, written one tensor at a time.

Reads model.safetensors, its sharded form, and with PyTorch installed their .bin
predecessors; writes safetensors (an 8-byte length, a JSON header, then the data).
"""

import dataclasses
import json
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from nomic_jax.checkpoints.problems import CheckpointError, Problem

DTYPES: Mapping[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor that is in a file until it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype | str  # the file's name for a dtype that no model has
    read: Callable[[], np.ndarray]


def open_tensors(folder: Path) -> tuple[dict[str, StoredTensor], list[Problem]]:
    """Find a folder's tensors.

    Returns:
        The tensors by their names in the file, and what an index and its shards
        disagree on.

    Raises:
        CheckpointError: there is no weights file, or one cannot be read.
    """
    for file, open_one in (
        ("model.safetensors", _open_safetensors),
        ("pytorch_model.bin", _open_bin),
    ):
        if (folder / file).is_file():
            return open_one(folder / file), []
        if (folder / f"{file}.index.json").is_file():
            return _open_shards(folder / f"{file}.index.json", open_one)
    raise CheckpointError(
        f"{folder} holds no weights: model.safetensors, pytorch_model.bin, or either "
        "in shards with its .index.json, is needed"
    )


def _open_shards(index: Path, open_one):
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} is not an index of shards: {error!r}") from None
    tensors, problems = {}, []
    for shard in sorted(set(places.values())):
        names = {name for name, place in places.items() if place == shard}
        if not (index.parent / shard).is_file():
            note = f"named by {index.name}, with {len(names)} tensors"
            problems.append(Problem("missing", shard, note))
            continue
        held = open_one(index.parent / shard)
        problems += [
            Problem("missing", name, f"(the index puts it into {shard})")
            for name in sorted(names - set(held))
        ]
        problems += [
            Problem("unused", name, f"(in {shard}, where the index has none)")
            for name in sorted(set(held) - names)
        ]
        tensors |= {name: held[name] for name in names & set(held)}
    return tensors, problems


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    import safetensors

    def tensor(name: str, stored) -> StoredTensor:
        def read() -> np.ndarray:
            # Opened again each time: pages that were read do not stay mapped.
            with safetensors.safe_open(path, framework="np") as file:
                return file.get_tensor(name)

        dtype = stored.get_dtype()
        return StoredTensor(tuple(stored.get_shape()), DTYPES.get(dtype, dtype), read)

    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {name: tensor(name, file.get_slice(name)) for name in file.keys()}
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is not a whole safetensors file: "
            f"{error}; fetch it again"
        ) from None


def _open_bin(path: Path) -> dict[str, StoredTensor]:
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            f"{path} needs PyTorch to be read: pip install 'nomic-jax[torch]', or "
            "bring the weights as model.safetensors"
        ) from None
    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises what its unpickler happens to meet
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise CheckpointError(
            f"{path} is not a plain PyTorch file of tensors: {reason}"
        ) from None
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise CheckpointError(f"{path} holds something else than a table of tensors")
    known = {
        torch.float32: DTYPES["F32"],
        torch.float16: DTYPES["F16"],
        torch.bfloat16: DTYPES["BF16"],
    }

    def tensor(value) -> StoredTensor:
        dtype = known.get(value.dtype, str(value.dtype))

        def read() -> np.ndarray:
            data = value.detach().contiguous()
            if dtype == DTYPES["BF16"]:  # which NumPy lacks: carry the bits over
                return data.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            return data.numpy()

        return StoredTensor(tuple(value.shape), dtype, read)

    return {str(name): tensor(value) for name, value in state.items()}


def write_tensors(
    path: Path,
    specifications: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    arrays: Iterable[tuple[str, np.ndarray]],
) -> None:
    """Write a safetensors file of which only one array at a time is in memory.

    Args:
        path: the file.
        specifications: the shape and dtype of every tensor to come.
        arrays: each named tensor once, in any order.
    """
    codes = {dtype: code for code, dtype in DTYPES.items()}
    # Wide dtypes first, as the library itself writes: every tensor is then aligned.
    order = sorted(specifications, key=lambda n: (-specifications[n][1].itemsize, n))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    ends, end = {}, 0
    for name in order:
        shape, dtype = specifications[name]
        start, end = end, end + int(np.prod(shape)) * dtype.itemsize
        ends[name] = (start, end)
        header[name] = {
            "dtype": codes[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        first = file.tell()
        waiting = set(order)
        for name, array in arrays:
            assert (array.shape, array.dtype) == specifications[name], name
            waiting.remove(name)
            file.seek(first + ends[name][0])
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        assert not waiting, waiting
