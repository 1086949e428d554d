"""What does not fit is refused before anything is trained, not hours later."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from nomic_jax import hosts
from nomic_jax.checkpoints.config_keys import read_config_keys
from nomic_jax.checkpoints.families import Family
from nomic_jax.checkpoints.hub import resolve as resolve_model
from nomic_jax.checkpoints.json_files import read_json
from nomic_jax.checkpoints.reader import FORMAT
from nomic_jax.checkpoints.sentence_transformers_folder import (
    tokenizer_folder,
    transformer_folder,
)
from nomic_jax.config import ModelConfig
from nomic_jax.curation.filter_stage import FilterStage
from nomic_jax.curation.mining import MineStage
from nomic_jax.curation.stage_pairs import pairs_of
from nomic_jax.data.answer_windows import check_windows
from nomic_jax.evaluation.extras import extra
from nomic_jax.held_out import check_tasks
from nomic_jax.sources.source import Place
from nomic_jax.stage_order import Stage, is_place
from nomic_jax.storage import check_out, exists, join
from nomic_jax.store.collection import PAIRS, TEXT
from nomic_jax.store.store import Store, open_stores
from nomic_jax.task_run import check_examples
from nomic_jax.tokenizer import TextTokenizer
from nomic_jax.training.checkpoints import check_checkpoints_place
from nomic_jax.training.contrastive import ContrastiveStage, pair_batches
from nomic_jax.training.frozen import check_tokenizer
from nomic_jax.training.mlm import MlmStage, mlm_batches
from nomic_jax.training.run_folder import RunFolder
from nomic_jax.training.task import TaskStage
from nomic_jax.training.task_model import check_model


def check_folder(
    stages: Sequence[Stage], resolved: Mapping[str, Any], out: str
) -> None:
    """Refuse a folder that the stages cannot run in, and what is not installed.

    Raises:
        ValueError: the folder cannot be written or holds another run, or a package or
            a task of an evaluation is missing.
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
    if hosts.is_first():  # which measures, and tasks may be large
        check_tasks(stages)
    check_curation(stages)
    check_examples(stages)
    check_models(stages)
    if not all(isinstance(stage, TaskStage) for stage in stages):
        for library in ("pytrec_eval", "bm25s"):
            extra(library)  # missed now, not when the training is done


def check_curation(stages: Sequence[Stage]) -> None:
    """Refuse places and models of filter and mine stages that are not there.

    Of each source the first row is looked at, of a model its config.

    Raises:
        ValueError: a place holds no pairs, two sources share a name, or a model is
            none.
    """
    for stage in stages:
        if not isinstance(stage, FilterStage | MineStage):
            continue
        if stage.data.places:
            for each in pairs_of(stage.data, ""):
                (row,) = each.source.rows(0, 1)
                each.columns.pair(row, Place(each.source, 0), allow_blank=True)
        section = stage.filtering if isinstance(stage, FilterStage) else stage.mining
        if section.model:
            _sizes(resolve_model(section.model, weights=False))


def check_models(stages: Sequence[Stage]) -> None:
    """Refuse task stages that ask for more than the models they start with have.

    Of a model that an earlier stage trains only its start is looked at, and of one that
    is drawn nothing: there training says what does not fit, when it comes to it.

    Raises:
        ValueError: rows are longer than a model's positions, windows would not move on,
            or a model has no token types to tell sentences by.
    """
    starts: dict[str, str] = {}  # of each stage the model that its own began as
    last = ""
    for stage in stages:
        if isinstance(stage, MlmStage):
            last = ""
        elif isinstance(stage, ContrastiveStage):
            last = stage.start.model or last
        elif isinstance(stage, TaskStage):
            start = stage.start
            last = start.model or (starts.get(start.stage, "") if start.stage else last)
            if last:
                _check_model(stage, last)
        starts[stage.name] = last


def _check_model(stage: TaskStage, model: str) -> None:
    data = stage.data
    sizes = _sizes(resolve_model(model, weights=False))
    check_model(stage.name, stage.head, data, **sizes)
    if stage.head.kind == "question_answering":
        check_windows(
            tokenizer_of(model),
            max_length=data.max_length,
            question_length=data.question_length,
            stride=data.stride,
        )


def _sizes(folder: Path) -> dict[str, Any]:
    """Read what `check_model` asks for from a config; its weights are not looked at."""
    if (folder / "modules.json").is_file():
        folder = transformer_folder(folder)
    values = read_json(folder / "config.json")
    family = values.get("model_type", "nomic_bert")
    if values.get("format") == FORMAT:
        fields = dataclasses.asdict(ModelConfig.from_json(values.get("model", {})))
    elif family in get_args(Family):
        fields, _ = read_config_keys(values, family)
    else:
        fields = {}
    # What a config lacks is told with all else that is wrong when the model is read.
    found: dict[str, Any] = {
        name: fields[name] if isinstance(fields.get(name), int) else sys.maxsize
        for name in ("trained_positions", "type_vocab_size")
    }
    return found | {"stretched": fields.get("rope_scaling_factor") is not None}


def stores_of(place: str, kind: str, out: str) -> dict[str, Store]:
    """Open the stores that a stage of this run made, or those of a folder or URL."""
    return open_stores(place if is_place(place) else join(out, place, kind))


def check_stores(stages: Sequence[Stage], tokenizer: TextTokenizer, out: str) -> None:
    """Refuse what does not fit now, not when the stages before have run.

    Raises:
        ValueError: a stage's stores do not fit it, or a guide or teacher has another
            tokenizer than the model that it helps to train.
    """
    by_name = {stage.name: stage for stage in stages}
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
            # Mining keeps the pairs it is given and adds the negatives, a filter keeps
            # some: what the first of them has too little of, the last one has.
            data = stage.data
            while isinstance(
                giver := by_name.get(data.stores), FilterStage | MineStage
            ):
                stores = giver.data.stage
                if giver.data.query_length or giver.data.document_length:
                    stores = ""  # tokenised anew
                data = dataclasses.replace(data, stores=stores, num_negatives=0)
            if data.stores:
                stores = stores_of(data.stores, PAIRS, out)
                pair_batches(dataclasses.replace(stage, data=data), stores, tokenizer)


def tokenizer_of(model: str) -> TextTokenizer:
    """Load the tokenizer alone of a folder or hub id."""
    folder = tokenizer_folder(resolve_model(model, weights=False))
    return TextTokenizer.from_folder(folder)


def frozen_models(stage: ContrastiveStage) -> dict[str, str]:
    """Name the models that a stage uses and does not train, by their section."""
    named = {"guide": stage.guide.model, "teacher": stage.teacher.model}
    return {section: named[section] for section in named if named[section]}
