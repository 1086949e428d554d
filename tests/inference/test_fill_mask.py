"""`nomic-jax fill-mask` next to transformers' own pipeline, and what it refuses."""

import dataclasses
import io
import sys

import numpy as np
import pytest
import tiny_checkpoints as tiny
from transformers_heads import NOMIC, transformers_model

from nomic_jax.cli.main import nomic_jax as run
from nomic_jax.data.tokenizer import TextTokenizer
from nomic_jax.inference.masked_tokens import fill_mask, load_filler

pytestmark = pytest.mark.torch

TEXT = "a small [MASK] jumps over the lazy dog"
TWO = "a [MASK] fox jumps over the [MASK] dog"


def save(folder, kind, **changes):
    """Write a model of transformers' and a tokenizer."""
    config = dataclasses.replace(NOMIC, **changes)
    transformers_model(config, kind).save_pretrained(folder)
    return tiny.add_tokenizer(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("models") / "mlm"
    return save(where, "NomicBertForMaskedLM", head="mlm", head_bias=True)


@pytest.fixture(scope="module")
def filler(folder):
    return load_filler(folder)


def said(capsys, *arguments):
    """The exit status, and what was written."""
    capsys.readouterr()
    status = run(["fill-mask", *map(str, arguments)])
    return status, capsys.readouterr()


@pytest.mark.parametrize("text", [TEXT, TWO])
def test_candidates_are_those_of_transformers(folder, filler, text):
    import transformers

    transformers.utils.logging.disable_progress_bar()
    pipeline = transformers.pipeline("fill-mask", str(folder), device="cpu")
    theirs = pipeline(text, top_k=NOMIC.vocab_size)
    theirs = [theirs] if text is TEXT else theirs
    got = fill_mask(*filler, text, top=5)
    assert len(got) == text.count("[MASK]")
    for ours, every in zip(got, theirs, strict=True):
        # They offer rows of the table that no token has, too.
        expected = [one for one in every if one["token"] < filler[1].size][:5]
        assert [one.token for one in ours] == [one["token_str"] for one in expected]
        np.testing.assert_allclose(
            [one.probability for one in ours],
            [one["score"] for one in expected],
            atol=1e-6,  # float32, on probabilities of up to 0.1; the contract is 1e-5
        )


def test_one_mask_is_a_line_for_each_candidate(capsys, folder, filler):
    status, written = said(capsys, folder, TEXT, "--top", 3)
    (candidates,) = fill_mask(*filler, TEXT, top=3)
    lines = [f"{one.probability:.4f}  {one.token}" for one in candidates]
    assert (status, written.out.splitlines()) == (0, lines)


def test_several_masks_and_lines_are_told_apart(capsys, folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{TEXT}\n{TWO}\n"))
    status, written = said(capsys, folder, "-", "--top", 1)
    lines = written.out.splitlines()
    headings = ["line 1:", "line 2, mask 1 of 2:", "line 2, mask 2 of 2:"]
    assert (status, lines[::2]) == (0, headings)
    assert all(line.startswith("0.") for line in lines[1::2])


def test_a_row_without_a_token_is_no_candidate(filler):
    model, tokenizer = filler
    assert tokenizer.size < model.encoder.config.vocab_size
    (candidates,) = fill_mask(model, tokenizer, TEXT, top=tokenizer.size)
    assert all(one.token for one in candidates)
    total = sum(one.probability for one in candidates)
    assert 0.1 < total < 0.999  # the others have their share


def test_the_mask_is_the_tokenizers_own(filler):
    model, tokenizer = filler
    text = tokenizer.backend.to_str().replace("[MASK]", "<mask>")
    other = TextTokenizer.from_json(text)
    got = fill_mask(model, other, TEXT.replace("[MASK]", "<mask>"), top=5)
    assert got == fill_mask(model, tokenizer, TEXT, top=5)
    with pytest.raises(ValueError, match="no <mask>, this model's mask, in 'a small"):
        fill_mask(model, other, TEXT, top=5)


def test_wrong_input_ends_with_2_and_says_why(capsys, folder, monkeypatch):
    long = "fox " * NOMIC.trained_positions + "[MASK]"
    for text, top, why in (
        ("a small fox", 5, r"no [MASK], this model's mask, in 'a small fox'"),
        (long, 5, "a text of 35 tokens exceeds the 32 that the model takes"),
        (TEXT, 0, "top=0 must be between 1 and"),
        (TEXT, 1000, "top=1000 must be between 1 and"),
    ):
        status, written = said(capsys, folder, text, "--top", top)
        assert (status, written.out) == (2, "") and why in written.err
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{TEXT}\nfox\n"))
    status, written = said(capsys, folder, "-")
    assert status == 2 and "standard input:2: there is no [MASK]" in written.err
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    status, written = said(capsys, folder, "-")
    assert status == 2 and "standard input is empty" in written.err


def test_a_model_without_an_mlm_head_is_refused_by_its_head(capsys, tmp_path):
    bare = tiny.folder(tmp_path / "bare", tiny.tensors(), tiny.NOMIC_CONFIG)
    status, written = said(capsys, bare, TEXT)
    assert (
        status == 2 and "has no head; filling a mask needs an MLM head" in written.err
    )
    labels = {"head": "token_classification", "labels": ("a", "b")}
    other = save(tmp_path / "other", "NomicBertForTokenClassification", **labels)
    status, written = said(capsys, other, TEXT)
    assert status == 2 and "has the head 'token_classification'" in written.err
