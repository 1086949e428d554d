"""What defines a model: `ModelConfig`, its encoder and head, and `EmbeddingConfig`.

Both are frozen, validated when made, and written as JSON into a model folder.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Literal, get_args

from nomic_jax.fields import JsonConfig, nearest

VOCABULARY_MULTIPLE = 64  # tables are padded to it: matmul tiles, and even shards


def padded_vocabulary(num_tokens: int) -> int:
    """Round a tokenizer's size up to the rows an embedding table gets for it."""
    return -(-num_tokens // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


Activation = Literal["swiglu", "geglu", "gelu"]
Pooling = Literal["mean", "cls", "last"]
HeadPooling = Literal["mean", "cls"]

# What sits on an encoder. The pooler of BERT is a dense layer and a tanh over the first
# token; pretraining is the MLM and next-sentence heads together.
Head = Literal[
    "pooler",
    "mlm",
    "pretraining",
    "next_sentence",
    "sequence_classification",
    "token_classification",
    "question_answering",
    "multiple_choice",
]
# What a sequence classifier's scores are: numbers, of which one class is right, or any.
Problem = Literal["regression", "one_label", "many_labels"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(JsonConfig):
    """The model's architecture; what defines a published encoder has no default."""

    vocab_size: int  # rows of the word table, the tokenizer's size padded to 64
    type_vocab_size: int  # rows of the token-type table; 0: there is none
    num_layers: int
    width: int  # of the residual stream
    num_heads: int
    mlp_width: int  # between the MLP's matmuls
    layer_norm_epsilon: float
    rope_base: float | None  # theta; 1000 in v1 and v1.5; None: absolute positions
    trained_positions: int  # longest text seen in training, L of Dynamic NTK
    activation: Activation = "swiglu"  # of the MLP; BERT's is GELU, ModernBERT's GeGLU
    bias: bool = False  # of the linear layers; BERT, XLM-R and v2 have them
    pre_norm: bool = False  # norms before attention and MLP, and a last one: ModernBERT
    norm_bias: bool = True  # of the layer norms; ModernBERT's have none
    first_position: int = 0  # row of the absolute table of a first token; 2 in XLM-R
    rope_scaling_factor: float | None = None  # alpha of Dynamic NTK; None: plain RoPE
    global_every: int = 1  # layers 0, n, 2n... see all of a text, the others a window
    local_window: int | None = None  # places either way that those others see
    local_rope_base: float | None = None  # theta of those others
    num_experts: int = 0  # of layers 1, 3, 5...; 0: every layer has one MLP
    experts_per_token: int = 2  # that a token goes to
    expert_bias: bool = False  # of each expert's first matmul; no published one has it
    pad_token_id: int = 0
    dropout: float = 0.0  # after the embeddings and on both residual branches
    expert_dropout: float = 0.0  # on both residual branches of layers with experts
    initializer_range: float = 0.02  # standard deviation of a fresh model's weights
    head: Head | None = None  # what sits on the encoder in a model folder
    head_bias: bool = False  # the MLM head's biases; nomic-bert-2048 has none
    labels: tuple[str, ...] = ()  # names of what a classification head scores
    problem: Problem | None = None  # of sequence classification
    head_pooling: HeadPooling = "cls"  # what pre-norm heads take of a text
    head_dropout: float = 0.0  # before a classifier

    def __post_init__(self) -> None:
        """Refuse what no model can have.

        Raises:
            ValueError: with every problem found, each with its numbers.
        """
        problems = [*_size_problems(self), *_choice_problems(self)]
        problems += _head_problems(self)
        if problems:
            raise ValueError("ModelConfig: " + "; ".join(problems))

    @property
    def head_width(self) -> int:
        """Width of one attention head, the rotary dimension."""
        return self.width // self.num_heads


def _size_problems(config: ModelConfig) -> Iterator[str]:
    for name in (
        *("vocab_size", "num_layers", "width", "num_heads", "mlp_width"),
        *("trained_positions", "global_every"),
    ):
        if getattr(config, name) < 1:
            yield f"{name}={getattr(config, name)} must be at least 1"
    for name in ("layer_norm_epsilon", "rope_base", "local_rope_base"):
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            yield f"{name}={value} must be finite and above 0"
    counts = ("type_vocab_size", "num_experts", "first_position")
    for name in (*counts, "initializer_range"):
        if not 0 <= getattr(config, name) < math.inf:
            yield f"{name}={getattr(config, name)} must be finite, and not negative"
    if config.num_heads >= 1 and config.width % (2 * config.num_heads):
        yield (
            f"width={config.width} does not split into num_heads={config.num_heads} "
            "heads of even size, as rotary positions need"
        )
    for name in ("dropout", "expert_dropout", "head_dropout"):
        if not 0 <= getattr(config, name) < 1:
            yield f"{name}={getattr(config, name)} must be in [0, 1)"
    if not 0 <= config.pad_token_id < max(config.vocab_size, 1):
        yield (
            f"pad_token_id={config.pad_token_id} is outside the vocabulary of "
            f"{config.vocab_size}"
        )


def _choice_problems(config: ModelConfig) -> Iterator[str]:
    if config.activation not in get_args(Activation):
        yield f"activation={config.activation!r} must be swiglu, geglu or gelu"
    factor = config.rope_scaling_factor
    if factor is not None and not 1 <= factor < math.inf:
        yield f"rope_scaling_factor={factor} must be finite, and at least 1"
    if config.rope_base is None and factor is not None:
        yield (
            f"rope_scaling_factor={factor} needs rope_base: absolute positions cannot "
            "be stretched"
        )
    if config.rope_base is not None and config.first_position:
        yield (
            f"first_position={config.first_position} is of absolute positions; set "
            "rope_base=None"
        )
    local = (config.local_window, config.local_rope_base)
    if (config.global_every > 1) != all(value is not None for value in local) or (
        config.global_every == 1 and local != (None, None)
    ):
        yield (
            f"global_every={config.global_every} with local_window={local[0]}, "
            f"local_rope_base={local[1]}: local layers are where global_every is above "
            "1, and need both"
        )
    elif config.local_window is not None and config.local_window < 1:
        yield f"local_window={config.local_window} must be at least 1"
    if config.rope_base is None and config.local_rope_base is not None:
        yield "local layers need rope_base: absolute positions are of all layers"
    if not config.num_experts:
        return
    if not 1 <= config.experts_per_token <= config.num_experts:
        yield (
            f"experts_per_token={config.experts_per_token} must be between 1 and "
            f"num_experts={config.num_experts}"
        )
    if config.num_layers % 2 or config.activation != "gelu" or not config.bias:
        yield (
            f"num_experts={config.num_experts} with num_layers={config.num_layers}, "
            f"activation={config.activation!r}, bias={config.bias}: experts are in "
            "every second of an even number of layers, with gelu and biases"
        )
    if config.pre_norm or config.global_every > 1:
        yield f"num_experts={config.num_experts} are of post-norm, global layers"


def _head_problems(config: ModelConfig) -> Iterator[str]:
    head = config.head
    if head is not None and head not in get_args(Head):
        yield f"head={head!r} must be None or one of {', '.join(get_args(Head))}"
    if config.head_bias and head not in ("mlm", "pretraining"):
        yield f"head_bias=True needs head='mlm' or 'pretraining', not {head!r}"
    if head in ("pretraining", "next_sentence") and config.type_vocab_size < 2:
        yield (
            f"head={head!r} tells two sentences by token types, of which "
            f"type_vocab_size={config.type_vocab_size} has no second"
        )
    if head == "pooler" and config.pre_norm:
        yield "head='pooler' is of post-norm models"
    labelled = head in ("sequence_classification", "token_classification")
    if bool(config.labels) != labelled:
        yield (
            f"labels={config.labels} and head={head!r}: sequence and token "
            "classification have at least one label, other heads none"
        )
    if (config.problem is not None) != (head == "sequence_classification") or (
        config.problem not in (None, *get_args(Problem))
    ):
        yield (
            f"problem={config.problem!r} and head={head!r}: sequence classification "
            f"has one of {', '.join(get_args(Problem))}, other heads None"
        )
    if config.head_pooling not in get_args(HeadPooling):
        yield f"head_pooling={config.head_pooling!r} must be mean or cls"
    elif config.head_pooling != "cls" and not config.pre_norm:
        yield f"head_pooling={config.head_pooling!r} is of pre-norm models"


NOMIC_PROMPTS = {
    "search_query": "search_query: ",
    "search_document": "search_document: ",
    "classification": "classification: ",
    "clustering": "clustering: ",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingConfig(JsonConfig):
    """How hidden states become the vector that users compare.

    The three Matryoshka conventions differ in `layer_norm` alone: v1 and v2 pool,
    slice and normalise; v1.5 puts a non-affine layer norm over the full width
    between pooling and slicing.
    """

    pooling: Pooling
    layer_norm: bool  # v1.5's, over the full width before a dimension is cut
    max_length: int  # tokens, special ones included; longer texts are cut or refused
    matryoshka_dims: tuple[int, ...] = ()  # dims it was trained for; empty: only full
    prompts: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: dict(NOMIC_PROMPTS), hash=False
    )  # prefix per task, put before the text as it stands

    def __post_init__(self) -> None:
        """Refuse settings that no embedding can have.

        Raises:
            ValueError: with every problem found.
        """
        problems = []
        if self.pooling not in get_args(Pooling):
            problems.append(f"pooling={self.pooling!r} must be mean, cls or last")
        if self.max_length < 3:
            problems.append(
                f"max_length={self.max_length} must be at least 3: [CLS] token [SEP]"
            )
        if any(dim < 1 for dim in self.matryoshka_dims):
            problems.append(f"matryoshka_dims={self.matryoshka_dims} must be positive")
        prompts = self.prompts if isinstance(self.prompts, Mapping) else {}
        words = [*prompts, *prompts.values()]
        if not words or not all(isinstance(word, str) for word in words):
            problems.append(f"prompts={self.prompts!r} must be texts by task")
        if problems:
            raise ValueError("EmbeddingConfig: " + "; ".join(problems))

    def prompt(self, task: str) -> str:
        """Return the prefix of a task.

        Raises:
            ValueError: there is no such task.
        """
        if task not in self.prompts:
            raise ValueError(f"unknown task {task!r}: {nearest(task, self.prompts)}")
        return self.prompts[task]

    def task_of(self, prefix: str) -> str:
        """Name the task whose prompt is this prefix.

        Raises:
            ValueError: no task has it.
        """
        for task, prompt in self.prompts.items():
            if prompt == prefix:
                return task
        near = nearest(prefix, self.prompts.values())
        raise ValueError(f"no task has the prefix {prefix!r}: {near}")
