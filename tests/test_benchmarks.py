"""What the benchmarks keep, and do not take for a figure of something else."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from task_files import write_model

from nomic_jax.evaluation.judged import judge
from nomic_jax.evaluation.kinds import KINDS, Task

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


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
