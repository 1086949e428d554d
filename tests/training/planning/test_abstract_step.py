import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from plan_stages import MLM, PAIRS

from nomic_jax.config import PUBLISHED
from nomic_jax.data.packing import pack_texts
from nomic_jax.distributed.mesh import MeshConfig
from nomic_jax.model.heads import MaskedLanguageModel
from nomic_jax.training.contrastive import GuideConfig, StageEmbedding, StartConfig
from nomic_jax.training.flops import forward_flops
from nomic_jax.training.mlm import ModelSize
from nomic_jax.training.planning.abstract import (
    Assumptions,
    abstract_step,
    model_of,
    spread,
)

ONE = jax.devices()[:1]


def change(stage, **sections):
    return dataclasses.replace(stage, **sections)


def test_an_mlm_step_has_full_rows_and_the_vocabulary_of_bert():
    step = abstract_step(MLM, [], ONE, Assumptions())
    assert isinstance(step.state.model, MaskedLanguageModel)
    assert step.state.model.encoder.word_embedding.embedding.shape == (30_528, 128)
    assert (step.tokens, step.columns, step.rows) == (64 * 64, 64 * 64, 64)
    config = MLM.model.config(vocab_size=30_528, pad_token_id=0)
    masked = round(0.3 * 64 * 64)
    expected = forward_flops(config, np.full(64, 64), masked=masked)
    assert step.flops == 3 * expected
    assert step.state.model.encoder.dtype == "bfloat16"


def test_a_step_of_pairs_is_packed_as_training_packs_it():
    step = abstract_step(PAIRS, [MLM], ONE, Assumptions())
    lengths = np.repeat([32, 64], [64, 128])
    plan = pack_texts(lengths, row_length=64)
    texts = step.batch.texts
    assert texts.tokens.ids.shape == (plan.rows, 64) == (step.rows, 64)
    assert texts.slot_lengths.shape == (plan.rows, plan.slots)
    assert step.batch.document_places.shape == (128,)
    assert (step.tokens, step.columns) == (lengths.sum(), plan.rows * 64)
    assert step.assumed == "queries full, 32 tokens; documents full, 64 tokens"


def test_mean_lengths_make_fewer_rows():
    told = Assumptions(query_tokens=10, document_tokens=40)
    step = abstract_step(PAIRS, [MLM], ONE, told)
    assert step.tokens == pytest.approx(64 * 10 + 128 * 40, rel=0.01)
    assert step.rows < abstract_step(PAIRS, [MLM], ONE, Assumptions()).rows
    assert "documents of 40 tokens on average" in step.assumed
    with pytest.raises(ValueError, match="--query-tokens 33: queries have 3 to 32"):
        abstract_step(PAIRS, [MLM], ONE, Assumptions(query_tokens=33))


def test_made_up_lengths_have_the_mean_and_stay_within_what_texts_can_have():
    for mean in (3, 20, 60, 64):
        lengths = spread("queries", 1000, mean, 64)
        assert lengths.min() >= 3 and lengths.max() <= 64
        assert lengths.mean() == pytest.approx(mean, abs=0.5)


def test_a_stage_of_pairs_goes_on_with_the_model_before_it_or_a_published_one():
    config, embedding = model_of(PAIRS, [MLM], Assumptions())
    assert (config.width, config.head, embedding.layer_norm) == (128, None, False)
    start = StartConfig(model="nomic-ai/nomic-bert-2048")
    config, _ = model_of(change(PAIRS, start=start), [], Assumptions())
    assert config == dataclasses.replace(PUBLISHED["nomic-bert-2048"], head=None)
    elsewhere = change(
        PAIRS,
        start=StartConfig(model="runs/mine/model"),
        embedding=StageEmbedding(layer_norm=True),
    )
    config, embedding = model_of(elsewhere, [], Assumptions())
    assert config == PUBLISHED["nomic-embed-text-v1"] and embedding.layer_norm
    with pytest.raises(ValueError, match="--model gpt is not published; known: nomic"):
        model_of(elsewhere, [], Assumptions(model="gpt"))


def test_a_dense_model_is_planned_as_the_mixture_that_is_made_of_it():
    start = StartConfig(model="nomic-ai/nomic-xlm-2048", num_experts=8)
    stage = change(PAIRS, start=dataclasses.replace(start, keep_biases=False))
    config, _ = model_of(stage, [], Assumptions())
    assert config == PUBLISHED["nomic-embed-text-v2-moe"]
    assert model_of(change(PAIRS, start=start), [], Assumptions())[0].expert_bias


def test_xlm_roberta_is_planned_with_rotary_positions():
    size = ModelSize(
        num_layers=12,
        width=768,
        num_heads=12,
        mlp_width=3072,
        trained_positions=2048,
        rope_base=10_000,
    )
    start = StartConfig(model="FacebookAI/xlm-roberta-base")
    stage = change(MLM, model=size, start=start)
    assert model_of(stage, [], Assumptions())[0] == PUBLISHED["nomic-xlm-2048"]
    with pytest.raises(ValueError, match="model.num_layers=2 is 12 there; model.width"):
        model_of(change(MLM, start=start), [], Assumptions())
    headless = change(stage, start=StartConfig(model="elsewhere"))
    with pytest.raises(ValueError, match="head=None, and no MLM head to go on with"):
        model_of(headless, [], Assumptions())


def test_a_guide_and_a_teacher_are_planned_beside_the_trained_encoder():
    name = "nomic-ai/nomic-embed-text-v1.5"
    plain = abstract_step(PAIRS, [MLM], ONE, Assumptions())
    with_guide = change(
        PAIRS,
        loss=dataclasses.replace(PAIRS.loss, false_negative_margin=0.0),
        guide=GuideConfig(model=name),
    )
    step = abstract_step(with_guide, [MLM], ONE, Assumptions())
    (frozen,) = step.frozen
    assert frozen.guide.embedding.layer_norm and frozen.teacher is None
    assert plain.frozen == ()
    lengths = np.repeat([32, 64], [64, 128])
    assert step.flops - plain.flops == forward_flops(
        PUBLISHED["nomic-embed-text-v1.5"], lengths
    )
    step.update.trace(step.state, step.batch, *step.frozen)


def test_one_device_takes_all_and_a_mesh_splits_rows():
    step = abstract_step(MLM, [], ONE, Assumptions())
    assert step.mesh is None
    leaves = jax.tree.leaves((step.state, step.batch))
    assert all(leaf.sharding.device_set == set(ONE) for leaf in leaves)
    if len(jax.devices()) > 1:
        step = abstract_step(MLM, [], jax.devices()[:2], Assumptions())
        spec = step.batch.positions.sharding.spec
        assert spec == PartitionSpec(("data", "fsdp"))


def test_a_mesh_that_does_not_fit_the_devices_given_is_refused():
    pair = change(MLM, mesh=MeshConfig(data=2))
    with pytest.raises(ValueError, match="does not fit 3 devices"):
        abstract_step(pair, [], [None] * 3, Assumptions())


@pytest.mark.parametrize(("at_once", "forwards"), [(None, 0), (128, 1)])
def test_a_contrastive_step_in_microbatches_repeats_its_forward_pass(at_once, forwards):
    memory = dataclasses.replace(PAIRS.memory, tokens_at_once=at_once)
    step = abstract_step(change(PAIRS, memory=memory), [MLM], ONE, Assumptions())
    assert step.twice and step.repeated == forwards * step.flops / 3
