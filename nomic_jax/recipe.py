"""Run a config's stages in order; what `train.py` calls.

    DIR/STAGE/   config.json, what the stage made, evaluation.json
    DIR/model/   the exported model        DIR/report.html

A stage that is complete is not run again, so the same command resumes. Of several
hosts, which see the same folder, all train; the rest is the first one's, on its own
devices, and the others wait.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nomic_jax import hosts
from nomic_jax.backend import keep_compiled_programs
from nomic_jax.curation.filter_stage import FilterStage
from nomic_jax.curation.mining import MineStage
from nomic_jax.curation_run import filtered, mined
from nomic_jax.encoder_run import (
    from_model,
    from_stores,
    tokenizer_in,
    trained_contrastive,
    trained_mlm,
)
from nomic_jax.evaluation.stage import EvaluateStage
from nomic_jax.folder_copy import written_here
from nomic_jax.held_out import evaluated, say
from nomic_jax.preflight import (
    check_folder,
    check_stores,
    tokenizer_of,
)
from nomic_jax.report import format_table
from nomic_jax.results import Carried, finish
from nomic_jax.shared_folder import check_shared, wait_to_see
from nomic_jax.stages import KINDS, Stage, check_stages, resolve
from nomic_jax.storage import join
from nomic_jax.store.corpus import (
    SOURCES,
    PrepareStage,
    is_prepared,
    prepare,
    read_sources,
    write_sources,
)
from nomic_jax.store.places import PlacesConfig, prepare_places
from nomic_jax.task_run import begin_task, trained_task
from nomic_jax.training.contrastive import (
    ContrastiveStage,
)
from nomic_jax.training.mlm import MlmStage
from nomic_jax.training.run_folder import RunFolder
from nomic_jax.training.task import TaskStage


def run(stages: Sequence[Stage], out: str | Path) -> None:
    """Run the stages, or what is left of them; export the model, write the report.

    Args:
        stages: in order; each uses what those before it left.
        out: the run's folder, local or a URL of a store that Orbax writes to.

    Raises:
        ValueError: the stages do not fit one another, the folder holds a run of another
            config, or the text is not as it should be.
        SystemExit: with status 75 after a signal, once the state is saved.
    """
    check_stages(stages)
    out, resolved = str(out), resolve(stages)
    facts = {"config": resolved, "versions": hosts.versions()}
    hosts.agree("config and packages", facts)
    hosts.together("run folder", lambda: check_folder(stages, resolved, out))
    check_shared(out)
    keep_compiled_programs()
    carried: Carried | None = None
    for number, stage in enumerate(stages, 1):
        folder = _opened(join(out, stage.name), resolved[stage.name])
        say(f"[{number}/{len(stages)}] {stage.name} ({KINDS[type(stage)]})")
        begins = carried is None or isinstance(stage, PrepareStage)
        carried = _begun(stage, carried, folder, out)
        if begins:
            hosts.together(
                "stores", lambda c=carried: check_stores(stages, c.tokenizer, out)
            )
        carried = _done(stage, carried, folder, out)
    if carried is not None and carried.model is not None:
        hosts.from_first("report", lambda: _finished(carried, list(resolved), out))


def _begun(
    stage: Stage, carried: Carried | None, folder: RunFolder, out: str
) -> Carried:
    """Return what a stage begins with: what is there, or what it brings itself."""
    match stage:
        case PrepareStage():
            return _prepared(stage, folder)
        case TaskStage():
            return begin_task(stage, carried, out)
        case ContrastiveStage() if stage.start.model:
            return from_model(stage, carried)
        case MlmStage() if carried is None:
            return from_stores(stage)
    assert carried is not None, "check_stages puts prepare or a training stage first"
    return carried


def _done(stage: Stage, carried: Carried, folder: RunFolder, out: str) -> Carried:
    """Do what a stage is for, or read it where it is done."""
    match stage:
        case MlmStage():
            return trained_mlm(stage, carried, folder, out)
        case ContrastiveStage():
            return trained_contrastive(stage, carried, folder, out)
        case TaskStage():
            return trained_task(stage, carried, folder)
        case EvaluateStage():
            return evaluated(stage, carried, folder)
        case FilterStage():
            filtered(stage, carried, folder, out)
        case MineStage():
            mined(stage, carried, folder, out)
    return carried


def _opened(folder: str, config: Mapping[str, Any]) -> RunFolder:
    """Open a stage's folder on all hosts; the first one makes it."""
    hosts.from_first("folder", lambda: bool(RunFolder.open(folder, config)))
    wait_to_see(join(folder, "config.json"))
    return RunFolder.open(folder, config, write=hosts.is_first())


def _finished(carried: Carried, names: Sequence[str], out: str) -> None:
    rows = finish(carried, names, out)
    say(f"model: {join(out, 'model')}   report: {join(out, 'report.html')}")
    if rows:
        print(format_table(rows), flush=True)


def _prepared(stage: PrepareStage, folder: RunFolder) -> Carried:
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
            prepare(data, path, tokenizer=tokenizer)

    hosts.from_first(stage.name, work)
    wait_to_see(join(folder.place, SOURCES))
    held_out = read_sources(folder.place, "held_out")
    return Carried(tokenizer_in(folder.place), held_out)
