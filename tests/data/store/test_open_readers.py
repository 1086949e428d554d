import contextlib
import gc
import subprocess
import sys

import numpy as np
import pytest
from store_pairs import pair_rule, pair_source, tokenizer

from nomic_jax.data.store.prepare import prepare_store
from nomic_jax.data.store.store import READERS, OpenReaders, Store

OWNER, OTHER = 1, 2


class Reader:
    """Stands for an open file, and says when it is closed."""

    def __init__(self, name, closed):
        self.name, self.closed = name, closed

    def close(self):
        self.closed.append(self.name)


def lend(readers, closed, index, owner=OWNER):
    return readers.lent(
        owner, index, lambda: Reader(index, closed), contextlib.nullcontext()
    )


def test_the_reader_that_was_longest_not_used_is_closed_first():
    readers, closed = OpenReaders(2), []
    for index in (0, 1, 0, 2, 0, 1):
        with lend(readers, closed, index) as reader:
            assert reader.name == index
    assert closed == [1, 2] and len(readers) == 2


def test_a_reader_in_use_stays_open():
    readers, closed = OpenReaders(1), []
    with lend(readers, closed, 0), lend(readers, closed, 1, OTHER):
        assert closed == []
        readers.drop(OTHER)
        assert closed == []
    assert closed == [1]
    with lend(readers, closed, 2):
        pass
    assert closed == [1, 0]


@pytest.mark.slow
def test_the_files_of_a_store_that_is_gone_are_closed(tmp_path):
    arguments = (pair_source(60), pair_rule(), tokenizer(), tmp_path)
    prepare_store(*arguments, records_per_shard=20, progress=False)
    gc.collect()
    before = len(READERS)
    store = Store.open(tmp_path)
    store.read(np.arange(60))
    assert len(READERS) == before + 3
    del store
    gc.collect()
    assert len(READERS) == before


SCRIPT = """
import resource, sys
import numpy as np
from nomic_jax.data.store.store import Store
stores = [Store.open(sys.argv[1]) for _ in range(4)]
soft, hard = map(int, sys.argv[2:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
for _ in range(2):
    for store in stores:
        assert len(store.read(np.arange(100))) == 100
        assert store.lengths(np.arange(100)).shape == (100, 2)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def test_more_shards_are_read_than_files_may_be_open(tmp_path):
    arguments = (pair_source(100), pair_rule(), tokenizer(), tmp_path)
    prepare_store(*arguments, records_per_shard=4, progress=False)
    # 100 shards in all: the hard limit is enough once, and once it is not.
    for soft, hard in ((40, 400), (40, 60)):
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path), str(soft), str(hard)],
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        assert int(result.stdout) == hard
