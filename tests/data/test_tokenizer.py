import json

import numpy as np
import pytest

from nomic_jax.data.tokenizer import BUCKETS, ROLES, TextTokenizer, bucket, pad

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "search_query: how do foxes jump?",
    "Dogs are lazy; foxes are quick, and jumping is quicker.",
] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer.train(TEXTS, vocab_size=200)


@pytest.mark.parametrize(
    ("length", "columns"), [(1, 16), (16, 16), (17, 24), (2048, 2048), (16384, 16384)]
)
def test_a_bucket_is_the_least_that_holds_the_text(length, columns):
    assert bucket(length) == columns


def test_no_bucket_beyond_the_longest_row():
    with pytest.raises(ValueError, match="16385 tokens exceed the longest row, 16384"):
        bucket(16385)


def test_neighbouring_buckets_are_at_most_a_half_apart():
    assert list(BUCKETS) == sorted(set(BUCKETS))
    for small, large in zip(BUCKETS, BUCKETS[1:], strict=False):
        assert large <= 1.5 * small


def test_texts_are_framed_and_lower_cased(tokenizer):
    upper, lower = tokenizer.encode(["QUICK Fox", "quick fox"], max_length=50).ids
    assert lower.dtype == np.int32
    np.testing.assert_array_equal(upper, lower)
    assert lower[0] == tokenizer.role_id("cls")
    assert lower[-1] == tokenizer.role_id("sep")


def test_ids_of_special_tokens_are_berts_first_five(tokenizer):
    assert [tokenizer.role_id(role) for role in ROLES] == list(range(5))
    assert tokenizer.special_ids == (0, 1, 2, 3, 4)
    assert tokenizer.size <= 200


def test_a_long_text_is_cut_counted_and_still_closed(tokenizer):
    whole = tokenizer.encode(TEXTS[:2], max_length=500)
    length = len(whole.ids[0])
    assert whole.cut == [] and length > 6
    cut = tokenizer.encode([TEXTS[0], "fox"], max_length=6)
    assert cut.cut == [0]
    np.testing.assert_array_equal(cut.ids[0][:5], whole.ids[0][:5])
    assert len(cut.ids[0]) == 6
    assert cut.ids[0][-1] == tokenizer.role_id("sep")
    exact = tokenizer.encode([TEXTS[0]], max_length=length)
    assert exact.cut == []
    np.testing.assert_array_equal(exact.ids[0], whole.ids[0])


def test_special_tokens_are_known_by_their_roles_under_either_name():
    import tokenizers

    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # XLM-R's, in its order
    model = tokenizers.models.WordLevel({n: i for i, n in enumerate(names)}, "<unk>")
    tokenizer = TextTokenizer(tokenizers.Tokenizer(model))
    assert [tokenizer.role_id(role) for role in ROLES] == [1, 3, 0, 2, 4]


def test_a_role_that_no_token_has_is_refused():
    import tokenizers

    model = tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1}, "[UNK]")
    with pytest.raises(ValueError, match=r"no mask token: \[MASK\] or <mask>"):
        TextTokenizer(tokenizers.Tokenizer(model)).role_id("mask")


def test_training_depends_on_the_texts_alone(tokenizer):
    again = TextTokenizer.train(tuple(TEXTS), vocab_size=200)
    assert again.backend.to_str() == tokenizer.backend.to_str()


def test_a_saved_tokenizer_loads_as_it_was(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = TextTokenizer.from_folder(tmp_path)
    ours, theirs = (
        each.encode(TEXTS, max_length=50).ids for each in (tokenizer, loaded)
    )
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["mask_token"] == "[MASK]"


def test_transformers_reads_a_saved_tokenizer(tokenizer, tmp_path):
    import transformers

    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = tokenizer.encode(TEXTS[:3], max_length=50).ids
    for ids, text in zip(expected, TEXTS, strict=False):
        assert theirs(text)["input_ids"] == ids.tolist()
    assert (theirs.pad_token_id, theirs.mask_token_id) == (0, 4)


def test_a_vocab_file_alone_is_enough(tokenizer, tmp_path):
    vocabulary = tokenizer.backend.get_vocab()
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    loaded = TextTokenizer.from_folder(tmp_path)
    got = loaded.encode(TEXTS[:3], max_length=50).ids
    for one, other in zip(
        got, tokenizer.encode(TEXTS[:3], max_length=50).ids, strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_folder_without_a_tokenizer_says_what_it_needs(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer\.json or vocab\.txt is needed"):
        TextTokenizer.from_folder(tmp_path)


def test_padding_marks_texts_and_leaves_spare_rows_empty():
    texts = [np.array([2, 7, 3], np.int32), np.array([2, 3], np.int32)]
    tokens = pad(texts, length=4, rows=3, pad_id=9)
    np.testing.assert_array_equal(tokens.ids, [[2, 7, 3, 9], [2, 3, 9, 9], [9] * 4])
    np.testing.assert_array_equal(
        tokens.segment_ids, [[1, 1, 1, 0], [1, 1, 0, 0], [0] * 4]
    )
    assert tokens.type_ids is None


def test_a_large_alphabet_does_not_exceed_the_vocabulary():
    letters = [chr(0x4E00 + i) for i in range(900)]
    tokenizer = TextTokenizer.train(["".join(letters)] * 3, vocab_size=300)
    assert tokenizer.size <= 300


def test_a_broken_tokenizer_file_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(ValueError, match="tokenizer.json holds no tokenizer: "):
        TextTokenizer.from_folder(tmp_path)
