"""Local tasks for mteb: retrieval, similarity and classification of made-up texts."""

import numpy as np
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskClassification, AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from task_files import WORDS

LANGUAGE = "eng-Latn"


def described(kind, name, score):
    return TaskMetadata(
        name=name,
        type=kind,
        description="made up",
        dataset={"path": "none", "revision": "1"},
        eval_splits=["test"],
        eval_langs=[LANGUAGE],
        main_score=score,
    )


def texts(count, seed):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(3, 9))) for _ in range(count)]


QUERIES, TITLES, BODIES = texts(8, 0), texts(30, 1), texts(30, 2)
RELEVANT = [(i, i + 11) for i in range(8)]


class Retrieval(AbsTaskRetrieval):
    metadata = described("Retrieval", "LocalRetrieval", "ndcg_at_10")

    def load_data(self, num_proc=None, **kwargs):
        corpus = [
            {"id": f"d{i}", "title": title, "text": body}
            for i, (title, body) in enumerate(zip(TITLES, BODIES, strict=True))
        ]
        split = RetrievalSplitData(
            queries=Dataset.from_list(
                [{"id": f"q{i}", "text": text} for i, text in enumerate(QUERIES)]
            ),
            corpus=Dataset.from_list(corpus),
            relevant_docs={
                f"q{i}": {f"d{d}": 1 for d in found} for i, found in enumerate(RELEVANT)
            },
            top_ranked=None,
        )
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


FIRST, SECOND = texts(20, 3), texts(20, 4)
SCORES = [float(x) for x in np.random.default_rng(5).uniform(0, 5, 20)]


class Similarity(AbsTaskSTS):
    metadata = described("STS", "LocalSTS", "cosine_spearman")

    def load_data(self, num_proc=None, **kwargs):
        rows = {"sentence1": FIRST, "sentence2": SECOND, "score": SCORES}
        self.dataset = DatasetDict({"test": Dataset.from_dict(rows)})
        self.data_loaded = True


TRAIN, TEST = texts(24, 6), texts(30, 7)
LABELS = [0, 1, 2] * 10


class Classes(AbsTaskClassification):
    metadata = described("Classification", "LocalClassification", "accuracy")
    n_experiments = 3

    def load_data(self, num_proc=None, **kwargs):
        split = {"train": TRAIN, "test": TEST}
        self.dataset = DatasetDict(
            {
                name: Dataset.from_dict({"text": found, "label": LABELS[: len(found)]})
                for name, found in split.items()
            }
        )
        self.data_loaded = True
