"""The published stages: their figures, and two steps of each at the smallest size."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from paths import ROOT
from store_pairs import pair_rule, pair_source, tokenizer

from nomic_jax.checkpoints.model_folder import save_model
from nomic_jax.checkpoints.reader import read_checkpoint
from nomic_jax.config import PUBLISHED, PUBLISHED_EMBEDDINGS, padded_vocabulary
from nomic_jax.data.sources.jsonl import JsonLines, write_pairs, write_texts
from nomic_jax.data.store.prepare import prepare_collection
from nomic_jax.data.store.records import RowRule
from nomic_jax.data.store.store import open_stores
from nomic_jax.data.tokenizer import TextTokenizer
from nomic_jax.inference.embedder import Embedder
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.heads import MaskedLanguageModel
from nomic_jax.pipeline.overrides import override
from nomic_jax.pipeline.runner import run
from nomic_jax.pipeline.stages import check_stages, load_stages, resolve
from nomic_jax.training.contrastive import (
    pair_batches,
    stage_embedding,
    train_contrastive,
)
from nomic_jax.training.mlm import first_model, fresh_model, started_config, train_mlm
from nomic_jax.training.run_folder import RunFolder
from nomic_jax.training.start import config_with_experts

CONFIGS = ROOT / "configs"
CONTRASTIVE = ("contrastive_pretrain", "contrastive_finetune", "matryoshka_finetune")


def stage(name):
    (only,) = load_stages(CONFIGS / f"{name}.py")
    check_stages([only])
    assert resolve([only])[only.name]["kind"]
    return only


def test_the_mlm_is_that_of_the_paper():
    mlm = stage("mlm")
    published = PUBLISHED["nomic-bert-2048"]
    assert mlm.model.config(vocab_size=30528, pad_token_id=0) == published
    assert (mlm.train.steps, mlm.train.batch_size) == (100_000, 4096)
    assert (mlm.data.row_length, mlm.data.mask_rate) == (2048, 0.3)
    optimizer = mlm.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay) == (5e-4, 1e-5)
    assert (optimizer.beta1, optimizer.beta2, optimizer.epsilon) == (0.9, 0.98, 1e-6)
    assert (optimizer.schedule, optimizer.warmup_steps) == ("linear", 6000)
    assert optimizer.clip_norm == 0


@pytest.mark.parametrize(
    ("name", "sources", "pairs", "batch_size", "steps", "length"),
    [
        ("contrastive_pretrain", 29, 234_553_344, 16_384, 14_316, 2048),
        ("contrastive_finetune", 10, 1_692_672, 256, 6_612, 512),
        ("matryoshka_finetune", 10, 1_692_672, 256, 6_612, 512),
    ],
)
def test_an_epoch_of_pairs_is_that_of_the_papers_tables(
    name, sources, pairs, batch_size, steps, length
):
    found = stage(name)
    data = found.data
    assert len(data.sources) == sources
    # Every count is one of whole batches, as the tables' are.
    assert all(source.pairs % batch_size == 0 for source in data.sources)
    assert sum(source.pairs for source in data.sources) == pairs
    assert (found.train.batch_size, found.train.steps) == (batch_size, steps)
    assert (data.query_length, data.document_length) == (length, length)
    assert (found.loss.temperature, found.train.seed) == (0.02, 42)
    optimizer = found.optimizer
    assert (optimizer.weight_decay, optimizer.clip_norm) == (0.01, 1.0)
    assert (optimizer.beta1, optimizer.beta2, optimizer.epsilon) == (0.9, 0.999, 1e-8)


def test_what_sets_the_contrastive_stages_apart_is_as_published():
    pretrain, finetune, matryoshka = map(stage, CONTRASTIVE)
    assert pretrain.start.model == "nomic-ai/nomic-bert-2048"
    optimizer = pretrain.optimizer
    assert (optimizer.learning_rate, optimizer.warmup_steps) == (2e-4, 700)
    assert optimizer.schedule == "inverse_sqrt"
    assert pretrain.data.num_negatives == 0
    assert pretrain.memory.tokens_at_once == 64 * 2048

    assert finetune.start.model == "nomic-ai/nomic-embed-text-v1-unsupervised"
    optimizer = finetune.optimizer
    assert (optimizer.learning_rate, optimizer.warmup_steps) == (2e-5, 400)
    assert optimizer.schedule == "linear"
    assert (finetune.data.num_negatives, finetune.data.negatives) == (7, "random")

    published = PUBLISHED_EMBEDDINGS["nomic-embed-text-v1.5"]
    assert matryoshka.embedding.layer_norm == published.layer_norm
    assert matryoshka.loss.matryoshka_dims == published.matryoshka_dims
    assert set(matryoshka.loss.weights) == {1.0}
    # Else it is the fine-tuning of v1.
    same = ("data", "optimizer", "train", "start")
    assert all(getattr(matryoshka, s) == getattr(finetune, s) for s in same)


def test_a_stage_leaves_the_embedding_that_it_trained():
    v1 = PUBLISHED_EMBEDDINGS["nomic-embed-text-v1"]
    published = PUBLISHED_EMBEDDINGS["nomic-embed-text-v1.5"]
    assert stage_embedding(stage("matryoshka_finetune"), v1) == published
    for name in CONTRASTIVE[:2]:
        assert stage_embedding(stage(name), v1) == v1
        assert stage_embedding(stage(name), published) == published


SEARCH = ("search_query: ", "search_document: ")
CLUSTERING = ("clustering: ", "clustering: ")
CLASSIFICATION = ("classification: ", "classification: ")


def test_each_kind_of_source_has_its_prefixes():
    def by_prefixes(name):
        kinds = {}
        for source in stage(name).data.sources:
            prefixes = (source.query_prefix, source.document_prefix)
            kinds.setdefault(prefixes, {})[source.name] = source.pairs
        return kinds

    kinds = by_prefixes("contrastive_pretrain")
    assert kinds[SEARCH] == {
        "paq": 52_953_088,
        "gooaq": 1_245_184,
        "yahoo_title_answer": 262_144,
        "amazonqa": 212_992,
        "yahoo_title_question": 196_608,
        "yahoo_qa": 131_072,
        "eli5": 98_304,
        "squad": 16_384,
    }
    assert kinds[CLUSTERING] == {
        "reddit_title_body": 64_978_944,
        "s2orc_title_abstract": 35_438_592,
        "s2orc_citation_titles": 7_585_792,
        "s2orc_abstract_citation": 7_503_872,
        "s2orc_abstract_body": 6_389_760,
        "codesearch": 835_584,
        "stackexchange_duplicate_questions": 65_536,
        "stackexchange_title_body": 65_536,
        "stackexchange_body_body": 65_536,
    }
    assert kinds[CLASSIFICATION] == {
        "amazon_reviews": 38_682_624,
        "wikianswers": 9_912_320,
        "wikipedia": 6_078_464,
        "agnews": 409_600,
        "ccnews": 344_064,
        "npr": 344_064,
        "cnn": 278_528,
        "sentence_compression": 163_840,
        "altlex": 98_304,
        "wikihow": 81_920,
        "simplewiki": 81_920,
        "quora": 32_768,
    }
    kinds = by_prefixes("contrastive_finetune")
    assert sorted(kinds[SEARCH].values()) == [69_888, 139_776, 169_728, 484_864]
    assert kinds[CLUSTERING] == {"reddit": 199_680}
    assert kinds[CLASSIFICATION] == {
        "nli_triplets": 275_200,
        "medi_wiki": 24_832,
        "medi_stackexchange": 100_352,
        "medi_flickr": 50_944,
        "medi_supernli": 177_408,
    }


def test_the_multilingual_mlm_is_that_of_its_code():
    mlm = stage("multilingual_mlm")
    published = PUBLISHED["nomic-xlm-2048"]
    given = PUBLISHED["xlm-roberta-base"]
    assert started_config(mlm.start, mlm.model, given) == published
    assert (mlm.sampling.policy, mlm.sampling.exponent) == ("temperature", 0.3)
    assert (mlm.train.steps, mlm.train.batch_size, mlm.train.seed) == (25_000, 4096, 42)
    assert (mlm.data.row_length, mlm.data.mask_rate) == (2048, 0.3)
    optimizer = mlm.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay) == (4e-4, 0)
    assert (optimizer.beta1, optimizer.beta2, optimizer.epsilon) == (0.9, 0.98, 1e-6)
    assert (optimizer.schedule, optimizer.warmup_steps) == ("linear", 1000)
    assert (optimizer.clip_norm, mlm.memory.remat) == (0, "full")


def test_the_mixture_of_experts_is_trained_as_its_code_did():
    pretrain, finetune = stage("moe_pretrain"), stage("moe_finetune")
    published = PUBLISHED["nomic-embed-text-v2-moe"]
    dense = dataclasses.replace(PUBLISHED["nomic-xlm-2048"], head=None, head_bias=False)
    assert config_with_experts(pretrain.start, dense) == published
    assert pretrain.experts.balance_coefficient == 0.25
    assert finetune.experts.balance_coefficient == 0
    optimizers = [each.optimizer for each in (pretrain, finetune)]
    assert [each.learning_rate for each in optimizers] == [8e-5, 2e-5]
    assert [each.warmup_steps for each in optimizers] == [1000, 400]
    assert [each.schedule for each in optimizers] == ["inverse_sqrt", "linear"]
    assert {(each.weight_decay, each.clip_norm) for each in optimizers} == {(0.01, 1)}
    assert {(each.beta1, each.beta2, each.epsilon) for each in optimizers} == {
        (0.9, 0.999, 1e-8)
    }
    assert [each.train.batch_size for each in (pretrain, finetune)] == [16_384, 256]
    assert [each.loss.temperature for each in (pretrain, finetune)] == [0.02, 0.02]
    assert [each.data.document_length for each in (pretrain, finetune)] == [128, 512]
    assert (finetune.data.num_negatives, finetune.data.negatives) == (10, "first")
    embedding = PUBLISHED_EMBEDDINGS["nomic-embed-text-v2-moe"]
    assert finetune.loss.matryoshka_dims == embedding.matryoshka_dims
    assert stage_embedding(finetune, embedding) == embedding


SMALL = "--train.steps=2 --train.batch_size=4 --train.workers=0".split()
SHORT = "--data.query_length=32 --data.document_length=48".split()
PAIRS = 8  # of each source


@pytest.mark.slow
def test_two_steps_of_the_mlm_train(tmp_path):
    pairs = pair_source(200).pairs
    write_texts(tmp_path / "wiki.jsonl", [pair.document for pair in pairs])
    wiki = JsonLines.open(tmp_path / "wiki.jsonl", name="wikipedia")
    stores = tmp_path / "stores"
    prepare_collection([(wiki, RowRule(row_length=32))], tokenizer(), stores)
    options = (
        "--model.num_layers=1 --model.width=32 --model.num_heads=2 "
        "--model.mlp_width=32 --model.trained_positions=32 --data.row_length=32 "
        f"--memory.tokens_at_once=64 --data.stores={stores}"
    ).split()
    (small,) = override([stage("mlm")], [*SMALL, *options])
    folder = RunFolder.open(tmp_path / "mlm", resolve([small])["mlm"])
    model = fresh_model(small, tokenizer(), dtype="float32")
    train_mlm(small, model, tokenizer(), open_stores(stores), folder)
    assert losses(tmp_path / "mlm")


TINY = dict(num_layers=2, width=32, num_heads=2, mlp_width=32)


def multilingual(folder, **changes):
    """Save a tiny model of XLM-R's kind; its vocabulary is the tests' tokenizer's."""
    config = dataclasses.replace(
        PUBLISHED["xlm-roberta-base"],
        **TINY,
        vocab_size=padded_vocabulary(tokenizer().size),
        trained_positions=48,
        pad_token_id=tokenizer().role_id("pad"),
    )
    config = dataclasses.replace(config, **changes)
    kind = MaskedLanguageModel if config.head else NomicBert
    model = jax.jit(lambda: kind(config, rngs=nnx.Rngs(0)))()
    save_model(model, config, None, tokenizer(), folder)
    return folder


@pytest.mark.slow
def test_two_steps_of_the_multilingual_mlm_train(tmp_path):
    planned = []
    for number, language in enumerate(("en", "sw")):
        texts = [pair.document for pair in pair_source(100, seed=number).pairs]
        write_texts(tmp_path / f"{language}.jsonl", texts)
        source = JsonLines.open(tmp_path / f"{language}.jsonl", name=language)
        planned.append((source, RowRule(row_length=32)))
    prepare_collection(planned, tokenizer(), tmp_path / "stores")
    begin = multilingual(tmp_path / "xlm-roberta", vocab_size=tokenizer().size)
    options = [f"--model.{name}={value}" for name, value in TINY.items()]
    options += ["--model.trained_positions=64", "--data.row_length=32"]
    options += ["--memory.tokens_at_once=64", f"--data.stores={tmp_path}/stores"]
    options.append(f"--start.model={begin}")
    (small,) = override([stage("multilingual_mlm")], [*SMALL, *options])
    run([small], tmp_path / "run")
    assert losses(tmp_path / "run" / "mlm")
    made = read_checkpoint(tmp_path / "run" / "model").config
    rotary = (made.rope_base, made.trained_positions, made.activation, made.bias)
    assert rotary == (10_000, 64, "gelu", True) and made.vocab_size % 64 == 0
    with pytest.raises(ValueError, match="model.width=64 is 32 there"):
        first_model(
            override([small], ["--model.width=64"])[0], tokenizer(), dtype="float32"
        )
    other = TextTokenizer.train(["some other words"] * 3, vocab_size=50)
    with pytest.raises(ValueError, match="has tokenizer .*prepare it with the model's"):
        first_model(small, other, dtype="float32")


@pytest.mark.slow
def test_a_dense_model_becomes_experts_and_these_are_fine_tuned(tmp_path):
    begin = multilingual(
        tmp_path / "dense",
        rope_base=10_000.0,
        first_position=0,
        head=None,
        head_bias=False,
    )
    write_pairs(tmp_path / "foxes.jsonl", pair_source(PAIRS, num_negatives=11).pairs)
    rule = pair_rule(query_length=32, document_length=48, num_negatives=10)
    source = JsonLines.open(tmp_path / "foxes.jsonl", name="foxes")
    prepare_collection([(source, rule)], tokenizer(), tmp_path / "stores")
    for name in ("moe_pretrain", "moe_finetune"):
        options = [f"--data.stores={tmp_path}/stores", f"--start.model={begin}"]
        options.append("--memory.tokens_at_once=96")
        if name == "moe_finetune":  # the published 768 and 256 of a narrow model
            options += ["--loss.matryoshka_dims", "32", "16"]
        (small,) = override([stage(name)], [*SMALL, *SHORT, *options])
        run([small], tmp_path / name)
        assert losses(tmp_path / name / small.name)
        begin = tmp_path / name / "model"
        made = read_checkpoint(begin).config
        assert (made.num_experts, made.expert_bias) == (8, False)
    last = (tmp_path / "moe_finetune" / "finetune" / "metrics.jsonl").read_text()
    line = json.loads(last.splitlines()[-1])
    assert line["experts/balance"] == line["experts/1/balance"] > 0.9
    assert 0 <= line["experts/1/smallest_share"] <= 1 / 8
    assert 1 / 8 <= line["experts/1/largest_share"] <= 1 / 2
    assert Embedder.from_pretrained(begin).config.matryoshka_dims == (32, 16)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A model folder with the published embedding and the widest of the dims."""
    folder = tmp_path_factory.mktemp("models") / "nomic-embed-text-v1-unsupervised"
    config = dataclasses.replace(
        PUBLISHED["nomic-embed-text-v1"],
        vocab_size=padded_vocabulary(tokenizer().size),
        num_layers=1,
        mlp_width=32,
        trained_positions=48,
    )
    embedding = dataclasses.replace(
        PUBLISHED_EMBEDDINGS["nomic-embed-text-v1"], max_length=48
    )
    model = NomicBert(config, rngs=nnx.Rngs(0))
    save_model(model, config, embedding, tokenizer(), folder)
    return folder


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A function from a config's name to tiny stores of the sources it lists."""
    root = tmp_path_factory.mktemp("stores")

    def make(name):
        config = stage(name).data
        folder = root / f"{len(config.sources)}"
        planned = []
        for number, source in enumerate(config.sources):
            made = pair_source(
                PAIRS, seed=number, num_negatives=config.num_negatives + 1
            )
            path = root / f"{source.name}.jsonl"
            write_pairs(path, made.pairs)
            rule = pair_rule(
                query_prefix=source.query_prefix,
                document_prefix=source.document_prefix,
                query_length=32,
                document_length=48,
                num_negatives=config.num_negatives,
            )
            planned.append((JsonLines.open(path, name=source.name), rule))
        if not folder.is_dir():
            prepare_collection(planned, tokenizer(), folder)
        return folder

    return make


def tiny(name, stores, start):
    """Return a config's stage over tiny stores, by options of the command line."""
    found = stage(name)
    counts = [
        f"--data.sources.{number}.pairs={PAIRS}"
        for number in range(len(found.data.sources))
    ]
    options = [f"--data.stores={stores(name)}", f"--start.model={start}"]
    if found.memory.tokens_at_once:
        options.append("--memory.tokens_at_once=96")
    (small,) = override([found], [*SMALL, *SHORT, *counts, *options])
    return small


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "contrastive_pretrain",
        # moe_finetune and matryoshka_finetune have hard negatives, too.
        pytest.param("contrastive_finetune", marks=pytest.mark.sweep),
    ],
)
def test_two_steps_of_a_contrastive_stage_train(name, stores, start, tmp_path):
    small = tiny(name, stores, start)
    folder = RunFolder.open(tmp_path / small.name, resolve([small])[small.name])
    begun = Embedder.from_pretrained(start)
    found = open_stores(small.data.stores)
    train_contrastive(small, begun.model, tokenizer(), begun.config, found, folder)
    assert losses(tmp_path / small.name)


@pytest.mark.slow
def test_a_matryoshka_run_begins_with_a_model_and_leaves_another(
    stores, start, tmp_path
):
    small = tiny("matryoshka_finetune", stores, start)
    run([small], tmp_path)
    assert losses(tmp_path / small.name)
    before, after = map(Embedder.from_pretrained, (start, tmp_path / "model"))
    texts = ["the quick fox", "lazy dogs"]
    found = [e.encode(texts, task="clustering") for e in (before, after)]
    assert not np.array_equal(*found)


def test_stores_of_other_numbers_of_pairs_are_refused(stores, start):
    small = tiny("contrastive_finetune", stores, start)
    listed = stage("contrastive_finetune").data.sources
    data = dataclasses.replace(small.data, sources=listed)
    published = dataclasses.replace(small, data=data)
    with pytest.raises(ValueError, match="'msmaro' has 8 pairs, 484,864 are listed"):
        pair_batches(published, open_stores(data.stores), tokenizer())


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if np.isfinite(line["loss"])]
