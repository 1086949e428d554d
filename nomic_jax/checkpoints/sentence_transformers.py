"""The sentence-transformers layout: read and write modules.json and what it names.

    modules.json                          the order of the modules
    1_Pooling/config.json                 how hidden states become one vector
    2_Dense/config.json, model.safetensors   linear.weight [E, D], linear.bias [E]
    config_sentence_transformers.json     prompts
    README.md                             what the model is and how to load it

That library normalises in a module and cuts a dimension afterwards, so a shortened
vector is of unit length only with `normalize_embeddings=True`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from nomic_jax.checkpoints.families.spec import Family, family_of
from nomic_jax.checkpoints.problems import (
    CheckpointError,
    read_folder_json,
    read_json_list,
)
from nomic_jax.checkpoints.tensors import open_tensors, write_tensors
from nomic_jax.config import NOMIC_PROMPTS, EmbeddingConfig, ModelConfig, Pooling
from nomic_jax.model.pooling import Projection, ProjectionActivation
from nomic_jax.storage import write_json

PROJECTION_FOLDER = "projection"  # in every layout but that of sentence-transformers
_ACTIVATIONS: dict[str, ProjectionActivation] = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
}
_KEYS = {"in_features", "out_features", "bias", "activation_function"}
# Keys that later releases write, and the values that change nothing.
_HARMLESS = {
    "module_input_name": ("sentence_embedding",),
    "module_output_name": ("sentence_embedding", None),
    "use_residual": (False,),
}


def read_dense(folder: Path, width: int) -> Projection:
    """Read a projection of vectors of a width.

    Raises:
        CheckpointError: it is another kind of layer, or its tensors are not whole.
    """
    values = read_folder_json(folder / "config.json", module=f"module {folder.name}")
    tensors, problems = open_tensors(folder)
    wrong = [str(problem) for problem in problems]
    wrong += [
        f"{key}={value!r} is not implemented"
        for key, value in values.items()
        if key not in _KEYS and value not in _HARMLESS.get(key, ())
    ]
    wrong += [f"{key} is missing" for key in sorted(_KEYS - values.keys())]
    activation = str(values.get("activation_function"))
    if activation not in _ACTIVATIONS:
        known = " or ".join(_ACTIVATIONS)
        wrong.append(f"activation_function={activation!r} must be {known}")
    outputs, bias = values.get("out_features"), bool(values.get("bias"))
    if values.get("in_features") != width:
        wrong.append(
            f"in_features={values.get('in_features')} must be the pooled width {width}"
        )
    shapes = {"linear.weight": (outputs, width)}
    shapes |= {"linear.bias": (outputs,)} if bias else {}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != shapes:
        wrong.append(f"its tensors are {found}, and {shapes} are needed")
    if wrong:
        raise CheckpointError(f"{folder} is not a projection: {'; '.join(wrong)}")
    arrays = {name: np.asarray(t.read(), np.float32) for name, t in tensors.items()}
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise CheckpointError(f"{folder} has values that are not finite in {bad}")
    return Projection(
        arrays["linear.weight"].T,
        arrays.get("linear.bias"),
        activation=_ACTIVATIONS[activation],
    )


def write_dense(folder: Path, projection: Projection) -> None:
    """Write a projection into a new folder, in float32."""
    folder.mkdir()
    kernel = np.asarray(projection.kernel[...])
    arrays = {"linear.weight": np.ascontiguousarray(kernel.T)}
    if projection.bias is not None:
        arrays["linear.bias"] = np.asarray(projection.bias[...])
    names = {activation: name for name, activation in _ACTIVATIONS.items()}
    write_json(
        folder / "config.json",
        {
            "in_features": kernel.shape[0],
            "out_features": kernel.shape[1],
            "bias": projection.bias is not None,
            "activation_function": names[projection.activation],
        },
    )
    write_tensors(
        folder / "model.safetensors",
        {name: (array.shape, array.dtype) for name, array in arrays.items()},
        arrays.items(),
    )


# The names by which the library's encode_query and encode_document find their prompts.
ALIASES = {
    "query": "search_query",
    "document": "search_document",
    "passage": "search_document",
}
# How the releases before version 6 say a pooling.
SWITCHES = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "last": "pooling_mode_lasttoken",
}
SETTINGS = "config_sentence_transformers.json"


def transformer_folder(folder: Path) -> Path:
    """Return where the encoder is: the folder itself, or the one its list names.

    Raises:
        CheckpointError: modules.json does not begin with a transformer.
    """
    modules = read_json_list(folder / "modules.json")
    if not modules or _kind(modules[0]) != "Transformer":
        raise CheckpointError(
            f"{folder}/modules.json does not begin with a Transformer"
        )
    return folder / str(modules[0].get("path", ""))


def tokenizer_folder(folder: Path) -> Path:
    """Return where the tokenizer is: next to the encoder, else in the folder itself.

    Raises:
        CheckpointError: modules.json does not begin with a transformer.
    """
    if not (folder / "modules.json").is_file():
        return folder
    inside = transformer_folder(folder)
    files = ("tokenizer.json", "vocab.txt")
    return inside if any((inside / name).is_file() for name in files) else folder


def read_embedding(
    folder: Path, config: ModelConfig
) -> tuple[EmbeddingConfig, Projection | None]:
    """Read how a sentence-transformers folder makes its vectors.

    A folder without prompts gets those of `default_prompts`, as does one with that
    library's own empty ones; where only queries or documents have one, the others get
    theirs. The length is cut to the trained positions where the model cannot stretch
    them.

    Returns:
        The embedding, and the dense layer that comes after it, if there is one.

    Raises:
        CheckpointError: a module, a pooling, a layer norm or a dense layer is not
            implemented.
    """
    pooling, layer_norm, projection = None, False, None
    for module in read_json_list(folder / "modules.json")[1:]:
        kind, path = _kind(module), folder / str(module.get("path", ""))
        if kind == "Pooling" and pooling is None:
            pooling = _pooling(path)
        elif kind == "Dense" and pooling is not None and projection is None:
            projection = read_dense(path, config.width)
        elif kind == "LayerNorm" and pooling and not (layer_norm or projection):
            layer_norm = True
            _check_plain(path, config.width)
        elif kind != "Normalize":
            raise CheckpointError(
                f"{folder}/modules.json has a {module.get('type')!r} where none is "
                "implemented; Transformer, Pooling, LayerNorm, Dense, Normalize are, "
                "in this order"
            )
    if pooling is None:
        raise CheckpointError(f"{folder}/modules.json has no Pooling module")
    settings = (
        read_folder_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    )
    prompts = _prompts(settings.get("prompts") or {}, config)
    _check_case(transformer_folder(folder))
    length = _max_length(transformer_folder(folder), config)
    dims = read_folder_json(transformer_folder(folder) / "config.json")
    embedding = EmbeddingConfig(
        pooling=pooling,
        layer_norm=layer_norm,
        max_length=length,
        matryoshka_dims=tuple(dims.get("matryoshka_dimensions") or ()),
        prompts=prompts,
    )
    return embedding, projection


def default_prompts(config: ModelConfig) -> dict[str, str]:
    """Return the prompts of a model that says nothing of any: Nomic's, or empty ones.

    Only NomicBERT models are taken to have been trained with Nomic's task prefixes.
    """
    if family_of(config) == "nomic_bert":
        return dict(NOMIC_PROMPTS)
    return dict.fromkeys(NOMIC_PROMPTS, "")


def _prompts(given: dict[str, str], config: ModelConfig) -> dict[str, str]:
    """Name prompts by our tasks; queries and documents, at least, have some."""
    prompts = dict(given)
    for alias, name in ALIASES.items():
        if alias in prompts and prompts[alias] == prompts.setdefault(
            name, prompts[alias]
        ):
            del prompts[alias]
    for name in given:  # Nomic's v2 has the tasks of MTEB: Classification, Clustering
        if name.lower() in NOMIC_PROMPTS:
            prompts.setdefault(name.lower(), given[name])
    default = default_prompts(config)
    if not any(prompts.values()) and not prompts.keys() >= NOMIC_PROMPTS.keys():
        return default
    return {name: default[name] for name in ALIASES.values()} | prompts


def _kind(module: dict[str, Any]) -> str:
    return str(module.get("type", "")).rsplit(".", 1)[-1]


def _pooling(path: Path) -> Any:
    values = read_folder_json(path / "config.json")
    modes = values.get("pooling_mode")
    if modes is None:  # before version 6: one switch for each mode
        switches = {name: mode for mode, name in SWITCHES.items()}
        modes = [
            switches.get(key, key)
            for key, value in values.items()
            if key.startswith("pooling_mode_") and value
        ]
    modes = [modes] if isinstance(modes, str) else list(modes)
    modes = ["last" if mode == "lasttoken" else mode for mode in modes]
    known = get_args(Pooling)
    if (
        len(modes) != 1
        or modes[0] not in known
        or not values.get("include_prompt", True)
    ):
        raise CheckpointError(
            f"{path}/config.json pools by {' and '.join(modes) or 'nothing'}, "
            f"include_prompt={values.get('include_prompt', True)}; only "
            f"{' or '.join(map(repr, known))}, with the prompt's tokens, is implemented"
        )
    return modes[0]


def _check_plain(path: Path, width: int) -> None:
    tensors, _ = open_tensors(path)
    for name, value in (("norm.weight", 1), ("norm.bias", 0)):
        if name not in tensors or np.any(tensors[name].read() != np.full(width, value)):
            raise CheckpointError(
                f"{path} has a layer norm with parameters ({name} is not all {value}); "
                "only one without is implemented"
            )


def _check_case(folder: Path) -> None:
    """Refuse texts that are lower-cased before a tokenizer that does not do it."""
    if not (folder / "sentence_bert_config.json").is_file():
        return
    if not read_folder_json(folder / "sentence_bert_config.json").get("do_lower_case"):
        return
    path = folder / "tokenizer_config.json"
    if not (path.is_file() and read_folder_json(path).get("do_lower_case")):
        raise CheckpointError(
            f"{folder}/sentence_bert_config.json has do_lower_case=true, and the "
            "tokenizer does not lower-case by itself; only what a tokenizer does is "
            "done to texts here"
        )


def _max_length(folder: Path, config: ModelConfig) -> int:
    limits = [
        read_folder_json(folder / file).get(key)
        for file, key in (
            ("sentence_bert_config.json", "max_seq_length"),
            ("tokenizer_config.json", "model_max_length"),
        )
        if (folder / file).is_file()
    ]
    # Absent is null, or a number beyond any text (1e30).
    known = [int(limit) for limit in limits if limit and limit < 1e9]
    length = known[0] if known else config.trained_positions
    stretched = config.rope_scaling_factor is not None
    return length if stretched else min(length, config.trained_positions)


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
        _card_prompts(embedding),
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


def _card_prompts(embedding: EmbeddingConfig) -> str:
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
        "Between pooling and normalisation is a layer norm without parameters "
        "(`2_LayerNorm`).\ntext-embeddings-inference reads no such module: the vectors "
        "it serves differ slightly (cosine\n0.99994 for nomic-embed-text-v1.5 at its "
        "full width; cut ones differ more).\n"
    )


def _section(title: str, lines: list[str]) -> str:
    return f"## {title}\n\n" + "\n".join(lines) + "\n" if lines else ""


# Module paths that every release since 2.0 knows; newer ones map them to theirs.
_TYPES = "sentence_transformers.models."


def write_modules(
    folder: Path,
    config: ModelConfig,
    embedding: EmbeddingConfig,
    projection: Projection | None,
    *,
    name: str,
    facts: CardFacts,
    remote: bool,
) -> None:
    """Add what makes a model folder one of sentence-transformers.

    Args:
        folder: holds config.json, the weights and the tokenizer already.
        config: the model's.
        embedding: how its vectors are made.
        projection: what comes after it, if anything does.
        name: of the model, for its card.
        facts: what else the card says.
        remote: it is of Nomic's layout, which code from elsewhere loads.
    """
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    if embedding.layer_norm:
        modules.append(("LayerNorm", "2_LayerNorm"))
    if projection is not None:
        modules.append(("Dense", f"{len(modules)}_Dense"))
    modules.append(("Normalize", f"{len(modules)}_Normalize"))
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": _TYPES + kind}
        for index, (kind, path) in enumerate(modules)
    ]
    for kind, path in modules[1:]:
        if kind == "Dense" and projection is not None:
            write_dense(folder / path, projection)
        else:
            (folder / path).mkdir()
    write_json(folder / "modules.json", listed)
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": config.width,
            **{key: embedding.pooling == mode for mode, key in SWITCHES.items()},
        },
    )
    if embedding.layer_norm:
        write_json(folder / "2_LayerNorm" / "config.json", {"dimension": config.width})
        one = np.ones(config.width, np.float32)
        norm = {"norm.weight": one, "norm.bias": np.zeros_like(one)}
        write_tensors(
            folder / "2_LayerNorm" / "model.safetensors",
            {key: (array.shape, array.dtype) for key, array in norm.items()},
            norm.items(),
        )
    prompts = dict(embedding.prompts)
    for alias, task in ALIASES.items():
        if task in prompts and alias != "passage":
            prompts.setdefault(alias, prompts[task])
    # What `encode` puts before a text when no task is named: better than nothing.
    default = "search_document" if prompts.get("search_document") else None
    settings = {"prompts": prompts, "default_prompt_name": default}
    write_json(folder / SETTINGS, {**settings, "similarity_fn_name": "cosine"})
    lengths = {"max_seq_length": embedding.max_length, "do_lower_case": False}
    write_json(folder / "sentence_bert_config.json", lengths)
    if embedding.matryoshka_dims:
        values = read_folder_json(folder / "config.json")
        values["is_matryoshka"] = True
        values["matryoshka_dimensions"] = list(embedding.matryoshka_dims)
        write_json(folder / "config.json", values)
    (folder / "README.md").write_text(
        model_card(config, embedding, name, facts, remote=remote), encoding="utf-8"
    )
