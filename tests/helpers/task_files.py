"""A tiny BERT's folder, and a file of examples for each head that it can learn from."""

import functools
import json

import numpy as np
from flax import nnx

from nomic_jax.checkpoints.model_folder import save_model
from nomic_jax.config import ModelConfig, padded_vocabulary
from nomic_jax.data.tokenizer import TextTokenizer
from nomic_jax.downstream.config import HeadConfig, TaskData
from nomic_jax.downstream.examples import read_examples
from nomic_jax.downstream.stage import TaskStage, TaskStart
from nomic_jax.model.heads import make_model
from nomic_jax.training.loop import LoopConfig
from nomic_jax.training.optimizer import OptimizerConfig

COLOURS = ("red", "blue", "green")
WORDS = "the quick brown fox jumps over lazy dogs while seven wizards watch".split()
HEADS = {
    "classes": HeadConfig(
        kind="sequence_classification", problem="one_label", dropout=0.1
    ),
    "numbers": HeadConfig(kind="sequence_classification", problem="regression"),
    "sets": HeadConfig(kind="sequence_classification", problem="many_labels"),
    "tags": HeadConfig(kind="token_classification"),
    "answers": HeadConfig(kind="question_answering"),
    "choices": HeadConfig(kind="multiple_choice"),
    "sentences": HeadConfig(kind="next_sentence"),
    "pretraining": HeadConfig(kind="pretraining"),
    "masks": HeadConfig(kind="mlm"),
}


@functools.cache
def tokenizer():
    texts = [" ".join((*WORDS, *COLOURS)), "whose colour is it ?"] * 3
    return TextTokenizer.train(texts, vocab_size=256)


def config(**changes):
    fields = dict(
        vocab_size=padded_vocabulary(tokenizer().size),
        type_vocab_size=2,
        num_layers=1,
        width=32,
        num_heads=2,
        mlp_width=64,
        layer_norm_epsilon=1e-12,
        rope_base=None,
        trained_positions=16,
        activation="gelu",
        bias=True,
        initializer_range=0.1,
    )
    return ModelConfig(**(fields | changes))


def write_model(folder, **changes):
    """Write a tiny BERT, by default without a head."""
    made = config(**changes)
    save_model(make_model(made, rngs=nnx.Rngs(0)), made, None, tokenizer(), folder)
    return str(folder)


def examples(task, count, seed=0):
    """What a file of a task holds."""
    rng = np.random.default_rng(seed)

    def text(least, most):
        return " ".join(rng.choice(WORDS, rng.integers(least, most)))

    for number in range(count):
        colour = COLOURS[number % 2]
        before, after = text(1, 5), text(1, 5)
        if task in ("classes", "numbers", "sets"):
            label = {"classes": colour, "numbers": float(number % 2)}.get(task)
            yield {
                "sentence1": f"{before} {colour}",
                "sentence2": after,
                "label": [colour] if task == "sets" else label,
            }
        elif task == "tags":
            words = before.split()
            yield {
                "tokens": [*words, colour, "foxes"],
                "tags": ["O"] * len(words) + ["B-C", "I-C"],
            }
        elif task == "answers":
            context = f"{before} {colour} {after} {text(9, 18)}"
            answers = {"text": [colour], "answer_start": [len(before) + 1]}
            yield {"question": "colour ?", "context": context, "answers": answers}
        elif task == "choices":
            choices = ["red", "fox", "green"][: 2 + number % 2]
            right = int(rng.integers(len(choices)))
            choices[0], choices[right] = choices[right], choices[0]
            yield {"question": f"colour {before} ?", "choices": choices, "label": right}
        elif task in ("sentences", "pretraining"):
            # What follows a sentence is blue; half of what does not is red.
            yield {"sentences": [f"{before} red", f"{after} blue"]}
        else:
            yield {"text": f"{text(4, 9)} {colour}"}


def write_examples(path, task, count, seed=0):
    lines = map(json.dumps, examples(task, count, seed))
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def task_stage(task, model, folder, *, steps=4, batch_size=8, rate=1e-3, **changes):
    """A stage over files that are written into a folder."""
    train, held_out = (folder / f"{task}_{part}.jsonl" for part in ("train", "dev"))
    for seed, (path, count) in enumerate(((train, 24), (held_out, 12))):
        if not path.exists():
            write_examples(path, task, count, seed)
    fields = dict(
        name=task,
        head=HEADS[task],
        data=TaskData(
            train=str(train),
            validation=(str(held_out),),
            max_length=16,
            question_length=4,
            stride=4,
        ),
        optimizer=OptimizerConfig(
            learning_rate=rate, weight_decay=0.0, warmup_steps=1, schedule="linear"
        ),
        train=LoopConfig(steps=steps, batch_size=batch_size, seed=0, log_every=1),
        start=TaskStart(model=model),
    )
    return TaskStage(**(fields | changes))


def read_task(folder, task, count=8):
    """The data section of a task, and examples read from a file of a folder."""
    file = write_examples(folder / f"{task}.jsonl", task, count)
    data = TaskData(max_length=16, question_length=4, stride=4)
    return data, read_examples(file, HEADS[task], data)
