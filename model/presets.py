"""Named shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from model.config import ModelConfig
from model.errors import ConfigError
from model.plans.openelm import openelm

if TYPE_CHECKING:
    from collections.abc import Mapping

PRESETS: Final[Mapping[str, ModelConfig]] = {
    # OpenELM (Mehta et al. 2024, arXiv:2404.14619): heads and widths rise with depth.
    "openelm-270m": openelm(num_layers=16, model_dim=1280, head_dim=64),
    "openelm-450m": openelm(num_layers=20, model_dim=1536, head_dim=64),
    "openelm-1.1b": openelm(num_layers=28, model_dim=2048, head_dim=64),
    "openelm-3b": openelm(num_layers=36, model_dim=3072, head_dim=128),
    # SmolLM2-135M (Allal et al. 2025, arXiv:2502.02737): uniform layers.
    "smollm2-135m": ModelConfig(
        vocab_size=49_152,
        model_dim=576,
        head_dim=64,
        query_heads=(9,) * 30,
        kv_heads=(3,) * 30,
        ffn_dims=(1536,) * 30,
        max_context=8192,
        rope_base=100_000.0,
    ),
    # Small enough to be pretrained in seconds, with every feature a layered plan has: heads and widths fall with depth.
    "tiny-pyramid": ModelConfig(
        vocab_size=2048,
        model_dim=128,
        head_dim=32,
        query_heads=(8, 6, 4, 2),
        kv_heads=(4, 3, 2, 1),
        ffn_dims=(512, 384, 256, 192),
        max_context=512,
        qk_norm=True,
    ),
}


def preset(name: str) -> ModelConfig:
    """The named shape.

    Raises:
        ConfigError: There is no preset of that name.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"no preset {name!r}; there are {', '.join(sorted(PRESETS))}") from None
