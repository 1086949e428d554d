"""The attention backends: their protocol, their registry, and what `auto` takes.

    cpu   blockwise
    tpu   splash in rows of 512 columns and more, blockwise below
    gpu   cudnn for rows of one text; tokamax, where it can be imported, for packed rows
          and windows; cudnn's packed layout where it cannot; else blockwise

A backend that is named is taken, or refused with what is in its way: never another one
in its place. docs/attention.md has what was run where.
"""

import dataclasses
import functools
import importlib
import math
from collections.abc import Iterable, Mapping
from typing import Literal, Protocol, cast, get_args, runtime_checkable

import jax
from jaxtyping import Array, Float, Int

Backend = Literal["blockwise", "splash", "cudnn", "tokamax"]
AttentionBackend = Literal["auto", "blockwise", "splash", "cudnn", "tokamax"]
Platform = Literal["cpu", "gpu", "tpu"]
# What `auto` tries, in order; `blockwise` takes whatever the others do not.
ORDER: Mapping[Platform, tuple[Backend, ...]] = {
    "cpu": ("blockwise",),
    "tpu": ("splash", "blockwise"),
    "gpu": ("cudnn", "tokamax", "blockwise"),
}
# One file each; imported where it is asked for: Pallas alone takes a while.
MODULES: Mapping[Backend, str] = {
    name: f"nomic_jax.model.attention.{name}" for name in get_args(Backend)
}
HALVES = ("bfloat16", "float16")
AMPERE, HOPPER = (8, 0), (9, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What a program's attention is compiled for, besides arrays of some shapes."""

    backend: AttentionBackend = "auto"
    platform: Platform | None = None  # None: that of this process
    texts: int | None = None  # the most that a row holds; None: any number


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """What attention is computed of, and where."""

    platform: Platform
    dtype: str
    head_width: int
    length: int  # columns of a row
    window: int | None = None  # columns to either side that a token looks at; None: all
    texts: int | None = None  # the most that a row holds; None: any number
    devices: int = 1  # that compute a batch together
    capability: tuple[int, int] | None = None  # of an NVIDIA GPU

    @property
    def shown(self) -> str:
        """The compute capability as NVIDIA writes it."""
        return ".".join(map(str, self.capability or ()))

    @classmethod
    def of(
        cls,
        setting: Setting,
        dtype: str,
        *,
        head_width: int,
        length: int,
        window: int | None,
        devices: int | None = None,
    ) -> "AttentionSpec":
        """Describe a case; fields are the class's.

        Args:
            setting: of the program.
            dtype: of queries, keys and values.
            head_width: of each.
            length: columns of a row.
            window: of the layer.
            devices: where not given, those of the mesh that a program is traced for.
        """
        platform, capability = _here()
        if setting.platform is not None and setting.platform != platform:
            platform, capability = setting.platform, None
        if devices is None:
            devices = math.prod(jax.sharding.get_abstract_mesh().axis_sizes)
        return cls(
            platform=platform,
            dtype=dtype,
            head_width=head_width,
            length=length,
            window=window,
            texts=setting.texts,
            devices=devices,
            capability=capability,
        )


@runtime_checkable
class AttentionKernel(Protocol):
    """What a backend's module holds."""

    def unsupported(self, spec: AttentionSpec) -> str | None:
        """Return why it cannot compute a case; None: it can."""
        ...

    def auto_skips(self, spec: AttentionSpec) -> bool:
        """Say whether `auto` takes another backend, of a case that it can compute."""
        ...

    def attend(
        self,
        q: Float[Array, "B S H K"],
        k: Float[Array, "B S H K"],
        v: Float[Array, "B S H K"],
        segment_ids: Int[Array, "B S"],
        window: int | None = None,
        *,
        texts: int | None = None,
    ) -> Float[Array, "B S H K"]:
        """Attend as `layer.attend` says, in rows of at most so many texts."""
        ...


def kernel_of(backend: Backend) -> AttentionKernel:
    """Import a backend's module."""
    return cast(AttentionKernel, importlib.import_module(MODULES[backend]))


def check_backend(backend: str) -> None:
    """Refuse a name that no backend has.

    Raises:
        ValueError: with those there are.
    """
    if backend not in get_args(AttentionBackend):
        known = ", ".join(get_args(AttentionBackend))
        raise ValueError(f"attention={backend!r} must be one of {known}")


def choose(backend: AttentionBackend, spec: AttentionSpec) -> Backend:
    """Return what computes a case: the backend named, or the first that can.

    Raises:
        ValueError: the backend named cannot, with the reason and those that can.
    """
    order = ORDER[spec.platform]
    if backend == "auto":
        return next(
            each
            for each in order
            if not unsupported_reason(each, spec)
            and not kernel_of(each).auto_skips(spec)
        )
    if reason := unsupported_reason(backend, spec):
        able = [each for each in order if not unsupported_reason(each, spec)]
        raise ValueError(
            f"attention={backend!r} {reason}; take {' or '.join(able)}, or auto"
        )
    return backend


def unsupported_reason(backend: Backend, spec: AttentionSpec) -> str | None:
    """Return why a backend cannot compute a case; None: it can."""
    return kernel_of(backend).unsupported(spec)


def needs_gpu(spec: AttentionSpec) -> str | None:
    """Return why a kernel for NVIDIA's GPUs cannot compute a case at all."""
    if spec.platform != "gpu":
        return f"runs on GPUs, and these devices are of the kind {spec.platform}"
    if spec.capability is None:
        return "needs NVIDIA's GPU here: without it nothing is compiled for one"
    if spec.capability < AMPERE:
        return f"needs a GPU of compute capability 8.0, this one has {spec.shown}"
    if spec.dtype not in HALVES:
        return f"multiplies bfloat16 and float16, not {spec.dtype}"
    return None


@functools.cache
def _here() -> tuple[Platform, tuple[int, int] | None]:
    """Return the platform of this process, and its GPU's compute capability."""
    name = jax.default_backend()
    if name == "gpu":
        told = str(getattr(jax.local_devices()[0], "compute_capability", ""))
        major, _, minor = told.partition(".")
        number = (
            (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None
        )
        return "gpu", number
    return ("tpu" if name == "tpu" else "cpu"), None


def describe_backend(backend: AttentionBackend, specs: Iterable[AttentionSpec]) -> str:
    """Say in a line which backend computes which rows and layers.

    Args:
        backend: as it was asked for.
        specs: those that will come up, of one kind of layer the shortest rows first.

    Raises:
        ValueError: the backend cannot do one of them.
    """
    runs: dict[tuple[int | None, Backend], list[int]] = {}
    for spec in specs:
        runs.setdefault((spec.window, choose(backend, spec)), []).append(spec.length)
    if len({chosen for _, chosen in runs}) == 1:
        return next(iter(runs))[1]
    windows = {window for window, _ in runs}
    said = []
    for (window, chosen), lengths in runs.items():
        layers = f" in layers of window {window}" if window is not None else ""
        if len(windows) > 1 and window is None:
            layers = " in layers without a window"
        rows = f"rows of {lengths[0]}"
        if len(lengths) > 1:
            rows += f" to {lengths[-1]}"
        said.append(f"{chosen} for {rows} columns{layers}")
    return ", ".join(said)
