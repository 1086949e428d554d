"""Run a config's stages in order; what `train.py` calls.

    DIR/STAGE/   config.json, what the stage made, evaluation.json
    DIR/model/   the exported model        DIR/report.html

What does not fit is refused before anything is trained. A stage that is complete is not
run again, so the same command resumes. Of several hosts, which see the same folder, all
train; the first does the rest on its own devices, and the others wait.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nomic_jax.data.store.stage import PrepareStage
from nomic_jax.distributed import hosts
from nomic_jax.distributed.devices import keep_compiled_programs
from nomic_jax.distributed.hosts import check_shared, wait_to_see
from nomic_jax.downstream.stage import TaskStage
from nomic_jax.evaluation.records import extra
from nomic_jax.pipeline.curate import check_curation
from nomic_jax.pipeline.evaluate import check_tasks, say
from nomic_jax.pipeline.kinds import KINDS
from nomic_jax.pipeline.order import Stage
from nomic_jax.pipeline.report import PipelineState, finish, format_table
from nomic_jax.pipeline.stages import check_stages, resolve
from nomic_jax.pipeline.train_encoder import check_stores
from nomic_jax.pipeline.train_head import check_examples, check_models
from nomic_jax.storage import check_out, exists, join
from nomic_jax.training.run_checkpoints import check_checkpoints_place
from nomic_jax.training.run_folder import RunFolder


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
    hosts.assert_equal_across_hosts("config and packages", facts)
    hosts.run_on_all_hosts("run folder", lambda: check_folder(stages, resolved, out))
    check_shared(out)
    keep_compiled_programs()
    carried: PipelineState | None = None
    for number, stage in enumerate(stages, 1):
        kind = KINDS[type(stage)]
        folder = _opened(join(out, stage.name), resolved[stage.name])
        say(f"[{number}/{len(stages)}] {stage.name} ({kind.name})")
        begins = carried is None or isinstance(stage, PrepareStage)
        carried = kind.begin(stage, carried, folder, out)
        if begins:
            hosts.run_on_all_hosts(
                "stores", lambda c=carried: check_stores(stages, c.tokenizer, out)
            )
        carried = kind.run(stage, carried, folder, out)
    if carried is not None and carried.model is not None:
        hosts.broadcast_from_host0(
            "report", lambda: _finished(carried, list(resolved), out)
        )


def _opened(folder: str, config: Mapping[str, Any]) -> RunFolder:
    """Open a stage's folder on all hosts; the first one makes it."""
    hosts.broadcast_from_host0("folder", lambda: bool(RunFolder.open(folder, config)))
    wait_to_see(join(folder, "config.json"))
    return RunFolder.open(folder, config, write=hosts.is_first())


def _finished(carried: PipelineState, names: Sequence[str], out: str) -> None:
    rows = finish(carried, names, out)
    say(f"model: {join(out, 'model')}   report: {join(out, 'report.html')}")
    if rows:
        print(format_table(rows), flush=True)
