import dataclasses
import functools
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from compilation import environment
from flax import nnx
from paths import HELPERS
from store_pairs import tokenizer
from stored_pairs import random_store

from nomic_jax.config import EmbeddingConfig, ModelConfig, padded_vocabulary
from nomic_jax.data.pairs import PairBatches
from nomic_jax.data.schedule import Schedule
from nomic_jax.model.encoder import NomicBert
from nomic_jax.training.contrastive import (
    BiEncoder,
    ContrastiveStage,
    Frozen,
    FrozenEncoder,
    GuideConfig,
    PairData,
    check_frozen,
    check_tokenizer,
    contrastive_objective,
    step_flops,
    train_contrastive,
)
from nomic_jax.training.flops import flops_per_token
from nomic_jax.training.loop import LoopConfig
from nomic_jax.training.losses.contrastive import ContrastiveLoss
from nomic_jax.training.losses.distillation import TeacherConfig
from nomic_jax.training.metrics import read_metrics
from nomic_jax.training.optimizer import OptimizerConfig
from nomic_jax.training.placement import Placement
from nomic_jax.training.run_folder import RunFolder

CONFIG = ModelConfig(
    vocab_size=128,
    type_vocab_size=2,
    num_layers=1,
    width=32,
    num_heads=2,
    mlp_width=32,
    layer_norm_epsilon=1e-12,
    rope_base=1000.0,
    trained_positions=32,
    initializer_range=0.3,  # so that nothing is small by chance
)
EMBEDDING = EmbeddingConfig(pooling="mean", layer_norm=True, max_length=32)
# A candidate is masked that is nearer than the positive by a tenth: some are, not all.
LOSS = ContrastiveLoss(
    temperature=0.1, false_negative_margin=-0.1, matryoshka_dims=(32, 8)
)
TEACHER = TeacherConfig(model="teacher", weight=0.7, temperature=0.1)


@functools.cache
def encoder(seed, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return jax.jit(lambda: NomicBert(config, rngs=nnx.Rngs(seed)))()


def model():
    return BiEncoder(encoder(0), None)


def frozen():
    """A guide and a teacher of other weights, the latter wider and pooled otherwise."""
    cls = dataclasses.replace(EMBEDDING, pooling="cls", layer_norm=False)
    return Frozen(
        FrozenEncoder(encoder(1), EMBEDDING),
        FrozenEncoder(encoder(2, width=48), cls),
    )


@functools.cache
def batch_of(parts):
    """8 queries with 2 hard negatives each, several texts in a row."""
    store = random_store(records=16, negatives=2, lengths=(8, 24))
    batches = PairBatches(
        {store.name: store},
        Schedule.over({store.name: 16}, batch_size=8, seed=0),
        query_length=8,
        document_length=24,
        num_negatives=2,
        pad_id=0,
        seed=0,
        parts=parts,
    )
    return batches(0).arrays


@functools.cache
def step(loss, placement, teacher):
    objective = contrastive_objective(EMBEDDING, loss, placement, distillation=teacher)
    valued = jax.value_and_grad(objective, has_aux=True)
    return jax.jit(lambda m, batch, f: valued(m, batch, jax.random.key(0), f))


def found(loss=LOSS, beside=None, placement=None, teacher=TEACHER):
    compiled = step(loss, placement or Placement(), teacher)
    (value, metrics), gradient = compiled(model(), batch_of(1), beside or Frozen())
    return float(value), jax.device_get(metrics), jax.device_get(gradient)


def assert_gradients_close(one, two, tolerance):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


@pytest.mark.slow
def test_a_guide_that_is_the_model_itself_changes_nothing():
    alone, _, gradient = found()
    guided, _, same = found(beside=Frozen(guide=FrozenEncoder(encoder(0), EMBEDDING)))
    # The same numbers, summed in programs of their own.
    assert guided == pytest.approx(alone, rel=1e-6)
    assert_gradients_close(same, gradient, 1e-5)
    other, _, _ = found(beside=Frozen(guide=frozen().guide))
    assert abs(other - alone) > 1e-2  # another opinion is another loss


@pytest.mark.slow
def test_a_teacher_that_is_the_student_adds_no_loss_and_no_gradient():
    # At full width: a student's prefixes have other cosines than its whole vectors.
    loss = dataclasses.replace(LOSS, matryoshka_dims=())
    teacher = TeacherConfig(model="itself", weight=10.0)
    alone, _, gradient = found(loss)
    itself = Frozen(teacher=FrozenEncoder(encoder(0), EMBEDDING))
    taught, metrics, same = found(loss, itself, teacher=teacher)
    # Both sides come out of one computation twice: cosines err by an ulp, 1e-7.
    assert abs(metrics["distillation"]) < 1e-6
    assert taught == pytest.approx(alone, abs=1e-5)
    assert_gradients_close(same, gradient, 1e-4)


@pytest.mark.slow
def test_microbatches_and_blocks_have_the_loss_and_gradient_of_all_at_once():
    value, metrics, gradient = found(beside=frozen())
    in_blocks = dataclasses.replace(LOSS, block_size=7)
    assert batch_of(1).texts.tokens.ids.shape[0] % 3  # the last microbatch is filled up
    parts, _, same = found(in_blocks, frozen(), Placement(most_rows=3))
    # float32 sums over one layer and logits of 10 in another order.
    assert parts == pytest.approx(value, rel=3e-6)
    assert_gradients_close(same, gradient, 3e-5)
    guided, _, _ = found(beside=Frozen(guide=frozen().guide))
    assert metrics["distillation"] > 0.1
    taught = TEACHER.weight * metrics["distillation"]
    assert value == pytest.approx(guided + taught, rel=1e-6)  # one float32 sum


def test_frozen_encoders_are_arguments_of_the_step_and_no_constants():
    lowered = step(LOSS, Placement(), TEACHER).lower(model(), batch_of(1), frozen())
    constants = re.findall(
        r"stablehlo\.constant dense.*?tensor<((?:\d+x)*)\w+>", lowered.as_text()
    )
    sizes = [np.prod([int(n) for n in shape.split("x") if n]) for shape in constants]
    # Their word tables have 4,096 and 6,144 numbers.
    assert max(sizes) < 100
    inputs = jax.tree.leaves(lowered.args_info)
    count = len(jax.tree.leaves((model(), batch_of(1), frozen())))
    assert len(inputs) == count


@pytest.mark.slow
def test_eight_devices_compute_what_one_does(tmp_path):
    out = tmp_path / "found.json"
    script = [sys.executable, str(HELPERS / "frozen_gradients.py"), str(out)]
    subprocess.run(script, env=environment(devices=8, test=__file__), check=True)
    written = json.loads(out.read_text())
    one = written["one"]
    for mesh in ("data", "both"):
        for value in ("loss", "distillation"):  # the tolerances of microbatches
            assert written[mesh][value] == pytest.approx(one[value], rel=3e-6)
        assert written[mesh]["gradient_error"] < 3e-5
    # One gather for each encoder of its vectors, P C D, however many microbatches.
    gathers = sorted(written["data"]["gathers"])
    assert [in_loop for _, in_loop in gathers] == [False] * 3
    widths = [int(shape.rstrip("]").rpartition(",")[2]) for shape, _ in gathers]
    assert sorted(widths) == [32, 32, 48]


def test_the_flops_of_a_step_count_frozen_encoders_one_way():
    arrays = batch_of(1)
    own = flops_per_token(CONFIG, arrays)
    same = FrozenEncoder(encoder(0), EMBEDDING)
    assert step_flops(CONFIG, Frozen(), arrays) == own
    assert step_flops(CONFIG, Frozen(same, same), arrays) == pytest.approx(own * 5 / 3)


STAGE = ContrastiveStage(
    name="finetune",
    data=PairData(stores="./here", query_length=8, document_length=24),
    loss=ContrastiveLoss(temperature=0.1, false_negative_margin=-0.1),
    optimizer=OptimizerConfig(
        learning_rate=1e-2, weight_decay=0.01, warmup_steps=0, schedule="linear"
    ),
    train=LoopConfig(steps=2, batch_size=8, seed=0),
    guide=GuideConfig(model="guide"),
    teacher=TEACHER,
)


@pytest.mark.slow
def test_a_stage_trains_beside_its_guide_and_teacher(tmp_path):
    store = random_store(lengths=(8, 24), tokenizer_digest=tokenizer().digest)
    size = padded_vocabulary(tokenizer().size)
    trained, *others = (
        (encoder(seed, vocab_size=size), EMBEDDING) for seed in (0, 1, 2)
    )
    before = [jax.tree.map(np.array, jax.tree.leaves(other[0])) for other in others]
    train_contrastive(
        STAGE,
        jax.tree.map(lambda leaf: leaf.copy(), trained[0]),
        tokenizer(),
        EMBEDDING,
        {store.name: store},
        RunFolder.open(tmp_path / "finetune", {"name": "finetune"}),
        guide=others[0],
        teacher=others[1],
    )
    (line,) = read_metrics(tmp_path / "finetune" / "metrics.jsonl")
    assert np.isfinite(line["loss"]) and line["distillation"] > 0
    for leaves, (other, _) in zip(before, others, strict=True):
        jax.tree.map(np.testing.assert_array_equal, leaves, jax.tree.leaves(other))


def test_a_frozen_encoder_that_does_not_fit_is_refused():
    given = FrozenEncoder(encoder(0), EMBEDDING)
    check_frozen("guide", "them", given, longest=32)
    check_frozen("guide", "", None, longest=32)
    with pytest.raises(ValueError, match=r"guide.model='them', and no encoder is"):
        check_frozen("guide", "them", None, longest=32)
    with pytest.raises(ValueError, match=r"teacher.model='', and an encoder is given"):
        check_frozen("teacher", "", given, longest=32)
    with pytest.raises(ValueError, match="trained on up to 32 tokens, .* up to 33"):
        check_frozen("guide", "them", given, longest=33)
    check_tokenizer("guide", "them", "abc", "abc")
    with pytest.raises(ValueError, match="them' has tokenizer abc, .* trained has def"):
        check_tokenizer("guide", "them", "abc", "def")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"weight": 2.0}, "teacher.weight=2.0 needs teacher.model"),
        ({"kind": "mse"}, "teacher.kind='mse' needs teacher.model"),
        ({"model": "it", "weight": 0.0}, "teacher.weight=0.0 must be positive"),
        ({"model": "it", "temperature": -1.0}, "temperature=-1.0 must be positive"),
        (
            {"model": "it", "kind": "mse", "temperature": 0.5},
            "teacher.temperature is of kl; mse has none",
        ),
    ],
)
def test_a_teacher_without_meaning_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        TeacherConfig(**fields)


def test_a_guide_that_decides_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing without loss.false_negative_margin"):
        dataclasses.replace(STAGE, loss=ContrastiveLoss())
