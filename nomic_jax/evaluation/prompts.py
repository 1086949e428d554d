"""Which prefix the texts of a task get: one rule, here and behind mteb.

Prompts by type of task are those of Nomic's own MTEB results (arXiv:2402.01613, section
5.3); the order in which a model's names are looked up is mteb's (Muennighoff et al.
2022, arXiv:2210.07316, and its code).
"""

from collections.abc import Mapping
from typing import Literal

from nomic_jax.config import NOMIC_PROMPTS

# What all texts of a type of task are embedded as; in those that are not here queries
# are searched for among documents.
PROMPTS = {
    "Classification": "classification",
    "MultilabelClassification": "classification",
    "PairClassification": "classification",
    "Reranking": "classification",
    "STS": "classification",
    "Summarization": "classification",
    "Clustering": "clustering",
}

Role = Literal["query", "document"]


def prefix_of(
    prompts: Mapping[str, str], task_type: str, role: Role | None = None
) -> str:
    """Choose what is put before the texts of a task.

    In this order: the model's prompt of the type and role, as `Reranking-query`; of the
    type; the one that Nomic embeds the type with; of the role. Texts that are no
    queries or documents of a search, as those of STS, else get nothing.

    Args:
        prompts: of the model, by name.
        task_type: one of MTEB's, such as `Retrieval` or `STS`.
        role: of the texts, where a task tells queries from documents.
    """
    names = (f"{task_type}-{role}", task_type, PROMPTS.get(task_type))
    for name in names:
        if name is not None and name in prompts:
            return prompts[name]
    if role is None and task_type in PROMPTS:
        return ""
    return prompts.get("search_query" if role == "query" else "search_document", "")


def completed(prompts: Mapping[str, str]) -> dict[str, str]:
    """Add the names of Nomic's tasks and of MTEB's types to a model's prompts."""
    found = {**dict.fromkeys(NOMIC_PROMPTS, ""), **prompts}
    for task_type in PROMPTS:
        for role in ("query", "document"):
            found[f"{task_type}-{role}"] = prefix_of(prompts, task_type, role)
    return found | {name: prefix_of(prompts, name) for name in PROMPTS}
