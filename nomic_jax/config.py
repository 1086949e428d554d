"""What defines a model: `ModelConfig`, `EmbeddingConfig`, and the published values.

Both are frozen, validated when made, and written as JSON into a model folder.

NomicBERT: Nussbaum et al. 2024 (arXiv:2402.01613), section 3 and Table 2, and for the
mixture of experts Nussbaum and Duderstadt 2025 (arXiv:2502.07972). ModernBERT: Warner
et al. 2024 (arXiv:2412.13663), appendix A. BERT: Devlin et al. 2018 (arXiv:1810.04805).
XLM-R: Conneau et al. 2019 (arXiv:1911.02116).
"""

import dataclasses
import difflib
import inspect
import math
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Say which of the known names a mistyped one probably meant.

    Returns:
        A clause to end an error with: the nearest name, or all of them.
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def differing_fields(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    *,
    words: str = "{} was {!r} and is {!r}",
    prefix: str = "",
) -> list[str]:
    """Say of each field in which two nested mappings differ what both hold.

    Args:
        old: the one before.
        new: the one next to it.
        words: of a field's name, its old value and its new one.
        prefix: of the names.
    """
    found = []
    for name in sorted({*old, *new}):
        mine, theirs = old.get(name), new.get(name)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            inside = f"{prefix}{name}."
            found += differing_fields(mine, theirs, words=words, prefix=inside)
        elif mine != theirs:
            found.append(words.format(prefix + name, mine, theirs))
    return found


Config = TypeVar("Config", bound="JsonConfig")


class JsonConfig:
    """A frozen dataclass that goes to JSON and back, refusing unknown fields."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a plain dictionary."""
        assert dataclasses.is_dataclass(self)
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls: type[Config], values: Mapping[str, Any]) -> Config:
        """Build from a dictionary as `to_json` gives it.

        Raises:
            ValueError: a field is unknown, missing or of another type than it should
                be; all of them are named.
        """
        assert dataclasses.is_dataclass(cls)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        required = {
            name
            for name, field in fields.items()
            if field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        }
        problems = [
            f"unknown field {name!r}: {did_you_mean(name, fields)}"
            for name in values
            if name not in fields
        ] + [f"missing field {name!r}" for name in sorted(required - set(values))]
        problems += [
            f"{name}={values[name]!r} must be {inspect.formatannotation(field.type)}"
            for name, field in fields.items()
            if name in values and not _is_a(field.type, values[name])
        ]
        if problems:
            raise ValueError(f"{cls.__name__}: " + "; ".join(problems))
        return cls(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in values.items()
            }
        )


def _is_a(kind: Any, value: Any) -> bool:
    """Whether a value of JSON has an annotated type; what is not simple is not asked.

    Args:
        kind: bool, int, float, str, None, a tuple of one of them, or a union.
        value: of the field.
    """
    if isinstance(kind, types.UnionType):
        return any(_is_a(one, value) for one in get_args(kind))
    if get_origin(kind) is tuple:
        listed = isinstance(value, (list, tuple))
        return listed and all(_is_a(get_args(kind)[0], one) for one in value)
    if kind in (int, float):  # a whole number is written without its point
        number = int if kind is int else (int, float)
        return isinstance(value, number) and not isinstance(value, bool)
    return kind not in (bool, str, types.NoneType) or isinstance(value, kind)


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
            raise ValueError(
                f"unknown task {task!r}: {did_you_mean(task, self.prompts)}"
            )
        return self.prompts[task]

    def task_of(self, prefix: str) -> str:
        """Name the task whose prompt is this prefix.

        Raises:
            ValueError: no task has it.
        """
        for task, prompt in self.prompts.items():
            if prompt == prefix:
                return task
        near = did_you_mean(prefix, self.prompts.values())
        raise ValueError(f"no task has the prefix {prefix!r}: {near}")


_NOMIC_BERT = ModelConfig(
    vocab_size=30528,
    type_vocab_size=2,
    num_layers=12,
    width=768,
    num_heads=12,
    mlp_width=3072,
    layer_norm_epsilon=1e-12,
    rope_base=1000.0,
    trained_positions=2048,
)
_NOMIC_XLM = dataclasses.replace(
    _NOMIC_BERT,
    vocab_size=250048,
    type_vocab_size=1,
    layer_norm_epsilon=1e-5,
    rope_base=10000.0,
    activation="gelu",
    bias=True,
    pad_token_id=1,
)
_BERT = dataclasses.replace(
    _NOMIC_BERT,
    vocab_size=30522,
    rope_base=None,
    trained_positions=512,
    activation="gelu",
    bias=True,
    dropout=0.1,
)
_XLM_ROBERTA = dataclasses.replace(
    _BERT,
    vocab_size=250002,
    type_vocab_size=1,
    layer_norm_epsilon=1e-5,
    pad_token_id=1,
    first_position=2,
)
_MODERN_BERT = ModelConfig(
    vocab_size=50368,
    type_vocab_size=0,
    num_layers=22,
    width=768,
    num_heads=12,
    mlp_width=1152,
    layer_norm_epsilon=1e-5,
    rope_base=160000.0,
    trained_positions=8192,
    activation="geglu",
    pre_norm=True,
    norm_bias=False,
    global_every=3,
    local_window=64,
    local_rope_base=10000.0,
    pad_token_id=50283,
)
PUBLISHED: Mapping[str, ModelConfig] = {
    "nomic-bert-2048": dataclasses.replace(_NOMIC_BERT, head="mlm"),
    "nomic-embed-text-v1": _NOMIC_BERT,
    "nomic-embed-text-v1.5": _NOMIC_BERT,
    "nomic-xlm-2048": dataclasses.replace(_NOMIC_XLM, head="mlm", head_bias=True),
    "nomic-embed-text-v2-moe": dataclasses.replace(_NOMIC_XLM, num_experts=8),
    "bert-base-uncased": dataclasses.replace(_BERT, head="pretraining", head_bias=True),
    "xlm-roberta-base": dataclasses.replace(_XLM_ROBERTA, head="mlm", head_bias=True),
    "ModernBERT-base": dataclasses.replace(_MODERN_BERT, head="mlm", head_bias=True),
    "ModernBERT-large": dataclasses.replace(
        _MODERN_BERT,
        num_layers=28,
        width=1024,
        num_heads=16,
        mlp_width=2624,
        head="mlm",
        head_bias=True,
    ),
    "modernbert-embed-base": _MODERN_BERT,
}
_NO_PROMPTS = dict.fromkeys(NOMIC_PROMPTS, "")
_PLAIN = EmbeddingConfig(
    pooling="mean", layer_norm=False, max_length=512, prompts=_NO_PROMPTS
)
_BGE = dataclasses.replace(
    _PLAIN,
    pooling="cls",
    prompts={
        **_NO_PROMPTS,
        "search_query": "Represent this sentence for searching relevant passages: ",
    },
)
# e5 has a prefix for passages, and "query: " for all that is not a passage.
_E5 = dataclasses.replace(
    _PLAIN,
    prompts={**dict.fromkeys(NOMIC_PROMPTS, "query: "), "search_document": "passage: "},
)
PUBLISHED_EMBEDDINGS: Mapping[str, EmbeddingConfig] = {
    "nomic-embed-text-v1": EmbeddingConfig(
        pooling="mean", layer_norm=False, max_length=2048
    ),
    "nomic-embed-text-v1.5": EmbeddingConfig(
        pooling="mean",
        layer_norm=True,
        max_length=2048,
        matryoshka_dims=(768, 512, 256, 128, 64),
    ),
    "nomic-embed-text-v2-moe": EmbeddingConfig(
        pooling="mean", layer_norm=False, max_length=512, matryoshka_dims=(768, 256)
    ),
    "modernbert-embed-base": EmbeddingConfig(
        pooling="mean", layer_norm=False, max_length=8192, matryoshka_dims=(768, 256)
    ),
    "all-MiniLM-L6-v2": dataclasses.replace(_PLAIN, max_length=256),
    "gte-small": _PLAIN,
    "gte-base": _PLAIN,
    "bge-small-en-v1.5": _BGE,
    "bge-base-en-v1.5": _BGE,
    "e5-small-v2": _E5,
    "e5-base-v2": _E5,
    "multilingual-e5-small": _E5,
    "multilingual-e5-base": _E5,
}
