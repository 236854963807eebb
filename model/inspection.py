"""What a checkpoint, an adapter or a version's tree is, from headers and small files alone: no base weight is read."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from model.checkpoint import read_config, read_plan, require_stored
from model.config import FORMAT, MAX_CONFIG_BYTES, LoRAConfig, ModelConfig
from model.errors import AdapterError, CheckpointError, ConfigError
from model.files import read_text
from model.lora.state import adapter_shapes
from model.peft_format import MAX_CONFIG_BYTES as MAX_ADAPTER_CONFIG_BYTES
from model.peft_format import our_name, parse_config
from model.quantized_adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_quantized
from model.raw_tensor_file import RawTensorFile
from model.tensor_file import TensorFile
from model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from model.adapter_format import QuantizedFormat
    from model.quantization.plan import QuantizationPlan

_WEIGHTS: Final = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class PartFacts:
    """One part of a model: its weights, and the bytes they take as stored."""

    name: str
    parameters: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class TokenizerFacts:
    """A tokenizer: its size, how an answer ends, whether it can hold a conversation."""

    vocab_size: int
    stop_tokens: tuple[str, ...]
    has_chat_template: bool


@dataclass(frozen=True, kw_only=True)
class AdapterFacts:
    """An adapter as stored; `lora` is its kind and strength, `form` one of few bits or None for floats."""

    lora: LoRAConfig
    parameters: int
    num_bytes: int
    dtypes: tuple[str, ...]
    form: QuantizedFormat | None


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """A checkpoint, with what lies on it.

    Attributes:
        config: Its plan.
        parts: Embedding, attention, feed-forward, norms and output, in this order.
        dtypes: How many bytes are stored as which dtype, by safetensors' names.
        quantized: How many weights are stored in which way, such as "int4, groups of 32"; empty if none is.
        tokenizer: Its tokenizer; None where the folder has none.
        adapter: The adapter of a version's tree; None where it has none.
    """

    config: ModelConfig
    parts: tuple[PartFacts, ...]
    dtypes: dict[str, int]
    quantized: dict[str, int]
    tokenizer: TokenizerFacts | None
    adapter: AdapterFacts | None

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights of the base."""
        return sum(part.num_bytes for part in self.parts)


def inspect_model(folder: Path) -> CheckpointFacts:
    """Look into a checkpoint, or into a version's tree with its `base/` and perhaps an `adapter/`.

    Raises:
        CheckpointError: It is neither, or damaged, or its parts do not fit together; the message names the file, the
            tensor where there is one, and what to do.
        AdapterError: The adapter is damaged or does not fit the base.
    """
    if (folder / "base").is_dir():
        base = folder / "base"
        adapter = folder / "adapter" if (folder / "adapter").is_dir() else None
        return _checkpoint(base, adapter)
    _require_ours(folder)
    return _checkpoint(folder, None)


def _checkpoint(folder: Path, adapter: Path | None) -> CheckpointFacts:
    _require_ours(folder)
    config, plan = read_config(folder), read_plan(folder)
    with TensorFile(folder / _WEIGHTS) as file:
        require_stored(file, config, plan)
        parts = _parts(file, config)
        dtypes = Counter[str]()
        for raw in file.entries.values():
            dtypes[raw.dtype] += raw.end - raw.begin
    return CheckpointFacts(
        config=config,
        parts=parts,
        dtypes=dict(dtypes.most_common()),
        quantized=_quantized(plan),
        tokenizer=_tokenizer(folder, config),
        adapter=None if adapter is None else _adapter(adapter, config),
    )


def _require_ours(folder: Path) -> None:
    """Tell apart what a folder may be mistaken for."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; give a checkpoint's folder or a version's tree")
    if (folder / "config.json").exists():
        settings = _json(folder / "config.json", max_bytes=MAX_CONFIG_BYTES)
        if settings.get("format") != FORMAT:
            names = settings.get("architectures") or settings.get("model_type")
            raise CheckpointError(
                f"{folder / 'config.json'} is of the architecture {_short(names)}, not of the format {FORMAT!r}; "
                "`lamella base import` brings in models of the Llama and OpenELM architectures"
            )
        return
    if (folder / ADAPTER_CONFIG).exists():
        raise CheckpointError(
            f"{folder} is an adapter without its base; give the tree that holds both, base/ and adapter/"
        )
    found = sorted(path.name for path in folder.iterdir())[:5]
    raise CheckpointError(
        f"{folder} has neither config.json nor base/, so it is no checkpoint and no version's tree; "
        f"it holds {', '.join(found) or 'nothing'}"
    )


def _parts(file: RawTensorFile, config: ModelConfig) -> tuple[PartFacts, ...]:
    parameters, num_bytes = Counter[str](), Counter[str]()
    for name, shape in config.parameter_shapes().items():
        parameters[_part_of(name)] += math.prod(shape)
    for name, raw in file.entries.items():
        num_bytes[_part_of(name)] += raw.end - raw.begin
    return tuple(
        PartFacts(name=part, parameters=count, num_bytes=num_bytes[part])
        for part in ("embedding", "attention", "feed-forward", "norms", "output")
        if (count := parameters[part])
    )


def _part_of(name: str) -> str:
    if "norm" in name:
        return "norms"
    if name.startswith("layers."):
        return "feed-forward" if ".ffn." in name else "attention"
    return name.partition(".")[0]


def _quantized(plan: QuantizationPlan) -> dict[str, int]:
    kinds = Counter(
        f"int{entry.bits}"
        + ("" if entry.group_size is None else f", groups of {entry.group_size}")
        + (", scales of 8 bits" if entry.scale_bits == 8 else "")  # noqa: PLR2004  (coded)
        for entry in plan.tensors.values()
    )
    return dict(kinds.most_common())


def _tokenizer(folder: Path, config: ModelConfig) -> TokenizerFacts | None:
    if not (folder / "tokenizer.json").exists():
        return None
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} has {tokenizer.vocab_size} tokens, embedding.weight only {config.vocab_size} "
            "rows; take the tokenizer that came with the weights"
        )
    return TokenizerFacts(
        vocab_size=tokenizer.vocab_size,
        stop_tokens=tuple(tokenizer.token(token_id) for token_id in sorted(tokenizer.stop_ids)),
        has_chat_template=tokenizer.has_chat_template,
    )


def _adapter(folder: Path, config: ModelConfig) -> AdapterFacts:
    try:
        lora, form = parse_config(read_text(folder / ADAPTER_CONFIG, max_bytes=MAX_ADAPTER_CONFIG_BYTES))
        with RawTensorFile(folder / ADAPTER_WEIGHTS) as file:
            if form is None:
                found = {our_name(name): raw.shape for name, raw in file.entries.items()}
            else:
                # Read whole: it is small, and whether scales and numbers fit together is what is asked here.
                found = {name: values.shape for name, values in read_quantized(file, lora, form).floats().items()}
            entries = list(file.entries.values())
    except (CheckpointError, ConfigError) as error:
        raise AdapterError(f"the adapter in {folder} cannot be used: {error}") from error
    wanted = adapter_shapes(config, lora)
    for name in sorted(set(wanted) | set(found)):
        if name not in found or name not in wanted or found[name] != wanted[name]:
            has = "lacks it" if name not in found else f"has it as {list(found[name])}"
            needs = "none" if name not in wanted else str(list(wanted[name]))
            raise AdapterError(
                f"the adapter in {folder} does not fit its base: of {name} the base needs {needs}, the adapter {has}; "
                "take the adapter that was made for this base"
            )
    return AdapterFacts(
        lora=lora,
        parameters=sum(math.prod(shape) for shape in wanted.values()),
        num_bytes=sum(raw.end - raw.begin for raw in entries),
        dtypes=tuple(sorted({raw.dtype for raw in entries})),
        form=form,
    )


def _json(path: Path, *, max_bytes: int) -> dict[str, Any]:
    try:
        values = json.loads(read_text(path, max_bytes=max_bytes))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}; fetch or import it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is no JSON object; fetch or import it again")
    return values


def _short(names: object) -> str:
    """A foreign value in a sentence, bounded."""
    text = ", ".join(map(str, names)) if isinstance(names, list) else str(names)
    return repr(text[:80])
