r"""nomic-embed-text-v2-moe before its fine-tuning: experts made of a dense encoder.

Training Sparse Mixture Of Experts Text Embedding Models, arXiv:2502.07972, section 3;
its code, contrastors, where the paper is silent. Each MLP of layers 1, 3, 5... becomes
eight experts, copies of it, of which a token goes to two; then the whole is trained on
weakly related pairs, every batch of one source.

Data: 305 sources, the 29 of contrastive_pretrain.py and multilingual C4 and CC-News by
language, all of them with the prefixes of search. With the data YAML of contrastors:

    nomic-jax prepare multilingual_full.yaml --out stores/multilingual_pairs \
        --tokenizer FacebookAI/xlm-roberta-base \
        --query-length 128 --document-length 128

Set `--start.model runs/multilingual_mlm/model` for an encoder of one's own.

Hardware: the published run had one host of eight H100. Any mesh gives the same
gradient; `--mesh.expert` splits the experts, `--memory.tokens_at_once` the batch.

Expected score: none is published for this stage.

    python train.py --config configs/moe_pretrain.py
"""

from nomic_jax.training import (
    ContrastiveLoss,
    ContrastiveStage,
    ExpertsConfig,
    LoopConfig,
    MemoryConfig,
    OptimizerConfig,
    PairData,
    StartConfig,
)

# The code's file says so; its loader passed over that, and cut queries at 32 tokens and
# documents at 256. Which the published run had is not known.
LENGTH = 128
BATCH_SIZE = 16_384

stages = (
    ContrastiveStage(
        name="pretrain",
        start=StartConfig(
            model="nomic-ai/nomic-xlm-2048",
            num_experts=8,
            experts_per_token=2,
            # As published; with them a copy computes what the MLP did.
            keep_biases=False,
        ),
        # Of both sides' tokens together, without padding. Published was 1.0 times the
        # sum of both sides' losses, padding counted, added to a contrastive loss that
        # was multiplied by the eight devices as this one was not: 2 x 1.0 / 8 of it.
        experts=ExpertsConfig(balance_coefficient=0.25),
        data=PairData(
            stores="stores/multilingual_pairs",
            query_length=LENGTH,
            document_length=LENGTH,
        ),
        loss=ContrastiveLoss(temperature=0.02),
        optimizer=OptimizerConfig(
            learning_rate=8e-5,
            weight_decay=0.01,
            warmup_steps=1000,
            schedule="inverse_sqrt",
            clip_norm=1.0,
        ),
        train=LoopConfig(
            # Published were two epochs of sources whose numbers of pairs are not. Two
            # of a store are twice the batches that `prepare` counts in it.
            steps=200_000,
            batch_size=BATCH_SIZE,
            seed=42,
            workers=8,
        ),
        memory=MemoryConfig(tokens_at_once=512 * LENGTH, remat="full"),
    ),
)
