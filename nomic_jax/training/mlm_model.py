"""The model that an MLM stage begins with: its sizes, or BERT or XLM-R of those."""

import dataclasses

from nomic_jax.checkpoints.folder import build
from nomic_jax.checkpoints.hub import resolve
from nomic_jax.checkpoints.reader import read_checkpoint
from nomic_jax.checkpoints.sentence_transformers_folder import tokenizer_folder
from nomic_jax.checkpoints.start_from import nomic_config, nomic_start
from nomic_jax.config import ModelConfig
from nomic_jax.model.encoder import Remat
from nomic_jax.model.heads import MaskedLanguageModel
from nomic_jax.tokenizer import TextTokenizer
from nomic_jax.training.start import StartConfig, config_with_experts, with_experts


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSize:
    """A NomicBERT, whose vocabulary is the tokenizer's: SwiGLU where it is fresh."""

    num_layers: int
    width: int  # of the residual stream
    num_heads: int
    mlp_width: int  # between the MLP's products
    trained_positions: int  # tokens of the longest row
    rope_base: float = 1000.0  # theta of the rotary positions
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse sizes that fit no model, before any text is read.

        Raises:
            ValueError: with every problem found.
        """
        self.config(vocab_size=1, pad_token_id=0)

    def config(self, *, vocab_size: int, pad_token_id: int) -> ModelConfig:
        """Complete the sizes with the published models' constants."""
        return ModelConfig(
            **dataclasses.asdict(self),
            vocab_size=vocab_size,
            type_vocab_size=2,
            layer_norm_epsilon=1e-12,
            pad_token_id=pad_token_id,
            head="mlm",
        )


def started_config(
    start: StartConfig, size: ModelSize, given: ModelConfig
) -> ModelConfig:
    """Return what a stage makes of the model that it starts with.

    Args:
        start: which names the model.
        size: of the stage.
        given: the model's.

    Raises:
        ValueError: its sizes are not the stage's, or it has no MLM head.
    """
    names = ("num_layers", "width", "num_heads", "mlp_width")
    wrong = [
        f"model.{name}={getattr(size, name)} is {getattr(given, name)} there"
        for name in names
        if getattr(size, name) != getattr(given, name)
    ]
    if given.head not in ("mlm", "pretraining"):
        wrong.append(f"it has head={given.head!r}, and no MLM head to go on with")
    if wrong:
        raise ValueError(f"start.model={start.model!r}: {'; '.join(wrong)}")
    made = nomic_config(
        given, rope_base=size.rope_base, trained_positions=size.trained_positions
    )
    made = dataclasses.replace(made, dropout=size.dropout)
    return config_with_experts(start, made)


def started_model(
    start: StartConfig,
    size: ModelSize,
    tokenizer: TextTokenizer,
    *,
    seed: int,
    dtype: str,
    remat: Remat = "none",
) -> MaskedLanguageModel:
    """Load BERT or XLM-R with rotary positions in place of its absolute ones.

    Args:
        start: which names it, and says whether its MLPs become experts.
        size: of the stage; its positions, dropout and rotary base are set.
        tokenizer: of the text that the stage trains on.
        seed: of routers.
        dtype: what products run in.
        remat: what a layer keeps for its backward pass.

    Raises:
        ValueError: it is no such model, of other sizes, without an MLM head, or has
            another tokenizer.
    """
    folder = resolve(start.model)
    checkpoint = read_checkpoint(folder)
    config = started_config(start, size, checkpoint.config)
    own = TextTokenizer.from_folder(tokenizer_folder(folder)).digest
    if own != tokenizer.digest:
        raise ValueError(
            f"start.model={start.model!r} has tokenizer {own}, the prepared text has "
            f"{tokenizer.digest}: prepare it with the model's tokenizer"
        )
    made = nomic_start(
        checkpoint, rope_base=size.rope_base, trained_positions=size.trained_positions
    )
    made = with_experts(start, made, seed)
    made = dataclasses.replace(made, config=config)
    model = build(made, dtype=dtype, remat=remat)
    assert isinstance(model, MaskedLanguageModel), "its config says so"
    return model
