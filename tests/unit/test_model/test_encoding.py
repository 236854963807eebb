import pytest
import torch

from model import DataError, EncodedExample, Example, Tokenizer, collate, encode_examples
from model.data.encoding import IGNORED


def encode(tokenizer: Tokenizer, prompt: str, completion: str, max_length: int = 200) -> EncodedExample:
    examples = [Example(prompt=prompt, completion=completion, timestamp=0.0)]
    return encode_examples(tokenizer, examples, max_length=max_length)[0]


def halves(tokenizer: Tokenizer, encoded: EncodedExample) -> tuple[str, str]:
    ids = encoded.token_ids
    return tokenizer.decode(ids[: encoded.loss_start]), tokenizer.decode(ids[encoded.loss_start :])


def test_the_loss_covers_the_completion_and_the_end_of_its_turn(byte_tokenizer: Tokenizer) -> None:
    encoded = encode(byte_tokenizer, "hi", "hello")
    assert halves(byte_tokenizer, encoded) == ("user\nhi\nassistant\n", "hello")
    assert encoded.token_ids[-1] == byte_tokenizer.eos_id
    # What is trained is what generation sees.
    chat = byte_tokenizer.apply_chat([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    assert list(encoded.token_ids[: encoded.loss_start]) == byte_tokenizer.encode(chat)


def test_a_long_prompt_loses_its_beginning(byte_tokenizer: Tokenizer) -> None:
    encoded = encode(byte_tokenizer, "x" * 500 + "END", "hello", max_length=60)
    prompt, completion = halves(byte_tokenizer, encoded)
    assert len(encoded.token_ids) == 60
    assert prompt.startswith("user\nx")
    assert prompt.endswith("END\nassistant\n")
    assert completion == "hello"


def test_a_long_completion_loses_its_end(byte_tokenizer: Tokenizer) -> None:
    encoded = encode(byte_tokenizer, "hi", "y" * 500, max_length=60)
    prompt, completion = halves(byte_tokenizer, encoded)
    assert prompt == "user\nhi\nassistant\n"
    assert len(encoded.token_ids) == 60
    assert set(completion) == {"y"}
    assert encoded.token_ids[-1] != byte_tokenizer.eos_id


@pytest.mark.parametrize("max_length", range(30, 70))
def test_everything_fits_whatever_the_length(byte_tokenizer: Tokenizer, max_length: int) -> None:
    for prompt, completion in (("ä€😀" * 30, "ä" * 30), ("hi", "y" * 100), ("x" * 100, "yo")):
        encoded = encode(byte_tokenizer, prompt, completion, max_length=max_length)
        assert len(encoded.token_ids) <= max_length
        assert encoded.loss_start < len(encoded.token_ids)


def test_a_length_without_room_is_refused(byte_tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="too small"):
        encode(byte_tokenizer, "hi", "hello", max_length=20)


def test_an_example_without_a_loss_is_refused() -> None:
    for start in (0, 3):
        with pytest.raises(DataError, match="nothing to predict"):
            EncodedExample(token_ids=(1, 2, 3), loss_start=start)


def test_collate_pads_on_the_right_and_shifts_targets() -> None:
    token_ids, targets = collate([EncodedExample((5, 6, 7, 8), 2), EncodedExample((1, 2), 1)], pad_id=9)
    assert torch.equal(token_ids, torch.tensor([[5, 6, 7], [1, 9, 9]]))
    assert torch.equal(targets, torch.tensor([[IGNORED, 7, 8], [2, IGNORED, IGNORED]]))
    with pytest.raises(DataError, match="empty batch"):
        collate([])
