"""A quantised adapter as a whole: rounded from floats, written, read, and as floats again. Without torch.

On disk it has PEFT's two files, with `NAME.values` and `NAME.scales` in place of each tensor and a `peft_type` of its
own: PEFT refuses it instead of leaving out what it does not know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import safetensors.numpy

from model.adapter_format import BITS, QuantizedFactor, quantize_factor, stored_factor
from model.errors import AdapterError, CheckpointError, ConfigError
from model.files import read_text, replace_durably, write_text
from model.peft_format import MAX_CONFIG_BYTES, config_text, our_name, parse_config, peft_name
from model.raw_tensor_file import RawTensorFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from model.adapter_format import Floats, QuantizedFormat
    from model.config import LoRAConfig

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class QuantizedAdapter:
    """An adapter in few bits.

    Attributes:
        form: `int8` or `int4`.
        factors: By the names of `adapter_shapes`.
    """

    form: QuantizedFormat
    factors: Mapping[str, QuantizedFactor]

    @classmethod
    def of(
        cls, state: Mapping[str, npt.NDArray[np.floating[Any]]], form: QuantizedFormat, *, previous: Self | None = None
    ) -> Self:
        """Round an adapter's tensors to the nearest levels.

        Args:
            state: By the names of `adapter_shapes`, in their shapes.
            form: `int8` or `int4`.
            previous: The release before, whose scales are kept while they fit; of another format: nothing is kept.

        Raises:
            AdapterError: A value is not finite or too large, or the format cannot hold a tensor; it is named.
        """
        known = previous.factors if previous is not None and previous.form == form else {}
        return cls(
            form,
            {
                name: quantize_factor(
                    _by_rank(name, values),
                    bits=BITS[form],
                    kept=known[name].scales if name in known else None,
                    name=name,
                )
                for name, values in state.items()
            },
        )

    def floats(self) -> dict[str, Floats]:
        """The tensors that everyone computes with: float32, in the shapes of `adapter_shapes`."""
        return {name: np.ascontiguousarray(_by_rank(name, factor.floats())) for name, factor in self.factors.items()}


def save_quantized_adapter(folder: Path, adapter: QuantizedAdapter, config: LoRAConfig) -> None:
    """Write a quantised adapter, each file atomically; the same adapter gives the same bytes.

    Raises:
        AdapterError: A name is not one of `adapter_shapes`.
        CheckpointError: This disk does not take it.
    """
    tensors = {
        f"{peft_name(name)}.{part}": np.ascontiguousarray(values)
        for name, factor in adapter.factors.items()
        for part, values in factor.stored().items()
    }
    replace_durably(
        folder / ADAPTER_WEIGHTS, lambda temporary: safetensors.numpy.save_file(tensors, temporary, {"format": "np"})
    )
    write_text(folder / ADAPTER_CONFIG, config_text(config, form=adapter.form))


def load_quantized_adapter(folder: Path) -> QuantizedAdapter | None:
    """Read an adapter's whole numbers and scales; None when it is stored as floats.

    Raises:
        AdapterError: A file is missing or damaged, or no adapter of a kind that this program computes.
    """
    try:
        config, form = parse_config(read_text(folder / ADAPTER_CONFIG, max_bytes=MAX_CONFIG_BYTES))
        if form is None:
            return None
        with RawTensorFile(folder / ADAPTER_WEIGHTS) as file:
            return read_quantized(file, config, form)
    except (CheckpointError, ConfigError) as error:
        raise AdapterError(f"the adapter in {folder} cannot be used: {error}") from error


def read_quantized(file: RawTensorFile, config: LoRAConfig, form: QuantizedFormat) -> QuantizedAdapter:
    """The adapter that an open file holds.

    Raises:
        AdapterError: A tensor has another name, dtype or shape than the format says, or a scale is no positive number.
        CheckpointError: The file became shorter since it was opened.
    """
    factors = {}
    for name, parts in stored_parts(file).items():
        raw = {part: (file.entries[key].dtype, file.entries[key].shape, file.read_bytes(key)) for part, key in parts}
        factors[name] = stored_factor(name, raw, rank=config.rank, bits=BITS[form])
    return QuantizedAdapter(form, factors)


def stored_parts(file: RawTensorFile) -> dict[str, list[tuple[str, str]]]:
    """Each factor's parts: our name -> (part, name in the file).

    Raises:
        AdapterError: A name is not that of an adapter tensor's part.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for key in file.entries:
        owner, _, part = key.rpartition(".")
        found.setdefault(our_name(owner), []).append((part, key))
    return found


def _by_rank(name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A as it is, B transposed: (rank, length), and back."""
    return values.T if name.endswith(".lora_b") else values
