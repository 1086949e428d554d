"""What a task has embedded: lists of texts, each with the prompt that it gets."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Side:
    """Texts that are embedded alike."""

    texts: Sequence[str]
    prompt: str  # name of a task's prompt in Nomic's models
    calibrates: bool = True  # its embeddings give the ranges of int8 codes
    # MTEB's type and role, as `Reranking-query`: a model may have a prompt of its own
    task_type: str | None = None

    @property
    def prompt_name(self) -> str:
        """Its prompt's name among those that `prompts.completed` returns."""
        return self.task_type or self.prompt


def numbered(texts: Iterable[str]) -> Mapping[str, int]:
    """Number texts by first appearance, so that equal ones are embedded once."""
    return {text: number for number, text in enumerate(dict.fromkeys(texts))}
