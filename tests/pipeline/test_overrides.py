import dataclasses

import pytest

from nomic_jax.data.schedule import PairSourceConfig
from nomic_jax.data.store.stage import PlacesConfig, PrepareConfig, PrepareStage
from nomic_jax.pipeline.overrides import override
from nomic_jax.training.contrastive import ContrastiveStage, PairData
from nomic_jax.training.loop import LoopConfig
from nomic_jax.training.losses.contrastive import ContrastiveLoss
from nomic_jax.training.mlm import MlmData, MlmStage, ModelSize
from nomic_jax.training.optimizer import OptimizerConfig

OPTIMIZER = OptimizerConfig(
    learning_rate=1e-3, weight_decay=0.01, warmup_steps=2, schedule="linear"
)
LOOP = LoopConfig(steps=4, batch_size=2, seed=0)
PREPARED = PrepareConfig(
    pairs="python", row_length=8, query_length=8, document_length=8
)
STAGES = (
    PrepareStage(name="prepare", data=PREPARED),
    MlmStage(
        name="mlm",
        model=ModelSize(
            num_layers=2, width=32, num_heads=2, mlp_width=64, trained_positions=8
        ),
        data=MlmData(stores="prepare", row_length=8),
        optimizer=OPTIMIZER,
        train=LOOP,
    ),
    ContrastiveStage(
        name="pretrain",
        data=PairData(stores="prepare", query_length=8, document_length=8),
        loss=ContrastiveLoss(),
        optimizer=OPTIMIZER,
        train=LOOP,
    ),
)


def overridden(*arguments):
    return {stage.name: stage for stage in override(STAGES, arguments)}


def test_without_arguments_nothing_changes():
    assert override(STAGES, []) == STAGES


def test_a_field_is_set_in_every_stage_that_has_it():
    stages = overridden("--train.steps", "9", "--optimizer.learning_rate=2e-4")
    for name in ("mlm", "pretrain"):
        assert stages[name].train == dataclasses.replace(LOOP, steps=9)
        assert stages[name].optimizer.learning_rate == 2e-4
    assert stages["prepare"] == STAGES[0]


def test_a_section_of_several_kinds_keeps_the_one_it_has():
    places = PlacesConfig(tokenizer="bert", text=("a.txt",), row_length=8)
    stages = (PrepareStage(name="prepare", data=places), *STAGES[1:])
    (found, *_) = override(stages, ["--data.row_length=7", "--prepare.data.text", "b"])
    assert found.data == dataclasses.replace(places, text=("b",), row_length=7)
    with pytest.raises(ValueError, match="no stage has a field 'data.held_out'"):
        override(stages, ["--data.held_out=3"])


def test_a_stages_name_sets_one():
    stages = overridden("--mlm.train.steps", "9")
    assert stages["mlm"].train.steps == 9
    assert stages["pretrain"] == STAGES[2]


def test_the_later_counts():
    stages = overridden("--mlm.train.steps", "5", "--train.steps", "6")
    assert [stages[name].train.steps for name in ("mlm", "pretrain")] == [6, 6]
    stages = overridden("--train.steps", "6", "--mlm.train.steps", "5")
    assert [stages[name].train.steps for name in ("mlm", "pretrain")] == [5, 6]
    assert overridden("--train.seed=1", "--train.seed=2")["mlm"].train.seed == 2


def test_pairs_of_ones_own_reach_the_prepare_stage():
    stages = overridden("--data.pairs", "my pairs.jsonl")
    assert stages["prepare"].data == dataclasses.replace(
        PREPARED, pairs="my pairs.jsonl"
    )
    assert stages["mlm"] == STAGES[1]


def test_dashes_serve_for_underscores():
    assert overridden("--train.batch-size", "3")["mlm"].train.batch_size == 3


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("train.stepz", "'train.steps'"),
        ("mlm.train.stepz", "'mlm.train.steps'"),
        ("mlm.loss.temperature", "'loss.temperature'"),
        ("data.pair", "'data.pairs'"),
        ("name", "known: "),
    ],
)
def test_an_unknown_field_names_the_nearest(name, hint):
    with pytest.raises(ValueError) as caught:
        overridden(f"--{name}", "1")
    assert f"no stage has a field {name!r}" in str(caught.value)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("option", "contrastive"),
    [
        ("train.gradient_accumulation_steps", True),
        ("pretrain.train.accumulate-steps", True),
        ("mlm.train.gradient_accumulation_steps", False),
        ("accum", True),
    ],
)
def test_accumulation_is_refused_with_what_to_set_instead(option, contrastive):
    with pytest.raises(ValueError, match="set memory.tokens_at_once to") as caught:
        overridden(f"--{option}", "4")
    said = str(caught.value)
    assert ("compares each query with all documents" in said) == contrastive
    assert "\n" not in said


def test_a_listed_source_is_set_by_its_number():
    listed = tuple(PairSourceConfig(name, "", "", 9) for name in ("one", "two"))
    data = dataclasses.replace(STAGES[2].data, sources=listed)
    stages = [dataclasses.replace(STAGES[2], data=data)]
    (found,) = override(stages, ["--data.sources.1.pairs", "5"])
    assert [source.pairs for source in found.data.sources] == [9, 5]
    with pytest.raises(ValueError, match=r"'data\.sources\.2\.pairs': did you mean"):
        override(stages, ["--data.sources.2.pairs", "5"])


def test_what_is_no_option_is_refused():
    with pytest.raises(ValueError, match="'train.steps' is not an option"):
        overridden("train.steps", "3")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--train.steps", "many"], "mlm.train.steps"),
        (["--pretrain.data.num_negatives", "2.5"], "num-negatives"),
        (["--optimizer.schedule", "constant"], "inverse_sqrt"),
        (["--train.steps"], "mlm.train.steps"),
        (["--train.steps", "0"], "steps=0 must be at least 1"),
        (["--train.seed", "-1"], "seed=-1 must not be negative"),
        (["--data.row_length", "9"], "data.row_length=9 exceeds"),
        (["--train.steps", "3", "4"], "4"),
    ],
)
def test_a_value_no_stage_takes_ends_with_status_2(arguments, said, capsys):
    with pytest.raises(SystemExit) as caught:
        overridden(*arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_shows_fields_with_default_and_comment(option, capsys):
    with pytest.raises(SystemExit) as caught:
        overridden(option)
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for part in ("--mlm.train.steps", "optimizer steps", "default: 4"):
        assert part in shown
