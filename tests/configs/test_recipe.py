"""The published recipe as one file: what it chains, and a run of it at the smallest."""

import dataclasses
import json

import numpy as np
import pytest
import tiny_checkpoints as tiny
from evaluation_files import write_beir, write_jsonl
from paths import ROOT

from nomic_jax.inference.embedder import Embedder
from nomic_jax.pipeline.curate import check_curation
from nomic_jax.pipeline.overrides import override
from nomic_jax.pipeline.runner import run
from nomic_jax.pipeline.stages import check_stages, load_stages

CONFIGS = ROOT / "configs"
CHAIN = ["prepare", "mlm", "filter", "pretrain", "mine", "finetune", "evaluate"]
WORDS = "a small fox jumps over the lazy dog while search query document".split()


def by_name(config):
    return {stage.name: stage for stage in load_stages(CONFIGS / f"{config}.py")}


def test_the_chain_trains_what_the_published_stages_train():
    chain = by_name("nomic_embed_text_v1")
    assert list(chain) == CHAIN
    for name, config in (
        ("mlm", "mlm"),
        ("pretrain", "contrastive_pretrain"),
        ("finetune", "contrastive_finetune"),
    ):
        (alone,) = load_stages(CONFIGS / f"{config}.py")
        assert chain[name].optimizer == alone.optimizer
        for field in ("steps", "batch_size", "seed"):
            assert getattr(chain[name].train, field) == getattr(alone.train, field)
    assert chain["mlm"].model == load_stages(CONFIGS / "mlm.py")[0].model
    filtering, mining = chain["filter"].filtering, chain["mine"].mining
    assert (filtering.model, filtering.k, filtering.block) == (
        *("thenlper/gte-base", 2),
        1_000_000,
    )
    assert (mining.count, mining.pool, mining.margin) == (20, 20, None)
    data = chain["finetune"].data
    assert (data.stores, data.num_negatives, data.negatives) == ("mine", 7, "random")
    assert chain["pretrain"].data.stores == "filter"


def test_the_ablated_chain_differs_in_its_labelled_pairs_alone():
    whole, ablated = map(
        by_name, ("nomic_embed_text_v1", "nomic_embed_text_v1_ablated")
    )
    differing = {name for name in CHAIN if whole[name] != ablated[name]}
    assert differing == {"mine", "finetune"}
    assert ablated["mine"].data.places == ("finetune_ablated_pairs.yaml",)
    # Whole batches of msmarco, nq, nli, reddit and medi_wiki (Table 3).
    pairs = 484_864 + 69_888 + 275_200 + 199_680 + 24_832
    assert ablated["finetune"].train.steps == pairs // 256 == 4119


def sentences(number, seed):
    random, found = np.random.default_rng(seed), {}
    while len(found) < number:
        found[" ".join(random.choice(WORDS, random.integers(3, 7)))] = None
    return list(found)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Documents, two sources of pairs, a folder to search, and a model that judges."""
    folder = tmp_path_factory.mktemp("text")
    tiny.folder(folder / "judge", tiny.tensors(), tiny.NOMIC_CONFIG)
    tiny.add_tokenizer(folder / "judge")
    (folder / "words.txt").write_text("\n".join(sentences(200, seed=0)))
    for name, seed in (("raw", 1), ("labelled", 2)):
        queries, answers = sentences(80, seed), sentences(80, seed + 10)
        # Half of the documents say what their query does.
        write_jsonl(
            folder / f"{name}.jsonl",
            [
                {"query": query, "document": f"the {query if i % 2 else answer}"}
                for i, (query, answer) in enumerate(zip(queries, answers, strict=True))
            ],
        )
    documents = sentences(12, seed=5)
    write_beir(
        folder / "beir" / "words",
        {f"d{i}": ("", document) for i, document in enumerate(documents)},
        {f"q{i}": document.split(" ", 1)[1] for i, document in enumerate(documents)},
        [(f"q{i}", f"d{i}", 1) for i in range(12)],
    )
    return folder


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mine", {"data": {"places": ("no/pairs.yaml",)}}, "no/pairs.yaml"),
        ("mine", {"mining": {"model": "no/model"}}, "no/model"),
        ("filter", {"filtering": {"model": "no/model"}}, "no/model"),
    ],
)
def test_what_a_later_stage_lacks_is_told_before_anything_is_trained(
    text, tmp_path, name, change, message
):
    stages = []
    for stage in load_stages(CONFIGS / "nomic_embed_text_v1.py"):
        for section, fields in SMALL_CURATION.get(stage.name, {}).items():
            fields = {k: _placed(v, text) for k, v in fields.items()}
            fields |= change.get(section, {}) if stage.name == name else {}
            section_of = dataclasses.replace(getattr(stage, section), **fields)
            stage = dataclasses.replace(stage, **{section: section_of})
        if stage.name in ("filter", "mine"):
            stages.append(stage)
    with pytest.raises(ValueError, match=message):
        check_curation(stages)


def _placed(value, folder):
    if isinstance(value, tuple):
        return tuple(_placed(each, folder) for each in value)
    return f"{folder}/{value}"


SMALL_CURATION = {
    "filter": {"data": {"places": ("raw.jsonl",)}, "filtering": {"model": "judge"}},
    "mine": {"data": {"places": ("labelled.jsonl",)}, "mining": {"model": "judge"}},
}


@pytest.mark.slow
def test_the_whole_chain_runs_from_places_to_figures(text, tmp_path):
    judge, task = str(text / "judge"), f"retrieval:{text}/beir/words"
    arguments = (
        f"--prepare.data.tokenizer {judge} --prepare.data.text {text}/words.txt "
        "--data.row_length 16 --data.query_length 12 --data.document_length 12 "
        "--data.workers 1 --train.workers 0 --train.steps 2 --train.batch_size 8 "
        "--optimizer.warmup_steps 1 --memory.tokens_at_once None "
        "--mlm.model.num_layers 1 --mlm.model.width 32 --mlm.model.num_heads 2 "
        "--mlm.model.mlp_width 32 --mlm.model.trained_positions 16 "
        f"--filter.data.places {text}/raw.jsonl --filter.filtering.k 20 "
        f"--mine.data.places {text}/labelled.jsonl "
        f"--filtering.model {judge} --mining.model {judge} "
        "--filter.filtering.block 40 "
        "--pretrain.train.evaluate_every 1 --finetune.train.evaluate_every 2 "
        f"--pretrain.train.tasks {task} --finetune.train.tasks {task} "
        "--train.best evaluation/words/ndcg@10 --mlm.train.best loss "
        f"--evaluation.tasks {task} --evaluation.lengths 16"
    ).split()
    stages = override(load_stages(CONFIGS / "nomic_embed_text_v1.py"), arguments)
    check_stages(stages)
    out = tmp_path / "run"
    run(stages, out)
    kept = json.loads((out / "filter" / "sources.json").read_text())["sources"]
    assert [entry["name"] for entry in kept] == ["raw"]
    assert 8 <= kept[0]["pairs"] < 80
    lines = (out / "pretrain" / "metrics.jsonl").read_text().splitlines()
    assert all("evaluation/words/ndcg@10" in json.loads(line) for line in lines)
    results = json.loads((out / "evaluate" / "results.json").read_text())
    (measured,) = results["measured"]
    figures = {each["precision"]: each["metrics"] for each in measured["figures"]}
    assert set(figures) == {"float32", "int8", "binary"}
    # The figures are those of the model that the run leaves.
    from nomic_jax.evaluation.kinds.registry import open_tasks
    from nomic_jax.evaluation.measurement import metrics_of

    left = Embedder.from_pretrained(out / "model")
    again = metrics_of(open_tasks((task,))[0], left)
    # The same program on the same weights; rounding could swap documents that tie.
    assert again == pytest.approx(figures["float32"], abs=1e-6)
    page = (out / "report.html").read_text()
    assert "evaluate, words at 16 tokens, ndcg@10" in page
