"""A stage of curation within a run: what it judges with, and the stores it leaves.

DIR/STAGE/train/SOURCE   the pairs       DIR/STAGE/pairs/   a token store of each
DIR/STAGE/sources.json   written last
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from nomic_jax.checkpoints.hub import resolve as resolve_model
from nomic_jax.config import did_you_mean
from nomic_jax.curation.filter import Candidates, FilterStage, filter_sources
from nomic_jax.curation.mining import MineStage, mine_file
from nomic_jax.curation.pairs import (
    StagePairs,
    lengths_of,
    pairs_of,
    search_prompts,
    with_own_prompts,
)
from nomic_jax.data.sources.contrastors import NamedPairs
from nomic_jax.data.sources.registry import open_source
from nomic_jax.data.sources.source import Place
from nomic_jax.data.store.manifest import PAIRS
from nomic_jax.data.store.prepare import prepare_collection
from nomic_jax.data.store.records import PairRule
from nomic_jax.data.store.stage import (
    SOURCES,
    PrepareStage,
    SourceEntry,
    is_prepared,
    write_sources,
)
from nomic_jax.distributed import hosts
from nomic_jax.distributed.devices import digest
from nomic_jax.distributed.hosts import wait_to_see
from nomic_jax.inference.embedder import Embedder
from nomic_jax.pipeline.evaluate import say
from nomic_jax.pipeline.order import (
    Stage,
    StageKind,
    holds_out,
    is_trained,
    untrained,
)
from nomic_jax.pipeline.report import PipelineState
from nomic_jax.pipeline.train_head import _sizes
from nomic_jax.storage import join
from nomic_jax.training.mlm import MlmStage
from nomic_jax.training.run_folder import RunFolder


def misplaced(
    stage: FilterStage | MineStage, earlier: Mapping[str, Stage]
) -> Iterator[str]:
    """Say why a stage cannot follow the earlier ones."""
    is_filter = isinstance(stage, FilterStage)
    section = stage.filtering if is_filter else stage.mining
    if not is_trained(earlier) and not section.model:
        yield untrained(stage, "filtering.model" if is_filter else "mining.model")
    yield from _without_pairs(stage.name, stage.data, earlier)


def _without_pairs(
    name: str, data: StagePairs, earlier: Mapping[str, Stage]
) -> Iterator[str]:
    """Say why a stage of curation does not find its pairs, or a tokenizer."""
    if data.places:
        if not any(
            isinstance(other, PrepareStage | MlmStage) for other in earlier.values()
        ):
            yield f"{name} needs a stage before it that brings a tokenizer"
        return
    givers = {
        other_name: other
        for other_name, other in earlier.items()
        if isinstance(other, FilterStage) or holds_out(other)
    }
    if data.stage not in givers:
        hint = f": {did_you_mean(data.stage, givers)}" if givers else ""
        yield (
            f"{name} takes its pairs from {data.stage!r}, which is not a stage before "
            f"it that keeps their text, prepare or filter{hint}"
        )


def filtered(
    stage: FilterStage, carried: PipelineState, folder: RunFolder, out: str
) -> PipelineState:
    """Filter a stage's pairs, each host its blocks, and tokenise those that stay.

    Where the stage names no model, the one so far judges, with the sources' prefixes.

    Args:
        stage: which pairs, and what is asked of them.
        carried: the tokenizer of the stores, and the model so far.
        folder: of the stage; a block whose pairs are there is not judged again.
        out: of the run, which holds the stage before it.

    Raises:
        ValueError: a row holds no pair, the model is none, or of a source none stays.
    """
    if hosts.broadcast_from_host0(stage.name, lambda: is_prepared(folder.place)):
        return carried
    named = hosts.run_on_all_hosts(stage.name, lambda: pairs_of(stage.data, out))
    filtering = stage.filtering
    judge = _judge(stage.name, filtering.model, carried)
    places = [join(folder.place, "train", each.source.name) for each in named]
    candidates = [
        Candidates(
            each.source,
            each.columns,
            None if filtering.model else (each.query_prefix, each.document_prefix),
        )
        for each in named
    ]
    reports = filter_sources(candidates, judge, filtering, places, progress=True)
    kept = [report["kept"] for report in reports]
    for each, report in zip(named, reports, strict=True):
        say(
            f"{stage.name}, {each.source.name}: kept {report['kept']:,} of "
            f"{report['pairs']:,} pairs"
        )
    if nothing := [n.source.name for n, k in zip(named, kept, strict=True) if not k]:
        raise ValueError(
            f"{stage.name}: of {', '.join(nothing)} no pair is among its query's "
            f"k={filtering.k} nearest; look at the model and its prefixes"
        )

    _leave(stage, named, kept, 0, judge, carried, folder, out)
    return carried


def mined(
    stage: MineStage, carried: PipelineState, folder: RunFolder, out: str
) -> PipelineState:
    """Find hard negatives for a stage's pairs, and tokenise the pairs with them.

    All hosts embed, the first one chooses. Where the stage names no model, the one so
    far judges, with the sources' prefixes; else the named one with its own.

    Args:
        stage: which pairs, and which documents become negatives.
        carried: the tokenizer of the stores, and the model so far.
        folder: of the stage; texts whose embeddings are there are not embedded again.
        out: of the run, which holds the stage before it.

    Raises:
        ValueError: a row holds no pair, the model is none, or a source has too few
            documents.
    """
    if hosts.broadcast_from_host0(stage.name, lambda: is_prepared(folder.place)):
        return carried
    named = hosts.run_on_all_hosts(stage.name, lambda: pairs_of(stage.data, out))
    mining = stage.mining
    judge = _judge(stage.name, mining.model, carried)
    kept = []
    for each in named:
        prefixes = (each.query_prefix, each.document_prefix)
        if mining.model:
            prefixes = search_prompts(judge.config)
        counts = mine_file(
            each.source,
            dataclasses.replace(each.columns, negatives=None),
            with_own_prompts(judge, *prefixes),
            mining,
            join(folder.place, "train", f"{each.source.name}.jsonl"),
            progress=True,
        )
        kept.append(counts["kept"])
        say(
            f"{stage.name}, {each.source.name}: {mining.count} negatives for "
            f"{counts['kept']:,} of {counts['pairs']:,} pairs"
        )
    _leave(stage, named, kept, mining.count, judge, carried, folder, out)
    return carried


FILTER = StageKind("filter", FilterStage, misplaced, filtered)
MINE = StageKind("mine", MineStage, misplaced, mined)


def _leave(
    stage: FilterStage | MineStage,
    named: Sequence[NamedPairs],
    kept: Sequence[int],
    num_negatives: int,
    judge: Embedder,
    carried: PipelineState,
    folder: RunFolder,
    out: str,
) -> None:
    """Tokenise what a stage wrote below its folder, and say what it is, at last."""
    ending = ".jsonl" if isinstance(stage, MineStage) else ""

    def work() -> None:
        query_length, document_length = lengths_of(stage.data, out)
        planned, entries = [], []
        for each, number in zip(named, kept, strict=True):
            name, text = each.source.name, f"train/{each.source.name}{ending}"
            prefixes = (each.query_prefix, each.document_prefix)
            rule = PairRule(
                query_prefix=each.query_prefix,
                document_prefix=each.document_prefix,
                query_length=query_length,
                document_length=document_length,
                num_negatives=num_negatives,
            )
            planned.append((open_source(join(folder.place, text), name), rule))
            entries.append(SourceEntry(name, *prefixes, number, text))
        stores, workers = join(folder.place, PAIRS), stage.data.workers
        prepare_collection(planned, carried.tokenizer, stores, workers=workers)
        write_sources(folder.place, entries, fingerprint=digest(judge.model))

    hosts.broadcast_from_host0(stage.name, work)
    wait_to_see(join(folder.place, SOURCES))


def _judge(name: str, model: str, carried: PipelineState) -> Embedder:
    """Load the model that a stage names, the same on all hosts; else the one so far."""
    if not model:
        return carried.embedder
    judge = hosts.run_on_all_hosts(model, lambda: Embedder.from_pretrained(model))
    if hosts.count() > 1:
        hosts.assert_equal_across_hosts(
            f"model of {name}", {"digest": digest(judge.model)}
        )
    return judge


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
