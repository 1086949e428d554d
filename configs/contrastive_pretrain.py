r"""nomic-embed-text-v1-unsupervised: contrastive pretraining on 235 million pairs.

Nomic Embed, arXiv:2402.01613, section 4.2 and Table 7; its code of February 2024 where
the paper is silent. Hugging Face has the published model as
nomic-ai/nomic-embed-text-v1-unsupervised.

Data: the 29 sources below, of weakly related pairs that a consistency filter left. With
the data YAML of contrastors, of the code that came with the paper:

    nomic-jax prepare contrastive_pretrain.yaml --out stores/pretrain \
        --tokenizer nomic-ai/nomic-bert-2048 \
        --query-length 2048 --document-length 2048

The run refuses stores that are not these sources, have other prefixes, or fewer pairs.
The paper's numbers are those of whole batches of each shard; where a store holds the
rest of its shards too, only the first ones are used.

Hardware: the published run had one host of eight H100. Any mesh gives the same
gradient; `--memory.tokens_at_once` fits it to others.

Expected score: on MTEB that of nomic-ai/nomic-embed-text-v1-unsupervised.

    python train.py --config configs/contrastive_pretrain.py
"""

from nomic_jax.data import PairSourceConfig
from nomic_jax.training import (
    ContrastiveLoss,
    ContrastiveStage,
    LoopConfig,
    MemoryConfig,
    OptimizerConfig,
    PairData,
    StartConfig,
)

LENGTH = 2048
BATCH_SIZE = 16_384

SEARCH = ("search_query: ", "search_document: ")
CLUSTERING = ("clustering: ", "clustering: ")
CLASSIFICATION = ("classification: ", "classification: ")

SOURCES = (
    PairSourceConfig("reddit_title_body", *CLUSTERING, 64_978_944),
    PairSourceConfig("amazon_reviews", *CLASSIFICATION, 38_682_624),
    PairSourceConfig("paq", *SEARCH, 52_953_088),
    PairSourceConfig("s2orc_citation_titles", *CLUSTERING, 7_585_792),
    PairSourceConfig("s2orc_title_abstract", *CLUSTERING, 35_438_592),
    PairSourceConfig("s2orc_abstract_citation", *CLUSTERING, 7_503_872),
    PairSourceConfig("s2orc_abstract_body", *CLUSTERING, 6_389_760),
    PairSourceConfig("wikianswers", *CLASSIFICATION, 9_912_320),
    PairSourceConfig("wikipedia", *CLASSIFICATION, 6_078_464),
    PairSourceConfig("gooaq", *SEARCH, 1_245_184),
    PairSourceConfig("codesearch", *CLUSTERING, 835_584),
    PairSourceConfig("yahoo_title_answer", *SEARCH, 262_144),
    PairSourceConfig("agnews", *CLASSIFICATION, 409_600),
    PairSourceConfig("amazonqa", *SEARCH, 212_992),
    PairSourceConfig("yahoo_qa", *SEARCH, 131_072),
    PairSourceConfig("yahoo_title_question", *SEARCH, 196_608),
    PairSourceConfig("ccnews", *CLASSIFICATION, 344_064),
    PairSourceConfig("npr", *CLASSIFICATION, 344_064),
    PairSourceConfig("eli5", *SEARCH, 98_304),
    PairSourceConfig("cnn", *CLASSIFICATION, 278_528),
    PairSourceConfig("stackexchange_duplicate_questions", *CLUSTERING, 65_536),
    PairSourceConfig("stackexchange_title_body", *CLUSTERING, 65_536),
    PairSourceConfig("stackexchange_body_body", *CLUSTERING, 65_536),
    PairSourceConfig("sentence_compression", *CLASSIFICATION, 163_840),
    PairSourceConfig("wikihow", *CLASSIFICATION, 81_920),
    PairSourceConfig("altlex", *CLASSIFICATION, 98_304),
    PairSourceConfig("quora", *CLASSIFICATION, 32_768),
    PairSourceConfig("simplewiki", *CLASSIFICATION, 81_920),
    PairSourceConfig("squad", *SEARCH, 16_384),
)

stages = (
    ContrastiveStage(
        name="pretrain",
        start=StartConfig(model="nomic-ai/nomic-bert-2048"),
        data=PairData(
            stores="stores/pretrain",
            query_length=LENGTH,
            document_length=LENGTH,
            sources=SOURCES,
        ),
        loss=ContrastiveLoss(temperature=0.02),
        optimizer=OptimizerConfig(
            learning_rate=2e-4,
            weight_decay=0.01,
            warmup_steps=700,
            schedule="inverse_sqrt",
            clip_norm=1.0,
        ),
        train=LoopConfig(
            # One epoch: 14,316.
            steps=sum(source.pairs // BATCH_SIZE for source in SOURCES),
            batch_size=BATCH_SIZE,
            seed=42,
            workers=8,
        ),
        # 64 rows a device, as the published chunks were.
        memory=MemoryConfig(tokens_at_once=64 * LENGTH),
    ),
)
