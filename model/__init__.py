"""The language model of Lamella: layered decoder, adapters, tokenizer, checkpoints, data, training and evaluation.

A leaf: it knows torch, and nothing of networks, differential privacy or databases.
"""

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from model.adapter_format import AdapterFormat
    from model.checkpoint import LoadedModel, load_checkpoint, load_version, save_checkpoint, save_quantized
    from model.config import PROJECTIONS, LoRAConfig, ModelConfig
    from model.data import (
        ChitchatSource,
        DataSource,
        DocstringSource,
        EncodedExample,
        Example,
        JsonlSource,
        collate,
        encode_examples,
        export_users,
        held_out_by_user,
        held_out_examples,
        open_source,
        split_by_time,
        training_part,
    )
    from model.errors import (
        AdapterError,
        CheckpointError,
        ConfigError,
        ContextLengthError,
        DataError,
        ForeignModelError,
        ModelError,
        QuantizationError,
        TokenizerError,
    )
    from model.evaluation import choice_accuracy, example_losses, held_out_loss, perplexity, read_questions
    from model.generation import generate
    from model.importers import find_smollm2, import_gguf, import_huggingface
    from model.kv_cache import KVCache
    from model.lora import (
        adapter_shapes,
        adapter_state_dict,
        add_lora,
        check_adapter_state,
        initial_adapter,
        load_adapter,
        load_adapter_state,
        merge_lora,
        remove_lora,
        save_adapter,
        unmerge_lora,
    )
    from model.presets import PRESETS, preset
    from model.quantization import quantize_model, uniform_plan
    from model.quantized_adapter import QuantizedAdapter, load_quantized_adapter, save_quantized_adapter
    from model.tokenizer import Tokenizer
    from model.training import chat_texts, pretrain_tiny, sequence_losses, train
    from model.transformer import LayeredTransformer

# Names load their module when they are first used: tokenizing, configs and exports need no torch, whose import takes
# seconds and two hundred megabytes that a device which generates with another engine does not have to pay.
_HOMES: Final = {
    "model.adapter_format": ("AdapterFormat",),
    "model.checkpoint": ("LoadedModel", "load_checkpoint", "load_version", "save_checkpoint", "save_quantized"),
    "model.config": ("LoRAConfig", "ModelConfig", "PROJECTIONS"),
    "model.data": (
        "ChitchatSource",
        "DataSource",
        "DocstringSource",
        "EncodedExample",
        "Example",
        "JsonlSource",
        "collate",
        "encode_examples",
        "export_users",
        "held_out_by_user",
        "held_out_examples",
        "open_source",
        "split_by_time",
        "training_part",
    ),
    "model.errors": (
        "AdapterError",
        "CheckpointError",
        "ConfigError",
        "ContextLengthError",
        "DataError",
        "ForeignModelError",
        "ModelError",
        "QuantizationError",
        "TokenizerError",
    ),
    "model.evaluation": ("choice_accuracy", "example_losses", "held_out_loss", "perplexity", "read_questions"),
    "model.generation": ("generate",),
    "model.importers": ("find_smollm2", "import_gguf", "import_huggingface"),
    "model.kv_cache": ("KVCache",),
    "model.lora": (
        "adapter_shapes",
        "adapter_state_dict",
        "add_lora",
        "check_adapter_state",
        "initial_adapter",
        "load_adapter",
        "load_adapter_state",
        "merge_lora",
        "remove_lora",
        "save_adapter",
        "unmerge_lora",
    ),
    "model.presets": ("PRESETS", "preset"),
    "model.quantization": ("quantize_model", "uniform_plan"),
    "model.quantized_adapter": ("QuantizedAdapter", "load_quantized_adapter", "save_quantized_adapter"),
    "model.tokenizer": ("Tokenizer",),
    "model.training": ("chat_texts", "pretrain_tiny", "sequence_losses", "train"),
    "model.transformer": ("LayeredTransformer",),
}

__all__ = [
    "PRESETS",
    "PROJECTIONS",
    "AdapterError",
    "AdapterFormat",
    "CheckpointError",
    "ChitchatSource",
    "ConfigError",
    "ContextLengthError",
    "DataError",
    "DataSource",
    "DocstringSource",
    "EncodedExample",
    "Example",
    "ForeignModelError",
    "JsonlSource",
    "KVCache",
    "LayeredTransformer",
    "LoRAConfig",
    "LoadedModel",
    "ModelConfig",
    "ModelError",
    "QuantizationError",
    "QuantizedAdapter",
    "Tokenizer",
    "TokenizerError",
    "adapter_shapes",
    "adapter_state_dict",
    "add_lora",
    "chat_texts",
    "check_adapter_state",
    "choice_accuracy",
    "collate",
    "encode_examples",
    "example_losses",
    "export_users",
    "find_smollm2",
    "generate",
    "held_out_by_user",
    "held_out_examples",
    "held_out_loss",
    "import_gguf",
    "import_huggingface",
    "initial_adapter",
    "load_adapter",
    "load_adapter_state",
    "load_checkpoint",
    "load_quantized_adapter",
    "load_version",
    "merge_lora",
    "open_source",
    "perplexity",
    "preset",
    "pretrain_tiny",
    "quantize_model",
    "read_questions",
    "remove_lora",
    "save_adapter",
    "save_checkpoint",
    "save_quantized",
    "save_quantized_adapter",
    "sequence_losses",
    "split_by_time",
    "train",
    "training_part",
    "uniform_plan",
    "unmerge_lora",
]


def __getattr__(name: str) -> object:
    """Load what is asked for; it stays an attribute of this package."""
    for home, names in _HOMES.items():
        if name in names:
            globals()[name] = getattr(importlib.import_module(home), name)
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
