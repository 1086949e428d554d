"""The card of a sentence-transformers folder: what the model is and how to load it."""

import dataclasses
from collections.abc import Mapping

from nomic_jax.checkpoints.families import Family, family_of
from nomic_jax.config import EmbeddingConfig, ModelConfig

_NAMES: Mapping[Family, str] = {
    "nomic_bert": "NomicBERT",
    "bert": "BERT",
    "xlm-roberta": "XLM-R",
    "modernbert": "ModernBERT",
}


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """What the files of a model do not say."""

    base_model: str | None = None  # a hub id, or a path
    data: tuple[str, ...] = ()  # names of what it was trained on
    training: Mapping[str, object] = dataclasses.field(default_factory=dict, hash=False)
    evaluation: Mapping[str, float] = dataclasses.field(
        default_factory=dict, hash=False
    )  # a score by the name of its task and measure


NO_FACTS = CardFacts()


def model_card(
    config: ModelConfig,
    embedding: EmbeddingConfig,
    name: str,
    facts: CardFacts = NO_FACTS,
    *,
    remote: bool = False,
) -> str:
    """Write the card.

    Args:
        config: the model's.
        embedding: how its vectors are made.
        name: of the model.
        facts: what is known of its training; sections without any are left out.
        remote: it is of Nomic's own layout, for which transformers has no class.
    """
    parts = [
        _metadata(config, facts),
        f"# {name}\n",
        _what(config, embedding),
        _loading(config, remote=remote),
        _prompts(embedding),
        _shorter(config, embedding),
        _norm(embedding),
        _section("Training data", [f"- {one}" for one in facts.data]),
        _section("Settings", [f"- `{k}`: {v}" for k, v in facts.training.items()]),
        _section(
            "Evaluation", [f"- {k}: {v:.4f}" for k, v in facts.evaluation.items()]
        ),
    ]
    return "\n".join(part for part in parts if part)


def _metadata(config: ModelConfig, facts: CardFacts) -> str:
    family = family_of(config)
    lines = [
        "library_name: sentence-transformers",
        "pipeline_tag: sentence-similarity",
        f"tags: [sentence-transformers, feature-extraction, {family}]",
    ]
    lines += [f"base_model: {facts.base_model}"] if facts.base_model else []
    return "\n".join(["---", *lines, "---"])


def _what(config: ModelConfig, embedding: EmbeddingConfig) -> str:
    kind = f"A {_NAMES[family_of(config)]} text encoder"
    if config.num_experts:
        chosen = f"{config.experts_per_token} of {config.num_experts}"
        kind += f" with a mixture of experts ({chosen} for each token)"
    return (
        f"{kind}: {config.num_layers} layers, {config.width}\ndimensions, "
        f"{embedding.pooling} pooling, up to {embedding.max_length} tokens.\n"
    )


def _loading(config: ModelConfig, *, remote: bool) -> str:
    trust = ", trust_remote_code=True" if remote else ""
    needs = ""
    if family_of(config) == "nomic_bert" and not remote:
        needs = "\nIt needs transformers 5 or newer.\n"
    if remote:
        needs = (
            "\nThe weights and config.json are in Nomic's own layout, because "
            "transformers has no class for\nthis model. `trust_remote_code=True` is "
            "needed: `auto_map` in config.json names the code on the\nhub "
            "(nomic-ai/nomic-bert-2048), which is fetched and run. **Without it "
            "transformers takes its own\nNomicBERT class, finds no weights for it and "
            "leaves it random, with a warning and no error.**\n"
        )
    lines = [
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("this/folder"{trust})',
        'query = model.encode_query(["What is TSNE?"])',
        'documents = model.encode_document(["TSNE draws many dimensions in two."])',
    ]
    return f"## Use\n{needs}\n```python\n" + "\n".join(lines) + "\n```\n"


def _prompts(embedding: EmbeddingConfig) -> str:
    if not any(embedding.prompts.values()):
        return ""
    rows = [
        f"- `{task}`: `{text!r}`" for task, text in sorted(embedding.prompts.items())
    ]
    return (
        "Every text needs the prefix of its task. `encode_query` and `encode_document` "
        "put it there;\n`encode` does so with `prompt_name=`, else put it before the "
        "text yourself:\n\n" + "\n".join(rows) + "\n"
    )


def _shorter(config: ModelConfig, embedding: EmbeddingConfig) -> str:
    dims = [dim for dim in embedding.matryoshka_dims if dim != config.width]
    if not dims:
        return ""
    return (
        f"It was trained to be cut to {', '.join(map(str, dims))} dimensions. Pass "
        f"`truncate_dim={max(dims)}, normalize_embeddings=True`:\nwithout the second a "
        "cut vector is not of unit length.\n"
    )


def _norm(embedding: EmbeddingConfig) -> str:
    if not embedding.layer_norm:
        return ""
    return (
        "Between pooling and normalisation stands a layer norm without parameters "
        "(`2_LayerNorm`).\ntext-embeddings-inference reads no such module: the vectors "
        "it serves differ slightly (cosine\n0.99994 for nomic-embed-text-v1.5 at its "
        "full width; cut ones differ more).\n"
    )


def _section(title: str, lines: list[str]) -> str:
    return f"## {title}\n\n" + "\n".join(lines) + "\n" if lines else ""
