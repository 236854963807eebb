"""Small real things: a layered model with falling heads, a byte-level tokenizer with a chat template."""

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from model import LayeredTransformer, ModelConfig, Tokenizer

torch.set_num_threads(1)

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def config() -> ModelConfig:
    return ModelConfig(
        vocab_size=260,
        model_dim=24,
        head_dim=8,
        query_heads=(4, 2, 2),
        kv_heads=(2, 2, 1),
        ffn_dims=(32, 24, 16),
        max_context=64,
        qk_norm=True,
    )


@pytest.fixture
def tiny_model(config: ModelConfig) -> LayeredTransformer:
    return randomised(LayeredTransformer(config))


def randomised(model: LayeredTransformer, seed: int = 0) -> LayeredTransformer:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            offset = 1.0 if parameter.ndim == 1 else 0.0
            parameter.normal_(offset, 0.2, generator=generator)
    return model.eval()


@pytest.fixture
def byte_tokenizer() -> Tokenizer:
    """Every byte is a token; ids 0, 1, 2 are end of text, turn start, turn end."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate([*special, *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    return Tokenizer(
        backend.to_str(),
        {
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "stop_tokens": ["<|endoftext|>"],
            "chat_template": CHAT_TEMPLATE,
        },
    )
