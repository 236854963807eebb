"""Where a decoder takes its weights from: a checkpoint's file, one tensor at a time, or a model in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

from model.checkpoint import read_config, read_parts, read_plan, require_stored
from model.errors import QuantizationError
from model.quantization import quantized_layers
from model.quantization.weights import from_stored
from model.tensor_file import TensorFile

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from model.config import ModelConfig
    from model.quantization import QuantizedWeight
    from model.transformer import LayeredTransformer


class WeightSource(Protocol):
    """Weights by the names of `ModelConfig.parameter_shapes`."""

    config: ModelConfig

    def read(self, name: str) -> Tensor | QuantizedWeight:
        """One weight, dense or as it is quantised."""
        ...


class CheckpointSource:
    """The weights of a checkpoint folder, read when they are asked for; a context manager."""

    def __init__(self, folder: Path) -> None:
        """Open and check.

        Raises:
            CheckpointError: A file is missing or damaged, or weights and config do not fit together.
        """
        self.config = read_config(folder)
        self._plan = read_plan(folder)
        self._file = TensorFile(folder / "model.safetensors")
        try:
            require_stored(self._file, self.config, self._plan)
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str) -> Tensor | QuantizedWeight:
        """One weight, dense or as it is quantised."""
        plan = self._plan.tensors.get(name)
        if plan is None:
            return self._file.read(name)
        return from_stored(read_parts(self._file, name), bits=plan.bits, group_size=plan.group_size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class ModelSource:
    """The weights of a model in memory, an adapter on it left out unless it is merged."""

    def __init__(self, model: LayeredTransformer) -> None:
        self.config = model.config
        self._weights = model.state_dict()
        self._quantized = dict(quantized_layers(model))

    def read(self, name: str) -> Tensor | QuantizedWeight:
        """One weight, dense or as it is quantised."""
        if name in self._weights:
            weight: Tensor = self._weights[name].detach()
            return weight
        if name in self._quantized:
            return self._quantized[name].quantized
        raise QuantizationError(f"the model has no weight {name}")
