"""Which weights are quantised, and how: `quantization.json` beside the weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from model.errors import QuantizationError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from model.config import ModelConfig

FORMAT: Final = "lamella-quantization"
FORMAT_VERSION: Final = 1
PLAN_FILE: Final = "quantization.json"
MAX_PLAN_BYTES: Final = 1024 * 1024
# Dtypes as safetensors writes them; what is not quantised counts as F16.
_PART_BYTES: Final = {"F16": 2, "F32": 4, "I8": 1, "U8": 1}
_FLOATING: Final = frozenset({"F64", "F32", "F16", "BF16"})
_KEYS: Final = frozenset({"bits", "group_size", "symmetric", "scale_bits"})
_MIN_GROUP: Final = 8


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk; `dtype` as safetensors writes it, None: any floating-point one."""

    shape: tuple[int, ...]
    dtype: str | None

    def allows(self, dtype: str) -> bool:
        """Whether a tensor of that dtype is the one meant."""
        return dtype in _FLOATING if self.dtype is None else dtype == self.dtype


@dataclass(frozen=True, kw_only=True)
class TensorPlan:
    """How one weight is stored.

    Attributes:
        bits: 8 (a scale for each output channel) or 4 (a scale for each group of inputs).
        group_size: Inputs that share a scale; None for 8 bits.
        symmetric: Whether int4 levels lie around zero; always so for 8 bits.
        scale_bits: Of an int4 group's scale and zero: 16, or 8 as shares of the row's largest, not symmetric then.
    """

    bits: int
    group_size: int | None = None
    symmetric: bool = True
    scale_bits: int = 16

    def __post_init__(self) -> None:
        """Refuse what no weight can be stored as."""
        if self.bits == 8:  # noqa: PLR2004  (int8)
            if self.group_size is not None or self.symmetric is not True:
                raise QuantizationError("int8 is symmetric with one scale for each output channel, without groups")
        elif self.bits != 4:  # noqa: PLR2004  (int4)
            raise QuantizationError(f"bits must be 8 or 4, got {self.bits!r}")
        elif type(self.group_size) is not int or self.group_size < _MIN_GROUP or self.group_size % 2:
            raise QuantizationError(f"int4 needs an even group_size of at least {_MIN_GROUP}, got {self.group_size!r}")
        if not isinstance(self.symmetric, bool):
            raise QuantizationError(f"symmetric must be true or false, got {self.symmetric!r}")
        if type(self.scale_bits) is not int or self.scale_bits not in {8, 16}:
            raise QuantizationError(f"scale_bits must be 8 or 16, got {self.scale_bits!r}")
        if self.scale_bits == 8 and self.symmetric:  # noqa: PLR2004  (coded)
            raise QuantizationError("scales of 8 bits go with asymmetric int4 only; take scale_bits 16")

    def stored_parts(self, shape: tuple[int, ...]) -> dict[str, StoredTensor]:
        """Each part that a weight (out, in) is stored as.

        Raises:
            QuantizationError: The groups do not divide its rows.
        """
        rows, columns = shape
        if self.group_size is None:
            return {"values": StoredTensor((rows, columns), "I8"), "scales": StoredTensor((rows,), "F32")}
        if columns % self.group_size:
            raise QuantizationError(f"groups of {self.group_size} do not divide rows of {columns}")
        groups = (rows, columns // self.group_size)
        values = StoredTensor((rows, columns // 2), "U8")
        if self.scale_bits == 8:  # noqa: PLR2004  (coded)
            codes = {"scales": StoredTensor(groups, "U8"), "zeros": StoredTensor(groups, "I8")}
            return {"values": values, **codes, "tops": StoredTensor((rows, 2), "F16")}
        parts = {"values": values, "scales": StoredTensor(groups, "F16")}
        return parts if self.symmetric else parts | {"zeros": StoredTensor(groups, "F16")}


@dataclass(frozen=True)
class QuantizationPlan:
    """How each weight is stored; those that are not named stay as they are.

    Attributes:
        tensors: By name, as in `ModelConfig.parameter_shapes`.
    """

    tensors: Mapping[str, TensorPlan]

    def require_fit(self, config: ModelConfig) -> None:
        """Check that every entry names a matrix of this model that can be stored so.

        Raises:
            QuantizationError: One does not; it is named.
        """
        shapes = config.parameter_shapes()
        for name, plan in self.tensors.items():
            if len(shapes.get(name, ())) != 2:  # noqa: PLR2004  (a matrix)
                raise QuantizationError(f"{name} is no matrix of this model; make the plan for this config.json")
            try:
                plan.stored_parts(shapes[name])
            except QuantizationError as error:
                raise QuantizationError(f"{name}: {error}") from error

    def stored_tensors(self, config: ModelConfig) -> dict[str, StoredTensor]:
        """Every tensor of model.safetensors by name.

        Raises:
            QuantizationError: The plan does not fit this model.
        """
        self.require_fit(config)
        stored: dict[str, StoredTensor] = {}
        for name, shape in config.parameter_shapes().items():
            if (plan := self.tensors.get(name)) is None:
                stored[name] = StoredTensor(shape, None)
            else:
                stored |= {f"{name}.{part}": tensor for part, tensor in plan.stored_parts(shape).items()}
        return stored

    def stored_bytes(self, config: ModelConfig) -> int:
        """Bytes of all tensors, scales included; what stays takes two bytes a number."""
        return sum(
            math.prod(tensor.shape) * _PART_BYTES[tensor.dtype or "F16"]
            for tensor in self.stored_tensors(config).values()
        )

    def to_json(self) -> str:
        """Canonical text of quantization.json; the same plan gives the same bytes."""
        tensors = {name: _as_json(plan) for name, plan in sorted(self.tensors.items())}
        values = {"format": FORMAT, "format_version": FORMAT_VERSION, "tensors": tensors}
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse the text of a quantization.json.

        Raises:
            QuantizationError: No JSON object of this format, or an impossible entry, which is named.
        """
        if len(text) > MAX_PLAN_BYTES:
            raise QuantizationError(f"{PLAN_FILE} has {len(text)} bytes, at most {MAX_PLAN_BYTES} are read")
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise QuantizationError(f"{PLAN_FILE} is not JSON: {error}") from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise QuantizationError(f"{PLAN_FILE} is not of the format {FORMAT!r}; quantise the base again")
        if (found := values.get("format_version")) != FORMAT_VERSION:
            raise QuantizationError(f"{PLAN_FILE} has format_version {found!r}, this program reads {FORMAT_VERSION}")
        tensors = values.get("tensors")
        if set(values) != {"format", "format_version", "tensors"} or not isinstance(tensors, dict):
            raise QuantizationError(f"{PLAN_FILE} has the keys {sorted(values)}, it needs format, version and tensors")
        return cls({name: _entry(name, entry) for name, entry in tensors.items()})


def uniform_plan(
    config: ModelConfig,
    *,
    bits: int,
    group_size: int = 32,
    symmetric: bool = False,
    scale_bits: int = 16,
    embedding_bits: int | None = None,
    keep: Collection[str] = (),
) -> QuantizationPlan:
    """Every matrix in `bits`, those in `keep` as they are.

    Where the groups do not divide the rows of a matrix, its groups are the largest common divisor; a matrix that has
    none of at least 8 is stored in 8 bits.

    Args:
        config: The model's shape.
        bits: 8 or 4.
        group_size: Of int4.
        symmetric: Of int4.
        scale_bits: Of int4; symmetric levels have 16 in any case.
        embedding_bits: Of the embedding and an output of its own; None: as the others, 16: not quantised.
        keep: Names of weights that stay as they are.
    """
    tensors: dict[str, TensorPlan] = {}
    for name, shape in config.parameter_shapes().items():
        is_vocabulary = name in {"embedding.weight", "output.weight"}
        wanted = embedding_bits if is_vocabulary and embedding_bits is not None else bits
        if len(shape) != 2 or name in keep or wanted == 16:  # noqa: PLR2004  (a matrix; 16: left alone)
            continue
        divisor = math.gcd(group_size, shape[1])
        if wanted == 4 and divisor >= _MIN_GROUP and divisor % 2 == 0:  # noqa: PLR2004  (int4)
            own_scale_bits = 16 if symmetric else scale_bits
            tensors[name] = TensorPlan(bits=4, group_size=divisor, symmetric=symmetric, scale_bits=own_scale_bits)
        else:
            tensors[name] = TensorPlan(bits=8 if wanted == 4 else wanted)  # noqa: PLR2004  (int4)
    return QuantizationPlan(tensors)


def _as_json(plan: TensorPlan) -> dict[str, int | bool]:
    if plan.group_size is None:
        return {"bits": plan.bits}
    entry = {"bits": plan.bits, "group_size": plan.group_size, "symmetric": plan.symmetric}
    # Said only where it is not what plans meant before there was a choice.
    return entry if plan.scale_bits == 16 else entry | {"scale_bits": plan.scale_bits}  # noqa: PLR2004  (as above)


def _entry(name: str, entry: Any) -> TensorPlan:  # noqa: ANN401  (parsed JSON, checked here)
    if not isinstance(entry, dict) or "bits" not in entry or not set(entry) <= _KEYS:
        raise QuantizationError(f"{PLAN_FILE}: {name} must be an object with bits, group_size and symmetric")
    try:
        return TensorPlan(**entry)
    except QuantizationError as error:
        raise QuantizationError(f"{PLAN_FILE}: {name}: {error}") from error
