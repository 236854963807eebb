"""Our checkpoints into foreign formats, one file a format; what a format cannot express is refused."""

from model.export.gguf import export_gguf
from model.export.gguf_adapter import export_gguf_adapter
from model.export.huggingface import export_hf
from model.export.mlx import export_mlx
from model.export.peft import export_peft

__all__ = ["export_gguf", "export_gguf_adapter", "export_hf", "export_mlx", "export_peft"]
