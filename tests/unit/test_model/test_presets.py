"""The published OpenELM shapes, computed, against the table of the released models."""

import pytest

from model import PRESETS, preset


def runs(*pairs: tuple[int, int]) -> tuple[int, ...]:
    return tuple(value for value, count in pairs for _ in range(count))


# Of the released checkpoints' config.json: layers, width, head width, query heads, feed-forward widths, all weights,
# and the numbers a token takes in the cache.
PUBLISHED = {
    "openelm-270m": (
        16, 1280, 64,
        runs((12, 5), (16, 7), (20, 4)),
        (768, 1024, 1280, 1536, 1792, 2048, 2560, 2816, 3072, 3328, 3584, 3840, 4352, 4608, 4864, 5120),
        271_527_168, 8_064,
    ),
    "openelm-450m": (
        20, 1536, 64,
        runs((12, 3), (16, 7), (20, 6), (24, 4)),
        (768, 1024, 1280, 1536, 1792, 2304, 2560, 2816, 3072, 3328, 3584, 3840, 4096, 4352, 4608, 5120, 5376, 5632,
         5888, 6144),
        457_179_136, 11_648,
    ),
    "openelm-1.1b": (
        28, 2048, 64,
        runs((16, 3), (20, 7), (24, 8), (28, 6), (32, 4)),
        (1024, 1280, 1536, 1792, 2048, 2304, 2560, 2816, 3072, 3328, 3584, 3840, 4096, 4608, 4608, 5120, 5376, 5632,
         5888, 6144, 6400, 6656, 6912, 7168, 7424, 7680, 7936, 8192),
        1_079_891_456, 21_632,
    ),
    "openelm-3b": (
        36, 3072, 128,
        runs((12, 4), (16, 14), (20, 12), (24, 6)),
        (1536, 1792, 2048, 2560, 2816, 3072, 3328, 3584, 4096, 4352, 4608, 4864, 5120, 5632, 5888, 6144, 6400, 6656,
         7168, 7424, 7680, 7936, 8192, 8704, 8960, 9216, 9472, 9728, 10240, 10496, 10752, 11008, 11264, 11776, 12032,
         12288),
        3_036_647_424, 41_984,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_openelm_is_the_published_one(name: str) -> None:
    layers, model_dim, head_dim, query_heads, ffn_dims, parameters, kv_elements = PUBLISHED[name]
    config = preset(name)
    assert (config.num_layers, config.model_dim, config.head_dim) == (layers, model_dim, head_dim)
    assert config.query_heads == query_heads
    assert config.kv_heads == tuple(heads // 4 for heads in query_heads)
    assert config.ffn_dims == ffn_dims
    assert config.parameter_count == parameters
    assert config.kv_cache_elements() == kv_elements
    assert (config.vocab_size, config.max_context, config.rope_base) == (32_000, 2048, 10_000.0)
    assert config.norm_eps == 1e-6
    assert config.qk_norm
    assert config.tied_embeddings


def test_every_released_size_is_there() -> None:
    assert set(PRESETS) == {*PUBLISHED, "smollm2-135m", "tiny-pyramid"}
