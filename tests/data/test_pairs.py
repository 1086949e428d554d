import dataclasses
import pickle
from collections import Counter

import jax
import numpy as np
import pytest
from stored_pairs import CLS, SEP, random_store
from stores import write_pair_store

from nomic_jax.data.pairs import PairBatches
from nomic_jax.data.schedule import Schedule

BATCH = 16
POOL = 5  # hard negatives stored with each pair


def make(stores=None, *, seed=0, lengths=(12, 40), **changes):
    stores = stores or [random_store(negatives=POOL)]
    schedule = Schedule.over(
        {store.name: len(store) for store in stores}, batch_size=BATCH, seed=seed
    )
    settings = {
        "query_length": lengths[0],
        "document_length": lengths[1],
        "num_negatives": 2,
        "pad_id": 0,
        "seed": seed,
        **changes,
    }
    return PairBatches({store.name: store for store in stores}, schedule, **settings)


def unpacked(batch):
    """Read queries and documents out of their rows, each in their order."""
    return tuple(
        texts_in(batch.texts, row_slots(batch, places))
        for places in (batch.query_places, batch.document_places)
    )


def row_slots(batch, places):
    """Number the slots over all rows, those of earlier parts first."""
    share = batch.texts.slot_lengths.size // len(batch.slots)
    part, nth = np.divmod(places, batch.slots.shape[1])
    return part * share + batch.slots[part, nth]


def texts_in(texts, slots):
    rows, slots = np.divmod(slots, texts.slot_lengths.shape[1])
    return [
        tuple(texts.tokens.ids[row][texts.tokens.segment_ids[row] == slot + 1].tolist())
        for row, slot in zip(rows, slots, strict=True)
    ]


def assert_same(batch, other):
    for one, two in zip(jax.tree.leaves(batch), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(one, two)


def test_queries_and_their_documents_are_those_of_the_schedule():
    batches = make()
    store = batches.stores["words"]
    for step in range(5):
        batch = batches(step)
        assert batch.source == "words"
        _, records = batches.schedule.at(step)
        queries, documents = unpacked(batch.arrays)
        assert len(queries) == BATCH and len(documents) == 3 * BATCH
        for row, record in enumerate(records):
            texts = [tuple(text.tolist()) for text in store.records[record]]
            positive, *negatives = documents[3 * row : 3 * row + 3]
            assert queries[row] == texts[0] and positive == texts[1]
            # Drawn without replacement from the query's own.
            assert len(set(negatives)) == 2 and set(negatives) <= set(texts[2:])


def test_rows_hold_several_texts_of_both_sides():
    arrays = make()(0).arrays
    slots = arrays.texts.slot_lengths.shape[1]
    of_queries, of_documents = (
        {int(number) // slots for number in row_slots(arrays, places)}
        for places in (arrays.query_places, arrays.document_places)
    )
    assert of_queries & of_documents
    assert (arrays.texts.slot_lengths > 0).sum(axis=1).max() >= 3
    assert len(arrays.texts.tokens.ids) <= 2 * BATCH  # of 4 * BATCH texts


def test_tokens_and_columns_are_counted():
    batch = make()(3)
    tokens = batch.arrays.texts.tokens
    assert batch.num_tokens == tokens.mask.sum()
    assert batch.num_columns == tokens.ids.size


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_the_rows_of_all_hosts_make_up_the_one_host_batch(hosts):
    whole = make(parts=8)
    parts = [make(parts=8, host=host, hosts=hosts) for host in range(hosts)]
    for step in (0, 7):
        expected = whole(step)
        built = [part(step) for part in parts]
        for count in ("num_tokens", "num_columns"):
            assert sum(getattr(b, count) for b in built) == getattr(expected, count)
        one, many = expected.arrays, [b.arrays for b in built]
        for part in many:  # every host knows where all texts are
            assert len(part.texts.tokens.ids) == len(one.texts.tokens.ids) // hosts
            np.testing.assert_array_equal(part.query_places, one.query_places)
            np.testing.assert_array_equal(part.document_places, one.document_places)
        rows = [(part.texts, part.slots, part.document_ids) for part in many]
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)
        assert_same(joined, (one.texts, one.slots, one.document_ids))


def test_a_host_reads_only_the_records_of_its_rows():
    batches = make(num_negatives=0, parts=8, host=3, hosts=8)
    store = batches.stores["words"]
    batch = batches(0).arrays
    texts = int((batch.texts.slot_lengths > 0).sum())
    assert 0 < len(store.asked) <= texts < 2 * BATCH
    assert max(Counter(store.asked).values()) == 1


@pytest.mark.parametrize("seed", range(2))
def test_a_step_after_a_jump_has_the_batch_it_has_in_a_walk(seed):
    batches = make(seed=seed)
    walked = [batches(step) for step in range(12)]
    sent = pickle.loads(pickle.dumps(make(seed=seed)))
    for step in (11, 0, 6):
        assert sent(step).source == walked[step].source
        assert_same(sent(step).arrays, walked[step].arrays)


def test_batches_out_of_files_are_those_out_of_memory(tmp_path):
    memory = random_store(negatives=POOL)
    records = [[text.astype(np.int32) for text in texts] for texts in memory.records]
    store = write_pair_store(
        tmp_path, "words", records, query_length=12, document_length=40
    )
    sent = pickle.loads(pickle.dumps(make([store])))
    for step in (0, 5):
        assert_same(sent(step).arrays, make([memory])(step).arrays)
    sent.stores["words"].close()


def test_no_batch_mixes_sources():
    stores = [random_store(name, 40, seed=i) for i, name in enumerate("abc")]
    batches = make(stores, num_negatives=0)
    own = {
        store.name: {
            tuple(text.tolist()) for texts in store.records for text in texts[:2]
        }
        for store in stores
    }
    seen = set()
    for step in range(batches.schedule.steps_per_epoch):
        batch = batches(step)
        queries, documents = unpacked(batch.arrays)
        found = {*queries, *documents}
        assert found <= own[batch.source]
        assert not any(found & own[name] for name in own if name != batch.source)
        seen.add(batch.source)
    assert seen == set("abc")


def test_negatives_are_keyed_by_seed_step_and_row_alone():
    def drawn(step=0, **changes):
        return make(**changes)._columns(2 + POOL, step)[:, 2:]

    first = drawn()
    assert len(np.unique(first, axis=0)) > 1  # rows differ though all have five
    np.testing.assert_array_equal(first, drawn())
    np.testing.assert_array_equal(first, drawn(parts=2, host=1, hosts=2))
    assert (first != drawn(step=1)).any() and (first != drawn(seed=1)).any()


def test_every_negative_comes_up_equally_often():
    batches = make()
    columns = [batches._columns(2 + POOL, step)[:, 2:] for step in range(200)]
    counts = np.bincount(np.concatenate(columns).ravel(), minlength=2 + POOL)
    expected = 200 * BATCH * 2 / POOL
    assert not counts[:2].any()
    # 5 deviations of a binomial count.
    assert np.abs(counts[2:] - expected).max() < 5 * np.sqrt(expected * 0.6)


def test_the_first_negatives_are_taken_in_order_if_asked_for():
    batches = make(negatives="first")
    _, documents = unpacked(batches(0).arrays)
    _, records = batches.schedule.at(0)
    for row, record in enumerate(records):
        texts = batches.stores["words"].records[record][1:4]
        expected = [tuple(text.tolist()) for text in texts]
        assert documents[3 * row : 3 * row + 3] == expected


def test_longer_texts_are_cut_and_keep_their_closing_token():
    batches = make(lengths=(6, 9))
    store = batches.stores["words"]
    _, records = batches.schedule.at(0)
    arrays = batches(0).arrays
    queries, documents = unpacked(arrays)
    for text, record in zip(queries, records, strict=True):
        whole = store.records[record][0].tolist()
        expected = whole if len(whole) <= 6 else [*whole[:5], SEP]
        assert list(text) == expected
    assert max(map(len, documents)) == 9
    assert all(text[0] == CLS and text[-1] == SEP for text in documents)
    assert max(map(len, queries)) == 6
    assert arrays.texts.tokens.ids.shape[1] == 9


def test_documents_have_equal_ids_where_their_tokens_are_equal():
    store = random_store(records=BATCH)
    for record in (3, 4, 9):
        store.records[record][1] = store.records[0][1].copy()
    # These differ in nothing that is left of them.
    long = np.arange(5, 45, dtype=np.uint16)
    for record, tail in ((5, 77), (6, 78)):
        store.records[record][1] = np.array([CLS, *long[:30], tail, SEP], np.uint16)
    store.table = np.array([list(map(len, texts)) for texts in store.records], np.int32)
    batches = make([store], num_negatives=0, lengths=(12, 20))
    arrays = batches(0).arrays
    ids = arrays.document_ids.reshape(-1, 2)[arrays.document_places]
    queries, documents = unpacked(arrays)
    equal = (ids[:, None] == ids[None]).all(axis=-1)
    for i, one in enumerate(documents):
        assert equal[i].tolist() == [one == other for other in documents]
    assert equal.sum() > BATCH + 12  # 4 x 3 copies, and the pair that is cut alike
    others = np.delete(arrays.document_ids.reshape(-1, 2), arrays.document_places, 0)
    assert len(others) >= len(queries) and not others.any()


def problem(**changes):
    with pytest.raises(ValueError) as caught:
        make(**changes)
    return str(caught.value)


def test_what_a_store_does_not_hold_is_refused_at_once_and_all_of_it():
    said = problem(num_negatives=6, lengths=(13, 41))
    for part in (
        "store 'words' has 5 hard negatives of each pair, a batch takes 6",
        "query_length=13, and store 'words' was prepared with 12",
        "document_length=41, and store 'words' was prepared with 40",
    ):
        assert part in said
    assert "num_negatives=-1 must not be" in problem(num_negatives=-1)
    assert "query_length=2 must be at least 3" in problem(lengths=(2, 40))
    rows = random_store()
    rows.manifest = dataclasses.replace(rows.manifest, kind="rows")
    assert "holds rows, not pairs" in problem(stores=[rows])


def test_schedules_of_other_stores_are_refused():
    batches = make()
    for sizes, said in (
        ({"wrods": 64}, "'wrods' is scheduled and has no store"),
        ({"words": 99}, "scheduled with 99 records, its store has only 64"),
    ):
        schedule = Schedule.over(sizes, batch_size=BATCH, seed=0)
        with pytest.raises(ValueError, match=said):
            dataclasses.replace(batches, schedule=schedule)


@pytest.mark.parametrize(("host", "hosts"), [(2, 2), (-1, 2), (0, 3)])
def test_rows_that_hosts_cannot_share_are_refused(host, hosts):
    said = problem(parts=2, host=host, hosts=hosts)
    assert (
        f"host={host} of hosts={hosts}" in said
        or f"rows in 2 parts give no equal share to each of {hosts} hosts" in said
    )


def test_a_store_whose_lengths_are_not_its_records_is_named():
    batches = make()
    batches.stores["words"].table += 1
    with pytest.raises(ValueError, match="store 'words', step 0: .* prepare it again"):
        dataclasses.replace(batches)(0)
