import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from simulators.exchange import make_tree, sentencepiece_tokenizer

from model import ForeignModelError, ModelConfig, Tokenizer, import_huggingface
from model.errors import ExportError
from model.export import export_hf
from model.export.sentencepiece_file import sentencepiece_model

TOKENIZER = sentencepiece_tokenizer()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save(folder)
    return folder


def written(folder: Path, size: int = 410, **changes: object) -> bytes | None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"] |= changes
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    return sentencepiece_model(json.dumps(content), settings, size)


def test_the_library_reads_the_vocabulary(files: Path) -> None:
    library = pytest.importorskip("sentencepiece")
    theirs = library.SentencePieceProcessor(model_proto=written(files))
    assert theirs.vocab_size() == 410
    assert (theirs.unk_id(), theirs.bos_id(), theirs.eos_id()) == (0, TOKENIZER.bos_id, TOKENIZER.eos_id)
    assert theirs.is_byte(3)
    assert theirs.is_unused(409)

    @given(text=st.text(max_size=30) | st.text("the quickfoxTr \n12", max_size=40))
    def splits_alike(text: str) -> None:
        # Special tokens that a text spells out are ours to find, and no business of this file.
        if "<" not in text and "\u2581" not in text and "\0" not in text:
            assert theirs.encode(text) == (TOKENIZER.encode(text) if text else [])

    splits_alike()


def test_a_vocabulary_that_the_library_could_not_read_has_no_file(files: Path) -> None:
    assert written(files, byte_fallback=False) is None
    assert written(files, unk_token=None) is None
    content = json.loads((files / "tokenizer.json").read_text())["model"]["vocab"]
    del content["<0x41>"]
    assert written(files, vocab=content) is None
    with pytest.raises(ExportError, match="malformed"):
        sentencepiece_model('{"model": []}', {}, 410)


def test_an_export_says_how_a_text_begins(config: ModelConfig, byte_tokenizer: Tokenizer, tmp_path: Path) -> None:
    """llama.cpp would put a token in front of a SentencePiece text by itself."""
    make_tree(tmp_path / "pieces", replace(config, vocab_size=410, norm_eps=1e-6), TOKENIZER)
    make_tree(tmp_path / "bytes", replace(config, norm_eps=1e-6), byte_tokenizer)
    for kind in ("pieces", "bytes"):
        export_hf(tmp_path / kind, tmp_path / kind / "hf")
        settings = json.loads((tmp_path / kind / "hf" / "tokenizer_config.json").read_text())
        assert settings.get("add_bos_token") is (False if kind == "pieces" else None)
        assert (tmp_path / kind / "hf" / "tokenizer.model").is_file() == (kind == "pieces")


def test_openelms_second_output_is_no_part_of_the_model(
    config: ModelConfig, byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Apple's class saves a classifier that it never computes with, beside the output that it does."""
    import safetensors.torch

    untied = replace(config, tied_embeddings=False, norm_eps=1e-6)
    make_tree(tmp_path, untied, byte_tokenizer)
    export_hf(tmp_path, tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["tie_word_embeddings"] is False
    path = tmp_path / "hf" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["transformer.classifier.weight"] = torch.randn_like(tensors["lm_head.weight"])
    safetensors.torch.save_file(tensors, path)
    assert import_huggingface(tmp_path / "hf", tmp_path / "back") == untied
    del tensors["lm_head.weight"]
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(ForeignModelError, match="lm_head"):
        import_huggingface(tmp_path / "hf", tmp_path / "again")
