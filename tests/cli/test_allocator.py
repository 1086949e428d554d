import platform
import resource
import subprocess
import sys

import pytest

# The new pages of a compiled function whose temporaries are 64 MiB, in the best of its
# later calls: in the first ones the heap grows.
PROGRAM = """
import resource
import sys

from nomic_jax.cli.main import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()

import jax
import jax.numpy as jnp

function = jax.jit(lambda x: (jnp.outer(x, x) @ x).sum())
pages = []
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(function(jnp.arange(4096.0)))
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(pages[10:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_memory_that_is_kept_is_not_cleared_again():
    def new_pages(setting):
        command = [sys.executable, "-c", PROGRAM, setting]
        return int(subprocess.run(command, capture_output=True, check=True).stdout)

    pages = 64 * 2**20 // resource.getpagesize()
    assert new_pages("leave") > pages / 2
    assert new_pages("keep") < pages / 50
