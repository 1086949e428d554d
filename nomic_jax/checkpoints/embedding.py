"""Which embedding a checkpoint makes, where its folder alone does not say."""

import dataclasses
from pathlib import Path

from nomic_jax.checkpoints.problems import read_folder_json
from nomic_jax.checkpoints.reader import EMBEDDING_FILE, Checkpoint
from nomic_jax.checkpoints.sentence_transformers import default_prompts
from nomic_jax.config import PUBLISHED_EMBEDDINGS, EmbeddingConfig, did_you_mean


@dataclasses.dataclass(frozen=True)
class ChosenEmbedding:
    """An embedding and why it was taken, for the reader of a log."""

    config: EmbeddingConfig
    reason: str


def embedding_for(
    source: str | Path, checkpoint: Checkpoint, *, published: str | None = None
) -> ChosenEmbedding:
    """Choose the embedding of a checkpoint.

    In this order: the published one that the caller names; `embedding.json`; the
    sentence-transformers files, which a published model whose name the source's ends
    with completes where they are silent, as Nomic's own are of v1.5's layer norm and of
    the dims, and many others' of prompts; without such files, a published model that
    the source's name or config.json's `_name_or_path` contains (the longest); else mean
    pooling without a layer norm, up to the trained length, with Nomic's task prefixes
    for a NomicBERT and none for other families.

    Args:
        source: what the user named: a folder or a hub id.
        checkpoint: read from there.
        published: a name in `PUBLISHED_EMBEDDINGS`.

    Raises:
        ValueError: the published name is unknown.
    """
    if published is not None:
        if published not in PUBLISHED_EMBEDDINGS:
            known = did_you_mean(published, PUBLISHED_EMBEDDINGS)
            raise ValueError(f"unknown embedding {published!r}: {known}")
        return _published(published, checkpoint, "as asked")
    own = checkpoint.embedding
    if own is not None and (checkpoint.folder / EMBEDDING_FILE).is_file():
        return ChosenEmbedding(own, f"as {EMBEDDING_FILE} says")
    for place, name in _names(source, checkpoint.folder).items():
        found = recognise(name)
        if found is None:
            continue
        chosen = _published(found, checkpoint, f"recognised in {place} {name!r}")
        if own is None:
            return chosen
        if own.pooling == chosen.config.pooling and name.endswith(found):
            completed = _completed(own, chosen.config, checkpoint)
            return dataclasses.replace(chosen, config=completed)
    if own is not None:
        return ChosenEmbedding(own, "as its sentence-transformers files say")
    default = EmbeddingConfig(
        pooling="mean",
        layer_norm=False,
        max_length=checkpoint.config.trained_positions,
        prompts=default_prompts(checkpoint.config),
    )
    reason = "by default: neither its files nor its name say which model it is"
    return ChosenEmbedding(default, reason)


def recognise(name: str) -> str | None:
    """Return the longest published model's name that a name contains."""
    found = [known for known in PUBLISHED_EMBEDDINGS if known in name]
    return max(found, key=len, default=None)


def _published(name: str, checkpoint: Checkpoint, why: str) -> ChosenEmbedding:
    config, model = PUBLISHED_EMBEDDINGS[name], checkpoint.config
    changes = {
        "matryoshka_dims": tuple(d for d in config.matryoshka_dims if d <= model.width)
    }
    if model.trained_positions < config.max_length:
        config = dataclasses.replace(config, max_length=model.trained_positions)
    config = dataclasses.replace(config, **changes)
    return ChosenEmbedding(config, f"{name}'s, {why}")


def _completed(
    own: EmbeddingConfig, published: EmbeddingConfig, checkpoint: Checkpoint
) -> EmbeddingConfig:
    """Fill in what a folder's own files do not say with a published model's."""
    silent = own.prompts == default_prompts(checkpoint.config)
    return dataclasses.replace(
        own,
        layer_norm=own.layer_norm or published.layer_norm,
        max_length=min(own.max_length, published.max_length),
        matryoshka_dims=own.matryoshka_dims or published.matryoshka_dims,
        prompts=published.prompts if silent else own.prompts,
    )


def _names(source: str | Path, folder: Path) -> dict[str, str]:
    names = {"the name": Path(source).name or str(source)}
    path = folder.resolve()
    if path.parent.name == "snapshots":  # the hub's cache: models--OWNER--NAME
        names["the hub's cache"] = path.parent.parent.name
    names["the folder"] = path.name
    # Of a fine-tuned model transformers 4 wrote the name of what it began with; where
    # sentence-transformers' files stand next to, they say what came of it.
    if (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        named = read_folder_json(folder / "config.json").get("_name_or_path")
        if isinstance(named, str) and named:
            names["_name_or_path"] = named
    return names


def describe(config: EmbeddingConfig) -> str:
    """Say an embedding in a few words."""
    norm = ", layer norm" if config.layer_norm else ""
    return f"{config.pooling} pooling{norm}, up to {config.max_length} tokens"
