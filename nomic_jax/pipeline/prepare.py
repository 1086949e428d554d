"""The prepare stage: text becomes stores of token ids and held-out tasks."""

from collections.abc import Iterator, Mapping

from nomic_jax.data.store.stage import (
    SOURCES,
    PlacesConfig,
    PrepareStage,
    is_prepared,
    prepare_corpus,
    prepare_places,
    read_sources,
    write_sources,
)
from nomic_jax.distributed import hosts
from nomic_jax.distributed.hosts import wait_to_see
from nomic_jax.pipeline.order import Stage, StageKind, is_trained
from nomic_jax.pipeline.report import PipelineState
from nomic_jax.pipeline.train_encoder import tokenizer_in, tokenizer_of
from nomic_jax.storage import join, written_here
from nomic_jax.training.run_folder import RunFolder


def misplaced(stage: PrepareStage, earlier: Mapping[str, Stage]) -> Iterator[str]:
    """Say why a stage cannot follow the earlier ones."""
    if any(isinstance(other, PrepareStage) for other in earlier.values()):
        yield f"{stage.name} would bring a second tokenizer: prepare only once"
    elif is_trained(earlier):
        yield f"{stage.name} comes after a stage that trains: prepare first"


def prepared(
    stage: PrepareStage, state: PipelineState | None, folder: RunFolder, out: str
) -> PipelineState:
    """Prepare the stores, which the first host does; begin with their tokenizer.

    Raises:
        ValueError: the text is not as it should be.
    """

    def work() -> None:
        if is_prepared(folder.place):
            return
        data = stage.data
        tokenizer = tokenizer_of(data.tokenizer) if data.tokenizer else None
        if isinstance(data, PlacesConfig):
            assert tokenizer is not None, "a PlacesConfig names its tokenizer"
            prepare_places(data, folder.place, tokenizer)
            write_sources(folder.place, (), fingerprint=tokenizer.digest)
            return
        with written_here(folder.place, last=SOURCES) as path:
            prepare_corpus(data, path, tokenizer=tokenizer)

    hosts.broadcast_from_host0(stage.name, work)
    wait_to_see(join(folder.place, SOURCES))
    held_out = read_sources(folder.place, "held_out")
    return PipelineState(tokenizer_in(folder.place), held_out)


def _done(
    stage: PrepareStage, state: PipelineState, folder: RunFolder, out: str
) -> PipelineState:
    return state  # it is prepared before the stores of later stages are checked


PREPARE = StageKind("prepare", PrepareStage, misplaced, _done, begin=prepared)
