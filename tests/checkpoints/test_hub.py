"""What is fetched from the hub is what is read of a folder."""

import shutil

import huggingface_hub
import pytest

from nomic_jax.checkpoints.hub import resolve

WANTED = {
    *("config.json", "modules.json", "fingerprint.json", "tokenizer.json"),
    *("model-00001-of-00002.safetensors", "model.safetensors.index.json"),
    *("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/pytorch_model.bin"),
    *("2_LayerNorm/model.safetensors", "projection/model.safetensors"),
    *("0_Transformer/config.json", "0_Transformer/vocab.txt"),
}
LEFT = {"onnx/model.onnx", "README.md", "tf_model.h5", "openvino/model.bin"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Stand in for the network: a folder is the repository, patterns as they are."""

    def serve(files):
        def snapshot_download(repo_id, *, allow_patterns):
            fetched = tmp_path / "fetched"
            for name in huggingface_hub.utils.filter_repo_objects(
                sorted(files), allow_patterns=allow_patterns
            ):
                (fetched / name).parent.mkdir(parents=True, exist_ok=True)
                (fetched / name).touch()
            return str(fetched)

        shutil.rmtree(tmp_path / "fetched", ignore_errors=True)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        place = resolve("owner/name")
        return {str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()}

    return serve


def test_all_that_is_read_is_fetched_and_nothing_else(hub):
    assert hub(WANTED | LEFT) == WANTED


@pytest.mark.parametrize("place", ["", "0_Transformer/"])
def test_pytorchs_files_are_fetched_where_there_are_no_safetensors(hub, place):
    config, binary = f"{place}config.json", f"{place}pytorch_model.bin"
    assert hub({config, binary}) == {config, binary}
    safe = f"{place}model.safetensors"
    assert hub({config, binary, safe}) == {config, safe}
