import textwrap

import pytest

from nomic_jax.data.sources.installed_python import (
    MAX_CHARACTERS,
    clean,
    cut,
    extract,
    first_sentence,
    is_summary,
)

MODULE = '''
"""Tools that count the words of a text. They know no grammar and are proud of it.

Every tool takes text and gives numbers.
"""
import re

class Counter:
    @property
    def total(self, start: int = 0) -> int:
        """Return the sum over all :class:`~words.Word` seen.

        >>> Counter().total
        0

        Words that occur twice are counted twice, as a reader might well expect.
        """
        count = start  # of words
        for word in self.words:

            count += 1
        return count

    def short(self):
        """Return nothing of any interest to anyone."""
        return None

if re.DEBUG:
    pass
else:
    async def undocumented(x):
        y = x + 1
        z = y + 1
        return z
'''


def test_a_module_gives_its_pairs_and_documents():
    result = extract(MODULE)
    assert result is not None
    code = textwrap.dedent("""\
        def total(self, start: int = 0) -> int:
            count = start  # of words
            for word in self.words:
                count += 1
            return count""")
    assert result.docstring_code == [
        ("Return the sum over all `words.Word` seen.", code)
    ]
    assert result.summary_details == [
        (
            "Tools that count the words of a text.",
            "They know no grammar and are proud of it.\n"
            "Every tool takes text and gives numbers.",
        ),
        (
            "Return the sum over all `words.Word` seen.",
            "Words that occur twice are counted twice, as a reader might well expect.",
        ),
    ]
    # In the order of the source: module, method, its code, method, undocumented code.
    assert [text.split()[0] for text in result.texts] == [
        "Tools",
        "Return",
        "def",
        "Return",
        "async",
    ]
    assert result.texts[2] == code


@pytest.mark.parametrize("source", ["def broken(:", "x = '\0'", "(" * 10_000])
def test_source_that_does_not_parse_gives_nothing(source):
    assert extract(source) is None


def test_old_escapes_in_source_are_silent_and_half_characters_left_out():
    # Warnings are errors in these tests.
    result = extract('"""Match \\d with a pattern \\ud800 of four words."""\n')
    assert result is not None
    assert result.texts == ["Match \\d with a pattern of four words."]


def test_a_form_feed_does_not_shift_lines():
    source = '\f\ndef f():\n    """Give back one of three."""\n    a\n    b\n    c\n'
    result = extract(source)
    assert result is not None
    assert result.docstring_code[0][1] == "def f():\n    a\n    b\n    c"


def test_examples_and_rules_leave_a_docstring():
    text = "A title.\n========\n\n>>> f(\n... 1)\n1\n\nThe  end\nof it."
    assert clean(text) == ["A title.", "The end of it."]


@pytest.mark.parametrize(
    ("paragraph", "sentence"),
    [
        ("One. Two.", "One."),
        ("Uses e.g. Numbers of 3.5 here. Two.", "Uses e.g. Numbers of 3.5 here."),
        ("No end here", "No end here"),
        ("Is it? Yes.", "Is it?"),
    ],
)
def test_the_first_sentence_ends_where_a_reader_says(paragraph, sentence):
    found, rest = first_sentence(paragraph)
    assert found == sentence
    assert f"{found} {rest}".strip() == paragraph


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Return the square of it.", True),
        ("Return it.", False),
        ("f(x, y=3) -> (1, 2) [3] {4}", False),
        ("Copyright 2024 by the authors of it", False),
        ("word " * 100, False),
    ],
)
def test_prose_is_told_from_headers_and_signatures(text, expected):
    assert is_summary(text) is expected


def test_long_documents_are_cut_at_the_end_of_a_line():
    text = "twelve words\n" * 1000
    assert cut(text).endswith("twelve words")
    assert MAX_CHARACTERS - 13 <= len(cut(text)) <= MAX_CHARACTERS
    assert len(cut("x" * 5000)) == MAX_CHARACTERS
