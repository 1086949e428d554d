"""What the parameters of an encoder are called in published files."""

from collections.abc import Mapping

from nomic_jax.checkpoints.row import Naming, linear, norm, row

# What stands before the name of a parameter of a layer.
LAYERS: Mapping[Naming, str] = {
    "nomic": "encoder.layers.{}.",
    "nomic_bert": "encoder.layers.{}.",
    "bert": "encoder.layer.{}.",
    "xlm-roberta": "encoder.layer.{}.",
    "modernbert": "layers.{}.",
    "nomic_bert in memory": "layers.{}.",
}

_WORDS = "embeddings.word_embeddings"
_TYPES, _PLACES = "embeddings.token_type_embeddings", "embeddings.position_embeddings"
WORD_TABLE = row(
    "word_embedding.embedding",
    "V D",
    "V D",
    ".weight",
    nomic=_WORDS,
    bert=_WORDS,
    modern="embeddings.tok_embeddings",
)
TYPE_TABLE = row(
    "type_embedding.embedding", "T D", "T D", ".weight", nomic=_TYPES, bert=_TYPES
)
POSITION_TABLE = row(
    "position_embedding.embedding",
    "P D",
    "P D",
    ".weight",
    nomic=_PLACES,
    bert=_PLACES,
)
EMBEDDING_NORM = norm(
    "embedding_norm",
    nomic="emb_ln",
    bert="embeddings.LayerNorm",
    modern="embeddings.norm",
    memory="embeddings.LayerNorm",
)
FINAL_NORM = norm("final_norm", modern="final_norm")

ATTENTION = (
    *linear(
        "attention.qkv",
        "D",
        "3 H K",
        nomic="attn.Wqkv",
        modern="attn.Wqkv",
        bert="attention.self.{query,key,value}",
        memory="self_attn.{q,k,v}_proj",
    ),
    *linear(
        "attention.out",
        "H K",
        "D",
        nomic="attn.out_proj",
        modern="attn.Wo",
        bert="attention.output.dense",
        memory="self_attn.o_proj",
    ),
)
ATTENTION_NORM = norm(
    "attention_norm",
    nomic="norm1",
    bert="attention.output.LayerNorm",
    modern="attn_norm",
    memory="post_attention_layernorm",
)
MLP_NORM = norm(
    "mlp_norm",
    nomic="norm2",
    bert="output.LayerNorm",
    modern="mlp_norm",
    memory="post_mlp_layernorm",
)
# Of Nomic's two, fc12 gets the activation; of the rows of Wi, the first half.
GATED = (
    *linear(
        "mlp.up", "D", "F", nomic="mlp.fc11", memory="mlp.up_proj", modern="mlp.Wi@2/2"
    ),
    *linear(
        "mlp.gate",
        "D",
        "F",
        nomic="mlp.fc12",
        memory="mlp.gate_proj",
        modern="mlp.Wi@1/2",
    ),
    *linear(
        "mlp.down", "F", "D", nomic="mlp.fc2", memory="mlp.down_proj", modern="mlp.Wo"
    ),
)
PLAIN = (
    *linear("mlp.up", "D", "F", nomic="mlp.fc1", bert="intermediate.dense"),
    *linear("mlp.down", "F", "D", nomic="mlp.fc2", bert="output.dense"),
)
# Both published tensors have the experts' rows one after the other, and the width last.
EXPERTS = (
    row("mlp.router.kernel", "D E", "E D", nomic="mlp.router.layer.weight"),
    row("mlp.experts.up", "E D F", "E.F D", nomic="mlp.experts.mlp.w1"),
    row("mlp.experts.down", "E F D", "E.F D", nomic="mlp.experts.mlp.w2"),
    row("mlp.experts.bias", "D", "D", nomic="mlp.experts.bias"),
)
EXPERT_BIAS = row("mlp.experts.up_bias", "E F", "E.F")  # in no published layout
