"""What defines a model: `ModelConfig`, its encoder, and `EmbeddingConfig`.

Both are frozen, validated when made, and written as JSON into a model folder.
`PUBLISHED` and `PUBLISHED_EMBEDDINGS` hold the values of Nomic's released models
(Nussbaum et al. 2024, arXiv:2402.01613, section 3 and Table 2).
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

VOCABULARY_MULTIPLE = 64  # tables are padded to it: matmul tiles, and even shards


def padded_vocabulary(num_tokens: int) -> int:
    """Round a tokenizer's size up to the rows an embedding table gets for it."""
    return -(-num_tokens // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def nearest(name: str, known: Iterable[str]) -> str:
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
        new: the one beside it.
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
            ValueError: a field is unknown or missing; all of them are named.
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
            f"unknown field {name!r}: {nearest(name, fields)}"
            for name in values
            if name not in fields
        ] + [f"missing field {name!r}" for name in sorted(required - set(values))]
        if problems:
            raise ValueError(f"{cls.__name__}: " + "; ".join(problems))
        return cls(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in values.items()
            }
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(JsonConfig):
    """The encoder's architecture; what defines a published model has no default."""

    vocab_size: int  # rows of the word table, the tokenizer's size padded to 64
    type_vocab_size: int  # rows of the token-type table
    num_layers: int
    width: int  # of the residual stream
    num_heads: int
    mlp_width: int  # between the MLP's matmuls
    layer_norm_epsilon: float
    rope_base: float | None  # theta; 1000 in v1 and v1.5; None: absolute positions
    trained_positions: int  # longest text seen in training, L of Dynamic NTK
    activation: Literal["swiglu", "gelu"] = "swiglu"  # of the MLP; BERT's is GELU
    bias: bool = False  # of the linear layers; BERT, XLM-R and v2 have them
    first_position: int = 0  # row of the absolute table of a first token; 2 in XLM-R
    rope_scaling_factor: float | None = None  # alpha of Dynamic NTK; None: plain RoPE
    pad_token_id: int = 0
    dropout: float = 0.0  # after the embeddings and on both residual branches
    initializer_range: float = 0.02  # standard deviation of a fresh model's weights
    head: Literal["mlm"] | None = None  # what sits on the encoder in a model folder
    head_bias: bool = False  # the MLM head's two biases; only transformers' has them

    def __post_init__(self) -> None:
        """Refuse sizes that no model can have.

        Raises:
            ValueError: with every problem found, each with its numbers.
        """
        problems = []
        for name in (
            *("vocab_size", "type_vocab_size", "num_layers", "width", "num_heads"),
            *("mlp_width", "trained_positions"),
        ):
            if getattr(self, name) < 1:
                problems.append(f"{name}={getattr(self, name)} must be at least 1")
        if self.num_heads >= 1 and self.width % (2 * self.num_heads):
            problems.append(
                f"width={self.width} does not split into num_heads={self.num_heads} "
                "heads of even size, as rotary positions need"
            )
        if self.rope_scaling_factor is not None and self.rope_scaling_factor < 1:
            problems.append(
                f"rope_scaling_factor={self.rope_scaling_factor} must be at least 1"
            )
        if self.rope_base is None and self.rope_scaling_factor is not None:
            problems.append(
                f"rope_scaling_factor={self.rope_scaling_factor} needs rope_base: "
                "absolute positions cannot be stretched"
            )
        if self.rope_base is not None and self.first_position:
            problems.append(
                f"first_position={self.first_position} is of absolute positions; "
                "set rope_base=None"
            )
        if self.activation not in ("swiglu", "gelu"):
            problems.append(f"activation={self.activation!r} must be swiglu or gelu")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout={self.dropout} must be in [0, 1)")
        if not 0 <= self.pad_token_id < max(self.vocab_size, 1):
            problems.append(
                f"pad_token_id={self.pad_token_id} is outside the "
                f"vocabulary of {self.vocab_size}"
            )
        if self.head_bias and self.head is None:
            problems.append("head_bias=True needs head='mlm'")
        if problems:
            raise ValueError("ModelConfig: " + "; ".join(problems))

    @property
    def head_width(self) -> int:
        """Width of one attention head, the rotary dimension."""
        return self.width // self.num_heads


Pooling = Literal["mean", "cls"]

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
        if self.pooling not in ("mean", "cls"):
            problems.append(f"pooling={self.pooling!r} must be 'mean' or 'cls'")
        if self.max_length < 3:
            problems.append(
                f"max_length={self.max_length} must be at least 3: [CLS] token [SEP]"
            )
        if any(dim < 1 for dim in self.matryoshka_dims):
            problems.append(f"matryoshka_dims={self.matryoshka_dims} must be positive")
        if problems:
            raise ValueError("EmbeddingConfig: " + "; ".join(problems))


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

PUBLISHED: Mapping[str, ModelConfig] = {
    "nomic-bert-2048": dataclasses.replace(_NOMIC_BERT, head="mlm"),
    "nomic-embed-text-v1": _NOMIC_BERT,
    "nomic-embed-text-v1.5": _NOMIC_BERT,
}

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
}
