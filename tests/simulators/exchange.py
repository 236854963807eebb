"""Small trees with random weights, for what goes out to foreign formats and comes back."""

import json
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers

from model import LayeredTransformer, LoRAConfig, ModelConfig, Tokenizer, initial_adapter, save_adapter, save_checkpoint

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LORA = LoRAConfig(rank=2, alpha=6.0, targets=("q_proj", "v_proj", "down_proj"))


def byte_pair_tokenizer() -> Tokenizer:
    """Every byte is a token, and two blanks are one: llama.cpp loads no vocabulary without a merge. 260 tokens."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĠĠ"]
    backend = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [("Ġ", "Ġ")]))
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


def sentencepiece_tokenizer(size: int = 400) -> Tokenizer:
    """A small vocabulary of LLaMA's kind, trained here: characters with byte fallback, blanks as a low line."""
    special = ["<unk>", "<s>", "</s>"]
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=size - 259, show_progress=False)
    text = "The quick brown fox jumps over the lazy dogs and says hello, how are you? Trains leave at 9 and 12. "
    trained.train_from_iterator([text, text.lower()], trainer)
    learnt = json.loads(trained.to_str())["model"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *learnt["vocab"]]
    merges = [tuple(merge) for merge in learnt["merges"]]
    backend = tokenizers.Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(special)
    return Tokenizer(backend.to_str(), {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def make_tree(
    tree: Path, config: ModelConfig, tokenizer: Tokenizer, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> LayeredTransformer:
    """A version without an adapter; the model that was written."""
    model = LayeredTransformer(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2, generator=generator)
    save_checkpoint(tree / "base", model.eval(), tokenizer, dtype=dtype)
    return model


def add_adapter(tree: Path, config: ModelConfig, lora: LoRAConfig = LORA, *, stddev: float = 1.0) -> None:
    """Put a random adapter into a version's tree."""
    generator = torch.Generator().manual_seed(5)
    state = initial_adapter(config, lora, 0)
    state = {name: stddev * torch.randn(value.shape, generator=generator) for name, value in state.items()}
    save_adapter(tree / "adapter", state, lora, dtype=torch.float32)
