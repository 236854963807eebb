import dataclasses

import pytest
import torch

from model import ContextLengthError, KVCache, LayeredTransformer, ModelConfig


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, 260, shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_cached_pieces_give_the_logits_of_one_pass(tiny_model: LayeredTransformer, config: ModelConfig) -> None:
    tokens = ids(2, 17)
    whole = tiny_model(tokens)

    cache = KVCache(config, batch_size=2, max_length=17)
    pieces = [tiny_model(piece, cache) for piece in tokens.split([5, 1, 7, 1, 3], dim=1)]

    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)
    assert cache.length == 17


@torch.no_grad()
def test_no_token_sees_a_later_one(tiny_model: LayeredTransformer) -> None:
    tokens = ids(1, 12)
    changed = tokens.clone()
    changed[0, 7:] = (changed[0, 7:] + 1) % 260

    before, after = tiny_model(tokens), tiny_model(changed)

    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:], after[:, 7:])


@torch.no_grad()
def test_grouped_heads_equal_repeated_ones(tiny_model: LayeredTransformer, config: ModelConfig) -> None:
    """GQA by its definition: each kv head copied once per query head of its group."""
    attention = tiny_model.layers[0].attention
    x = torch.randn(1, 9, config.model_dim, generator=torch.Generator().manual_seed(2))
    cos, sin = tiny_model.rotary(0, 9)
    got, _ = attention(x, cos, sin)

    heads, kvs, dim = config.query_heads[0], config.kv_heads[0], config.head_dim
    wide = attention.k_proj.weight.view(kvs, dim, -1).repeat_interleave(heads // kvs, 0).flatten(0, 1)
    wide_v = attention.v_proj.weight.view(kvs, dim, -1).repeat_interleave(heads // kvs, 0).flatten(0, 1)
    q, k, v = ((x @ w.T).view(1, 9, heads, dim) for w in (attention.q_proj.weight, wide, wide_v))
    q, k = attention.q_norm(q), attention.k_norm(k)
    mixed = torch.zeros(1, 9, heads, dim)
    for head in range(heads):
        for position in range(9):
            scores = []
            for other in range(position + 1):
                angle = rotation(config, position - other)
                scores.append((angle @ q[0, position, head]) @ k[0, other, head] / dim**0.5)
            weights = torch.softmax(torch.stack(scores), 0)
            mixed[0, position, head] = weights @ v[0, : position + 1, head]
    torch.testing.assert_close(got, attention.o_proj(mixed.flatten(2)), atol=1e-5, rtol=1e-4)


def rotation(config: ModelConfig, distance: int) -> torch.Tensor:
    """Matrix of the relative rotary position, straight from the paper."""
    half = config.head_dim // 2
    matrix = torch.zeros(config.head_dim, config.head_dim)
    for i in range(half):
        angle = torch.tensor(distance * config.rope_base ** (-2 * i / config.head_dim))
        matrix[i, i] = matrix[i + half, i + half] = angle.cos()
        matrix[i, i + half], matrix[i + half, i] = -angle.sin(), angle.sin()
    return matrix


def test_untied_output_is_a_parameter_of_its_own(config: ModelConfig) -> None:
    model = LayeredTransformer(dataclasses.replace(config, tied_embeddings=False, qk_norm=False))
    names = {name for name, _ in model.named_parameters()}
    assert "output.weight" in names
    assert not any("q_norm" in name for name in names)
    assert model(ids(1, 3)).shape == (1, 3, 260)


def test_too_long_input_is_refused(tiny_model: LayeredTransformer, config: ModelConfig) -> None:
    with pytest.raises(ContextLengthError, match="65 tokens"):
        tiny_model(ids(1, 65))
    cache = KVCache(config, batch_size=1, max_length=4)
    with pytest.raises(ContextLengthError, match="room for 4"):
        tiny_model(ids(1, 5), cache)
    with pytest.raises(ContextLengthError):
        KVCache(config, batch_size=1, max_length=65)


@torch.no_grad()
def test_low_precision_follows_single_precision(tiny_model: LayeredTransformer) -> None:
    tokens = ids(1, 20)
    expected = tiny_model(tokens)
    got = tiny_model.to(torch.bfloat16)(tokens)
    assert got.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(got.float(), expected, dim=-1).min() > 0.99
