r"""nomic-embed-text-v1-ablated: the recipe without FEVER, HotpotQA and most of MEDI.

Nomic Embed, arXiv:2402.01613: these are trained on by others at the top of MTEB, whose
test sets they resemble; the published model without them shows what they give. The
chain is that of nomic_embed_text_v1.py; only the labelled pairs differ, five sources of
ten, as the data list of its code has them: msmarco, nq, nli, reddit and medi_wiki.

Data: that of nomic_embed_text_v1.py, with `finetune_ablated_pairs.yaml` in the place of
`finetune_pairs.yaml`. An epoch of the published counts is 4,119 steps.

Hardware: that of nomic_embed_text_v1.py.

Expected score: an MTEB average of 61.4 (arXiv:2402.01613).

    python train.py --config configs/nomic_embed_text_v1_ablated.py
"""

import dataclasses

import contrastive_finetune
import nomic_embed_text_v1

KEPT = ("msmaro", "nq_triples", "nli_triplets", "reddit", "medi_wiki")
BATCH_SIZE = contrastive_finetune.BATCH_SIZE


def ablated(stage):
    """Leave sources out of mining, and steps out of fine-tuning."""
    if stage.name == "mine":
        places = ("finetune_ablated_pairs.yaml",)
        data = dataclasses.replace(stage.data, places=places)
        return dataclasses.replace(stage, data=data)
    if stage.name == "finetune":
        sources = [s for s in contrastive_finetune.SOURCES if s.name in KEPT]
        steps = sum(source.pairs // BATCH_SIZE for source in sources)
        return dataclasses.replace(
            stage, train=dataclasses.replace(stage.train, steps=steps)
        )
    return stage


stages = tuple(map(ablated, nomic_embed_text_v1.stages))
