"""nomic-embed-text-v1.5: fine-tuning for embeddings that can be cut to 64 dimensions.

The stage of contrastive_finetune.py (Nomic Embed, arXiv:2402.01613, section 4.3 and
Table 3) with the loss of five prefixes of each embedding (Matryoshka Representation
Learning, arXiv:2205.13147, section 3), a sum with weights of 1, after a layer norm
without parameters over the full width; its code of February 2024 where the paper is
silent. Hugging Face has the published model as nomic-ai/nomic-embed-text-v1.5.

Data: the stores of contrastive_finetune.py; its header has the command.

Hardware: the published run had one host of eight H100. Any mesh gives the same
gradient; `--memory.tokens_at_once` fits it to smaller ones.

Expected score: MTEB averages of 62.28 at 768 dimensions, 61.96 at 512, 61.04 at 256,
59.34 at 128 and 56.10 at 64 (model card of nomic-ai/nomic-embed-text-v1.5).

    python train.py --config configs/matryoshka_finetune.py
"""

from nomic_jax.data import PairSourceConfig
from nomic_jax.training import (
    ContrastiveLoss,
    ContrastiveStage,
    LoopConfig,
    OptimizerConfig,
    PairData,
    StageEmbedding,
    StartConfig,
)

BATCH_SIZE = 256

SEARCH = ("search_query: ", "search_document: ")
CLUSTERING = ("clustering: ", "clustering: ")
CLASSIFICATION = ("classification: ", "classification: ")

SOURCES = (
    PairSourceConfig("msmaro", *SEARCH, 484_864),  # so it is in the YAML
    PairSourceConfig("nq_triples", *SEARCH, 69_888),
    PairSourceConfig("nli_triplets", *CLASSIFICATION, 275_200),
    PairSourceConfig("reddit", *CLUSTERING, 199_680),
    PairSourceConfig("medi_wiki", *CLASSIFICATION, 24_832),
    PairSourceConfig("medi_stackexchange", *CLASSIFICATION, 100_352),
    PairSourceConfig("medi_flickr", *CLASSIFICATION, 50_944),
    PairSourceConfig("medi_supernli", *CLASSIFICATION, 177_408),
    PairSourceConfig("hotpot", *SEARCH, 169_728),
    PairSourceConfig("fever", *SEARCH, 139_776),
)

stages = (
    ContrastiveStage(
        name="matryoshka",
        start=StartConfig(model="nomic-ai/nomic-embed-text-v1-unsupervised"),
        data=PairData(
            stores="stores/finetune",
            query_length=512,
            document_length=512,
            num_negatives=7,
            negatives="random",
            sources=SOURCES,
        ),
        embedding=StageEmbedding(layer_norm=True),
        loss=ContrastiveLoss(
            temperature=0.02, matryoshka_dims=(768, 512, 256, 128, 64)
        ),
        optimizer=OptimizerConfig(
            learning_rate=2e-5,
            weight_decay=0.01,
            warmup_steps=400,
            schedule="linear",
            clip_norm=1.0,
        ),
        train=LoopConfig(
            # One epoch: 6,612.
            steps=sum(source.pairs // BATCH_SIZE for source in SOURCES),
            batch_size=BATCH_SIZE,
            seed=42,
            workers=8,
        ),
    ),
)
