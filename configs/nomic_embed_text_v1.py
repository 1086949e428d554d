r"""nomic-embed-text-v1 from text and pairs alone: the whole recipe as one run.

Nomic Embed, arXiv:2402.01613: a masked language model on long rows (section 3.3), a
consistency filter that leaves 235 of 470 million weakly related pairs (section 3.2),
contrastive pretraining on them (section 4.2), hard negatives mined for the labelled
pairs and fine-tuning with seven of twenty, drawn again each time (section 4.3), and
evaluation. The numbers are those of mlm.py, contrastive_pretrain.py and
contrastive_finetune.py, which train the same stages one by one from what was published.

Data:

* `bookcorpus/*.parquet` and `wikipedia/*.parquet`: see mlm.py.
* `pretrain_pairs.yaml`: a data YAML of the raw pairs. Published are those that the
  filter left: with them take contrastive_pretrain.py.
* `finetune_pairs.yaml`: a data YAML of the labelled pairs, objective `paired`.
  Published are those with negatives: with them take contrastive_finetune.py.
* `beir/NAME`: folders in BEIR's layout; `nano_beir/NAME`, small ones that are measured
  during training. The whole of MTEB needs a hub; docs/mteb.md has it.

Hardware: the published run had one host of eight H100, a week in all. Any mesh gives
the same gradient; `--mesh.fsdp` and `--memory.tokens_at_once` fit it to others.

Expected score: an MTEB average of 62.39 (model card of nomic-ai/nomic-embed-text-v1).

    python train.py --config configs/nomic_embed_text_v1.py
"""

import dataclasses

import contrastive_finetune
import contrastive_pretrain
import mlm

from nomic_jax.curation import Filtering, FilterStage, MineStage, Mining, StagePairs
from nomic_jax.data import PlacesConfig, PrepareStage
from nomic_jax.evaluation import EvaluateStage, EvaluationConfig
from nomic_jax.training import StartConfig

GTE_BASE = "thenlper/gte-base"  # judges pairs and finds negatives
BEIR = (
    *("arguana", "climate-fever", "dbpedia-entity", "fever", "fiqa", "hotpotqa"),
    *("msmarco:dev", "nfcorpus", "nq", "quora", "scidocs", "scifact", "trec-covid"),
    "webis-touche2020",
)
NANO_BEIR = ("NanoFiQA2018", "NanoMSMARCO", "NanoNFCorpus", "NanoNQ", "NanoSciFact")

(MLM,) = mlm.stages
(PRETRAIN,) = contrastive_pretrain.stages
(FINETUNE,) = contrastive_finetune.stages


def watched(stage, **data):
    """Begin with what the stage before left; measure, and keep the best checkpoint."""
    tasks = tuple(f"retrieval:nano_beir/{name}" for name in NANO_BEIR)
    return dataclasses.replace(
        stage,
        start=StartConfig(),
        data=dataclasses.replace(stage.data, sources=(), **data),
        train=dataclasses.replace(
            stage.train,
            tasks=tasks,
            evaluate_every=1000,
            save_every=1000,
            best="evaluation/NanoMSMARCO/ndcg@10",
        ),
    )


stages = (
    PrepareStage(
        name="prepare",
        data=PlacesConfig(
            tokenizer="google-bert/bert-base-uncased",
            text=("bookcorpus/*.parquet", "wikipedia/*.parquet"),
            row_length=mlm.ROW_LENGTH,
            blank="drop",
            workers=8,
        ),
    ),
    dataclasses.replace(MLM, data=dataclasses.replace(MLM.data, stores="prepare")),
    FilterStage(
        name="filter",
        data=StagePairs(
            places=("pretrain_pairs.yaml",),
            query_length=contrastive_pretrain.LENGTH,
            document_length=contrastive_pretrain.LENGTH,
            workers=8,
        ),
        filtering=Filtering(model=GTE_BASE, k=2, block=1_000_000, blank="drop"),
    ),
    watched(PRETRAIN, stores="filter"),
    MineStage(
        name="mine",
        data=StagePairs(
            places=("finetune_pairs.yaml",),
            query_length=FINETUNE.data.query_length,
            document_length=FINETUNE.data.document_length,
            workers=8,
        ),
        # The nearest twenty without a margin; training draws seven of them.
        mining=Mining(model=GTE_BASE, count=20, pool=20, margin=None),
    ),
    watched(FINETUNE, stores="mine"),
    EvaluateStage(
        name="evaluate",
        evaluation=EvaluationConfig(
            tasks=tuple(f"retrieval:beir/{name}" for name in BEIR),
            lengths=(512,),
            precisions=("float32", "int8", "binary"),
        ),
    ),
)
