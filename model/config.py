"""Shapes of a model and of its adapters: frozen values, checked when they are made."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from model.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT: Final = "lamella-layered-transformer"
FORMAT_VERSION: Final = 1
MAX_CONFIG_BYTES: Final = 1024 * 1024

# Far above every model that runs on a device; they keep a hostile config.json from asking for terabytes.
_MAX_LAYERS: Final = 512
_MAX_WIDTH: Final = 1 << 20

_MLP_PROJECTIONS: Final = ("gate_proj", "up_proj", "down_proj")
_ATTENTION_PROJECTIONS: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
PROJECTIONS: Final = _ATTENTION_PROJECTIONS + _MLP_PROJECTIONS


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of a decoder whose layers may differ from each other.

    OpenELM's rising plan, a falling pyramid and a uniform Llama are all instances of it.

    Attributes:
        vocab_size: Rows of the embedding.
        model_dim: Width of the residual stream.
        head_dim: Width of one attention head; even, since RoPE turns pairs.
        query_heads: Number of query heads, one entry a layer.
        kv_heads: Number of key and value heads, one entry a layer; divides that layer's query heads.
        ffn_dims: Inner width of the feed-forward network, one entry a layer.
        max_context: Longest sequence, in tokens.
        rope_base: Base of the rotary angles.
        norm_eps: Added to the mean square in RMSNorm.
        qk_norm: Whether queries and keys are normalised per head before RoPE.
        tied_embeddings: Whether the output projection is the embedding.
    """

    vocab_size: int
    model_dim: int
    head_dim: int
    query_heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    ffn_dims: tuple[int, ...]
    max_context: int
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    qk_norm: bool = False
    tied_embeddings: bool = True

    def __post_init__(self) -> None:
        """Refuse shapes that no model can have."""
        for name in ("vocab_size", "model_dim", "head_dim", "max_context"):
            _require_width(name, getattr(self, name), maximum=1 << 24)
        for name in ("query_heads", "kv_heads", "ffn_dims"):
            _require_widths(name, getattr(self, name))
        if not len(self.query_heads) == len(self.kv_heads) == len(self.ffn_dims):
            raise ConfigError(
                f"query_heads, kv_heads and ffn_dims need one entry a layer each, got {len(self.query_heads)}, "
                f"{len(self.kv_heads)} and {len(self.ffn_dims)} entries"
            )
        for layer, (queries, kvs) in enumerate(zip(self.query_heads, self.kv_heads, strict=True)):
            if queries % kvs:
                raise ConfigError(f"layer {layer}: {queries} query heads are no multiple of {kvs} kv heads")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for rotary positions, got {self.head_dim}")
        for name in ("rope_base", "norm_eps"):
            _require_positive(name, getattr(self, name))
        for name in ("qk_norm", "tied_embeddings"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, got {getattr(self, name)!r}")

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.query_heads)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, in the order of the layers, without building anything."""
        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (self.vocab_size, self.model_dim)}
        for layer in range(self.num_layers):
            shapes[f"layers.{layer}.attention_norm.weight"] = (self.model_dim,)
            shapes |= {f"{self.projection_path(layer, p)}.weight": self.projection_shape(layer, p) for p in PROJECTIONS}
            if self.qk_norm:
                shapes[f"layers.{layer}.attention.q_norm.weight"] = (self.head_dim,)
                shapes[f"layers.{layer}.attention.k_norm.weight"] = (self.head_dim,)
            shapes[f"layers.{layer}.ffn_norm.weight"] = (self.model_dim,)
        shapes["norm.weight"] = (self.model_dim,)
        if not self.tied_embeddings:
            shapes["output.weight"] = (self.vocab_size, self.model_dim)
        return shapes

    def projection_shape(self, layer: int, projection: str) -> tuple[int, int]:
        """(out, in) of one of `PROJECTIONS` in one layer."""
        query_dim = self.query_heads[layer] * self.head_dim
        kv_dim = self.kv_heads[layer] * self.head_dim
        return {
            "q_proj": (query_dim, self.model_dim),
            "k_proj": (kv_dim, self.model_dim),
            "v_proj": (kv_dim, self.model_dim),
            "o_proj": (self.model_dim, query_dim),
            "gate_proj": (self.ffn_dims[layer], self.model_dim),
            "up_proj": (self.ffn_dims[layer], self.model_dim),
            "down_proj": (self.model_dim, self.ffn_dims[layer]),
        }[projection]

    @staticmethod
    def projection_path(layer: int, projection: str) -> str:
        """Module path of one of `PROJECTIONS`, such as `layers.3.attention.q_proj`."""
        return f"layers.{layer}.{'ffn' if projection in _MLP_PROJECTIONS else 'attention'}.{projection}"

    @property
    def parameter_count(self) -> int:
        """Number of weights; a tied output counts once."""
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())

    def to_json(self) -> str:
        """Canonical text of config.json; the same config gives the same bytes."""
        return json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelConfig:
        """Parse the text of a config.json.

        Raises:
            ConfigError: No JSON object of this format, an unknown or missing key, or an impossible shape.
        """
        if len(text) > MAX_CONFIG_BYTES:
            raise ConfigError(f"config.json has {len(text)} bytes, at most {MAX_CONFIG_BYTES} are read")
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"config.json is not JSON: {error}") from error
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise ConfigError(
                f"config.json is not of the format {FORMAT!r}; bring a foreign model in with `lamella base import`"
            )
        if (found := values.pop("format_version", None)) != FORMAT_VERSION:
            raise ConfigError(f"config.json has format_version {found!r}, this program reads {FORMAT_VERSION}")
        return cls(**_known_keys(values))


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Which projections get a low-rank adapter, and how strong it is (Hu et al. 2021, arXiv:2106.09685).

    Attributes:
        rank: Inner width of the adapter.
        alpha: The adapter's output is scaled by alpha / rank.
        dropout: Probability of dropping an adapter's input while training.
        targets: Projections that get an adapter, in every layer; kept in the order of `PROJECTIONS`.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        _require_width("rank", self.rank, maximum=4096)
        _require_positive("alpha", self.alpha)
        if not isinstance(self.dropout, (int, float)) or not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must be in [0, 1), got {self.dropout!r}")
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ConfigError(f"targets must name at least one projection, each once, got {self.targets!r}")
        if unknown := sorted(set(self.targets) - set(PROJECTIONS)):
            raise ConfigError(f"unknown targets {unknown}; choose among {', '.join(PROJECTIONS)}")
        object.__setattr__(self, "targets", tuple(p for p in PROJECTIONS if p in self.targets))

    @property
    def scaling(self) -> float:
        """Factor on the adapter's output."""
        return self.alpha / self.rank


def preset(name: str) -> ModelConfig:
    """The named shape.

    Raises:
        ConfigError: There is no preset of that name.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"no preset {name!r}; there are {', '.join(sorted(PRESETS))}") from None


def every_layer(value: Any, num_layers: Any) -> tuple[Any, ...]:  # noqa: ANN401  (foreign metadata, checked here)
    """One entry for each layer from a value that holds for all of them, or from a list with one each.

    Raises:
        ConfigError: The number of layers is none that a model has.
    """
    # Before multiplying: a damaged file may claim billions of layers.
    _require_width("the number of layers", num_layers, maximum=_MAX_LAYERS)
    return tuple(value) if isinstance(value, list) else (value,) * num_layers


def _require_width(name: str, value: object, *, maximum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= maximum:
        raise ConfigError(f"{name} must be a whole number in 1..{maximum}, got {value!r}")


def _require_widths(name: str, values: object) -> None:
    if not isinstance(values, tuple) or not 0 < len(values) <= _MAX_LAYERS:
        raise ConfigError(f"{name} must be a tuple with one entry a layer, 1..{_MAX_LAYERS} of them, got {values!r}")
    for layer, value in enumerate(values):
        _require_width(f"{name}[{layer}]", value, maximum=_MAX_WIDTH)


def _require_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} must be a positive finite number, got {value!r}")


def _known_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    expected = {field.name for field in fields(ModelConfig)}
    if unknown := sorted(set(values) - expected):
        raise ConfigError(f"config.json has unknown keys {unknown}; it was written by a newer program, or by hand")
    if missing := sorted(expected - set(values)):
        raise ConfigError(f"config.json lacks {missing}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


PRESETS: Final[Mapping[str, ModelConfig]] = {
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
