"""Everything that can go wrong in this room, split by who can act on it."""


class ModelError(Exception):
    """Root of this package's errors."""


class ConfigError(ModelError):
    """A model or LoRA configuration contradicts itself: whoever wrote it must change it."""


class CheckpointError(ModelError):
    """Files of a checkpoint are missing, damaged or do not fit together: fetch or import them again."""


class AdapterError(ModelError):
    """An adapter does not fit this base or this program: take the adapter that was made for the base."""


class QuantizationError(ModelError):
    """Weights cannot be quantised as asked, or a quantisation plan does not fit them: choose other settings."""


class ForeignModelError(ModelError):
    """A foreign model cannot be imported faithfully: the operator must choose or convert another one."""


class ExportError(ModelError):
    """A model cannot be written in a format as it is: the operator must choose another format or change the model."""


class TokenizerError(ModelError):
    """A text or conversation cannot be expressed with this tokenizer: the caller must change it."""


class ContextLengthError(ModelError):
    """More tokens than the model's context holds: the caller must shorten the input."""


class DataError(ModelError):
    """Training data is missing or malformed: whoever owns the data must mend it.

    Messages name files, line numbers and settings, never a person's text.
    """
