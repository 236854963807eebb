from pathlib import Path

import gguf
import pytest
from simulators.exchange import make_tree, sentencepiece_tokenizer

from model import ForeignModelError, ModelConfig, import_gguf
from model.export import export_gguf
from model.export.gguf_sentencepiece import adds_space_prefix, scores

BLANK = "\u2581"
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}


def test_metadata_of_a_sentencepiece_vocabulary(config: ModelConfig, tmp_path: Path) -> None:
    from dataclasses import replace

    make_tree(tmp_path, replace(config, vocab_size=410), sentencepiece_tokenizer())
    export_gguf(tmp_path, tmp_path / "x.gguf")
    fields = {key: field.contents() for key, field in gguf.GGUFReader(tmp_path / "x.gguf").fields.items()}
    assert fields["tokenizer.ggml.model"] == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"] is True
    assert fields["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    assert len(fields["tokenizer.ggml.scores"]) == 410
    assert "tokenizer.ggml.merges" not in fields
    with pytest.raises(ForeignModelError, match="'llama' vocabulary"):
        import_gguf(tmp_path / "x.gguf", tmp_path / "back")


def test_the_first_pair_that_makes_a_token_ranks_it() -> None:
    assert scores(["a", "b", "ab", "abb"], ["a b", "ab b", "a bb"]) == [-3.0, -4.0, 0.0, -1.0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": BLANK}, REPLACE]}}, True),
        ({"normalizer": REPLACE}, False),
        ({"normalizer": {"type": "NFC"}}, None),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "x"}, REPLACE]}}, None),
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": BLANK, "split": False}}, True),
        (
            {"pre_tokenizer": {
                "type": "Metaspace", "replacement": BLANK, "prepend_scheme": "never", "split": False,
            }},
            False,
        ),
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": BLANK, "split": True}}, None),
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "split": False}}, None),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_how_blanks_are_treated(content: dict[str, object], expected: bool | None) -> None:
    assert adds_space_prefix(content) is expected
