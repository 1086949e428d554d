"""Steps of PyTorch for `train.py`: transformers' NomicBERT, AdamW, the same batches."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import NomicBertConfig, NomicBertForMaskedLM, NomicBertModel

from nomic_jax import ModelConfig, Tokens
from nomic_jax.batch import MlmBatch

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
GIB = 2**30


def their_config(config: ModelConfig) -> NomicBertConfig:
    """The same architecture; nothing is dropped."""
    return NomicBertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_width,
        max_position_embeddings=config.trained_positions,
        hidden_act="silu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
    )


def on_device(array: Any) -> torch.Tensor:
    """Move an array of integers."""
    return torch.from_numpy(np.array(array, np.int64)).to(DEVICE)


class Steps:
    """Steps one after another; each is waited for."""

    def __init__(self, model: torch.nn.Module):
        """Begin with fresh weights on the device."""
        self.model = model.to(DEVICE).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-4, weight_decay=0.01, fused=True
        )

    def backward(self) -> None:
        """Compute the gradient of the whole batch."""
        raise NotImplementedError

    def __call__(self) -> None:
        """Take a step and wait for it."""
        self.optimizer.zero_grad()
        self.backward()
        self.optimizer.step()
        if GPU:
            torch.cuda.synchronize()

    def memory(self) -> float | None:
        """GiB that PyTorch has had at most in a step; on a processor it counts none."""
        if not GPU:
            return None
        torch.cuda.reset_peak_memory_stats()
        self()
        return torch.cuda.max_memory_allocated() / GIB


def autocast() -> torch.autocast:
    """Products in bfloat16 on a GPU, in float32 on a processor."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=GPU)


class Mlm(Steps):
    """A masked language model; the head sees masked tokens alone, as here."""

    def __init__(
        self, config: ModelConfig, batch: MlmBatch, rows: int, *, compiled: bool
    ):
        """Take so many rows of the batch at once, and add gradients up."""
        super().__init__(NomicBertForMaskedLM(their_config(config)))
        weights = np.asarray(batch.weights)
        self.count = int(weights.sum())
        length = batch.tokens.ids.shape[1]
        self.parts = []
        for start in range(0, len(weights), rows):
            part = slice(start, start + rows)
            used = weights[part]
            columns = np.arange(len(used))[:, None] * length + batch.positions[part]
            self.parts.append(
                tuple(
                    on_device(array)
                    for array in (
                        batch.tokens.ids[part],
                        columns[used],
                        batch.targets[part][used],
                    )
                )
            )
        self.loss: Callable[..., torch.Tensor] = self.summed
        if compiled:
            # The number of masked tokens differs between parts; their rows do not.
            self.loss = torch.compile(self.summed, dynamic=None)

    def summed(self, ids: Any, places: Any, targets: Any) -> torch.Tensor:
        """Sum the cross-entropy of the masked tokens."""
        hidden = self.model.nomic_bert(ids).last_hidden_state
        masked = hidden.reshape(-1, hidden.shape[-1])[places]
        scores = self.model.cls(masked).float()
        return torch.nn.functional.cross_entropy(scores, targets, reduction="sum")

    def backward(self) -> None:
        """Add up the gradients of the parts."""
        for part in self.parts:
            with autocast():
                value = self.loss(*part) / self.count
            value.backward()


class Pairs(Steps):
    """sentence-transformers' loss of pairs, plain or with gradient caching."""

    def __init__(
        self,
        config: ModelConfig,
        batches: Sequence[tuple[Tokens, Tokens]],
        *,
        temperature: float,
        rows: int | None = None,
    ):
        """Take the batches in turn, in microbatches of so many rows of a side."""
        from sentence_transformers import SentenceTransformer, losses, models

        encoder = Encoder(NomicBertModel(their_config(config)))
        pooling = models.Pooling(config.width, "mean")
        model = SentenceTransformer(modules=[encoder, pooling], device=DEVICE)
        super().__init__(model)
        scale = 1 / temperature
        if rows is None:
            self.loss = losses.MultipleNegativesRankingLoss(model, scale=scale)
        else:
            self.loss = losses.CachedMultipleNegativesRankingLoss(
                model, scale=scale, mini_batch_size=rows
            )
        self.batches = [
            [
                {"input_ids": on_device(t.ids), "attention_mask": on_device(t.mask)}
                for t in sides
            ]
            for sides in batches
        ]

    def __call__(self) -> None:
        """Take a step on each of the batches."""
        for features in self.batches:
            self.features = features
            super().__call__()

    def backward(self) -> None:
        """Compute the gradient of a batch."""
        with autocast():
            value = self.loss([dict(side) for side in self.features], None)
        value.backward()


class Encoder(torch.nn.Module):
    """An encoder as sentence-transformers calls one."""

    def __init__(self, model: torch.nn.Module):
        """Hold a model of transformers."""
        super().__init__()
        self.model = model

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Add the hidden states to the features."""
        out = self.model(features["input_ids"], features["attention_mask"])
        return {**features, "token_embeddings": out.last_hidden_state}
