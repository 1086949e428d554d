"""The published fine-tuning stages: their figures, and two steps of each, tiny."""

import json
import re

import pytest
from paths import ROOT
from task_files import examples, write_model

from nomic_jax.checkpoints.model_folder import load_model
from nomic_jax.pipeline.overrides import override
from nomic_jax.pipeline.runner import run
from nomic_jax.pipeline.stages import load_stages
from nomic_jax.training.metrics import read_metrics

CONFIGS = ROOT / "configs"


def stages(name):
    return {stage.name: stage for stage in load_stages(CONFIGS / f"{name}.py")}


def test_glue_is_trained_as_the_published_model_was():
    found = stages("glue")
    assert list(found)[-4:] == ["mnli", "rte", "mrpc", "stsb"]
    for name, stage in found.items():
        optimizer = stage.optimizer
        assert (optimizer.beta1, optimizer.beta2) == (0.9, 0.98)
        assert (optimizer.epsilon, optimizer.weight_decay) == (1e-6, 1e-6)
        assert (optimizer.schedule, optimizer.clip_norm) == ("linear", 0)
        assert optimizer.learning_rate in (1e-5, 2e-5, 3e-5)
        assert stage.train.batch_size in (16, 32) and stage.data.max_length == 128
        warmup = optimizer.warmup_steps / stage.train.steps
        assert warmup == pytest.approx(0.06, abs=1 / stage.train.steps)
        after = name in ("rte", "mrpc", "stsb")
        assert stage.start.stage == ("mnli" if after else "")
        assert (stage.head.problem == "regression") == (name == "stsb")
    # Ten epochs: 10 x 2,490 examples in batches of 32.
    assert found["rte"].train.steps == 779
    assert len(found["mnli"].data.validation) == 2


def test_a_part_of_glue_starts_with_another_model(tmp_path):
    text = (CONFIGS / "glue.py").read_text()
    lines = [
        'MODEL = "mine"' if line.startswith("MODEL =") else line
        for line in text.splitlines()
    ]
    for tasks, start in (
        (("rte", "stsb"), ("mine", "")),
        (("mnli", "rte"), ("", "mnli")),
    ):
        file = tmp_path / "part.py"
        part = [f"TASKS = {tasks}" if x.startswith("TASKS =") else x for x in lines]
        file.write_text("\n".join(part))
        found = load_stages(file)
        assert tuple(stage.name for stage in found) == tasks
        assert found[0].start.model == "mine"
        assert (found[1].start.model, found[1].start.stage) == start


def test_glue_takes_a_model_from_the_command_line_as_it_says():
    text = (CONFIGS / "glue.py").read_text()
    options = re.findall(r"--\w+\.start\.model DIR", text)
    given = [part for option in options for part in option.split()]
    found = override(load_stages(CONFIGS / "glue.py"), given)
    assert {stage.start.model or stage.start.stage for stage in found} == {
        "DIR",
        "mnli",
    }


def test_balancing_weighs_what_it_did_in_the_published_run():
    (stage,) = load_stages(CONFIGS / "moe_pretrain.py")
    devices, sides = 8, 2
    assert stage.experts.balance_coefficient == sides * 1.0 / devices


def test_the_windows_of_squad_and_the_phases_of_bert_are_the_papers():
    data = stages("squad")["squad"].data
    assert (data.max_length, data.stride, data.question_length) == (384, 128, 64)
    first, second = stages("bert_pretraining").values()
    assert (first.data.max_length, second.data.max_length) == (128, 512)
    assert first.train.steps + second.train.steps == 1_000_000
    assert not first.start.weights and not second.start.model
    assert second.optimizer.warmup_steps + first.optimizer.warmup_steps == 10_000


# The config, the task whose files it gets, the stages that are run, and what else is
# to be small.
TINY = {
    "glue": ("classes", ("mnli", "rte"), ["--data.first=sentence1"]),
    "squad": ("answers", ("squad",), ["--data.question_length=4", "--data.stride=4"]),
    "ner": ("tags", ("ner",), []),
    "multiple_choice": ("choices", ("swag",), []),
    "bert_pretraining": ("pretraining", ("bert_128", "bert_512"), []),
}


# A chain of two stages each; the others' heads learn in test_training_task.
CHAINS = ("glue", "bert_pretraining")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *CHAINS,
        *(pytest.param(n, marks=pytest.mark.sweep) for n in TINY if n not in CHAINS),
    ],
)
def test_two_steps_of_a_task_train(name, tmp_path):
    task, wanted, further = TINY[name]
    found = stages(name)
    file = tmp_path / "examples.jsonl"
    with file.open("w") as lines:
        for line in examples(task, 8):
            for stage in found.values():  # labels of the config's own
                if stage.head.labels and "label" in line:
                    line["label"] = int(line["label"] in (1, "red"))
            if "tags" in line:
                line["tags"] = [{"O": 0, "B-C": 1, "I-C": 2}[t] for t in line["tags"]]
            lines.write(json.dumps(line) + "\n")
    options = ["--train.steps=2", "--train.batch_size=4", "--data.max_length=16"]
    options += [f"--data.train={file}", *further]
    if found[wanted[0]].data.validation:
        options += [f"--data.validation={file}"]
    if name == "glue":
        options += ["--data.second=sentence2"]
    model = write_model(tmp_path / "bert")
    options += [f"--{wanted[0]}.start.model={model}"]
    small = override([found[name] for name in wanted], options)
    run(small, tmp_path / "out")
    for stage in wanted:
        (line,) = read_metrics(tmp_path / "out" / stage / "metrics.jsonl")[-1:]
        assert line["step"] == 2 and line["loss"] > 0
    kind = small[0].head.kind
    assert load_model(tmp_path / "out" / "model").encoder.config.head == kind
