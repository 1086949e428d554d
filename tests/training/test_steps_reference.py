"""Contrastive steps next to sentence-transformers' losses and PyTorch's AdamW."""

import jax
import numpy as np
import pytest
from flax import nnx
from published_names import published
from stored_pairs import random_store

from nomic_jax.config import EmbeddingConfig
from nomic_jax.data.pairs import PairBatches
from nomic_jax.data.schedule import Schedule
from nomic_jax.model.encoder import NomicBert
from nomic_jax.training.contrastive import BiEncoder, contrastive_objective
from nomic_jax.training.losses.contrastive import ContrastiveLoss
from nomic_jax.training.optimizer import OptimizerConfig, make_optimizer
from nomic_jax.training.placement import Placement
from nomic_jax.training.steps import TrainState, make_update

pytestmark = pytest.mark.torch

STEPS, WARMUP, RATE, QUERIES, NEGATIVES = 10, 3, 1e-3, 6, 2
LOSS = ContrastiveLoss(temperature=0.05)
EMBEDDING = EmbeddingConfig(pooling="mean", layer_norm=False, max_length=28)
ADAMW = OptimizerConfig(
    learning_rate=RATE,
    weight_decay=0.1,
    warmup_steps=WARMUP,
    schedule="linear",
    epsilon=1e-6,
    clip_norm=1.0,
)


@pytest.fixture(scope="module")
def store():
    # Texts on both sides of the 16 positions that the model was trained on.
    return random_store(records=60, negatives=NEGATIVES, lengths=(12, 28))


@pytest.fixture(scope="module")
def schedule(store):
    return Schedule.over({store.name: len(store)}, batch_size=QUERIES, seed=0)


@pytest.fixture(scope="module")
def ours(tiny_config, store, schedule):
    """The loss of each step, and the parameters before the first and after each."""
    batches = PairBatches(
        {store.name: store},
        schedule,
        query_length=12,
        document_length=28,
        num_negatives=NEGATIVES,
        negatives="first",
        pad_id=0,
        seed=0,
    )
    model = jax.jit(lambda: NomicBert(tiny_config, rngs=nnx.Rngs(0)))()
    optimizer = make_optimizer(ADAMW, STEPS)
    objective = contrastive_objective(EMBEDDING, LOSS, Placement(most_rows=5))
    update = make_update(jax.value_and_grad(objective, has_aux=True), optimizer, seed=0)
    state = TrainState.fresh(BiEncoder.of(model, LOSS), optimizer)
    parameters, metrics = [published(state.model.encoder)], []
    for step in range(STEPS):
        state, found = update(state, batches(step).arrays)
        metrics.append(jax.device_get(found))
        parameters.append(published(state.model.encoder))
    return metrics, parameters


def columns(store, schedule, step):
    """The texts of a step, a column of queries and one of each place in a group."""
    import torch

    _, records = schedule.at(step)
    for texts in zip(*store.read(records), strict=True):
        ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text.astype(np.int64))
        yield {"input_ids": ids, "attention_mask": ids != 0}


def reference(config, weights):
    """A model as sentence-transformers' losses take it, in float64."""
    import torch
    import torch_reference
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    shape = torch_reference.Shape(
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        epsilon=config.layer_norm_epsilon,
        base=config.rope_base,
        trained=config.trained_positions,
        factor=config.rope_scaling_factor,
    )

    class Reference(torch.nn.Module):
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
        )
        max_seq_length = 28

        def get_embedding_dimension(self):
            return config.width

        def __getitem__(self, index):  # its first module, they ask of what kind
            return self

        def forward(self, features):
            mask = features["attention_mask"]
            hidden = torch_reference.hidden_states(
                weights, features["input_ids"], mask, shape
            )[-1]
            total = (hidden * mask[..., None]).sum(dim=1)
            pooled = total / mask.sum(dim=1, keepdim=True)
            return {"sentence_embedding": pooled}

    return Reference()


def decays(name, weight):
    """The reference's rule: vectors and biases do not."""
    return weight.squeeze().ndim >= 2 and "bias" not in name


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("MultipleNegativesRankingLoss", {}),
        ("CachedMultipleNegativesRankingLoss", {"mini_batch_size": 4}),
    ],
)
def test_every_step_is_that_of_sentence_transformers_and_torch_adamw(
    tiny_config, store, schedule, ours, kind, options
):
    import torch
    from sentence_transformers.sentence_transformer import losses

    metrics, parameters = ours
    weights = {
        name: torch.tensor(np.float64(array), requires_grad=True)
        for name, array in parameters[0].items()
    }
    loss = getattr(losses, kind)(
        reference(tiny_config, weights), scale=1 / LOSS.temperature, **options
    )
    groups = [
        {
            "params": [w for name, w in weights.items() if decays(name, w) == decay],
            "weight_decay": ADAMW.weight_decay * decay,
        }
        for decay in (True, False)
    ]
    adamw = torch.optim.AdamW(
        groups, lr=RATE, betas=(ADAMW.beta1, ADAMW.beta2), eps=ADAMW.epsilon
    )
    rates = torch.optim.lr_scheduler.LambdaLR(
        adamw, lambda n: min(n / WARMUP, (STEPS - n) / (STEPS - WARMUP))
    )
    for step in range(STEPS):
        value = loss(list(columns(store, schedule, step)), None)
        adamw.zero_grad()
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), ADAMW.clip_norm)
        adamw.step()
        rates.step()
        # Theirs is in float64. Of float32's 6e-8 two layers and logits of 20 make some
        # 6e-7 of the loss and 1e-5 of the gradient's norm.
        assert float(metrics[step]["loss"]) == pytest.approx(value.item(), rel=3e-6)
        found = float(metrics[step]["gradient_norm"])
        assert found == pytest.approx(norm.item(), rel=5e-5)
        for name, weight in weights.items():
            # A step moves a weight by up to 1e-3; ten of them came to 3.4e-7 apart, of
            # weights near 1, which float32 holds to 6e-8.
            np.testing.assert_allclose(
                parameters[step + 1][name],
                weight.detach().numpy(),
                rtol=0,
                atol=1e-6,
                err_msg=f"{name} after step {step + 1}",
            )
