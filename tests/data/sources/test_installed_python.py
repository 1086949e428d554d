import os
import subprocess
import sys
from pathlib import Path

import pytest

from nomic_jax.data.sources import installed_python
from nomic_jax.data.sources.installed_python import python_corpus, python_modules
from nomic_jax.data.sources.source import stable_hash

WORDS = "apple bridge candle desert engine forest garden harbour island jungle".split()


def function(word, other="things"):
    return (
        f"def make_{word}(size):\n"
        f'    """Build one {word} out of {other}.\n\n'
        f"    Every {word} is built from the ground up, and none is ever thrown away.\n"
        '    """\n'
        f"    {word} = []\n    {word}.append(size)\n    return {word}\n\n"
    )


@pytest.fixture
def tree(tmp_path):
    """Twenty modules with a function of their own, and one that all of them share."""
    modules = {}
    for i in range(20):
        word = WORDS[i // 2] + WORDS[i % 2]
        path = tmp_path / f"m{i}.py"
        path.write_text(function(word) + function("common"))
        modules[f"tree.m{i}"] = path
    return modules


def corpus(modules, **arguments):
    return python_corpus(
        modules, **{"held_out_share": 0.4, "min_held_out": 1, **arguments}
    )


def texts_of(sources):
    return {
        text
        for source in sources
        for pair in source.pairs
        for text in (pair.query, pair.document)
    }


def test_whole_modules_are_held_out_and_share_no_text_with_training(tree):
    result = corpus(tree)
    held_out = [n for n in tree if stable_hash(n) < 0.4 * 2**64]
    assert 2 <= len(held_out) <= 18
    train, out = texts_of(result.train), texts_of(result.held_out)
    assert not train & out
    assert not (train | set(result.texts)) & (out | set(result.held_out_texts))
    for source in (*result.train, *result.held_out):
        assert source.name in ("docstring_code", "summary_details")
    code = result.held_out[0].pairs
    # What all modules share is kept once, and held out.
    assert len(code) == len(held_out) + 1
    assert sum("make_common" in pair.document for pair in code) == 1
    assert len(result.train[0]) == 20 - len(held_out)


def test_sources_carry_their_prefixes(tree):
    code, details = corpus(tree).train
    assert (code.query_prefix, code.document_prefix) == (
        "search_query: ",
        "search_document: ",
    )
    assert details.query_prefix == details.document_prefix == "clustering: "


def test_near_copies_are_kept_once(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(function("engine1") + function("engine2") + function("Engine_3"))
    result = corpus({"a": path, "b": path}, held_out_share=1e-9, min_held_out=0)
    assert [len(source) for source in result.train] == [1, 1]


def test_the_corpus_does_not_depend_on_the_order_of_the_modules(tree):
    reordered = dict(reversed(tree.items()))
    assert corpus(reordered) == corpus(tree)


def test_limits_take_a_part_of_each_source(tree):
    whole = corpus(tree)
    part = corpus(tree, max_pairs=3, max_held_out=2, max_texts=4)
    assert [len(source) for source in part.train] == [3, 3]
    assert [len(source) for source in part.held_out] == [2, 2]
    assert len(part.texts) == 4
    assert texts_of(part.train) < texts_of(whole.train)
    assert texts_of(part.held_out) < texts_of(whole.held_out)
    assert part.fingerprint != whole.fingerprint


def test_files_that_cannot_be_used_are_passed_over(tree, tmp_path):
    contents = {
        "broken": b"def (",
        "latin": b"# -*- coding: latin-1 -*-\nx = '\xe9'\n",
        "invalid": b"x = '\xff'\n",
        "unknown": b"# -*- coding: no-such-code -*-\n",
        "large": b"x = 1\n" * 100_000,
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.py").write_bytes(content)
    further = {name: tmp_path / f"{name}.py" for name in (*contents, "gone")}
    result = corpus(tree | further)
    assert result.num_modules == 21  # of the further ones, the Latin one
    assert result.train == corpus(tree).train


def test_too_small_a_corpus_is_refused_with_its_numbers(tree):
    with pytest.raises(
        ValueError, match="too small: docstring_code holds out"
    ) as raised:
        corpus(tree, min_held_out=1000)
    assert "share 0.4 of 20 modules, and 1000 are needed" in str(raised.value)
    with pytest.raises(ValueError, match="share 0"):
        corpus(tree, held_out_share=0)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("json/decoder.py", "json.decoder"),
        ("json/__init__.py", "json"),
        ("json/tests/test_decoder.py", None),
        ("pip/_vendor/rich/text.py", None),
        ("config-3.11/settings.py", None),
        ("../../bin/tool.py", None),
        ("conftest.py", None),
        ("a/b_pb2.py", None),
        ("a/b.pyi", None),
    ],
)
def test_modules_are_told_from_tests_copies_and_scripts(file, name):
    assert installed_python._module_name(Path(file).parts) == name


def test_packages_are_those_the_project_requires(tmp_path, monkeypatch):
    def install(name, *requires, modules=3):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        lines = [f"Requires-Dist: {r}" for r in requires]
        head = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        (info / "METADATA").write_text(head + "\n".join(lines))
        files = [f"{name}/m{i}.py" for i in range(modules)]
        (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / file).write_text("")

    install("project_x", "first[fast]>=1.0", "absent; sys_platform == 'none'")
    install("first", "Second", 'third; extra == "fast"', modules=9)
    install("second", "first")  # a circle
    install("third")
    install("stranger")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = python_modules(project="project-x", max_modules_per_package=4)
    packages = [name.partition(".")[0] for name in found]
    assert packages.count("first") == 4
    assert packages.count("second") == 3
    assert not {"third", "stranger", "project_x", "absent"} & set(packages)
    assert found["second.m0"] == tmp_path / "second" / "m0.py"
    assert "json.decoder" in found
    assert list(found) == sorted(found)


@pytest.mark.slow
def test_the_standard_library_gives_the_same_corpus_in_another_process():
    # Of modules that no release of Python adds or loses, to be quick.
    code = (
        "from nomic_jax.data.sources.installed_python import "
        "python_corpus, python_modules\n"
        "tops = ('json', 'email', 'asyncio', 'unittest', 'argparse', 'logging')\n"
        "modules = python_modules(project='no-such-project')\n"
        "some = {n: p for n, p in modules.items() if n.split('.')[0] in tops}\n"
        "corpus = python_corpus(some, held_out_share=0.2, min_held_out=20)\n"
        "print(corpus.fingerprint, len(modules), *map(len, corpus.train))\n"
    )
    root = Path(installed_python.__file__).parents[3]
    outputs = [
        subprocess.run(
            # Isolated and without site-packages: nothing but the standard library.
            [
                sys.executable,
                "-I",
                "-S",
                "-c",
                f"import sys; sys.path += ['{root}']\n{code}",
            ]
            if isolated
            else [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": "7"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for isolated in (True, False)
    ]
    assert outputs[0] == outputs[1]
    _, num_modules, code_pairs, detail_pairs = outputs[0].split()
    assert int(num_modules) > 300
    assert int(code_pairs) > 200
    assert int(detail_pairs) > 100
