"""Every head next to transformers' own, or a plain PyTorch one where it has none."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from published_names import published
from transformers_heads import (
    BERT,
    MODERN,
    NOMIC,
    XLM_R,
    drawn,
    path_name,
    transformers_model,
    under_our_names,
)

from nomic_jax.data.tokenizer import pad
from nomic_jax.downstream.losses import (
    SEQUENCE_LOSSES,
    answer_cross_entropy,
    cross_entropy,
    pretraining_loss,
)
from nomic_jax.model.encoder import NomicBert
from nomic_jax.model.heads import make_model

pytestmark = pytest.mark.torch

LENGTHS, LENGTH = (16, 3, 12, 9), 16
IGNORED = -100  # transformers' label of what is not counted
LABELS = ("one", "two", "three")

MLM = {"head": "mlm", "head_bias": True}
PRETRAINING = {"head": "pretraining", "head_bias": True}
NEXT = {"head": "next_sentence"}
TOKENS = {"head": "token_classification", "labels": LABELS}
ANSWERS = {"head": "question_answering"}
CHOICES = {"head": "multiple_choice"}


def texts(problem, labels=LABELS, **changes):
    head = {"head": "sequence_classification", "problem": problem, "labels": labels}
    return head | changes


# Every class with a head, and every kind of loss at least once.
CASES = [
    (BERT, "BertForMaskedLM", MLM),
    (BERT, "BertForPreTraining", PRETRAINING),
    (BERT, "BertForNextSentencePrediction", NEXT),
    (BERT, "BertForSequenceClassification", texts("one_label")),
    (BERT, "BertForTokenClassification", TOKENS),
    (BERT, "BertForQuestionAnswering", ANSWERS),
    (BERT, "BertForMultipleChoice", CHOICES),
    (XLM_R, "XLMRobertaForMaskedLM", MLM),
    (XLM_R, "XLMRobertaForSequenceClassification", texts("regression", LABELS[:1])),
    (XLM_R, "XLMRobertaForTokenClassification", TOKENS),
    (XLM_R, "XLMRobertaForQuestionAnswering", ANSWERS),
    (XLM_R, "XLMRobertaForMultipleChoice", CHOICES),
    (NOMIC, "NomicBertForMaskedLM", MLM),
    (NOMIC, "NomicBertForSequenceClassification", texts("many_labels")),
    (NOMIC, "NomicBertForTokenClassification", TOKENS),
    (MODERN, "ModernBertForMaskedLM", MLM),
    (MODERN, "ModernBertForSequenceClassification", texts("one_label")),
    (
        MODERN,
        "ModernBertForSequenceClassification",
        texts("regression", head_pooling="mean"),
    ),
    (MODERN, "ModernBertForTokenClassification", TOKENS),
    (MODERN, "ModernBertForQuestionAnswering", ANSWERS),
    (MODERN, "ModernBertForMultipleChoice", CHOICES),
]


def tokens_of(config):
    """Texts of several lengths; full rows where padding is among the answers."""
    random = np.random.default_rng(0)
    full = config.head == "question_answering"
    lengths = [LENGTH] * len(LENGTHS) if full else LENGTHS
    rows = [random.integers(5, config.vocab_size, n).astype(np.int32) for n in lengths]
    tokens = pad(rows, length=LENGTH, pad_id=config.pad_token_id)
    if config.type_vocab_size < 2:
        return tokens
    types = np.where(tokens.mask, np.arange(LENGTH) >= 2, 0).astype(np.int32)
    return dataclasses.replace(tokens, type_ids=types)


def labels_of(config, tokens):
    """The labels of a batch, under the names transformers gives them."""
    random = np.random.default_rng(1)
    rows = len(LENGTHS)
    some = random.random(tokens.ids.shape) < 0.6
    match config.head:
        case "mlm" | "pretraining":
            labels = np.where(
                some & tokens.mask, tokens.ids[:, ::-1].astype(int), IGNORED
            )
            found = {"labels": labels}
            if config.head == "pretraining":
                found["next_sentence_label"] = np.array([0, 1, 1, 0])
            return found
        case "next_sentence":
            return {"labels": np.array([0, 1, 1, 1])}
        case "token_classification":
            labels = random.integers(0, len(LABELS), tokens.ids.shape)
            return {"labels": np.where(some & tokens.mask, labels, IGNORED)}
        case "question_answering":  # an end beyond the row is not counted
            ends = np.array([5, LENGTH + 3, 7, 15])
            return {"start_positions": np.array([0, 3, 7, 11]), "end_positions": ends}
        case "multiple_choice":
            return {"labels": np.array([1, 0])}
    match config.problem:
        case "one_label":
            return {"labels": random.integers(0, len(config.labels), rows)}
        case "many_labels":
            several = random.integers(0, 2, (rows, len(config.labels)))
            return {"labels": several.astype(np.float32)}
    targets = random.normal(size=(rows, len(config.labels))).astype(np.float32)
    return {"labels": targets}


def loss_of(config, scores, labels, mask):
    """Our loss of what `labels_of` returns."""
    rows = jnp.ones(len(mask), bool)
    right = labels.get("labels")
    match config.head:
        case "mlm" | "token_classification":
            return cross_entropy(scores, right, right >= 0).loss
        case "pretraining":
            following = labels["next_sentence_label"]
            return pretraining_loss(
                cross_entropy(scores.mlm, right, right >= 0),
                cross_entropy(scores.next_sentence, following, rows),
            ).loss
        case "next_sentence":
            return cross_entropy(scores, right, rows).loss
        case "question_answering":
            starts, ends = labels["start_positions"], labels["end_positions"]
            return answer_cross_entropy(scores, starts, ends, rows, columns=mask).loss
        case "multiple_choice":
            scores = scores.reshape(len(right), -1)
            return cross_entropy(scores, right, jnp.ones(len(right), bool)).loss
    return SEQUENCE_LOSSES[config.problem](scores, right, rows).loss


def run_theirs(model, config, tokens, labels):
    """Scores as we shape them, the loss and the gradients by transformers' names."""
    import torch

    given = {"input_ids": tokens.ids, "attention_mask": tokens.mask}
    if tokens.type_ids is not None:
        given["token_type_ids"] = tokens.type_ids
    if config.head == "multiple_choice":
        given = {name: x.reshape(2, 2, LENGTH) for name, x in given.items()}
    given = {name: torch.from_numpy(x.astype(np.int64)) for name, x in given.items()}
    given |= {name: torch.from_numpy(x) for name, x in labels.items()}
    out = model(**given)
    out.loss.backward()
    if config.head == "pretraining":
        scores = [out.prediction_logits, out.seq_relationship_logits]
    elif config.head == "question_answering":
        scores = [torch.stack([out.start_logits, out.end_logits], dim=-1)]
    elif config.head == "multiple_choice":
        scores = [out.logits.reshape(-1)]
    else:
        scores = [out.logits]
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    return [x.detach().numpy() for x in scores], out.loss.item(), gradients


def without(config):
    """The config of the encoder alone, which cases of a family share."""
    return dataclasses.replace(
        config, head=None, head_bias=False, labels=(), problem=None, head_pooling="cls"
    )


def ours(named, config):
    """Our model of transformers' arrays; each has its place and each place one."""
    shapes = jax.eval_shape(lambda: make_model(config, rngs=nnx.Rngs(0)))
    paths, structure = jax.tree_util.tree_flatten_with_path(shapes)
    arrays = under_our_names(named, config)
    assert {path_name(path) for path, _ in paths} == arrays.keys()
    for path, leaf in paths:
        assert leaf.shape == arrays[path_name(path)].shape, path_name(path)
    leaves = [jnp.asarray(arrays[path_name(path)]) for path, _ in paths]
    return jax.tree.unflatten(structure, leaves)


@jax.jit
def encode(encoder, tokens):
    return encoder(tokens)


@jax.jit
def pull(encoder, tokens, cotangent):
    return jax.vjp(lambda encoder: encoder(tokens), encoder)[1](cotangent)[0]


def value_and_gradient(model, config, tokens, loss_of):
    """A loss of scores, those scores, and its gradient, compiled apart.

    Cases of a family share one compiled encoder.
    """
    alone = jax.eval_shape(lambda: NomicBert(without(config), rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(model.encoder)
    encoder = jax.tree.unflatten(jax.tree.structure(alone), leaves)
    mask = jnp.asarray(tokens.mask)

    @jax.jit
    def from_hidden(model, hidden):
        def loss(model, hidden):
            scores = model.head_scores(hidden, mask)
            return loss_of(scores, mask), scores

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(model, hidden)

    found, (gradient, cotangent) = from_hidden(model, encode(encoder, tokens))
    below = jax.tree.leaves(pull(encoder, tokens, cotangent))
    total = [
        above + under
        for above, under in zip(jax.tree.leaves(gradient.encoder), below, strict=True)
    ]
    structure = jax.tree.structure(gradient.encoder)
    gradient.encoder = jax.tree.unflatten(structure, total)
    return found, gradient


def assert_gradients(gradient, theirs, config):
    """Compare with transformers' gradients, which are under our names."""
    leaves = jax.tree_util.tree_flatten_with_path(gradient)[0]
    largest = max(np.abs(array).max() for array in theirs.values())
    for path, leaf in leaves:
        name, got = path_name(path), np.array(leaf)
        expected = theirs[name].copy()
        if name == "encoder.word_embedding.embedding":
            # PyTorch gives the padding row no gradient of what is looked up.
            got[config.pad_token_id] = expected[config.pad_token_id] = 0
        # A bias of the keys changes nothing: its gradient is rounding.
        bound = 1e-4 * np.abs(expected).max() + 1e-7 * largest
        if config.head == "multiple_choice" and name == "classifier.bias":
            # Nor does one that all choices share: their probabilities less the right
            # one's 1 sum to zero, but for a rounding of each of the four.
            expected, bound = np.zeros_like(got), 4 * 2.0**-24
        np.testing.assert_allclose(got, expected, atol=bound, err_msg=name)


@pytest.mark.parametrize(
    ("config", "kind", "head"), CASES, ids=[f"{c[1]}-{i}" for i, c in enumerate(CASES)]
)
def test_scores_loss_and_gradients_are_those_of_transformers(config, kind, head):
    config = dataclasses.replace(config, **head)
    tokens = tokens_of(config)
    labels = labels_of(config, tokens)
    theirs = transformers_model(config, kind)
    named = {name: p.detach().numpy() for name, p in theirs.named_parameters()}
    mine = ours(named, config)
    scores, value, gradients = run_theirs(theirs, config, tokens, labels)
    labels = jax.tree.map(jnp.asarray, labels)
    (loss, got), gradient = value_and_gradient(
        mine, config, tokens, lambda s, mask: loss_of(config, s, labels, mask)
    )
    for array, expected in zip(jax.tree.leaves(got), scores, strict=True):
        assert array.dtype == jnp.float32 and array.shape == expected.shape
        real = tokens.mask if array.shape[:2] == tokens.ids.shape else slice(None)
        # Sums of 32 to 64 terms in another order, on logits of up to 2.5: 1e-6 seen.
        np.testing.assert_allclose(np.asarray(array)[real], expected[real], atol=5e-6)
    assert float(loss) == pytest.approx(value, abs=5e-6)
    assert_gradients(gradient, under_our_names(gradients, config), config)


def test_the_pooler_is_that_of_transformers():
    import torch

    config = dataclasses.replace(BERT, head="pooler")
    tokens = tokens_of(config)
    theirs = transformers_model(config, "BertModel")
    named = {name: p.detach().numpy() for name, p in theirs.named_parameters()}
    ids = torch.from_numpy(tokens.ids.astype(np.int64))
    expected = theirs(
        ids,
        attention_mask=torch.from_numpy(tokens.mask),
        token_type_ids=torch.from_numpy(tokens.type_ids.astype(np.int64)),
    ).pooler_output
    scores = jax.jit(lambda model, tokens: model.scores(tokens))
    got = scores(ours(named, config), tokens)
    # tanh of sums of 32 terms.
    np.testing.assert_allclose(got, expected.detach().numpy(), atol=2e-6)


def named(model):
    """Arrays of a NomicBERT with a head, or of a gradient: a plain mapping."""
    head = getattr(model, "head", None)
    arrays = published(model.encoder, head)
    for name in ("pooler", "next_sentence", "classifier"):
        if hasattr(model, name):
            layer = getattr(model, name)
            arrays[f"{name}.kernel"] = np.asarray(layer.kernel.get_value())
            arrays[f"{name}.bias"] = np.asarray(layer.bias.get_value())
    return arrays


def plain_scores(weights, hidden, config):
    """The heads of NomicBERT as PyTorch functions, one array each."""
    import torch
    import torch_reference

    def linear(name, x):
        return x @ weights[f"{name}.kernel"] + weights[f"{name}.bias"]

    if config.head == "question_answering":
        return [linear("classifier", hidden)]
    pooled = torch.tanh(linear("pooler", hidden[:, 0]))
    match config.head:
        case "pooler":
            return [pooled]
        case "next_sentence":
            return [linear("next_sentence", pooled)]
        case "multiple_choice":
            return [linear("classifier", pooled)[:, 0]]
    logits = torch_reference.mlm_logits(weights, hidden, config.layer_norm_epsilon)
    return [logits, linear("next_sentence", pooled)]


@pytest.mark.parametrize(
    "head",
    ["pooler", "next_sentence", "pretraining", "question_answering", "multiple_choice"],
)
def test_heads_of_nomic_bert_that_transformers_lacks_are_the_plain_ones(head):
    import torch
    import torch_reference

    config = dataclasses.replace(NOMIC, head=head)
    tokens = tokens_of(config)
    model = drawn(config)
    weights = {
        name: torch.tensor(array, requires_grad=True)
        for name, array in named(model).items()
    }
    shape = torch_reference.Shape(
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        epsilon=config.layer_norm_epsilon,
        base=config.rope_base,
        trained=config.trained_positions,
    )
    real = torch.from_numpy(tokens.mask)
    ids, types = (
        torch.from_numpy(x.astype(np.int64)) for x in (tokens.ids, tokens.type_ids)
    )
    hidden = torch_reference.hidden_states(weights, ids, real, shape, types)[-1]
    expected = plain_scores(weights, hidden, config)

    def sines(scores, mask):
        for x in jax.tree.leaves(scores):
            of_tokens = x.shape[:2] == tokens.ids.shape
            yield jnp.sin(x[np.asarray(tokens.mask)] if of_tokens else x).sum()

    total = sum(
        torch.sin(x[real] if x.shape[:2] == ids.shape else x).sum() for x in expected
    )
    total.backward()
    (_, scores), gradient = value_and_gradient(
        model, config, tokens, lambda scores, mask: sum(sines(scores, mask))
    )
    for got, theirs in zip(jax.tree.leaves(scores), expected, strict=True):
        real_places = tokens.mask if got.shape[:2] == ids.shape else slice(None)
        np.testing.assert_allclose(
            np.asarray(got)[real_places],
            theirs.detach().numpy()[real_places],
            atol=2e-5,  # sums of 32 terms in another order, on logits of up to 10
        )
    gradients = named(gradient)
    largest = max(np.abs(each.grad.numpy()).max() for each in weights.values())
    for name, got in gradients.items():
        theirs = weights[name].grad.numpy()
        bound = 1e-4 * np.abs(theirs).max() + 1e-7 * largest
        np.testing.assert_allclose(got, theirs, atol=bound, err_msg=name)
