"""The quickstart's text: docstrings and code of the modules every Python installs.

A docstring's first paragraph and its function make a pair (Husain et al. 2019,
CodeSearchNet, arXiv:1909.09436, section 2); its first sentence and the rest of it make
another, as a title and its text do. Modules are those of the standard library and of
the packages that this project depends on, so that equal versions give an equal corpus.
Whole modules are held out for evaluation.
"""

import ast
import dataclasses
import importlib.metadata
import importlib.util
import re
import sys
import sysconfig
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path

from nomic_jax.config import NOMIC_PROMPTS
from nomic_jax.data.sources.pairs import Pair, PairSource, fingerprint, stable_hash

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


PROJECT = "nomic-jax"
MAX_FILE_BYTES = 300_000  # larger ones are tables and generated code
_COMPARED_CHARACTERS = 300  # texts that begin alike are the same text to a short row
# Tests, copies of other packages, and tables of character sets.
_SKIPPED_FOLDERS = frozenset(
    ("test", "tests", "testing", "testdata", "idle_test", "lib2to3", "pydoc_data")
    + ("_vendor", "vendor", "vendored", "third_party", "externals", "encodings")
)
_SKIPPED_FILES = re.compile(r"(test_.*|.*_test|.*_tests|conftest|.*_pb2|.*_pb2_grpc)")
_PREFIXES: Mapping[str, tuple[str, str]] = {
    "docstring_code": (NOMIC_PROMPTS["search_query"], NOMIC_PROMPTS["search_document"]),
    # As the paper's pairs of title and abstract: symmetric.
    "summary_details": (NOMIC_PROMPTS["clustering"], NOMIC_PROMPTS["clustering"]),
}


@dataclasses.dataclass(frozen=True)
class PythonCorpus:
    """Text for all stages; no module gives to both training and evaluation."""

    train: tuple[PairSource, ...]
    held_out: tuple[PairSource, ...]  # the same sources, in the same order
    texts: list[str]  # documents for masked-language modelling, of training modules
    held_out_texts: list[str]
    fingerprint: str  # digest of all of the above
    num_modules: int  # that were parsed


def python_modules(
    *, project: str = PROJECT, max_modules_per_package: int = 60
) -> dict[str, Path]:
    """Find modules of the standard library and of the packages a project depends on.

    Args:
        project: an installed distribution. Of what it requires, extras are left out, so
            that a CPU and a GPU installation have the same text. Where it is not
            installed, the standard library is all.
        max_modules_per_package: of a larger package as many are taken, chosen by a hash
            of their names; of the standard library, all.

    Returns:
        Paths by dotted name, in the names' order.
    """
    modules = dict(_standard_library(Path(sysconfig.get_path("stdlib"))))
    for distribution in _requirements(project):
        found = {
            name: Path(str(distribution.locate_file(file)))
            for file in distribution.files or ()
            if (name := _module_name(file.parts)) is not None
        }
        for name in sorted(found, key=stable_hash)[:max_modules_per_package]:
            modules.setdefault(name, found[name])
    return dict(sorted(modules.items()))


def python_corpus(
    modules: Mapping[str, Path] | None = None,
    *,
    held_out_share: float = 0.1,
    max_pairs: int | None = None,
    max_held_out: int | None = None,
    max_texts: int | None = None,
    min_held_out: int = 1000,
) -> PythonCorpus:
    """Take pairs and documents from modules, and hold out whole modules.

    Which modules are held out follows from a hash of their names. A text is kept once,
    case, digits and punctuation aside; what begins like a held-out query, document or
    text is dropped from training.

    Args:
        modules: paths by dotted name; `python_modules()` where not given.
        held_out_share: of the modules, in (0, 1).
        max_pairs: to train on, of each source; a stable choice of them.
        max_held_out: to evaluate on, of each source, likewise.
        max_texts: documents for masked-language modelling, of each side, likewise.
        min_held_out: that each source needs.

    Raises:
        ValueError: the share is outside (0, 1), or too few pairs are held out.
    """
    if not 0 < held_out_share < 1:
        raise ValueError(f"the held-out share {held_out_share} is outside (0, 1)")
    if modules is None:
        modules = python_modules()
    sides: dict[bool, list[Extract]] = {True: [], False: []}
    for name in sorted(modules):
        result = _extract_file(modules[name])
        if result is not None:
            sides[stable_hash(name) < held_out_share * 2**64].append(result)

    seen: set[str] = set()  # begins with what is held out
    sources: dict[bool, list[PairSource]] = {True: [], False: []}
    texts: dict[bool, list[str]] = {}
    for is_held_out, limit in ((True, max_held_out), (False, max_pairs)):
        new: set[str] = set()
        for source, prefixes in _PREFIXES.items():
            rows = [row for part in sides[is_held_out] for row in getattr(part, source)]
            kept = _unseen(rows, seen, new)
            pairs = [Pair(query, answer) for query, answer in _choose(kept, limit)]
            sources[is_held_out].append(PairSource(source, pairs, *prefixes))
        rows = [(text,) for part in sides[is_held_out] for text in part.texts]
        kept = _choose(_unseen(rows, seen, new), max_texts)
        texts[is_held_out] = [text for (text,) in kept]
        seen |= new
    _require(sources[True], min_held_out, held_out_share, len(modules))
    return PythonCorpus(
        train=tuple(sources[False]),
        held_out=tuple(sources[True]),
        texts=texts[False],
        held_out_texts=texts[True],
        fingerprint=fingerprint(
            sources[False] + sources[True], texts[False] + texts[True]
        ),
        num_modules=len(sides[True]) + len(sides[False]),
    )


def _unseen(
    rows: Iterable[tuple[str, ...]], seen: Set[str], new: set[str]
) -> list[tuple[str, ...]]:
    """Keep rows of which no text is in `seen` or an earlier row; add them to `new`."""
    kept, own = [], set()
    for row in rows:
        keys = {_comparable(text) for text in row}
        if "" not in keys and keys.isdisjoint(seen) and keys.isdisjoint(own):
            kept.append(row)
            own |= keys
    new |= own
    return kept


def _comparable(text: str) -> str:
    """Return the letters a text begins with, in which near copies agree."""
    return re.sub(r"[\W\d_]+", " ", text.lower()).strip()[:_COMPARED_CHARACTERS]


def _choose(rows: list[tuple[str, ...]], limit: int | None) -> list[tuple[str, ...]]:
    """Keep at most `limit` rows, whichever others there are, in their old order."""
    if limit is None or len(rows) <= limit:
        return rows
    ranks = sorted(range(len(rows)), key=lambda i: stable_hash("\0".join(rows[i])))
    return [rows[i] for i in sorted(ranks[:limit])]


def _require(
    held_out: list[PairSource], least: int, share: float, num_modules: int
) -> None:
    few = [f"{s.name} holds out {len(s)} pairs" for s in held_out if len(s) < least]
    if few:
        raise ValueError(
            f"the sources of this Python are too small: {' and '.join(few)}, at "
            f"share {share} of {num_modules} modules, and {least} are needed; install "
            f"{PROJECT} with its dependencies, or give pairs of your own"
        )


def _extract_file(path: Path) -> Extract | None:
    """Take a module's pairs; None where it is gone, too large or cannot be read."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return None
        source = importlib.util.decode_source(path.read_bytes())
        source.encode()
    except (OSError, SyntaxError, ValueError):
        return None
    return extract(source)


def _requirements(project: str) -> list[importlib.metadata.Distribution]:
    """Return the installed distributions a project requires, in the names' order."""
    found: dict[str, importlib.metadata.Distribution | None] = {}
    names = [project]
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop()).lower()
        if name in found:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
            continue
        found[name] = distribution
        for requirement in distribution.requires or ():
            required, _, marker = requirement.partition(";")
            match = re.match(r"[\w.-]+", required)
            if match and "extra" not in marker:
                names.append(match.group())
    # The project's own text changes with each of its commits.
    return [d for name, d in sorted(found.items()) if d and name != project]


def _standard_library(root: Path) -> Iterator[tuple[str, Path]]:
    # By name: site-packages is in the same folder, and distributions add to it.
    for top in sorted(sys.stdlib_module_names):
        for path in (root / f"{top}.py", *(root / top).rglob("*.py")):
            name = _module_name(path.relative_to(root).parts)
            if name is not None and path.is_file():
                yield name, path


def _module_name(parts: tuple[str, ...]) -> str | None:
    """Return the dotted name of a file, or None where it is not to be read."""
    *folders, file = parts
    stem = file.removesuffix(".py")
    skipped = (
        stem == file
        or not all(part.isidentifier() for part in (*folders, stem))
        or not _SKIPPED_FOLDERS.isdisjoint(folders)
        or _SKIPPED_FILES.fullmatch(stem)
    )
    if skipped:
        return None
    return ".".join(folders if stem == "__init__" and folders else (*folders, stem))
