"""The commands: what they write, what they say, and how they end."""

import errno
import gzip
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tiny_checkpoints as tiny
from paths import ROOT
from store_pairs import pair_source, tokenizer

import nomic_jax.inference.embedder
from nomic_jax.cli.main import nomic_jax as run
from nomic_jax.cli.main import reported, train
from nomic_jax.data.store.store import open_stores

QUICKSTART = str(ROOT / "configs" / "quickstart.py")
TEXTS = ["a small fox", "the lazy dog jumps", "ünïcödé"]

# Seconds depend on the machine; what makes a start slow is what it imports.
IMPORTED = """
import contextlib, io, json, sys
from nomic_jax.cli.main import nomic_jax, train

heavy = {"jax", "jaxlib", "flax", "optax", "orbax", "grain", "torch"}
heavy |= {"transformers", "tokenizers", "pyarrow", "matplotlib", "numpy"}
for command in json.loads(sys.argv[1]):
    run = train if command == "train" else nomic_jax
    said, arguments = io.StringIO(), [command] if run is nomic_jax and command else []
    try:
        with contextlib.redirect_stdout(said):
            run([*arguments, "--help"])
    except SystemExit as end:
        found = sorted(heavy & set(sys.modules))
        print(json.dumps([command, end.code, found, said.getvalue()]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with v1.5's conventions, recognised by its name."""
    folder = tmp_path_factory.mktemp("models") / "nomic-embed-text-v1.5"
    return tiny.add_tokenizer(tiny.folder(folder, tiny.tensors(), tiny.NOMIC_CONFIG))


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS))
    return path


@pytest.fixture
def no_model(monkeypatch):
    """Let nothing load a model: what is refused here costs no time."""

    def load(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(nomic_jax.inference.embedder.Embedder, "from_pretrained", load)


def embed(capsys, *arguments):
    """The exit status and the lines of standard error."""
    capsys.readouterr()
    status = run(["embed", *map(str, arguments)])
    return status, capsys.readouterr().err.splitlines()


def python(*arguments, **options):
    # Unbuffered, standard output would be another kind of file than users have.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        env=environment,
        **options,
    )


def test_help_imports_nothing_heavy():
    commands = [
        *("", "embed", "evaluate", "fill-mask", "filter-pairs", "glue"),
        *("mine-negatives", "plan", "prepare", "verify", "train"),
    ]
    done = python("-c", IMPORTED, json.dumps(commands), text=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [command for command, *_ in found] == commands, done.stderr
    for command, status, heavy, text in found:
        assert (status, heavy) == (0, []), command
        if command != "train":
            assert "usage: nomic-jax" in text
            continue
        for part in ("--config", "--out", "runs/NAME", "--section.field VALUE"):
            assert part in text


def test_help_shows_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        run(["embed", "--help"])
    assert end.value.code == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for option in ("input", "output", "dim", "max-length", "dtype"):
        _, _, after = said.partition(f" --{option} ")
        assert "(default: None)" in after[:150], option
    for option, default in (("column", "text"), ("on-too-long", "cut")):
        _, _, after = said.partition(f" --{option} ")
        assert f"(default: {default})" in after[:150], option


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["embed", "m", "--task", "clustering", "--outptu", "x.npy"], "--output"),
        (["embedd", "m"], "embed, evaluate, fill-mask"),
        (["embed", "--task", "clustering"], "MODEL"),
        (["embed", "m", "--task", "clustering", "--dim", "many"], "--dim"),
        ([], "Missing subcommand"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_says_why(capsys, arguments, says):
    with pytest.raises(SystemExit) as end:
        run(arguments)
    assert end.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_lines_from_a_pipe_become_an_array_on_standard_output(model):
    done = python(
        "-m",
        "nomic_jax.cli.main",
        *("embed", model, "--task", "search_document", "--dim", "32"),
        input="".join(f"{text}\r\n" for text in TEXTS).encode(),
    )
    assert done.returncode == 0, done.stderr.decode()
    got = np.load(io.BytesIO(done.stdout))
    embedder = nomic_jax.inference.embedder.Embedder.from_pretrained(model)
    expected = embedder.encode_document(TEXTS)
    # The same program in another process, perhaps with other threads.
    np.testing.assert_allclose(got, expected, atol=1e-6)
    said = done.stderr.decode()
    assert "mean pooling, layer norm, up to 64 tokens" in said
    assert "token/s" in said


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("ending", [".npy", ".jsonl", ".parquet"])
def test_a_file_becomes_a_file(model, lines, tmp_path, capsys, ending):
    output = tmp_path / f"vectors{ending}"
    common = ("--task", "clustering", "--input", lines, "--output", output)
    status, _ = embed(capsys, model, *common)
    assert status == 0
    embedder = nomic_jax.inference.embedder.Embedder.from_pretrained(model)
    expected = embedder.encode(TEXTS, task="clustering")
    if ending == ".npy":
        assert np.array_equal(np.load(output), expected)
        return
    if ending == ".jsonl":
        records = [json.loads(line) for line in output.read_text().splitlines()]
    else:
        import pyarrow.parquet

        records = pyarrow.parquet.read_table(output).to_pylist()
    assert [record["text"] for record in records] == TEXTS
    vectors = np.array([record["embedding"] for record in records], np.float32)
    assert np.array_equal(vectors, expected)


def test_json_lines_are_embedded_by_column(model, tmp_path, capsys):
    source, output = tmp_path / "texts.jsonl", tmp_path / "v.npy"
    source.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    common = ("--task", "clustering", "--input", source, "--output", output)
    status, _ = embed(capsys, model, *common, "--column", "body")
    assert status == 0
    assert np.load(output).shape == (3, 32)


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        (b"a fox\n\xff dog\n", "x.txt", "x.txt:2: byte 0xff at column 1 is not UTF-8"),
        (b"a fox\n\ndog\n", "x.txt", "x.txt:2: the line holds no visible character"),
        (b"a fox\n   \n", "x.txt", "x.txt:2: the line holds no visible character"),
        (b"", "x.txt", "x.txt is empty"),
        (b'{"text": "a"}\n{"text": \n', "x.jsonl", "x.jsonl:2"),
        (b'{"text": "a"}\n{"text": " "}\n', "x.jsonl", "x.jsonl:2"),
        (b'{"text": "a"}\n{"txt": "a"}\n', "x.jsonl", "x.jsonl:2"),
        (b'{"text": "a"}\n\xff\n', "x.jsonl", "x.jsonl:2"),
    ],
)
def test_a_bad_line_is_named_before_the_model_is_loaded(
    tmp_path, capsys, no_model, content, name, says
):
    (tmp_path / name).write_bytes(content)
    output = tmp_path / "v.npy"
    common = ("--input", tmp_path / name, "--output", output)
    status, said = embed(capsys, "m", "--task", "clustering", *common)
    assert status == 2
    assert len(said) == 1
    assert said[0].startswith("error: ") and says in said[0]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_output_that_exists_is_kept(lines, tmp_path, capsys, no_model):
    output = tmp_path / "v.npy"
    output.write_text("precious")
    common = ("--task", "clustering", "--input", lines, "--output", output)
    status, said = embed(capsys, "m", *common)
    assert (status, len(said)) == (2, 1)
    assert said[0].startswith(f"error: {output} exists")
    assert output.read_text() == "precious"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            ["--task", "clusterin"],
            "task 'clusterin': did you mean 'clustering'",
        ),
        (["--dim", "7"], "dim=7 is not one the model was trained for: 32"),
        (["--max-length", "65"], "max_length=65 exceeds the 64 positions"),
        (["--max-length", "2"], "max_length=2 must be at least 3"),
        (
            ["--max-length", "6", "--on-too-long", "error"],
            "1 of 3 texts exceed 6",
        ),
    ],
)
def test_what_the_model_refuses_leaves_no_output(
    model, lines, tmp_path, capsys, changes, says
):
    lines.write_text(f"a\nfox\n{'dog ' * 20}\n")
    output = tmp_path / "v.npy"
    common = ("--input", lines, "--output", output)
    prompts = {"clustering": "", "search_query": "search_query: "}
    config = {"pooling": "mean", "layer_norm": True, "max_length": 64}
    config |= {"matryoshka_dims": [32], "prompts": prompts}
    own = tmp_path / "model"
    tiny.folder(own, tiny.tensors(), tiny.NOMIC_CONFIG)
    tiny.add_tokenizer(own)
    (own / "embedding.json").write_text(json.dumps(config))
    status, said = embed(capsys, own, "--task", "clustering", *common, *changes)
    assert status == 2
    assert said[-1].startswith("error: ") and says in said[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lines.txt", "model"]


def test_cut_texts_are_counted_on_standard_error(
    model, lines, tmp_path, capsys, caplog
):
    lines.write_text(f"a fox\n{'dog ' * 90}\n")
    common = ("--input", lines, "--output", tmp_path / "v.npy")
    status, _ = embed(capsys, model, "--task", "clustering", *common)
    assert status == 0
    assert "cut 1 of 2 texts to 64 tokens" in caplog.messages


def test_a_folder_without_a_model_is_one_line(tmp_path, lines, capsys):
    (tmp_path / "empty").mkdir()
    common = ("--task", "clustering", "--input", lines, "--output", tmp_path / "v.npy")
    for name, says in (("empty", "config.json"), ("no", "not a folder")):
        status, said = embed(capsys, tmp_path / name, *common)
        assert (status, len(said)) == (2, 1)
        assert says in said[0]


def test_wrong_input_is_2_and_a_fault_is_1(capsys):
    with reported() as status:
        raise ValueError("width=3 must be even")
    assert status.code == 2
    assert capsys.readouterr().err == "error: width=3 must be even\n"
    with reported() as status:
        status.code = 1
    assert status.code == 1
    # Python ends with 1 and a traceback when an exception is not caught.
    with pytest.raises(RuntimeError), reported():
        raise RuntimeError("a fault")


def test_train_lists_a_configs_fields_with_their_defaults(capsys):
    with pytest.raises(SystemExit) as end:
        train(["--config", QUICKSTART, "--help"])
    assert end.value.code == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--prepare.data.pairs" in said
    assert "(default: python)" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config", "configs/no.py"], "error: no config configs/no.py"),
        (["--config", QUICKSTART, "--data.pair", "x"], "did you mean 'data.pairs'?"),
        ([], "--config"),
    ],
)
def test_train_refuses_what_it_does_not_know(arguments, says, capsys):
    try:
        status = train(arguments)
    except SystemExit as end:  # as argparse ends
        status = end.code
    assert status == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


PAIRS = ("--query-length", "16", "--document-length", "24", "--workers", "1")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A folder with a small tokenizer, and sources of all kinds of the same words."""
    folder = tmp_path_factory.mktemp("words")
    (folder / "tokenizer").mkdir()
    tokenizer().save(folder / "tokenizer")
    for name in ("foxes", "dogs"):
        lines = [
            json.dumps({"query": pair.query, "document": pair.document})
            for pair in pair_source(60, seed=len(name)).pairs
        ]
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            file.write("\n".join(lines))
    shard = json.loads(lines[0]) | {
        "metadata": {"objective": {"self": [], "paired": [["query", "document"]]}}
    }
    with gzip.open(folder / "shard-00000.jsonl.gz", "wt") as file:
        for number in range(20):
            file.write(json.dumps(shard | {"document": f"fox {number}"}) + "\n")
    (folder / "data.yaml").write_text(
        'datasets:\n  - name: "wolves"\n    bucket: "shard-{00000..00000}.jsonl.gz"\n'
        '    query_prefix: "clustering"\n    objective:\n      type: "paired"\n'
        '      columns: ["query", "document"]\n'
    )
    texts = [pair.document for pair in pair_source(60).pairs]
    (folder / "notes.txt").write_text("\n\n".join(texts))
    return folder


def prepare(capsys, words, out, *arguments):
    """The exit status, and the lines of both outputs but for the progress bars."""
    capsys.readouterr()
    common = ("--out", out, "--tokenizer", words / "tokenizer")
    status = run(["prepare", *map(str, (*arguments, *common))])
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    return status, said.out.splitlines(), errors


def test_pairs_of_several_sources_become_stores(words, tmp_path, capsys):
    places = [words / name for name in ("foxes.jsonl.gz", "dogs.jsonl.gz", "data.yaml")]
    status, said, _ = prepare(capsys, words, tmp_path, *places, *PAIRS)
    stores = open_stores(tmp_path)
    assert status == 0 and list(stores) == ["foxes", "dogs", "wolves"]
    for line, (name, store) in zip(said, stores.items(), strict=True):
        tokens = store.lengths(np.arange(len(store))).sum()
        cut = store.manifest.counts["cut_documents"]
        assert line.startswith(f"{name}: {len(store)} pairs, {tokens:,} tokens, ")
        assert line.endswith(f"in {tmp_path}/{name}")
        assert (f"{cut} documents cut" in line) == (cut > 0)
    assert stores["foxes"].manifest.rule["query_prefix"] == "search_query: "
    assert stores["wolves"].manifest.rule["document_prefix"] == "clustering: "
    # Once more: all is verified, and a file that was changed is told of.
    assert prepare(capsys, words, tmp_path, *places, *PAIRS)[:2] == (0, said)
    (shard,) = (tmp_path / "dogs").glob("*.array_record")
    data = bytearray(shard.read_bytes())
    data[400] ^= 1
    shard.write_bytes(data)
    status, _, errors = prepare(capsys, words, tmp_path, *places, *PAIRS)
    assert status == 2 and len(errors) == 1 and "has checksum" in errors[0]


def test_text_becomes_packed_rows(words, tmp_path, capsys):
    arguments = (words / "notes.txt", "--row-length", "32", "--split", "paragraphs")
    status, said, _ = prepare(capsys, words, tmp_path, *arguments, "--workers", "1")
    (store,) = open_stores(tmp_path).values()
    assert status == 0 and store.manifest.kind == "rows"
    lost = store.manifest.counts["lost_tokens"]
    assert said[0].startswith(f"notes: {len(store)} rows, {32 * len(store):,} tokens, ")
    assert f"{lost} tokens lost at the ends of ranges, in " in said[0]
    assert store.manifest.input_rows == 60


def test_a_source_may_be_given_a_name_and_join_a_collection(words, tmp_path, capsys):
    source = words / "foxes.jsonl.gz"
    assert prepare(capsys, words, tmp_path, source, *PAIRS)[0] == 0
    swapped = ("--query", "document", "--document", "query", "--name", "answers")
    assert prepare(capsys, words, tmp_path, source, *PAIRS, *swapped)[0] == 0
    assert list(open_stores(tmp_path)) == ["foxes", "answers"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["foxes.jsonl.gz"], "give --row-length for text, or --query-length and"),
        (["foxes.jsonl.gz", "--query-length", "9"], "give --row-length for text"),
        (["foxes.jsonl.gz", *PAIRS, "--row-length", "9"], "give --row-length for"),
        (["foxes.csv", *PAIRS], "foxes.csv has an unknown ending; known: *.jsonl"),
        (["gone.jsonl", *PAIRS], "gone.jsonl cannot be read: No such file"),
        (["foxes.jsonl.gz", "foxes.jsonl.gz", *PAIRS], "2 sources are named 'foxes'"),
        (["data.yaml", *PAIRS, "--name", "mine"], "the name 'mine' is for one source"),
        (["data.yaml", "--row-length", "9"], "is a data YAML"),
        (
            ["notes.txt", "--row-length", "9", "--num-negatives", "2"],
            "--num-negatives would change nothing: text has none",
        ),
        (
            ["foxes.jsonl.gz", *PAIRS, "--text", "body"],
            "--text would change nothing: --query and --document name",
        ),
        (["foxes.jsonl.gz", *PAIRS, "--workers", "0"], "workers=0 must be at least 1"),
        (["foxes.jsonl.gz", *PAIRS, "--tokenizer", "gone"], "gone is not a folder"),
        (["foxes.jsonl.gz", *PAIRS, "--tokenizer", "."], "holds no tokenizer"),
        (["foxes.jsonl.gz", *PAIRS, "--query", "qery"], "foxes.jsonl.gz:1: no column"),
        ([*PAIRS], "no source is given"),
        (["foxes.jsonl.gz", *PAIRS, "--out", "notes.txt"], "notes.txt is a file, not"),
        (["foxes.jsonl.gz", *PAIRS, "--out", "notes.txt/a"], "notes.txt is a file"),
        (["foxes.jsonl.gz", *PAIRS, "--out", "https://host/a"], "http only reads"),
        (["foxes.jsonl.gz", *PAIRS, "--out", "nosuch://a"], "nosuch://a cannot be re"),
        (["foxes.jsonl.gz", *PAIRS, "--name", "stores.json"], "that of a file next to"),
        (["foxes.jsonl.gz", *PAIRS, "--name", "a/b"], "'a/b' of a source cannot name"),
        (
            ["foxes.jsonl.gz", *PAIRS, "--split", "paragraphs"],
            "--split would change nothing: no source is a .txt file",
        ),
        (
            ["foxes.jsonl.gz", *PAIRS, "--query-only", "honour"],
            "--query-only would change nothing: no source is a data YAML",
        ),
        (
            ["foxes.jsonl.gz", *PAIRS, "--too-few-negatives", "drop"],
            "--too-few-negatives would change nothing: --num-negatives stores none",
        ),
        (
            ["foxes.jsonl.gz", *PAIRS, "--workers", "77", "--beam", ""],
            "--workers would change nothing: with --beam",
        ),
        (
            [
                "foxes.jsonl.gz",
                *PAIRS,
                "--negatives",
                "documen",
                "--num-negatives",
                "1",
            ],
            "no column 'documen' of negatives, num_negatives=1 are needed; did you "
            "mean 'document'",
        ),
        (["data.YAML", *PAIRS], "data.YAML cannot be read"),
    ],
)
def test_what_prepare_refuses_is_one_line_and_leaves_no_store(
    words, tmp_path, capsys, monkeypatch, arguments, says
):
    monkeypatch.chdir(words)
    out = tmp_path / "out"
    common = [] if "--out" in arguments else ["--out", str(out)]
    if "--tokenizer" not in arguments:
        common += ["--tokenizer", "tokenizer"]
    status = run(["prepare", *arguments, *common])
    errors = [e for e in capsys.readouterr().err.splitlines() if e.startswith("error:")]
    assert status == 2 and len(errors) == 1 and says in errors[0]
    assert not list(out.rglob("*.array_record")) and not list(out.rglob("stores.json"))


def test_another_preparation_and_a_broken_line_are_named(words, tmp_path, capsys):
    source, out = words / "foxes.jsonl.gz", tmp_path / "out"
    assert prepare(capsys, words, out, source, *PAIRS)[0] == 0
    status, _, errors = prepare(
        capsys, words, out, source, *PAIRS, "--query-prefix", ""
    )
    assert status == 2 and len(errors) == 1
    assert "rule.query_prefix is 'search_query: ' there and '' here" in errors[0]
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"query": "fox", "document": "dog"}\n{"query": "fox", \n')
    status, _, errors = prepare(capsys, words, out, broken, *PAIRS)
    assert status == 2 and len(errors) == 1 and "broken.jsonl:2: not JSON" in errors[0]
    broken.write_text('{"query": "fox", "document": "dog"}\n{"query": " "}\n')
    status, _, errors = prepare(capsys, words, out, broken, *PAIRS)
    assert (status, len(errors)) == (2, 1) and "broken.jsonl:2: no column" in errors[0]
    assert list(open_stores(out)) == ["foxes"]


def test_blank_texts_are_an_error_or_dropped(words, tmp_path, capsys):
    source = tmp_path / "blank.jsonl"
    lines = [{"query": f"fox {i}", "document": f"dog {i}"} for i in range(9)]
    lines[4]["query"], lines[7]["document"] = " ", None
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out"
    status, _, errors = prepare(capsys, words, out, source, *PAIRS)
    assert status == 2 and len(errors) == 1
    assert "blank.jsonl:5: column 'query' is blank; " in errors[0]
    assert "set blank to 'drop'" in errors[0]
    status, said, _ = prepare(capsys, words, out, source, *PAIRS, "--blank", "drop")
    assert status == 0 and "7 pairs" in said[0] and "2 dropped as blank" in said[0]
    assert len(open_stores(out)["blank"]) == 7


def test_a_store_is_told_of_before_the_next_is_begun(words, tmp_path, capsys):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"query": " ", "document": "dog"}\n')
    places = (words / "foxes.jsonl.gz", broken)
    status, said, errors = prepare(capsys, words, tmp_path / "out", *places, *PAIRS)
    assert (status, len(said), len(errors)) == (2, 1, 1)
    assert said[0].startswith("foxes: ")


def test_a_blank_text_in_a_later_shard_is_dropped_in_the_same_folder(
    words, tmp_path, capsys
):
    source, out = tmp_path / "blank.jsonl", tmp_path / "out"
    lines = [{"query": f"fox {i}", "document": f"dog {i}"} for i in range(90)]
    lines[78]["query"] = " "
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = (source, *PAIRS, "--rows-per-shard", "20", "--workers", "1")
    status, _, errors = prepare(capsys, words, out, *arguments)
    assert status == 2 and "set blank to 'drop'" in errors[0]
    shards = sorted((out / "blank").glob("*.array_record"))
    times = [path.stat().st_mtime_ns for path in shards]
    assert len(shards) == 3
    status, said, _ = prepare(capsys, words, out, *arguments, "--blank", "drop")
    assert status == 0 and "89 pairs" in said[0]
    assert [path.stat().st_mtime_ns for path in shards] == times


def test_a_disk_that_cannot_be_written_is_one_line(
    words, tmp_path, capsys, monkeypatch
):
    from nomic_jax import storage

    def refused(url, content):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(url))

    monkeypatch.setattr(storage, "write_bytes", refused)
    source = words / "foxes.jsonl.gz"
    status, said, errors = prepare(capsys, words, tmp_path / "out", source, *PAIRS)
    assert status == 2 and len(errors) == 1 and not said
    assert "preparation.json could not be made: Permission denied" in errors[0]


@pytest.mark.slow
def test_the_command_prepares_with_two_processes_what_one_prepares(
    words, tmp_path, capsys
):
    source = words / "foxes.jsonl.gz"
    common = (source, *PAIRS, "--rows-per-shard", "20")
    assert prepare(capsys, words, tmp_path / "one", *common)[0] == 0
    done = python(
        *("-m", "nomic_jax.cli.main", "prepare", *common, "--workers", "2"),
        *("--out", tmp_path / "two", "--tokenizer", words / "tokenizer"),
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("foxes: 60 pairs, ")
    (one,), (two,) = (open_stores(tmp_path / n).values() for n in ("one", "two"))
    assert one.manifest == two.manifest and len(two.manifest.shards) == 3
    for texts, others in zip(
        one.read(np.arange(60)), two.read(np.arange(60)), strict=True
    ):
        assert [text.tolist() for text in texts] == [text.tolist() for text in others]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Beam's own, of many kinds
def test_a_collection_is_prepared_on_beam(words, tmp_path, capsys):
    pytest.importorskip("apache_beam")
    source = words / "foxes.jsonl.gz"
    assert prepare(capsys, words, tmp_path / "here", source, *PAIRS)[0] == 0
    beam = (*PAIRS[:-2], "--beam=--runner=DirectRunner --save_main_session")
    assert prepare(capsys, words, tmp_path / "beam", source, *beam)[0] == 0
    here, there = (open_stores(tmp_path / name)["foxes"] for name in ("here", "beam"))
    assert here.manifest == there.manifest
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"query": "fox", \n')
    status, _, errors = prepare(capsys, words, tmp_path / "beam", broken, *beam)
    assert "while running" not in errors[0]  # what a runner adds
    assert status == 2 and len(errors) == 1 and "broken.jsonl:1: not JSON" in errors[0]
    assert not list((tmp_path / "beam" / "broken").glob("*.error"))
