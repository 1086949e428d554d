"""The command `nomic-jax plan`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from nomic_jax.cli.options import Number

if TYPE_CHECKING:
    from nomic_jax.training.planning.abstract import Assumptions, TrainingStage
    from nomic_jax.training.planning.compile import Refusal
    from nomic_jax.training.planning.roofline import Account
    from nomic_jax.training.planning.topology import Topology


Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Compile a config's training stages for chips that are not here.

    Says of each what a chip's memory holds, the FLOPs of a step, what goes between
    chips, a bound on the time of a step, and the hours of the whole run. A stage that
    does not fit is refused with the nearest settings that do. Fields of the config are
    set as with train.py: --section.field VALUE.
    """

    config: Path  # such as configs/mlm.py
    topology: str  # v5e:4x4, v5p:4x4x4, v6e:16x16, v4, tpu7x; h100:8, h200, a100
    vocabulary: int = 30_522  # tokens of the tokenizer of a model to be drawn: BERT's
    query_tokens: Number = None  # of a query on average; None: data.query_length
    document_tokens: Number = None  # of a document on average
    model: str = "nomic-embed-text-v1"  # published one like a start.model not here
    realistic: float = 0.5  # share of the bound's speed to give hours for besides
    markdown: Switch = False  # a row of a table for each stage


def plan(options: Plan, overrides: Sequence[str]) -> int:
    """Run `nomic-jax plan`.

    Args:
        options: of the command.
        overrides: further arguments, `--section.field VALUE`.

    Raises:
        ValueError: an option is wrong, or a stage does not fit the topology.
    """
    from nomic_jax.training.planning.environment import prepare_environment

    if not 0 < options.realistic <= 1:
        raise ValueError(f"--realistic {options.realistic} must be above 0, at most 1")
    prepare_environment()  # before anything imports JAX

    from nomic_jax.pipeline.overrides import override
    from nomic_jax.pipeline.stages import load_stages
    from nomic_jax.training.contrastive import ContrastiveStage
    from nomic_jax.training.mlm import MlmStage
    from nomic_jax.training.planning.abstract import Assumptions
    from nomic_jax.training.planning.roofline import Account, block, markdown, row
    from nomic_jax.training.planning.topology import open_topology

    topology = open_topology(options.topology)
    stages = override(load_stages(options.config), overrides)
    training = [s for s in stages if isinstance(s, MlmStage | ContrastiveStage)]
    if not training:
        raise ValueError(f"{options.config} has no stage that trains")
    assumed = Assumptions(
        vocabulary=options.vocabulary,
        query_tokens=options.query_tokens,
        document_tokens=options.document_tokens,
        model=options.model,
    )
    refused, rows = [], []
    for number, stage in enumerate(training):
        result = _planned(stage, training[:number], topology, assumed)
        if not isinstance(result, Account):
            advice = _advice(stage, training[:number], topology, assumed)
            refused.append(f"{stage.name}: {result.said}; {advice}")
        elif options.markdown:
            rows.append(row(result, realistic=options.realistic))
        else:
            print(block(result, realistic=options.realistic), flush=True)
    if rows:
        print(markdown(rows))
    if refused:
        raise ValueError(f"does not fit {topology.name}: {'; '.join(refused)}")
    return 0


def _planned(
    stage: "TrainingStage",
    before: "Sequence[TrainingStage]",
    topology: "Topology",
    assumed: "Assumptions",
) -> "Account | Refusal":
    """Compile a stage, or say why it does not fit."""
    from nomic_jax.training.planning.abstract import abstract_step
    from nomic_jax.training.planning.budget import enough_tokens, within_budget
    from nomic_jax.training.planning.compile import Refusal, compile_step
    from nomic_jax.training.planning.roofline import Account, memory_settings

    if stage.memory.budget is not None:
        memory = within_budget(
            stage,
            lambda stage: abstract_step(stage, before, topology.devices, assumed),
            enough=enough_tokens(topology.chip.platform),
            say=_say,
        )
        stage = dataclasses.replace(stage, memory=memory)
    step = abstract_step(stage, before, topology.devices, assumed)
    where = f"{stage.name} for {topology.name}, {memory_settings(stage)}"
    _say(f"compiling {where} ...")
    compiled = compile_step(step, topology.chip)
    if isinstance(compiled, Refusal):
        _say(f"  does not fit: {compiled.said}")
        return compiled
    return Account(step, topology, compiled)


def _advice(
    stage: "TrainingStage",
    before: "Sequence[TrainingStage]",
    topology: "Topology",
    assumed: "Assumptions",
) -> str:
    """Name the nearest settings that fit."""
    from nomic_jax.training.planning.abstract import abstract_step
    from nomic_jax.training.planning.budget import nearest_fits
    from nomic_jax.training.planning.roofline import Account

    def fits(changed: "TrainingStage") -> bool:
        try:
            return isinstance(_planned(changed, before, topology, assumed), Account)
        except ValueError as error:  # such as a mesh that does not divide the model
            _say(f"  cannot be: {error}")
            return False

    step = abstract_step(stage, before, topology.devices, assumed)
    found = nearest_fits(
        stage, devices=len(topology.devices), rows=step.rows, fits=fits
    )
    if not found:
        return "no smaller tokens_at_once, remat or larger fsdp fits either"
    return "these fit: " + ", or ".join(setting.options for setting in found)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
