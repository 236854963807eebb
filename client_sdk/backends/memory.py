"""Memory that a process has freed but not given back."""

import ctypes
import sys


def return_freed_memory() -> None:
    """Give it back to the system, where the C library can: reading a tokenizer leaves 16 MB behind. Else do nothing."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
        if trim is not None:
            trim(0)
