"""Foreign checkpoints into ours, one file a format; what cannot be imported faithfully is refused."""

from model.importers.gguf import find_smollm2, import_gguf
from model.importers.huggingface import import_huggingface

__all__ = ["find_smollm2", "import_gguf", "import_huggingface"]
