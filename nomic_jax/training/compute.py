"""What computes a stage."""

import dataclasses
import logging

from jax.sharding import Mesh

from nomic_jax.model.attention_backend import AttentionBackend, check_backend
from nomic_jax.model.attention_choice import set_attention
from nomic_jax.model.encoder import NomicBert

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """What computes; no choice changes a figure but by rounding."""

    attention: AttentionBackend = "auto"  # or blockwise, splash (TPU), cudnn, tokamax

    def __post_init__(self) -> None:
        """Refuse a backend that there is not.

        Raises:
            ValueError: with those there are.
        """
        check_backend(self.attention)

    def of(
        self,
        encoder: NomicBert,
        *,
        stage: str,
        row_length: int,
        texts: int | None,
        mesh: Mesh | None,
    ) -> None:
        """Set what computes an encoder, and say what that comes to.

        Args:
            encoder: that the stage trains.
            stage: its name.
            row_length: columns of its rows.
            texts: the most that a row holds; None: any number.
            mesh: of its devices.

        Raises:
            ValueError: the attention backend cannot compute the stage.
        """
        said = set_attention(
            encoder,
            self.attention,
            rows=[(row_length, texts)],
            devices=1 if mesh is None else mesh.size,
        )
        logger.info("%s: attention: %s", stage, said)
