"""What is exported: a checkpoint folder or a version's tree, read a few rows at a time, without torch.

A device makes its own GGUF file from the checkpoint that it received, so reading must cost no more than one tensor as
stored, and no import that generating does not need.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Self

from model.config import MAX_CONFIG_BYTES, ModelConfig
from model.errors import CheckpointError, ConfigError
from model.export.adapters import read_adapter
from model.export.weights import Branch, StoredWeight, as_array
from model.files import read_text
from model.raw_tensor_file import RawTensorFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    import numpy.typing as npt

    from model.config import LoRAConfig
    from model.export.weights import Floats

# What is stored in 8 bits where a weight has `tops`.
_CODED: Final = ("scales", "zeros")
_BLOCK: Final = 32
_MAX_TOKENIZER_BYTES: Final = 64 * 1024 * 1024


class ExportSource:
    """An open checkpoint; a context manager.

    Attributes:
        config: Shape of the model.
        tokenizer_json: Text of tokenizer.json.
        tokenizer_settings: Content of tokenizer_config.json.
        lora: The adapter that is merged into what is read; None without one.
    """

    def __init__(self, source: Path, *, with_adapter: bool = True) -> None:
        """Open a checkpoint folder, or a version's tree (`base/`, and `adapter/` where there is one).

        Raises:
            CheckpointError: A file is missing or damaged, or the files do not fit together.
            AdapterError: The adapter is damaged or does not fit the base.
        """
        self.folder = source / "base" if (source / "base").is_dir() else source
        self.config = _config(self.folder)
        self.tokenizer_json = read_text(self.folder / "tokenizer.json", max_bytes=_MAX_TOKENIZER_BYTES)
        self.tokenizer_settings = _settings(self.folder)
        self._shapes = self.config.parameter_shapes()
        adapter = source / "adapter"
        self.lora: LoRAConfig | None = None
        self.adapter: Mapping[str, Floats] = {}
        if with_adapter and adapter.is_dir():
            self.lora, self.adapter = read_adapter(adapter, self.config)
        self._file = RawTensorFile(self.folder / "model.safetensors")
        try:
            self._require_shapes()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def weight(self, name: str) -> StoredWeight:
        """One parameter, by its name in `ModelConfig.parameter_shapes`."""
        stored = [key for key in (name, *_quantized_names(name), f"{name}.tops") if key in self._file.entries]
        parts = {"weight" if key == name else key.rpartition(".")[2]: self._array(key) for key in stored}
        path = name.removesuffix(".weight")
        branch = None
        if self.lora is not None and f"{path}.lora_a" in self.adapter:
            branch = Branch(self.adapter[f"{path}.lora_a"], self.adapter[f"{path}.lora_b"], self.lora.scaling)
        return StoredWeight(name, self._shapes[name], parts, branch)

    def kind(self, name: str) -> str:
        """GGUF's name of the type that a parameter's stored numbers have; a group that is no multiple of 32 has none.

        Returns:
            `F32`, `F16`, `BF16`, `Q8_0`, `Q4_0` or `Q4_1`.
        """
        entries = self._file.entries
        if name in entries:
            return {"F64": "F32"}.get(entries[name].dtype, entries[name].dtype)
        values, scales, zeros = _quantized_names(name)
        if entries[values].dtype == "I8":
            return "Q8_0"
        if (self._shapes[name][1] // entries[scales].shape[1]) % _BLOCK:
            return "F16"
        return "Q4_1" if zeros in entries else "Q4_0"

    def _array(self, key: str) -> npt.NDArray[Any]:
        entry = self._file.entries[key]
        return as_array(self._file.read_bytes(key), entry.dtype).reshape(entry.shape)

    def _require_shapes(self) -> None:
        """Every parameter is stored plainly, or in few bits as `model.quantization` writes it."""
        expected: dict[str, tuple[int, ...]] = {}
        for name, shape in self._shapes.items():
            if f"{name}.values" in self._file.entries:
                expected |= self._quantized_shapes(name, shape)
            else:
                expected[name] = shape
        self._file.require_shapes(expected)
        coded = {key.removesuffix("tops") + part for key in expected if key.endswith(".tops") for part in _CODED}
        for name in expected:
            kind = self._file.entries[name].dtype
            if (kind in {"U8", "I8"}) != (name.endswith(".values") or name in coded):
                raise CheckpointError(f"{self._file.path}: {name} is stored as {kind}; fetch or import it again")

    def _quantized_shapes(self, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        entries = self._file.entries
        values, scales, zeros = _quantized_names(name)
        scale_shape = entries[scales].shape if scales in entries else ()
        if len(shape) != 2 or not scale_shape or 0 in scale_shape:  # noqa: PLR2004  (a matrix)
            raise CheckpointError(f"{self._file.path}: {values} has no fitting {scales}; fetch or quantise it again")
        rows, columns = shape
        if entries[values].dtype == "I8":
            return {values: shape, scales: (rows,)}
        if columns % (2 * scale_shape[-1]):
            raise CheckpointError(f"{self._file.path}: {scales} has shape {list(scale_shape)}; quantise it again")
        grouped = (rows, scale_shape[-1])
        found: dict[str, tuple[int, ...]] = {values: (rows, columns // 2), scales: grouped}
        if (tops := f"{name}.tops") in entries:
            return found | {zeros: grouped, tops: (rows, 2)}
        return found | {zeros: grouped} if zeros in entries else found


def _config(folder: Path) -> ModelConfig:
    try:
        return ModelConfig.from_json(read_text(folder / "config.json", max_bytes=MAX_CONFIG_BYTES))
    except ConfigError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    try:
        settings = json.loads(read_text(path, max_bytes=_MAX_TOKENIZER_BYTES))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} is no JSON object")
    return settings


def _quantized_names(name: str) -> tuple[str, str, str]:
    return f"{name}.values", f"{name}.scales", f"{name}.zeros"
