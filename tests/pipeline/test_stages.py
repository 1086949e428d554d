import dataclasses
import re
import sys

import pytest
from paths import ROOT

from nomic_jax.curation.filter import Filtering, FilterStage
from nomic_jax.curation.mining import MineStage, Mining
from nomic_jax.curation.pairs import StagePairs
from nomic_jax.data.schedule import PairSourceConfig
from nomic_jax.data.store.stage import PlacesConfig, PrepareConfig, PrepareStage
from nomic_jax.downstream.config import HeadConfig, TaskData
from nomic_jax.downstream.stage import TaskStage, TaskStart
from nomic_jax.evaluation.config import EvaluateStage, EvaluationConfig
from nomic_jax.pipeline.stages import check_stages, load_stages
from nomic_jax.training.contrastive import ContrastiveStage, PairData, StartConfig
from nomic_jax.training.loop import LoopConfig
from nomic_jax.training.losses.contrastive import ContrastiveLoss
from nomic_jax.training.mlm import MlmData, MlmStage, ModelSize
from nomic_jax.training.optimizer import OptimizerConfig

CONFIGS = ROOT / "configs"
OPTIMIZER = OptimizerConfig(
    learning_rate=1e-3, weight_decay=0.01, warmup_steps=2, schedule="linear"
)
LOOP = LoopConfig(steps=4, batch_size=2, seed=0)
SIZE = ModelSize(num_layers=2, width=32, num_heads=2, mlp_width=64, trained_positions=8)

PREPARE = PrepareStage(
    name="prepare",
    data=PrepareConfig(pairs="python", row_length=8, query_length=8, document_length=8),
)
MLM = MlmStage(
    name="mlm",
    model=SIZE,
    data=MlmData(stores="prepare", row_length=8),
    optimizer=OPTIMIZER,
    train=LOOP,
)
PRETRAIN = ContrastiveStage(
    name="pretrain",
    data=PairData(stores="prepare", query_length=8, document_length=8),
    loss=ContrastiveLoss(),
    optimizer=OPTIMIZER,
    train=LOOP,
)
MINE = MineStage(
    name="mine", data=StagePairs(stage="prepare"), mining=Mining(count=3, pool=5)
)
FILTER = FilterStage(
    name="filter", data=StagePairs(stage="prepare"), filtering=Filtering(k=2)
)
EVALUATE = EvaluateStage(name="evaluate", evaluation=EvaluationConfig())
PLACES = PrepareStage(
    name="prepare",
    data=PlacesConfig(tokenizer="bert", text=("a.txt",), row_length=8),
)
TASK = TaskStage(
    name="task",
    head=HeadConfig(kind="question_answering"),
    data=TaskData(train="train.jsonl", max_length=8),
    optimizer=OPTIMIZER,
    train=LOOP,
)

SOURCE = PairSourceConfig("words", "", "", 9)


def change(stage, /, **fields):
    """Replace fields of a stage, or of its section `data`."""
    own = {field.name for field in dataclasses.fields(stage)}
    data = {name: value for name, value in fields.items() if name not in own}
    fields = {name: value for name, value in fields.items() if name in own}
    if data:
        fields["data"] = dataclasses.replace(stage.data, **data)
    return dataclasses.replace(stage, **fields)


FINETUNE = change(PRETRAIN, name="finetune", stores="mine", num_negatives=3)


def test_every_config_of_the_project_loads():
    for path in CONFIGS.glob("*.py"):
        assert load_stages(path), path


def test_the_three_stages_follow_one_another():
    check_stages((PREPARE, MLM, PRETRAIN, MINE, FINETUNE))


def test_pairs_are_filtered_before_they_are_mined_or_trained_on():
    mine = dataclasses.replace(MINE, data=StagePairs(stage="filter"))
    filtered = change(PRETRAIN, name="again", stores="filter")
    check_stages((PREPARE, MLM, PRETRAIN, FILTER, mine, FINETUNE, filtered, EVALUATE))


def test_a_run_on_places_filters_and_mines_places_with_named_models():
    data = StagePairs(places=("a.jsonl",), query_length=8, document_length=8)
    filtering, mining = Filtering(model="gte", k=2), Mining(model="gte", count=3)
    evaluation = EvaluationConfig(tasks=("sts:dev.jsonl",))
    check_stages(
        (
            PLACES,
            FilterStage(name="filter", data=data, filtering=filtering),
            MLM,
            change(PRETRAIN, stores="filter"),
            MineStage(name="mine", data=data, mining=mining),
            FINETUNE,
            EvaluateStage(name="evaluate", evaluation=evaluation),
        )
    )


def test_stores_prepared_elsewhere_need_no_prepare_stage():
    text = change(MLM, stores="gs://bucket/text")
    check_stages((text, change(PRETRAIN, stores="data/pairs")))
    check_stages((PREPARE, text, PRETRAIN, MINE, FINETUNE))


def test_a_contrastive_stage_may_start_with_a_model_from_elsewhere():
    start = StartConfig(model="nomic-ai/nomic-embed-text-v1.5")
    check_stages((PREPARE, change(PRETRAIN, start=start), MINE, FINETUNE))
    check_stages((change(PRETRAIN, start=start, stores="data/pairs"),))


def test_a_head_is_trained_on_what_is_there_or_is_named():
    check_stages((PREPARE, MLM, TASK, change(TASK, name="again")))
    check_stages((change(TASK, start=TaskStart(model="google-bert/bert-base-cased")),))
    start = TaskStart(stage="task")
    check_stages((PREPARE, MLM, TASK, PRETRAIN, change(TASK, name="b", start=start)))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((), "there is none"),
        ((TASK,), "task needs a stage before it that trains, or start.model"),
        (
            (PREPARE, MLM, TASK, change(TASK, name="b", start=TaskStart(stage="tsk"))),
            "start.stage='tsk', which is not a task stage before it: did you mean "
            "'task'?",
        ),
        ((PREPARE, "mlm"), "'mlm' is not a stage"),
        ((PREPARE, MLM, change(PRETRAIN, name="mlm")), "two stages are named 'mlm'"),
        ((PREPARE, change(MLM, name="model")), "'model' cannot be a name"),
        ((PREPARE, change(MLM, name="fine-tune")), "'fine-tune' cannot be a name"),
        ((PREPARE, change(MLM, name="../mlm")), "'../mlm' cannot be a name"),
        ((PREPARE, change(MLM, name="class")), "'class' cannot be a name"),
        ((MLM,), "mlm takes its data from 'prepare', which is not a prepare stage"),
        (
            (PREPARE, change(MLM, row_length=4)),
            "mlm has row_length=4, prepare prepares 8",
        ),
        (
            (change(PREPARE, query_length=7), MLM, PRETRAIN),
            "pretrain has query_length=8, prepare prepares 7",
        ),
        ((PREPARE, PRETRAIN), "pretrain needs a stage before it that trains"),
        ((PREPARE, MINE), "mine needs a stage before it that trains"),
        (
            (PREPARE, MLM, change(PRETRAIN, stores="prepar")),
            "from 'prepar', which is not a prepare, filter or mine stage before it, "
            "and no folder or URL: did you mean 'prepare'?",
        ),
        ((PREPARE, MLM, change(PRETRAIN, stores="mlm")), "from 'mlm', which is no"),
        ((PREPARE, MLM, FINETUNE, MINE), "from 'mine', which is no"),
        ((PREPARE, MLM, change(MLM, name="again")), "again would discard"),
        ((PREPARE, change(PREPARE, name="again")), "prepare only once"),
        ((change(MLM, stores="gs://b/text"), PREPARE), "prepare comes after a stage"),
        ((PREPARE, FILTER), "filter needs a stage before it that trains, or filtering"),
        ((PREPARE, EVALUATE), "evaluate needs a stage before it that trains"),
        ((PLACES, MLM, EVALUATE), "evaluate has nothing to measure"),
        (
            (PREPARE, MLM, dataclasses.replace(MINE, data=StagePairs(stage="filtr"))),
            "mine takes its pairs from 'filtr', which is not a stage before it",
        ),
        (
            (PLACES, MLM, FILTER),
            "filter takes its pairs from 'prepare', which is not a stage before it "
            "that keeps their text",
        ),
        (
            (
                PREPARE,
                MLM,
                dataclasses.replace(
                    FILTER, data=StagePairs(stage="prepare", query_length=7)
                ),
                change(PRETRAIN, stores="filter"),
            ),
            "pretrain has query_length=8, filter prepares 7",
        ),
        (
            (PREPARE, MLM, MINE, change(FINETUNE, num_negatives=4)),
            "takes num_negatives=4 of each query, of which mine finds count=3",
        ),
    ],
)
def test_stages_that_cannot_follow_one_another_are_refused(stages, message):
    with pytest.raises(ValueError) as caught:
        check_stages(stages)
    assert message in str(caught.value)


def test_every_problem_is_named_at_once():
    with pytest.raises(ValueError) as caught:
        check_stages((MLM, change(PRETRAIN, stores="prepare"), MLM))
    for part in ("mlm takes its data", "pretrain takes its data", "two stages"):
        assert part in str(caught.value)


def test_a_config_builds_on_its_own_neighbours(tmp_path):
    quickstart = (CONFIGS / "quickstart.py").read_text()
    for name, steps in (("one", 3), ("two", 4)):
        folder = tmp_path / name
        folder.mkdir()
        small = re.sub(r"steps=150", f"steps={steps}", quickstart)
        (folder / "small.py").write_text(small)
        (folder / "chain.py").write_text("import small\nstages = small.stages[:2]")
        stages = load_stages(folder / "chain.py")
        assert [stage.name for stage in stages] == ["prepare", "mlm"]
        assert stages[1].train.steps == steps
    assert "small" not in sys.modules
    assert str(tmp_path / "one") not in sys.path


def test_a_missing_config_names_the_nearest(tmp_path):
    (tmp_path / "quickstart.py").write_text("stages = ()")
    with pytest.raises(ValueError, match="did you mean '.*/quickstart.py'"):
        load_stages(tmp_path / "quickstar.py")
    with pytest.raises(ValueError, match="no config .*nowhere holds none"):
        load_stages(tmp_path / "nowhere" / "quickstart.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage = ()", "must define `stages`"),
        ("stages = []", "must define `stages`"),
        ("\n\nstages = (", "SyntaxError"),
        (
            "from nomic_jax.training.loop import LoopConfig\n"
            "LoopConfig(steps=1, batch_size=1, seed=0, saev_every=2)",
            "broken.py:2: TypeError: .*saev_every",
        ),
        (
            "from nomic_jax.training.loop import LoopConfig\n"
            "LoopConfig(steps=1, batch_size=1, seed=0, accumulation=2)",
            "broken.py:2: .*accumulation.*set memory.tokens_at_once .* all documents",
        ),
        (
            "from nomic_jax.training.loop import LoopConfig\n\n"
            "LoopConfig(steps=0, batch_size=1, seed=0)",
            "broken.py:3: ValueError: steps=0 must be at least 1",
        ),
    ],
)
def test_a_broken_config_file_is_named_with_its_line(tmp_path, text, message):
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_stages(tmp_path / "broken.py")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: change(MLM, row_length=9), "row_length=9 exceeds .*positions=8"),
        (lambda: change(MLM, mask_rate=1.5), "mask_rate=1.5"),
        (lambda: dataclasses.replace(SIZE, width=33), "width=33"),
        (lambda: dataclasses.replace(LOOP, seed=-1), "seed=-1"),
        (lambda: dataclasses.replace(LOOP, keep=0), "keep=0"),
        (lambda: change(PRETRAIN, query_length=2), "query_length=2"),
        (lambda: change(PRETRAIN, num_negatives=-1), "num_negatives=-1"),
        (lambda: change(PRETRAIN, sources=(SOURCE,) * 2), "listed twice: words"),
        (lambda: ContrastiveLoss(temperature=0.0), "temperature=0.0"),
        (lambda: Mining(count=21), "count=21 negatives .* pool=20"),
        (lambda: Mining(count=1, margin=1.5), "margin=1.5"),
        (lambda: Filtering(query_prefix="q: "), "query_prefix='q: '.* none is named"),
        (lambda: EvaluationConfig(precisions=()), "at least float32"),
        (lambda: EvaluationConfig(dims=(64, 64)), "repeats a value"),
        (lambda: change(PREPARE, held_out_share=1.0), "held_out_share=1.0"),
        (lambda: change(PREPARE, limit=0), "limit=0"),
    ],
)
def test_a_setting_no_run_can_have_is_refused_when_it_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_texts_longer_than_the_model_are_refused_with_both_numbers():
    long = change(PRETRAIN, document_length=9)
    with pytest.raises(ValueError, match=r"texts of 9 tokens.*trained_positions=8"):
        check_stages((PREPARE, MLM, long))
