"""Which layers an encoder has, and where the parameters of each are kept.

Layers of one kind are stacked and scanned, one array per kind of parameter. Where kinds
alternate, a group of them is what is scanned: a layer with one MLP and a layer with
experts; or, in ModernBERT (Warner et al. 2024, arXiv:2412.13663, section 2.1), local
layers and a global one, after a first layer that has no norm before its attention.
"""

import dataclasses

from nomic_jax.config import ModelConfig

DENSE, SPARSE = "dense", "sparse"  # layers with one MLP, and with experts


@dataclasses.dataclass(frozen=True)
class LayerPlace:
    """Layers whose parameters are kept under one path of the encoder."""

    path: str
    layers: tuple[int, ...]  # which they are, in order
    stacked: bool = True  # on a leading axis; else it is one layer
    sparse: bool = False  # experts instead of one MLP
    local: bool = False  # attention within a window
    attention_norm: bool = True


def layer_places(config: ModelConfig) -> tuple[LayerPlace, ...]:
    """Return the places of all layers, those of one group side by side."""
    total, every = config.num_layers, config.global_every
    if config.num_experts:
        return (
            LayerPlace(f"blocks.{DENSE}", tuple(range(0, total, 2))),
            LayerPlace(f"blocks.{SPARSE}", tuple(range(1, total, 2)), sparse=True),
        )
    if not config.pre_norm and every == 1:
        return (LayerPlace("blocks", tuple(range(total))),)
    groups = (total - 1) // every
    end = 1 + groups * every

    def place(path: str, *layers: int, stacked: bool) -> LayerPlace:
        local = bool(layers[0] % every)
        return LayerPlace(path, layers, stacked=stacked, local=local)

    return (
        LayerPlace("first", (0,), stacked=False, attention_norm=not config.pre_norm),
        *(
            place(f"blocks.{i}", *range(1 + i, end, every), stacked=True)
            for i in range(every if groups else 0)
        ),
        *(
            place(f"rest.{i}", layer, stacked=False)
            for i, layer in enumerate(range(end, total))
        ),
    )
