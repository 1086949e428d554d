"""The digest of a model's folder: what changes it and what does not."""

import pytest

from nomic_jax.checkpoints.hub import folder_digest


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "2_Dense").mkdir(parents=True)
    for name in (
        *("config.json", "tokenizer.json", "model-00001-of-00001.safetensors"),
        *("2_Dense/model.safetensors", "README.md", "fingerprint.json"),
    ):
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "tokenizer.json", "model-00001-of-00001.safetensors"),
        *("2_Dense/model.safetensors", "special_tokens_map.json"),
    ],
)
def test_a_file_that_is_read_from_the_folder_changes_it(name, folder):
    before = folder_digest(folder)
    (folder / name).write_text("something else")
    assert folder_digest(folder) != before


def test_place_and_notes_do_not_change_it(folder, tmp_path):
    before = folder_digest(folder)
    (folder / "README.md").write_text("something else")
    (folder / "fingerprint.json").unlink()
    moved = folder.rename(tmp_path / "moved")
    assert folder_digest(moved) == before
