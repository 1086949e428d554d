"""What the C library is told of memory, before anything else is imported."""

import ctypes
import platform

# Of glibc's malloc.h, what `mallopt` sets.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Let the process keep the memory that it frees, for the next step to take.

    A step on a processor takes gigabytes of temporaries from the system and gives them
    back, and the system clears each page again. glibc keeps what is freed in one heap
    if it is told not to shrink it; not what it maps apart, large blocks and those of
    further threads. To be called before JAX is imported, whose threads begin then.
    Allocators other than glibc's are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    allocator = ctypes.CDLL(None)
    for setting, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1)):
        allocator.mallopt(setting, value)
