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
_KV_PROJECTIONS: Final = ("k_proj", "v_proj")
PROJECTIONS: Final = _ATTENTION_PROJECTIONS + _MLP_PROJECTIONS
_OPTIONAL: Final = frozenset({"weights_of", "kv_of"})


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
        weights_of: Layer i runs the weights that layer `weights_of[i]` stores, itself or an earlier one (MobileLLM's
            layer sharing, Liu et al. 2024, arXiv:2402.14905); empty where every layer has its own.
        kv_of: Layer i attends over the keys and values that layer `kv_of[i]` computed, itself or an earlier one
            (cross-layer attention, Brandon et al. 2024, arXiv:2405.12981); empty where every layer computes its own.
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
    weights_of: tuple[int, ...] = ()
    kv_of: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse shapes that no model can have; a sharing that shares nothing is written as empty."""
        for name in ("vocab_size", "model_dim", "head_dim", "max_context"):
            _require_width(name, getattr(self, name), maximum=1 << 24)
        for name in ("query_heads", "kv_heads", "ffn_dims"):
            _require_widths(name, getattr(self, name))
        self._require_layers()
        if self.head_dim % 2:
            raise ConfigError(f"head_dim must be even for rotary positions, got {self.head_dim}")
        for name in ("rope_base", "norm_eps"):
            _require_positive(name, getattr(self, name))
        for name in ("qk_norm", "tied_embeddings"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, got {getattr(self, name)!r}")
        for name in ("weights_of", "kv_of"):
            self._require_sharing(name)
        self._require_shared_shapes()

    def _require_layers(self) -> None:
        if not len(self.query_heads) == len(self.kv_heads) == len(self.ffn_dims):
            raise ConfigError(
                f"query_heads, kv_heads and ffn_dims need one entry a layer each, got {len(self.query_heads)}, "
                f"{len(self.kv_heads)} and {len(self.ffn_dims)} entries"
            )
        for layer, (queries, kvs) in enumerate(zip(self.query_heads, self.kv_heads, strict=True)):
            if queries % kvs:
                raise ConfigError(f"layer {layer}: {queries} query heads are no multiple of {kvs} kv heads")

    def _require_sharing(self, name: str) -> None:
        """Check that each entry names the layer itself or an earlier one that shares nothing; identity becomes ()."""
        sharing = getattr(self, name)
        if not isinstance(sharing, tuple) or (sharing and len(sharing) != self.num_layers):
            raise ConfigError(f"{name} must be empty or have one entry for each of {self.num_layers} layers")
        for layer, source in enumerate(sharing):
            if type(source) is not int or not 0 <= source <= layer:
                raise ConfigError(f"{name}[{layer}] must name layer {layer} itself or an earlier one, got {source!r}")
            if sharing[source] != source:
                raise ConfigError(
                    f"{name}[{layer}] is layer {source}, which takes its own from layer {sharing[source]}; "
                    f"name layer {sharing[source]}"
                )
        if sharing == tuple(range(self.num_layers)):
            object.__setattr__(self, name, ())

    def _require_shared_shapes(self) -> None:
        for layer in range(self.num_layers):
            owner, source = self.weight_layer(layer), self.kv_layer(layer)
            for name in ("query_heads", "kv_heads", "ffn_dims"):
                mine, theirs = getattr(self, name)[layer], getattr(self, name)[owner]
                if mine != theirs:
                    raise ConfigError(
                        f"layer {layer} runs the weights of layer {owner}, but {name} says {mine} for it and {theirs} "
                        f"for layer {owner}; make them equal"
                    )
            if self.kv_heads[layer] != self.kv_heads[source]:
                raise ConfigError(
                    f"layer {layer} attends over the keys and values of layer {source}, but kv_heads says "
                    f"{self.kv_heads[layer]} for it and {self.kv_heads[source]} for layer {source}; make them equal"
                )
            if source == layer and self.kv_layer(owner) != owner:
                raise ConfigError(
                    f"layer {layer} computes keys and values with the weights of layer {owner}, which has none for "
                    f"that since it attends over layer {self.kv_layer(owner)}'s; set kv_of[{layer}] to an earlier layer"
                )

    @property
    def num_layers(self) -> int:
        """Number of layers that run, shared or not."""
        return len(self.query_heads)

    def weight_layer(self, layer: int) -> int:
        """The layer whose stored weights this layer runs."""
        return self.weights_of[layer] if self.weights_of else layer

    def kv_layer(self, layer: int) -> int:
        """The layer whose keys and values this layer attends over; the only ones that need a cache."""
        return self.kv_of[layer] if self.kv_of else layer

    @property
    def stored_layers(self) -> tuple[int, ...]:
        """The layers that have weights of their own, in order."""
        return tuple(layer for layer in range(self.num_layers) if self.weight_layer(layer) == layer)

    @property
    def kv_layers(self) -> tuple[int, ...]:
        """The layers that compute keys and values, in order."""
        return tuple(layer for layer in range(self.num_layers) if self.kv_layer(layer) == layer)

    def projections_of(self, layer: int) -> tuple[str, ...]:
        """Those of `PROJECTIONS` that a stored layer has; one without keys and values of its own has no k, no v."""
        own = self.kv_layer(layer) == layer
        return tuple(p for p in PROJECTIONS if own or p not in _KV_PROJECTIONS)

    def stored_projections(self) -> tuple[tuple[int, str], ...]:
        """Layer and projection of every linear layer that is stored, in the order of the layers."""
        return tuple((layer, p) for layer in self.stored_layers for p in self.projections_of(layer))

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every stored parameter, in the order of the layers, without building anything."""
        shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (self.vocab_size, self.model_dim)}
        for layer in self.stored_layers:
            projections = self.projections_of(layer)
            shapes[f"layers.{layer}.attention_norm.weight"] = (self.model_dim,)
            shapes |= {f"{self.projection_path(layer, p)}.weight": self.projection_shape(layer, p) for p in projections}
            if self.qk_norm:
                shapes[f"layers.{layer}.attention.q_norm.weight"] = (self.head_dim,)
                if "k_proj" in projections:
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
        """Module path of one of `PROJECTIONS` of a stored layer, such as `layers.3.attention.q_proj`."""
        return f"layers.{layer}.{'ffn' if projection in _MLP_PROJECTIONS else 'attention'}.{projection}"

    @property
    def parameter_count(self) -> int:
        """Number of stored weights; a tied output and a shared layer count once."""
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())

    def kv_cache_elements(self) -> int:
        """Numbers that the KV cache takes for each token."""
        return 2 * self.head_dim * sum(self.kv_heads[layer] for layer in self.kv_layers)

    def to_json(self) -> str:
        """Canonical text of config.json; the same config gives the same bytes."""
        # A sharing that is not used is left out: older programs read the file, and its bytes are what they always were.
        values = {key: value for key, value in asdict(self).items() if value != () or key not in _OPTIONAL}
        return json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **values}, indent=2) + "\n"

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
        targets: Projections that get an adapter; kept in the order of `PROJECTIONS`.
        layers: Layers that get one; empty: all. Training computes no gradient below the first of them.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    layers: tuple[int, ...] = ()

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
        if any(type(layer) is not int or not 0 <= layer < _MAX_LAYERS for layer in self.layers):
            raise ConfigError(f"layers must be whole numbers in 0..{_MAX_LAYERS - 1}, got {self.layers!r}")
        if len(set(self.layers)) != len(self.layers):
            raise ConfigError(f"layers must name each layer once, got {self.layers!r}")
        object.__setattr__(self, "layers", tuple(sorted(self.layers)))

    def adapts(self, layer: int, projection: str) -> bool:
        """Whether a projection of a layer gets an adapter."""
        return projection in self.targets and (not self.layers or layer in self.layers)

    @property
    def scaling(self) -> float:
        """Factor on the adapter's output."""
        return self.alpha / self.rank


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
    if missing := sorted(expected - set(values) - _OPTIONAL):
        raise ConfigError(f"config.json lacks {missing}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
