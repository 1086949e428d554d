r"""nomic-xlm-2048: XLM-R learns rotary positions, by masked language modelling.

Training Sparse Mixture Of Experts Text Embedding Models, arXiv:2502.07972, section 3;
its code, contrastors, where the paper is silent. The weights are those of
FacebookAI/xlm-roberta-base; rotary positions take the place of its absolute ones.

Data: CC-100 (Conneau et al. 2019, arXiv:1911.02116), 110 languages, a store for each;
every batch is of one language, taken in proportion to its rows to the power of 0.3.
Documents are packed into rows of 2,048 tokens that attend across them. For each
language:

    nomic-jax prepare 'cc100/en/*.parquet' --name en --out stores/multilingual_text \
        --tokenizer FacebookAI/xlm-roberta-base --text text --row-length 2048 \
        --blank drop

Hardware: the published run had one host of eight H100. Any mesh gives the same
gradient; `--mesh.fsdp` and `--memory.tokens_at_once` fit it to others.

Expected score: none is published for this stage.

    python train.py --config configs/multilingual_mlm.py
"""

from nomic_jax.data import Sampling
from nomic_jax.training import (
    LoopConfig,
    MemoryConfig,
    MlmData,
    MlmStage,
    ModelSize,
    OptimizerConfig,
    StartConfig,
)

ROW_LENGTH = 2048

stages = (
    MlmStage(
        name="mlm",
        start=StartConfig(model="FacebookAI/xlm-roberta-base"),
        model=ModelSize(
            num_layers=12,
            width=768,
            num_heads=12,
            mlp_width=3072,
            trained_positions=ROW_LENGTH,
            # As the published model has it; the code's file for this stage has 100,000.
            rope_base=10_000.0,
            # The code took 0.1 from XLM-R's config; what was used is not known.
            dropout=0.0,
        ),
        data=MlmData(
            stores="stores/multilingual_text", row_length=ROW_LENGTH, mask_rate=0.3
        ),
        sampling=Sampling(policy="temperature", exponent=0.3),
        optimizer=OptimizerConfig(
            learning_rate=4e-4,
            weight_decay=0.0,
            warmup_steps=1000,
            # To 0 at the last step. Published warmup and decay were counted in
            # microbatches, so that the rate rose for longer and never reached 0.
            schedule="linear",
            beta1=0.9,
            beta2=0.98,
            epsilon=1e-6,
            clip_norm=0.0,
        ),
        train=LoopConfig(steps=25_000, batch_size=4096, seed=42, workers=4),
        # 64 rows a device, as 512 on eight were: 8 microbatches a step there.
        memory=MemoryConfig(tokens_at_once=64 * ROW_LENGTH, remat="full"),
    ),
)
