"""What does not fit is refused before anything is trained, not hours later."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from nomic_jax.checkpoints.hub import resolve as resolve_model
from nomic_jax.curation.mining import MineStage
from nomic_jax.evaluation.extras import extra
from nomic_jax.held_out import check_sts
from nomic_jax.stages import Stage, is_place
from nomic_jax.storage import check_out, exists, join
from nomic_jax.store.corpus import PAIRS, TEXT
from nomic_jax.store.store import Store, open_stores
from nomic_jax.task_run import check_examples
from nomic_jax.tokenizer import TextTokenizer
from nomic_jax.training.checkpoints import check_checkpoints_place
from nomic_jax.training.contrastive import ContrastiveStage, pair_batches
from nomic_jax.training.frozen import check_tokenizer
from nomic_jax.training.mlm import MlmStage, mlm_batches
from nomic_jax.training.run_folder import RunFolder
from nomic_jax.training.task import TaskStage


def check_folder(
    stages: Sequence[Stage], resolved: Mapping[str, Any], out: str
) -> None:
    """Refuse a folder that the stages cannot run in, and what is not installed.

    Raises:
        ValueError: the folder cannot be written or holds another run, or a package or
            a file of sentence pairs is missing.
    """
    check_out(out)
    check_checkpoints_place(out)
    for name, config in resolved.items():
        RunFolder.check(join(out, name), config)
    missing = [name for name in resolved if not exists(join(out, name, "config.json"))]
    if missing and exists(join(out, "model")):
        raise ValueError(
            f"{join(out, 'model')} is of a run without {', '.join(missing)}; "
            f"use another --out, or remove {out}"
        )
    check_sts(stages)
    check_examples(stages)
    if not all(isinstance(stage, TaskStage) for stage in stages):
        for library in ("pytrec_eval", "bm25s"):
            extra(library)  # missed now, not when the training is done


def stores_of(place: str, kind: str, out: str) -> dict[str, Store]:
    """Open the stores that a stage of this run made, or those of a folder or URL."""
    return open_stores(place if is_place(place) else join(out, place, kind))


def check_stores(stages: Sequence[Stage], tokenizer: TextTokenizer, out: str) -> None:
    """Refuse what does not fit now, not when the stages before have run.

    Raises:
        ValueError: a stage's stores do not fit it, or a guide or teacher has another
            tokenizer than the model that it helps to train.
    """
    mines = {stage.name: stage for stage in stages if isinstance(stage, MineStage)}
    for stage in stages:
        if isinstance(stage, MlmStage):
            stores = stores_of(stage.data.stores, TEXT, out)
            mlm_batches(stage, stores, tokenizer)
        elif isinstance(stage, TaskStage):
            if stage.start.model:
                tokenizer = tokenizer_of(stage.start.model)
        elif isinstance(stage, ContrastiveStage):
            if stage.start.model:
                tokenizer = tokenizer_of(stage.start.model)
            for section, named in frozen_models(stage).items():
                digest = tokenizer_of(named).digest
                check_tokenizer(section, named, digest, tokenizer.digest)
            # Mining keeps the pairs it is given, and adds the negatives.
            data = stage.data
            while data.stores in mines:
                giver = mines[data.stores].data.stage
                data = dataclasses.replace(data, stores=giver, num_negatives=0)
            stores = stores_of(data.stores, PAIRS, out)
            pair_batches(dataclasses.replace(stage, data=data), stores, tokenizer)


def tokenizer_of(model: str) -> TextTokenizer:
    """Load the tokenizer alone of a folder or hub id."""
    return TextTokenizer.from_folder(resolve_model(model, weights=False))


def frozen_models(stage: ContrastiveStage) -> dict[str, str]:
    """Name the models that a stage uses and does not train, by their section."""
    named = {"guide": stage.guide.model, "teacher": stage.teacher.model}
    return {section: named[section] for section in named if named[section]}
