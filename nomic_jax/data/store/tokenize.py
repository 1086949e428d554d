"""From a range of a source to records: tokenised pairs, or documents packed into rows.

Rows of documents follow Nomic's MLM stage (arXiv:2402.01613, section 4.1): each
document is framed as [CLS] ... [SEP], all of a range are put one after another and cut
every `row_length` tokens.
"""

import collections
import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from nomic_jax.config import did_you_mean
from nomic_jax.data.sources.pairs import Pair
from nomic_jax.data.sources.source import Place, Row, Source, text_of
from nomic_jax.data.store.records import PairRule, RowRule, Rule
from nomic_jax.data.tokenizer import TextTokenizer

ROWS_PER_CALL = 512  # of the tokenizer, which holds 170 bytes a token while it works
UNLIMITED = 2**31 - 1  # tokens: no text is that long


def tokenize_range(
    rows: Iterable[Row],
    rule: Rule,
    tokenizer: TextTokenizer,
    *,
    source: Source,
    start: int,
    counts: collections.Counter[str],
) -> Iterator[list[np.ndarray]]:
    """Tokenise a range of a source by a rule.

    Args:
        rows: of the range, in their order.
        rule: which of the two kinds of record, and how.
        tokenizer: frames each text with its special tokens.
        source: names the rows, for errors.
        start: the first row's number in the source.
        counts: added to while records are taken: `input_rows`, `tokens` (of the
            records), `dropped_blank`; of pairs `cut_queries`, `cut_documents`,
            `cut_negatives`, `dropped_records`, `blank_negatives`,
            `records_with_repeated_negatives`; of rows `lost_tokens`.

    Yields:
        The texts of each record, as token ids.

    Raises:
        ValueError: a row is not as the rule needs it; begins with its place.
    """
    numbered = enumerate(rows, start)
    if isinstance(rule, PairRule):
        yield from _pairs(numbered, rule, tokenizer, source, counts)
    else:
        yield from _rows(numbered, rule, tokenizer, source, counts)


def _pairs(
    rows: Iterator[tuple[int, Row]],
    rule: PairRule,
    tokenizer: TextTokenizer,
    source: Source,
    counts: collections.Counter[str],
) -> Iterator[list[np.ndarray]]:
    while chunk := list(itertools.islice(rows, ROWS_PER_CALL)):
        counts["input_rows"] += len(chunk)
        numbers, pairs = [], []
        for number, row in chunk:
            place = Place(source, number)
            pair = rule.columns.pair(row, place, allow_blank=True)
            sides = {
                rule.columns.query: pair.query,
                rule.columns.document: pair.document,
            }
            if any(_is_blank(text, rule, name, place) for name, text in sides.items()):
                counts["dropped_blank"] += 1
                continue
            negatives = _negatives(pair, row, rule, place, counts)
            if negatives is not None:
                numbers.append(number)
                pairs.append((pair.query, pair.document, *negatives))
        queries = [rule.query_prefix + pair[0] for pair in pairs]
        documents = [rule.document_prefix + text for pair in pairs for text in pair[1:]]
        encoded = tokenizer.encode(queries, max_length=rule.query_length)
        further = tokenizer.encode(documents, max_length=rule.document_length)
        group = rule.texts_per_record - 1
        if rule.too_long == "error":
            if encoded.cut:
                first = encoded.cut[0]
                place, text = source.place(numbers[first]), queries[first]
                raise _too_long(place, "query", text, tokenizer, rule.query_length)
            if further.cut:
                first = further.cut[0]
                place, text = source.place(numbers[first // group]), documents[first]
                side = "negative" if first % group else "document"
                raise _too_long(place, side, text, tokenizer, rule.document_length)
        counts["cut_queries"] += len(encoded.cut)
        cut_documents = sum(index % group == 0 for index in further.cut)
        counts["cut_documents"] += cut_documents
        counts["cut_negatives"] += len(further.cut) - cut_documents
        for index, query in enumerate(encoded.ids):
            texts = [query, *further.ids[index * group : (index + 1) * group]]
            counts["tokens"] += sum(map(len, texts))
            yield texts


def _negatives(
    pair: Pair,
    row: Row,
    rule: PairRule,
    place: Place,
    counts: collections.Counter[str],
) -> tuple[str, ...] | None:
    """Return as many negatives as the rule asks for; None drops the pair."""
    wanted = rule.num_negatives
    found = tuple(
        text
        for i, text in enumerate(pair.negatives)
        if not _is_blank(text, rule, f"{rule.columns.negatives}[{i}]", place)
    )
    counts["blank_negatives"] += len(pair.negatives) - len(found)
    if len(found) >= wanted:
        return found[:wanted]
    if rule.too_few_negatives == "drop":
        counts["dropped_records"] += 1
        return None
    if rule.too_few_negatives == "repeat" and found:
        counts["records_with_repeated_negatives"] += 1
        return tuple(itertools.islice(itertools.cycle(found), wanted))
    if rule.columns.negatives not in row:
        raise ValueError(
            f"{place}: no column {rule.columns.negatives!r} of negatives, "
            f"num_negatives={wanted} are needed; "
            f"{did_you_mean(str(rule.columns.negatives), row)}"
        )
    raise ValueError(
        f"{place}: {len(found)} negatives, num_negatives={wanted} are needed; lower "
        "it, or set too_few_negatives to 'drop'"
        + (" or 'repeat'" if found else ", as there is none to repeat")
    )


def _is_blank(text: str, rule: Rule, column: str, place: Place) -> bool:
    """Say whether a text is blank, and left out; by another rule that is an error."""
    if text.strip():
        return False
    if rule.blank == "drop":
        return True
    raise ValueError(
        f"{place}: column {column!r} is blank; give it text, or set blank to 'drop'"
    )


def _too_long(
    place: str, side: str, text: str, tokenizer: TextTokenizer, length: int
) -> ValueError:
    tokens = len(tokenizer.encode([text], max_length=UNLIMITED).ids[0])
    name = "query_length" if side == "query" else "document_length"
    return ValueError(
        f"{place}: the {side} has {tokens} tokens with its prefix, {name}={length} is "
        "the most; shorten it, raise the length or set too_long to 'cut'"
    )


def _rows(
    rows: Iterator[tuple[int, Row]],
    rule: RowRule,
    tokenizer: TextTokenizer,
    source: Source,
    counts: collections.Counter[str],
) -> Iterator[list[np.ndarray]]:
    pieces: list[np.ndarray] = []
    room = rule.row_length
    while chunk := list(itertools.islice(rows, ROWS_PER_CALL)):
        counts["input_rows"] += len(chunk)
        texts = []
        for number, row in chunk:
            place = Place(source, number)
            text = text_of(row, rule.column, place, allow_blank=True)
            if not _is_blank(text, rule, rule.column, place):
                texts.append(text)
        counts["dropped_blank"] += len(chunk) - len(texts)
        for document in tokenizer.encode(texts, max_length=UNLIMITED).ids:
            while len(document):
                pieces.append(document[:room])
                room -= len(pieces[-1])
                document = document[len(pieces[-1]) :]
                if room == 0:
                    counts["tokens"] += rule.row_length
                    yield pieces
                    pieces, room = [], rule.row_length
    counts["lost_tokens"] += rule.row_length - room
