"""Examples of tasks: how they are read, encoded and put into batches."""

import collections
import dataclasses
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from task_files import HEADS, examples, tokenizer, write_examples

from nomic_jax.batch import ABSENT
from nomic_jax.data.mlm import Masking
from nomic_jax.downstream.batches import TaskBatches
from nomic_jax.downstream.config import HeadConfig, TaskData
from nomic_jax.downstream.encoding import cutting, encode_words
from nomic_jax.downstream.examples import (
    QuestionExample,
    TextExample,
    WordsExample,
    label_numbers,
    labels_of,
    read_examples,
)
from nomic_jax.downstream.heads import TaskEncoding
from nomic_jax.downstream.sentence_pairs import IS_NEXT, IS_NOT, Frame, SentencePairs

DATA = TaskData(max_length=16, question_length=4, stride=4)


def encoding(task, labels=(), **changes):
    data = dataclasses.replace(DATA, **changes)
    return TaskEncoding(HEADS[task], data, tokenizer(), True, labels)


def read(path, task, count=11):
    """Examples of a file that is made for them."""
    file = write_examples(path / f"{task}.jsonl", task, count)
    return read_examples(file, HEADS[task], DATA)


def every(task, path, **changes):
    found = read(path, task)
    labels = labels_of(found, HEADS[task])
    source, places = encoding(task, labels, **changes).rows_and_places(found)
    return found, source.rows(np.arange(len(source)), 0), places


def test_rows_of_parquet_are_read_as_lines_are(tmp_path):
    lines = list(examples("classes", 5))
    file = str(tmp_path / "classes.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lines), file)
    found = read_examples(file, HEADS["classes"], DATA)
    places = [dataclasses.replace(one, place="") for one in found]
    same = read(tmp_path, "classes", 5)
    assert places == [dataclasses.replace(one, place="") for one in same]
    with pytest.raises(ValueError, match=r"classes\.parquet.*no column 'text'"):
        read_examples(file, HEADS["classes"], dataclasses.replace(DATA, first="text"))


@pytest.fixture(scope="module")
def theirs():
    """transformers' own tokenizer over the same vocabulary."""
    import transformers

    names = {f"{n}_token": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep")}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer().backend, **names
    )


@pytest.mark.parametrize("length", [16, 9])
def test_pairs_are_encoded_and_cut_as_transformers_does(tmp_path, theirs, length):
    found, rows, _ = every("classes", tmp_path, max_length=length)
    expected = theirs(
        [example.first for example in found],
        [example.second for example in found],
        truncation=True,
        max_length=length,
        return_token_type_ids=True,
    )
    assert [row.tolist() for row in rows.ids] == expected["input_ids"]
    assert [row.tolist() for row in rows.types] == expected["token_type_ids"]
    assert any(len(row) == length for row in rows.ids) == (length == 9)
    # Sorted, blue comes first; examples are red and blue by turns.
    assert rows.labels.tolist() == [1, 0] * 5 + [1]


def test_windows_of_a_context_are_those_of_transformers(tmp_path, theirs):
    found, rows, windows = every("answers", tmp_path)
    expected = theirs(
        [example.question for example in found],
        [example.context for example in found],
        truncation="only_second",
        max_length=16,
        stride=4,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    assert [row.tolist() for row in rows.ids] == expected["input_ids"]
    numbers = [window.example for window in windows]
    assert numbers == expected["overflow_to_sample_mapping"]
    assert max(collections.Counter(numbers).values()) > 1
    for window, offsets in zip(windows, expected["offset_mapping"], strict=True):
        whole = offsets[window.first : window.first + len(window.spans)]
        assert window.spans.tolist() == [list(span) for span in whole]
    seen = set()
    for window, (start, end) in zip(windows, rows.labels, strict=True):
        example = found[window.example]
        if (start, end) == (0, 0):
            continue
        span = (
            window.spans[start - window.first, 0],
            window.spans[end - window.first, 1],
        )
        assert example.context[slice(*span)] == example.answers[0]
        seen.add(window.example)
    assert seen == set(range(len(found)))


def test_a_question_without_an_answer_points_to_the_first_token():
    one = QuestionExample("f:1", "colour ?", "the quick brown fox")
    source = encoding("answers").rows([one])
    assert source.rows(np.arange(1), 0).labels.tolist() == [[0, 0]]


def test_an_answer_within_a_token_takes_all_of_it():
    one = QuestionExample("f:1", "colour ?", "the quickly red", ("quick",), (4,))
    source, (window,) = encoding("answers").rows_and_places([one])
    ((start, end),) = source.rows(np.arange(1), 0).labels - window.first
    assert (window.spans[start, 0], window.spans[end, 1]) == (4, 9)
    two = dataclasses.replace(one, answers=("uic",), starts=(5,))
    source, (window,) = encoding("answers").rows_and_places([two])
    ((start, end),) = source.rows(np.arange(1), 0).labels - window.first
    assert window.spans[start, 0] <= 5 and window.spans[end, 1] >= 8


def test_an_answer_that_begins_where_a_token_ends_begins_with_the_next():
    one = QuestionExample("f:1", "colour ?", "the redblue fox")
    source, (window,) = encoding("answers").rows_and_places([one])
    begin, end = (int(place) for place in window.spans[2])  # within "redblue"
    assert begin == window.spans[1, 1]
    text = one.context[begin:end]
    told = dataclasses.replace(one, answers=(text,), starts=(begin,))
    source = encoding("answers").rows([told])
    ((start, stop),) = source.rows(np.arange(1), 0).labels - window.first
    assert (start, stop) == (2, 2)


def test_windows_that_would_not_move_on_are_refused():
    one = QuestionExample("f:1", "colour ?", "the quick brown fox")
    with pytest.raises(ValueError, match="9 tokens for the context.*stride=9"):
        encoding("answers", stride=9).rows([one])


def test_the_first_token_of_each_word_carries_its_tag(theirs):
    words = ("the", "quickbrown", "red", "fox")
    tags = {"O": 0, "B-C": 1, "I-C": 2}
    one = WordsExample("f:1", words, ("O", "B-C", "I-C", "O"))
    rows, (columns,) = encode_words([one], tokenizer(), max_length=16, labels=tags)
    ids, _, (labels,) = rows.rows(np.arange(1))
    expected = theirs(list(words), is_split_into_words=True)
    assert ids[0].tolist() == expected["input_ids"]
    of_words = expected.word_ids()
    assert len(of_words) > 6  # a word is of several tokens
    first = [of_words.index(word) for word in range(4)]
    assert columns.tolist() == first
    assert labels[first].tolist() == [0, 1, 2, 0]
    assert (np.delete(labels, first) == -1).all()
    _, (columns,) = encode_words([one], tokenizer(), max_length=5, labels=tags)
    assert columns.tolist() == [1, 2, -1, -1]  # and the last two are cut


def test_words_of_a_byte_level_tokenizer_stand_apart():
    import tokenizers
    from tokenizers import models, pre_tokenizers

    from nomic_jax.data.tokenizer import TextTokenizer

    letters = ["a", "b", "Ġa", "Ġb"]
    backend = tokenizers.Tokenizer(
        models.WordLevel({letter: i for i, letter in enumerate(letters)})
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    one = WordsExample("f:1", ("a", "b"), (0, 0))
    given = TextTokenizer(backend)
    rows, _ = encode_words([one], given, max_length=8, labels={"O": 0})
    assert rows.ids.tolist() == backend.encode("a b").ids == [0, 3]


def test_a_choice_that_is_not_there_is_an_empty_row(tmp_path):
    found, rows, _ = every("choices", tmp_path)
    assert {len(example.choices) for example in found} == {2, 3}
    lengths = np.array([len(row) for row in rows.ids]).reshape(-1, 3)
    for example, of_rows in zip(found, lengths, strict=True):
        assert (of_rows > 0).tolist() == [True, True, len(example.choices) == 3]


@pytest.mark.parametrize("length", [16, 10, 7])
def test_sentences_are_joined_and_cut_as_the_tokenizer_joins_pairs(length):
    backend = cutting(tokenizer(), length)
    frame = Frame.of(tokenizer())
    rng = np.random.default_rng(0)
    words = np.array("the quick brown fox jumps over lazy dogs".split())
    for _ in range(20):
        texts = [" ".join(rng.choice(words, rng.integers(1, 12))) for _ in "ab"]
        alone = (
            np.array(
                tokenizer().backend.encode(t, add_special_tokens=False).ids, np.int32
            )
            for t in texts
        )
        ids, types = frame.around(*alone, length)
        expected = backend.encode(*texts)
        assert ids.tolist() == expected.ids and types.tolist() == expected.type_ids


def test_half_of_the_second_sentences_are_of_another_document(tmp_path):
    found = [
        dataclasses.replace(one, sentences=(word, f"{word} red", f"{word} blue"))
        for word, one in zip(
            "quick brown fox lazy dogs".split(),
            read(tmp_path, "sentences", 5),
            strict=True,
        )
    ]
    source = SentencePairs.of(found, tokenizer(), max_length=16, seed=0)
    assert len(source) == 10
    seen = collections.Counter()
    for step in range(60):
        places = np.arange(10)
        ids, types, labels = source.rows(places, step)
        again = source.rows(places, step)
        assert [a.tolist() for a in ids] == [a.tolist() for a in again.ids]
        for pair, row, kind, label in zip(places, ids, types, labels, strict=True):
            first = source.firsts[pair]
            begin, end = source.documents[first]
            second = row[kind == 1][:-1].tolist()
            (where,) = (n for n in range(15) if source._sentence(n).tolist() == second)
            if label == IS_NEXT:
                assert where == first + 1
            else:
                assert not begin <= where < end
            seen[int(label)] += 1
    # 600 draws: a standard deviation of the share is 0.02.
    assert 0.42 < seen[IS_NOT] / 600 < 0.58


@pytest.mark.parametrize("task", ["classes", "tags", "choices", "pretraining"])
def test_hosts_build_the_parts_of_one_batch(tmp_path, task):
    found = read(tmp_path, task)
    labels = labels_of(found, HEADS[task])
    made = encoding(task, labels)
    source = made.rows(found)
    whole, *parts = (
        TaskBatches(
            "task",
            source,
            batch_size=4,
            seed=3,
            pad_id=0,
            max_length=16,
            masking=made.masking,
            parts=2,
            host=host,
            hosts=hosts,
        )(7).arrays
        for host, hosts in ((0, 1), (0, 2), (1, 2))
    )
    import jax

    joined = jax.tree.map(lambda *each: np.concatenate(each), *parts)
    jax.tree.map(np.testing.assert_array_equal, joined, whole)
    assert whole.weights.all() and len(whole.weights) == 4


def test_every_example_comes_up_once_an_epoch_and_all_batches_are_full(tmp_path):
    source = encoding("classes", ("blue", "red")).rows(read(tmp_path, "classes"))
    batches = TaskBatches("task", source, batch_size=4, seed=0, pad_id=0, max_length=16)
    order = np.concatenate([batches.examples(step) for step in range(11)])
    epochs = order.reshape(4, 11)  # 11 examples, four times
    assert (np.sort(epochs, axis=1) == np.arange(11)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 4
    for step in range(3):
        found = batches(step)
        assert found.arrays.tokens.ids.shape[1] == 16
        assert found.arrays.weights.tolist() == [True] * 4


def test_masks_are_of_ordinary_tokens_and_differ_from_step_to_step(tmp_path):
    made = encoding("masks", mask_rate=0.5)
    assert isinstance(made.masking, Masking)
    batches = TaskBatches(
        "task",
        made.rows(read(tmp_path, "masks")),
        batch_size=11,
        seed=0,
        pad_id=0,
        max_length=16,
        masking=made.masking,
    )
    first, second = (batches(step).arrays for step in (0, 1))
    assert not np.array_equal(first.masked.weights, second.masked.weights)
    targets = first.masked.targets[first.masked.weights]
    assert len(targets) and not np.isin(targets, tokenizer().special_ids).any()


def test_labels_are_sorted_and_numbers_as_numbers():
    texts = [TextExample("f:1", "a", names=(name,)) for name in (10, 9, 2)]
    assert labels_of(texts, HEADS["classes"]) == ("2", "9", "10")
    named = HeadConfig(
        kind="sequence_classification", problem="one_label", labels=("no", "yes")
    )
    assert labels_of(texts, named) == ("no", "yes")
    numbers = {"no": 0, "yes": 1}
    assert label_numbers(TextExample("f:1", "a", names=(1, "no")), numbers) == [1, 0]
    with pytest.raises(ValueError, match="f:1: 2 is not a label; known: no, yes"):
        label_numbers(TextExample("f:1", "a", names=(2,)), numbers)


def test_a_number_is_not_taken_for_a_place_among_numbers():
    known = {"1": 0, "2": 1, "3": 2}
    with pytest.raises(ValueError, match="f:1: 0 is not a label; known: 1, 2, 3"):
        label_numbers(TextExample("f:1", "a", names=(0,)), known)


def test_a_number_and_its_text_are_one_label():
    texts = [TextExample("f:1", "a", names=(name,)) for name in (1, "1", 10, "9")]
    assert labels_of(texts, HEADS["classes"]) == ("1", "9", "10")


def test_one_label_is_nothing_to_tell_apart():
    texts = [TextExample("f:1", "a", names=(3,))] * 2
    with pytest.raises(ValueError, match="f:1: all .* the label '3'; two are needed"):
        labels_of(texts, HEADS["classes"])
    assert labels_of(texts, HEADS["sets"]) == ("3",)
    words = [WordsExample("f:1", ("a", "b"), ("O", -100))]
    with pytest.raises(ValueError, match="f:1: all .* the label 'O'; two are needed"):
        labels_of(words, HEADS["tags"])


def test_words_without_a_tag_carry_none(tmp_path):
    file = tmp_path / "tags.jsonl"
    line = {"tokens": ["red", "fox", "dogs"], "tags": [1, -100, 0]}
    file.write_text(json.dumps(line))
    found = read_examples(str(file), HEADS["tags"], DATA)
    assert labels_of(found, HEADS["tags"]) == ("0", "1")
    rows, (columns,) = encode_words(
        found, tokenizer(), max_length=16, labels={"0": 0, "1": 1}
    )
    assert rows.labels[columns].tolist() == [1, -1, 0]


def test_a_negative_number_that_is_listed_is_a_label(tmp_path):
    file = tmp_path / "classes.jsonl"
    file.write_text(json.dumps(GOOD["classes"] | {"label": -1}))
    head = dataclasses.replace(HEADS["classes"], labels=("-1", "0", "1"))
    (found,) = read_examples(str(file), head, DATA)
    assert label_numbers(found, {"-1": 0, "0": 1, "1": 2}) == [0]


def test_numbers_that_differ_in_count_are_named():
    texts = [
        TextExample(f"f:{1 + i}", "a", targets=numbers)
        for i, numbers in enumerate([(1.0, 2.0), (3.0,)])
    ]
    labels = labels_of(texts, HEADS["numbers"])
    with pytest.raises(ValueError, match="f:2: 1 numbers for the 2 labels score_0"):
        encoding("numbers", labels).rows(texts)


GOOD = {task: next(iter(examples(task, 1))) for task in HEADS}
ANSWERS = {"text": ["fox"], "answer_start": [0]}


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("classes", {"sentence1": " "}, "column 'sentence1' is blank"),
        ("classes", {"label": None}, "column 'label' is None; the name of a label"),
        ("classes", {"label": -1}, "column 'label' is -1, which data sets write where"),
        ("classes", {"label": -100}, "column 'label' is -100, which data sets"),
        (
            "tags",
            {"tokens": ["a", "b"], "tags": ["O", -1]},
            r"column 'tags\[1\]' is -1, which data sets write",
        ),
        ("numbers", {"label": []}, "column 'label' is an empty list"),
        ("classes", {"label": 0.5}, "column 'label' is 0.5; the name of a label"),
        ("classes", {"sentence1": ...}, "no column 'sentence1'; did you mean"),
        ("classes", {"sentence2": ...}, "lines before have one column 'sentence2'"),
        ("numbers", {"label": "red"}, "column 'label' is 'red', not a number"),
        ("numbers", {"label": float("nan")}, "column 'label' is nan, not finite"),
        ("sets", {"label": "red"}, "column 'label' is a text, not a list"),
        ("tags", {"tags": ["O"]}, "tokens and 1 tags; one tag a token"),
        ("tags", {"tokens": []}, "column 'tokens' is an empty list"),
        ("answers", {"answers": "red"}, "'answers' is a text; an object"),
        ("answers", {"answers": ANSWERS}, r"answers.text\[0\], 'fox', is not what"),
        ("answers", {"answers": ANSWERS | {"answer_start": []}}, "1 answers.text and"),
        ("answers", {"context": ...}, "no column 'context'"),
        ("choices", {"label": 2}, "'label' is 2, the number of no choice; known: 0"),
        ("choices", {"choices": ["red"]}, "choices has 1 text; two are needed"),
        ("choices", {"question": ...}, "no column 'question', and no 'context'"),
        ("sentences", {"sentences": ["red", 3]}, r"'sentences\[1\]' is a number"),
        ("masks", {"text": 3}, "column 'text' is a number, not a text"),
    ],
)
def test_a_line_that_is_not_as_it_should_be_is_named(tmp_path, task, change, message):
    bad = {k: v for k, v in (GOOD[task] | change).items() if v is not ...}
    file = tmp_path / "bad.jsonl"
    file.write_text(f"{json.dumps(GOOD[task])}\n\n{json.dumps(bad)}\n")
    with pytest.raises(ValueError, match=rf"bad\.jsonl:3: .*{message}"):
        read_examples(str(file), HEADS[task], DATA)


def test_one_document_alone_has_no_other_to_draw_from(tmp_path):
    found = read(tmp_path, "sentences", 1)
    with pytest.raises(ValueError, match="1 documents of at most 2 sentences"):
        SentencePairs.of(found, tokenizer(), max_length=16, seed=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HeadConfig(kind="pooler"), "kind='pooler' has no loss"),
        (lambda: HeadConfig(kind="mlm", problem="one_label"), "problem='one_label'"),
        (lambda: HeadConfig(kind="mlm", labels=("a",)), "has no labels"),
        (lambda: HeadConfig(kind="mlm", dropout=0.1), "no classifier to drop before"),
        (
            lambda: HeadConfig(kind="token_classification", labels=("O",)),
            r"labels=\('O',\): two are needed to tell apart",
        ),
        (lambda: TaskData(max_length=7), "max_length=7 must be at least 8"),
        (lambda: TaskData(max_length=8, mask_rate=0.0), "mask_rate=0.0"),
        (lambda: TaskData(max_length=8, stride=-1), "stride=-1"),
    ],
)
def test_a_section_that_says_nothing_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("parts", "hosts"), [(3, 1), (2, 4)])
def test_examples_that_parts_or_hosts_cannot_share_are_refused(tmp_path, parts, hosts):
    source = encoding("classes", ("blue", "red")).rows(read(tmp_path, "classes"))
    said = f"batch_size=8 does not split into {parts} equal parts among {hosts} hosts"
    with pytest.raises(ValueError, match=said):
        TaskBatches(
            *("task", source),
            batch_size=8,
            seed=0,
            pad_id=0,
            max_length=16,
            parts=parts,
            hosts=hosts,
        )


def test_a_row_has_room_for_two_sentences_however_they_are_drawn(tmp_path):
    source = encoding("sentences").rows(read(tmp_path, "sentences"))
    numbers = np.arange(len(source))
    drawn = [len(row) for step in range(20) for row in source.rows(numbers, step).ids]
    assert max(drawn) <= source.longest <= 16


@pytest.mark.parametrize("task", ["classes", "choices"])
def test_packed_rows_hold_every_token_of_every_text_once(tmp_path, task):
    found = read(tmp_path, task)
    made = encoding(task, labels_of(found, HEADS[task]))
    source = made.rows(found)
    batches = TaskBatches(
        "task", source, batch_size=8, seed=0, pad_id=0, max_length=16, parts=2
    )
    batch = batches(1).arrays
    tokens = batch.tokens
    ids, types = tokens.ids.reshape(2, -1), tokens.type_ids.reshape(2, -1)
    segments = tokens.segment_ids.reshape(2, -1)
    rows = source.rows(batches.examples(1))
    places = batch.places.reshape(2, -1, 16)
    texts = zip(rows.ids, rows.types, strict=True)
    for number, (text, kinds) in enumerate(texts):
        part, row = divmod(number, len(rows.ids) // 2)
        there = places[part, row]
        assert (there[len(text) :] == ABSENT).all()
        there = there[: len(text)]
        assert ids[part, there].tolist() == text.tolist()
        assert types[part, there].tolist() == kinds.tolist()
        assert len(set(segments[part, there])) == min(len(text), 1)
        assert len(set(there // 16)) <= 1
    # Nothing is where no text does, and fewer rows do than one a text.
    assert np.count_nonzero(tokens.mask) == np.count_nonzero(batch.places != ABSENT)
    assert len(tokens.ids) < len(rows.ids)
