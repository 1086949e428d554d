"""Which backend computes attention: what each can do, and what `auto` takes.

    cpu   blockwise
    tpu   splash in rows of 512 columns and more, blockwise below
    gpu   cudnn for rows of one text; tokamax, where it can be imported, for packed rows
          and windows; cudnn's packed layout where it cannot; else blockwise

A backend that is named is taken, or refused with what is in its way: never another one
in its place. docs/attention.md has what was run where.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Literal, get_args

import jax

from nomic_jax.model.attention.tokamax import why_missing

Backend = Literal["blockwise", "splash", "cudnn", "tokamax"]
AttentionBackend = Literal["auto", "blockwise", "splash", "cudnn", "tokamax"]
Platform = Literal["cpu", "gpu", "tpu"]
# What `auto` tries, in order; `blockwise` takes whatever the others do not.
ORDER: Mapping[Platform, tuple[Backend, ...]] = {
    "cpu": ("blockwise",),
    "tpu": ("splash", "blockwise"),
    "gpu": ("cudnn", "tokamax", "blockwise"),
}
# Columns from which a TPU's rows are worth a kernel that works in tiles: below, the
# scores of a row and head fit in less than a megabyte, and XLA has them at once.
SPLASH_COLUMNS = 512
WIDEST_HEAD = 256  # whose tiles fit next to one another in VMEM
# From here on the sums that cuDNN keeps of each softmax, a float32 for each query and
# text, take as much memory as the queries do in bfloat16, of 64 columns a head.
CUDNN_TEXTS = 32
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


def check_backend(backend: str) -> None:
    """Refuse a name that no backend has.

    Raises:
        ValueError: with those there are.
    """
    if backend not in get_args(AttentionBackend):
        known = ", ".join(get_args(AttentionBackend))
        raise ValueError(f"attention={backend!r} must be one of {known}")


def choose(backend: AttentionBackend, case: AttentionSpec) -> Backend:
    """Return what computes a case: the backend named, or the first that can.

    Raises:
        ValueError: the backend named cannot, with the reason and those that can.
    """
    if backend == "auto":
        order = ORDER[case.platform]
        return next(each for each in order if not _passed_over(each, case))
    if reason := unsupported_reason(backend, case):
        able = [
            each for each in ORDER[case.platform] if not unsupported_reason(each, case)
        ]
        raise ValueError(
            f"attention={backend!r} {reason}; take {' or '.join(able)}, or auto"
        )
    return backend


def unsupported_reason(backend: Backend, case: AttentionSpec) -> str | None:
    """Return what keeps a backend from a case, None where nothing does."""
    if backend == "blockwise":
        return None
    if backend == "splash":
        return _of_splash(case)
    if case.platform != "gpu":
        return f"runs on GPUs, and these devices are of the kind {case.platform}"
    if case.capability is None:
        return "needs NVIDIA's GPU here: without it nothing is compiled for one"
    if case.capability < AMPERE:
        return f"needs a GPU of compute capability 8.0, this one has {_said(case)}"
    if case.dtype not in HALVES:
        return f"multiplies bfloat16 and float16, not {case.dtype}"
    return _of_cudnn(case) if backend == "cudnn" else _of_tokamax(case)


def _passed_over(backend: Backend, case: AttentionSpec) -> bool:
    """Say whether `auto` leaves out a backend, also one that could."""
    if unsupported_reason(backend, case):
        return True
    if backend == "splash":
        return case.length < SPLASH_COLUMNS
    if backend == "cudnn" and case.texts != 1:
        # The ranges of tokamax cost nothing for each text.
        many = case.texts is None or case.texts > CUDNN_TEXTS
        return many or unsupported_reason("tokamax", case) is None
    return False


def _of_splash(case: AttentionSpec) -> str | None:
    if case.platform != "tpu":
        return f"runs on TPUs, and these devices are of the kind {case.platform}"
    if case.head_width > WIDEST_HEAD:
        return f"takes heads up to {WIDEST_HEAD} wide, not {case.head_width}"
    return None


def _of_cudnn(case: AttentionSpec) -> str | None:
    widest = 256 if case.capability is not None and case.capability >= HOPPER else 128
    if case.head_width % 8 or case.head_width > widest:
        return (
            f"takes heads whose width is a multiple of 8 up to {widest}, not "
            f"{case.head_width}"
        )
    if case.window is not None:
        return f"has no window to both sides, and layers look {case.window} columns far"
    if case.texts is None:
        return "must know how many texts a row holds at most, which nobody said"
    if case.texts > 1 and case.capability is not None and case.capability < HOPPER:
        return (
            f"packs texts from compute capability 9.0 on, this GPU has {_said(case)}, "
            f"and rows hold up to {case.texts} texts"
        )
    return None


def _of_tokamax(case: AttentionSpec) -> str | None:
    if case.devices > 1:
        return f"runs on one device, and {case.devices} compute a batch together"
    if reason := why_missing():
        return f"cannot be imported: {reason}"
    return None


def _said(case: AttentionSpec) -> str:
    return ".".join(map(str, case.capability or ()))


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


def describe_backend(backend: AttentionBackend, cases: Iterable[AttentionSpec]) -> str:
    """Say in a line which backend computes which rows and layers.

    Args:
        backend: as it was asked for.
        cases: those that will come up, of one kind of layer the shortest rows first.

    Raises:
        ValueError: the backend cannot do one of them.
    """
    runs: dict[tuple[int | None, Backend], list[int]] = {}
    for case in cases:
        runs.setdefault((case.window, choose(backend, case)), []).append(case.length)
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
