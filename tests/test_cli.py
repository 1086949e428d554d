"""The commands: what they write, what they say, and how they end."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_checkpoints as tiny

import nomic_jax.embedder
from nomic_jax.cli import guarded
from nomic_jax.cli import nomic_jax as run

TRAIN = Path(__file__).parent.parent / "train.py"
QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.py"
TEXTS = ["a small fox", "the lazy dog jumps", "ünïcödé"]

# Seconds depend on the machine; what makes a start slow is what it imports.
IMPORTED = """
import sys
from nomic_jax.cli import main
sys.argv = ["nomic-jax", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    heavy = {"jax", "jaxlib", "flax", "optax", "orbax", "grain", "torch"}
    heavy |= {"transformers", "tokenizers", "pyarrow", "matplotlib", "numpy"}
    sys.stderr.write(f"{end.code} {sorted(heavy & set(sys.modules))}")
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

    monkeypatch.setattr(nomic_jax.embedder.Embedder, "from_pretrained", load)


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


@pytest.mark.parametrize("command", [[], ["embed"], ["verify"]])
def test_help_imports_nothing_heavy(command):
    done = python("-c", IMPORTED, *command, "--help", text=True)
    assert done.stderr == "0 []"
    assert "usage: nomic-jax" in done.stdout


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
        (["embedd", "m"], "embed, verify"),
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


def test_lines_from_a_pipe_become_an_array_on_standard_output(model):
    done = python(
        "-m",
        "nomic_jax.cli",
        *("embed", model, "--task", "search_document", "--dim", "32"),
        input="".join(f"{text}\r\n" for text in TEXTS).encode(),
    )
    assert done.returncode == 0, done.stderr.decode()
    got = np.load(io.BytesIO(done.stdout))
    embedder = nomic_jax.embedder.Embedder.from_pretrained(model)
    expected = embedder.encode_document(TEXTS)
    # The same program in another process, perhaps with other threads.
    np.testing.assert_allclose(got, expected, atol=1e-6)
    said = done.stderr.decode()
    assert "mean pooling, layer norm, up to 64 tokens" in said
    assert "token/s" in said


@pytest.mark.parametrize("ending", [".npy", ".jsonl", ".parquet"])
def test_a_file_becomes_a_file(model, lines, tmp_path, capsys, ending):
    output = tmp_path / f"vectors{ending}"
    common = ("--task", "clustering", "--input", lines, "--output", output)
    status, _ = embed(capsys, model, *common)
    assert status == 0
    embedder = nomic_jax.embedder.Embedder.from_pretrained(model)
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
    def wrong():
        raise ValueError("width=3 must be even")

    assert guarded(wrong) == 2
    assert capsys.readouterr().err == "error: width=3 must be even\n"
    assert guarded(lambda: 0) == 0
    # Python ends with 1 and a traceback when an exception is not caught.
    with pytest.raises(RuntimeError):
        guarded(lambda: (_ for _ in ()).throw(RuntimeError("a fault")))


def test_train_help_imports_nothing_heavy_and_names_the_overrides():
    code = IMPORTED.replace("main()", "sys.exit(train(sys.argv[1:]))")
    code = code.replace("import main", "import train")
    done = python("-c", code, "--help", text=True)
    assert done.stderr == "0 []"
    for part in ("--config", "--out", "runs/NAME", "--section.field VALUE"):
        assert part in done.stdout


def test_train_lists_a_configs_fields_with_their_defaults():
    done = python(TRAIN, "--config", QUICKSTART, "--help", text=True)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.replace("│", " ").split())
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
def test_train_refuses_what_it_does_not_know(arguments, says):
    done = python(TRAIN, *arguments, text=True)
    assert done.returncode == 2
    assert says in done.stderr.splitlines()[-1]
