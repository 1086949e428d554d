"""What the benchmarks keep, and do not take for a figure of something else."""

import importlib
import json
import sys
import zipfile

import numpy as np
import pytest
from paths import ROOT
from task_files import write_model

from nomic_jax.evaluation.kinds.registry import KINDS, Task
from nomic_jax.evaluation.kinds.retrieval import judge

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """What imports a script as one that is run there would."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name):
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


def retrieval():
    """Two questions, of which the first is a document too, and nearest to itself."""
    texts = {"a": "red fox", "b": "lazy dogs", "c": "quick brown"}
    queries = {"a": "red fox", "q": "watch wizards"}
    judgments = {"a": {"b": 1}, "q": {"c": 1}}
    data = judge("here", queries, texts, judgments, same_id="exclude")
    return Task("retrieval", "foxes", "here", data)


def test_embeddings_are_kept_by_model_and_convention(script, tmp_path):
    evaluation, task = script("evaluation"), retrieval()

    def place(model):
        made_by = evaluation.made_by(str(model))
        return evaluation.kept(tmp_path, task, task.sides[0], made_by, 16, "here")

    mine = tmp_path / "mine"
    write_model(mine)
    first = place(mine)
    assert place(mine) == first
    # A folder that says nothing of prefixes and layer norm has those of its name.
    (tmp_path / "other").mkdir()
    named = mine.rename(tmp_path / "other" / "nomic-embed-text-v1.5")
    second = place(named)
    config = named / "config.json"
    config.write_text(config.read_text().replace("1e-12", "1e-5"))
    assert len({first, second, place(named)}) == 3


@pytest.mark.torch
def test_the_other_side_leaves_out_what_the_query_itself_is(script):
    pytest.importorskip("pytrec_eval")
    evaluation, task = script("evaluation"), retrieval()
    documents = np.eye(3, dtype=np.float32)
    queries = np.array([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]], np.float32)
    # Were the first question's own text ranked above its answer, it would be 0.815.
    assert evaluation.torch_score(task, [queries, documents], 3) == pytest.approx(1.0)
    ours = KINDS["retrieval"].score(task.data, queries, documents)
    assert ours["ndcg@10"] == pytest.approx(1.0)


def test_results_of_another_setting_are_refused(script, tmp_path):
    results_file = script("results_file")
    now = {"part": "setting", "pairs": [["a.jsonl", "00"]], "steps": 3}
    file = results_file.begin(tmp_path / "work", now)
    with file.open("a") as results:
        results.write('{"part": "turns"}\n')
    assert results_file.begin(tmp_path / "work", now) == file  # goes on
    assert results_file.read_results(file) == [now, {"part": "turns"}]
    others = now | {"pairs": [["a.jsonl", "11"]]}
    with pytest.raises(ValueError, match=r"begun with something else: pairs was"):
        results_file.begin(tmp_path / "work", others)
    # Stores without results are of pairs that nobody knows any more.
    (tmp_path / "old" / "data").mkdir(parents=True)
    with pytest.raises(ValueError, match="does not say what it was begun with"):
        results_file.begin(tmp_path / "old", now)


ENVIRONMENT = {
    "date": "2026-01-01T00:00:00+00:00",
    "commit": "0123456789ab",
    "processor": "A processor",
    "cores": 2,
    "memory_gib": 8.0,
    "load": 0.1,
    "devices": ["cpu"],
    "python": "3.11.7",
    "packages": {"jax": "0.10.2"},
    "matmul": {"jax": {"size": 2048, "dtype": "float32", "gflops": 418.0}},
}


@pytest.fixture
def recorded(script, tmp_path, monkeypatch):
    """Rows that are recorded one call each, and the page that is then made."""
    monkeypatch.setenv("NOMIC_JAX_RESULTS", str(tmp_path / "results"))
    record, render = script("record"), script("render")
    (tmp_path / "notes.md").write_text("# Notes\n")

    def page(*rows, name="encode", environment=ENVIRONMENT, **values):
        for row in rows:
            given = {"work": "encode", "detail": "mixed", "unit": "texts/s"}
            row = record.Row(**given | {"ours": 2.0} | values | row)
            record.record(name, [row], environment)
        return render.made(tmp_path / "results", tmp_path / "notes.md")

    return page


def goal_lines(page, work):
    return [line for line in page.splitlines() if line.startswith(f"| {work}")]


def test_the_page_of_the_repository_is_what_its_results_make(script):
    render = script("render")
    page = render.PAGE.read_text()
    assert page == render.made(), "run: python benchmarks/render.py"
    assert "not explained yet" not in page, "notes.md says what bounds a missed goal"


def test_sides_are_timed_in_turns_whose_order_changes(script):
    turns, ran, clock = script("turns"), [], iter(range(100))
    sides = {"ours": lambda: ran.append("ours"), "theirs": lambda: ran.append("theirs")}
    seconds = turns.in_turns(sides, 3, clock=lambda: next(clock))
    warm, first, second = ["ours", "theirs"], ["ours", "theirs"], ["theirs", "ours"]
    assert ran == warm + first + second + first
    assert seconds == {"ours": [1, 1, 1], "theirs": [1, 1, 1]}
    # Round by round, not of the medians, which would be 2.
    assert turns.median_ratio([4.0, 9.0, 2.0], [4.0, 3.0, 1.0]) == 2.0
    assert turns.median_ratio([1.0, 4.0, 6.0], [2.0, 1.0, 1.0]) == 4.0
    with pytest.raises(ValueError, match="rounds=0"):
        turns.in_turns(sides, 0)


def test_a_goal_without_a_figure_is_not_measured(recorded):
    page = recorded()
    lines = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(lines) > 10
    assert all(line.endswith("| not measured | |") for line in lines)
    # A row without the figure that the goal bounds is none either.
    page = recorded({"goal": "encode-cpu-mixed", "ratio": None, "beside": "theirs"})
    (line,) = goal_lines(page, "encode, CPU, base model, float32, mixed")
    assert line.endswith("| A processor, 2 cores | not measured (mixed) |  |")
    assert "| encode | mixed | 2 texts/s | not measured |" in page


def test_a_goal_is_met_or_missed_by_a_factor(recorded):
    page = recorded(
        {"goal": "encode-cpu-mixed", "ratio": 1.04},
        {"goal": "encode-cpu-fixed", "ratio": 1.0, "detail": "32 tokens"},
        {"goal": "encode-cpu-fixed", "ratio": 0.9, "detail": "8,192 tokens"},
        {"goal": "input-wait", "ours": 0.04, "unit": "of the step"},
        {"goal": "first-embedding", "ours": 4.0, "unit": "s", "detail": "v1.5"},
    )
    (mixed,) = goal_lines(page, "encode, CPU, base model, float32, mixed")
    assert mixed.endswith("| 1.04 (mixed) | **missed**, 0.8 of the goal |")
    short, long = goal_lines(page, "encode, CPU, base model, float32, every")
    assert short.endswith("| 1.00 (32 tokens) | met |")
    assert long.endswith("| 0.90 (8,192 tokens) | **missed**, 0.9 of the goal |")
    (wait,) = goal_lines(page, "wait for input")
    assert wait.endswith("| 4.0% (mixed) | **missed**, 0.5 of the goal |")
    assert goal_lines(page, "time to first")[0].endswith("| 4.0 (v1.5) | met |")
    assert page.count("Missed, and not explained yet.") == 3


def test_a_goal_of_a_machine_is_not_answered_by_another(recorded):
    gpu = ENVIRONMENT | {"devices": ["NVIDIA H200"]}
    row = {"goal": "experts-h200", "ratio": 0.73, "work": "experts"}
    own, other = goal_lines(recorded(row), "MoE step")
    assert own.endswith("| NVIDIA H200 | not measured | |")
    assert other.endswith(
        "| A processor, 2 cores | 73% (mixed) | not the goal's machine |"
    )
    page = recorded(row | {"ratio": 0.5}, environment=gpu)
    own, other = goal_lines(page, "MoE step")
    assert own.endswith(
        "| 1 x NVIDIA H200 | 50% (mixed) | **missed**, 0.833 of the goal |"
    )
    assert "73%" in other


def test_the_newest_row_of_each_machine_counts(recorded):
    later = ENVIRONMENT | {
        "date": "2026-01-02T00:00:00+00:00",
        "commit": "ba9876543210",
    }
    recorded({"goal": "encode-cpu-mixed", "ratio": 1.1}, {"detail": "alone", "ours": 7})
    page = recorded({"goal": "encode-cpu-mixed", "ratio": 1.5}, environment=later)
    (line,) = goal_lines(page, "encode, CPU, base model, float32, mixed")
    assert line.endswith("| 1.50 (mixed) | met |")
    # What was not measured again stays, under the run that measured it.
    new, old = page.split("### A processor, 2 cores, 2026-01-0")[1:]
    assert new.startswith("2, ba9876543210") and "1.50" in new and "alone" not in new
    assert old.startswith("1, 0123456789ab") and "| alone | 7 texts/s |" in old
    assert "1.10" not in old


@pytest.mark.slow
def test_a_line_is_whole_and_says_what_a_machine_is_not_which(
    script, recorded, tmp_path
):
    environment = script("environment").environment()
    recorded({"extra": {"MFU": 0.5}}, {"detail": "again"}, environment=environment)
    text = (tmp_path / "results" / "encode.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [sorted(line) for line in lines] == 2 * [
        ["commit", "date", "environment", "rows"]
    ]
    assert lines[0]["environment"] == lines[1]["environment"]
    assert lines[0]["environment"]["matmul"]["jax"]["gflops"] > 0
    of_torch = {"torch_threads"} & environment.keys()
    assert environment.keys() - of_torch == ENVIRONMENT.keys()
    assert str(BENCHMARKS.parent) not in text


def test_a_row_answers_a_goal_that_is_set_with_figures_that_are(recorded):
    with pytest.raises(ValueError, match="no goal of goals.py; nearest: .*encode-cpu"):
        recorded({"goal": "encode-cpu-mixd"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        recorded({"ours": float("nan")})
    assert "nan" not in recorded()


def test_an_explanation_is_of_a_goal(script):
    render = script("render")
    notes = render.read_notes(
        "# Title\n\n## input-wait\n\nRead late.\n\n## gradcache\nx"
    )
    assert notes == {"input-wait": "Read late.", "gradcache": "x"}
    assert "### wait for input\n\nRead late.\n" in render.render(
        {}, "## input-wait\n\nRead late.\n"
    )
    with pytest.raises(ValueError, match="'input-wat', which is no goal"):
        render.read_notes("## input-wat\n")


def test_a_step_that_fails_or_is_cut_does_not_stop_the_next(
    script, tmp_path, monkeypatch, capsys
):
    gpu = script("gpu")
    say = "import os; print('here', os.environ['NOMIC_JAX_RESULTS'])"
    programs = {
        "cut": "import time; time.sleep(600)",
        "fails": "raise SystemExit(3)",
        "last": say,
    }
    steps = [
        gpu.Step(name, 0.5 if name == "cut" else 60, ("-c", code))
        for name, code in programs.items()
    ]
    monkeypatch.setattr(gpu, "steps", lambda: steps)
    out = tmp_path / "results"
    arguments = ["--results", str(out), "--arguments", "last", "one 'two three'"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    assert gpu.main() == 1
    lines = [
        json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()
    ]
    ended = {line["step"]: line["ended"] for line in lines}
    assert ended == {"cut": "cut", "fails": "failed with status 3", "last": "done"}
    assert (out / "last.log").read_text() == f"here {out}\n"
    # With no time left a step is left out, and that is said.
    monkeypatch.setattr(gpu, "TOTAL", -1.0)
    assert gpu.main() == 1
    assert "last: left out, as no time was left" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no step 'lst'; there are: \['cut'"):
        gpu.further([("lst", "")])


@pytest.mark.slow
def test_only_wheels_that_the_host_lacks_are_installed(script, tmp_path, capsys):
    gpu = script("gpu")
    (tmp_path / "wheels").mkdir()
    for name in ("numpy", "nobody_has_this"):
        info = f"{name}-0.0.1.dist-info"
        files = {
            f"{name}.py": "",
            f"{info}/METADATA": "Metadata-Version: 2.1\n"
            f"Name: {name}\nVersion: 0.0.1\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\n"
            "Root-Is-Purelib: true\nTag: py3-none-any\n",
        }
        files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in files)
        wheel = tmp_path / "wheels" / f"{name}-0.0.1-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for file, text in files.items():
                archive.writestr(file, text)
    gpu.install(tmp_path / "wheels", tmp_path / "lacked", over_the_host=False)
    assert [path.name for path in (tmp_path / "lacked").glob("*.py")] == [
        "nobody_has_this.py"
    ]
    assert "is the host's; numpy-0.0.1" in capsys.readouterr().out
    gpu.install(tmp_path / "wheels", tmp_path / "all", over_the_host=True)
    assert len(list((tmp_path / "all").glob("*.py"))) == 2
    gpu.install(tmp_path / "none", tmp_path / "nothing", over_the_host=True)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.torch
def test_texts_of_a_length_have_it_and_mixed_ones_come_from_all_sides(script):
    encode = script("encode")
    words = ["red fox", "quick lazy dogs", "a"]
    tokenizer = encode.TextTokenizer.train(words * 3, vocab_size=80)
    single = encode.single_tokens(words, tokenizer)
    texts = encode.fixed_texts(single, tokenizer, "red fox : ", 20, 3)
    found = tokenizer.encode(["red fox : " + text for text in texts], max_length=99)
    assert [len(ids) for ids in found.ids] == [20] * 3
    sides = [[f"fox {i}" for i in range(50)], [f"dogs {i}" for i in range(7)]]
    mixed = encode.mixed_texts(sides, tokenizer, 60)
    assert sum(text.startswith("fox") for text in mixed) == len(mixed) - sum(
        text.startswith("dogs") for text in mixed
    )
    assert {text.split()[0] for text in mixed} == {"fox", "dogs"}


@pytest.mark.torch
@pytest.mark.parametrize(("turned", "agrees"), [(0.0, True), (0.01, False)])
def test_sides_that_find_other_vectors_are_not_timed_beside_each_other(
    script, tmp_path, turned, agrees
):
    encode = script("encode")
    write_model(tmp_path / "model")
    model = encode.Embedder.from_pretrained(tmp_path / "model")
    task = next(iter(model.config.prompts))
    encode.TASK = task

    class Other(encode.Theirs):
        def __call__(self, texts, length):
            found = model.encode(texts, task=task)
            away = np.roll(found, 1, axis=1)
            mixed = found + turned * away / np.linalg.norm(away, axis=1, keepdims=True)
            return np.asarray(mixed / np.linalg.norm(mixed, axis=1, keepdims=True))

    texts = ["red fox", "lazy dogs", "quick brown fox"]
    options = {"rounds": 1, "goals": {}, "detail": "three"}
    length = model.config.max_length
    other = Other("the other", None, "")
    if agrees:
        (row,), wait = encode.compare(
            encode.Ours(model), [other], texts, length, **options
        )
        assert (row.beside, row.extra["least cosine"]) == ("the other", "1.000000")
        assert wait.unit == "of the time"
        return
    with pytest.raises(ValueError, match="three, float32: .* cosine with the other"):
        encode.compare(encode.Ours(model), [other], texts, length, **options)
