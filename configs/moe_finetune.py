r"""nomic-embed-text-v2-moe: fine-tuning with ten negatives, for 768 and 256 entries.

Training Sparse Mixture Of Experts Text Embedding Models, arXiv:2502.07972, section 3;
its code, contrastors, where the paper is silent. The loss is the sum of those of two
prefixes of each embedding (Matryoshka Representation Learning, arXiv:2205.13147,
section 3), without the layer norm of v1.5. Hugging Face has the published model as
nomic-ai/nomic-embed-text-v2-moe.

Data: MIRACL in sixteen languages, FEVER, HotpotQA, MS MARCO, Natural Questions, titles
and bodies of StackExchange, and SQuAD, all with the prefixes of search and mined
negatives. With the data YAML of contrastors:

    nomic-jax prepare multilingual_bge.yaml --out stores/multilingual_finetune \
        --tokenizer FacebookAI/xlm-roberta-base \
        --query-length 512 --document-length 512 \
        --num-negatives 10 --too-few-negatives repeat

It begins with what moe_pretrain.py leaves.

Hardware: the published run had one host of eight H100. Any mesh gives the same
gradient; `--mesh.expert` splits the experts, `--memory.tokens_at_once` the batch.

Expected score: none that this data and length are known to give; the model card says
cos("search_document: Hello!", "search_document: ¡Hola!") = 0.9118 of the published one.

    python train.py --config configs/moe_finetune.py
"""

from nomic_jax.training import (
    ContrastiveLoss,
    ContrastiveStage,
    LoopConfig,
    MemoryConfig,
    OptimizerConfig,
    PairData,
    StartConfig,
)

LENGTH = 512

stages = (
    # Experts are no longer balanced: the coefficient stays at its 0.
    ContrastiveStage(
        name="finetune",
        start=StartConfig(model="runs/moe_pretrain/model"),
        data=PairData(
            stores="stores/multilingual_finetune",
            query_length=LENGTH,
            document_length=LENGTH,
            num_negatives=10,
            negatives="first",
        ),
        # The dims of the model card; the code's file for this stage has none.
        loss=ContrastiveLoss(temperature=0.02, matryoshka_dims=(768, 256)),
        optimizer=OptimizerConfig(
            learning_rate=2e-5,
            weight_decay=0.01,
            warmup_steps=400,
            schedule="linear",
            clip_norm=1.0,
        ),
        train=LoopConfig(
            # Published was one epoch, of pairs whose number is not: that of a store is
            # the batches that `prepare` counts in it.
            steps=6_000,
            batch_size=256,
            seed=42,
            workers=8,
        ),
        memory=MemoryConfig(tokens_at_once=128 * LENGTH, remat="full"),
    ),
)
