"""Pairs and documents in one Python module: docstrings, and the code they describe.

A docstring's first paragraph and the function it stands in make a pair (Husain et al.
2019, CodeSearchNet, arXiv:1909.09436, section 2); its first sentence and the rest of it
make another, as a title and its text do.
"""

import ast
import dataclasses
import re
import textwrap
import warnings
from collections.abc import Iterator

MAX_CHARACTERS = 2000  # of a document; what follows is cut at the end of a line
MAX_SUMMARY_CHARACTERS = 400
MIN_SUMMARY_WORDS = 4
MIN_BODY_LINES = 3  # that are not blank
MIN_DETAILS_WORDS = 8

_ROLE = re.compile(r":(?:[\w+-]+:)+`[~!]?([^`<]+?)(?:\s*<[^`]*>)?`")  # :class:`~a.B`
_RULE = re.compile(r"[\W_]{3,}")  # a line that underlines or frames
_SENTENCE = re.compile(
    r".+?[.!?](?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bvs\.)(?<!\betc\.)(?=\s+[\"'`(]*[A-Z]|$)"
)

_STATEMENT = (ast.stmt, ast.ExceptHandler)  # expressions hold no definitions
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclasses.dataclass(frozen=True)
class Extract:
    """What one module gives, in the order of its source."""

    docstring_code: list[tuple[str, str]]  # summary, and signature with body
    summary_details: list[tuple[str, str]]  # first sentence, and what follows it
    texts: list[str]  # docstrings and code


def extract(source: str) -> Extract | None:
    """Parse a module and take its pairs.

    Code keeps its signature, and so the function's name, and its comments; it loses its
    decorators and its docstring. Examples (doctests) are taken out of docstrings.

    Args:
        source: of the module; it is parsed, never run.

    Returns:
        The pairs and documents, or None where the source is not of this Python.
    """
    try:
        with warnings.catch_warnings():
            # Old escapes in others' strings are no concern of whoever trains on them.
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    # Lines as the parser counts them: splitlines would also cut at form feeds.
    lines = source.split("\n")
    result = Extract([], [], [])
    for node in _documented(tree):
        docstring = ast.get_docstring(node) or ""
        # An escape such as "\ud800" makes half a character, which no file can hold.
        paragraphs = clean(docstring.encode(errors="ignore").decode())
        if paragraphs:
            result.texts.append(cut("\n".join(paragraphs)))
            sentence, rest = first_sentence(paragraphs[0])
            details = "\n".join([rest, *paragraphs[1:]] if rest else paragraphs[1:])
            if is_summary(sentence) and len(details.split()) >= MIN_DETAILS_WORDS:
                result.summary_details.append((sentence, cut(details)))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            code = _code(node, lines)
            if code is not None:
                result.texts.append(code)
                if paragraphs and is_summary(paragraphs[0]):
                    result.docstring_code.append((paragraphs[0], code))
    return result


def clean(docstring: str) -> list[str]:
    """Split a docstring into paragraphs of a line each, without roles and examples."""
    paragraphs, current, in_example = [], [], False
    for line in [*docstring.split("\n"), ""]:
        line = line.strip()
        if line.startswith((">>>", "... ")):
            in_example = True
        elif not line:
            in_example = False
            if current:
                paragraphs.append(_ROLE.sub(r"`\1`", " ".join(current)))
            current = []
        elif not in_example and not _RULE.fullmatch(line):
            current.append(" ".join(line.split()))
    return paragraphs


def first_sentence(paragraph: str) -> tuple[str, str]:
    """Split a paragraph after its first sentence; one without an end is whole."""
    match = _SENTENCE.match(paragraph)
    end = match.end() if match else len(paragraph)
    return paragraph[:end], paragraph[end:].strip()


def is_summary(text: str) -> bool:
    """Tell prose of some words from headers, templates and signatures."""
    return (
        len(text.split()) >= MIN_SUMMARY_WORDS
        and len(text) <= MAX_SUMMARY_CHARACTERS
        and text[0].isalpha()
        # Prose is above 0.9; signatures and formulas are not.
        and sum(c.isalpha() or c.isspace() for c in text) >= 0.8 * len(text)
        and not text.lower().startswith(("copyright", "licensed under"))
    )


def cut(text: str) -> str:
    """Shorten a document to `MAX_CHARACTERS`, at the end of a line if there is one."""
    if len(text) <= MAX_CHARACTERS:
        return text
    head = text[:MAX_CHARACTERS]
    return head[: head.rfind("\n")] if "\n" in head[1:] else head


def _documented(tree: ast.Module) -> Iterator[_Documented]:
    """Yield what can have a docstring, in the order of the source.

    Only statements are descended into, which takes a tenth of the time of `ast.walk`.
    """
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, _Documented):
            yield node
        blocks = ("body", "handlers", "orelse", "finalbody")
        inner = [child for block in blocks for child in getattr(node, block, ())]
        stack += reversed([n for n in inner if isinstance(n, _STATEMENT)])


def _code(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str | None:
    """Return signature and body without the docstring; None where little is left."""
    body, end = node.body, node.end_lineno
    start = body[0].lineno
    signature, rest = lines[node.lineno - 1 : start - 1], lines[start - 1 : end]
    if ast.get_docstring(node, clean=False) is not None:
        rest = lines[body[0].end_lineno : end]
    if sum(bool(line.strip()) for line in rest) < MIN_BODY_LINES:
        return None
    kept = [line for line in [*signature, *rest] if line.strip()]
    return cut(textwrap.dedent("\n".join(kept)))
