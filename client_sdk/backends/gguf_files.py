"""GGUF files made on the device from the base and its adapters, kept in its home under the hash of what they hold.

A file is written beside its place and renamed into it, so that what is there is whole. Files that no installed version
needs are removed when another is made.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from client_sdk.disk import make_private_folder
from client_sdk.errors import MissingExtraError

FORMAT = 1
"""Part of every name: a later program that writes other bytes writes another file."""

_HASH_CHARACTERS = 32


def base_file(derived: Path, base: Path, base_hash: str, quantization: str) -> Path:
    """The GGUF file of a base; made now if it is not there.

    Raises:
        DeviceError: the model cannot be expressed as GGUF, or the disk does not take it.
        MissingExtraError: the package that writes GGUF is missing.
    """
    path = derived / f"base-{base_hash[:_HASH_CHARACTERS]}-{quantization}-{FORMAT}.gguf"
    if not path.exists():
        export_gguf, _ = _exporters()
        make_private_folder(derived)
        _remove_others(derived, "base-", keep=tuple(derived.glob(f"base-{base_hash[:_HASH_CHARACTERS]}-*")))
        export_gguf(base, path, quantization=quantization)
    return path


def adapter_file(derived: Path, adapter: Path, base: Path, base_hash: str) -> Path:
    """The GGUF file of an adapter in PEFT's layout, for the file that `base_file` makes."""
    digest = hashlib.sha256(base_hash.encode())
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        with (adapter / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    path = derived / f"adapter-{digest.hexdigest()[:_HASH_CHARACTERS]}-{FORMAT}.gguf"
    if not path.exists():
        _, export_gguf_adapter = _exporters()
        make_private_folder(derived)
        export_gguf_adapter(adapter, path, base=base)
    return path


def keep_only(derived: Path, files: Iterable[Path]) -> None:
    """Remove adapters' files that are not among these."""
    _remove_others(derived, "adapter-", keep=tuple(files))


def _remove_others(derived: Path, prefix: str, keep: tuple[Path, ...]) -> None:
    for path in derived.glob(f"{prefix}*.gguf"):
        if path not in keep:
            with contextlib.suppress(OSError):  # in use elsewhere, or gone: only space is lost
                path.unlink()


def _exporters() -> tuple[Callable[..., str], Callable[..., str]]:
    try:
        import gguf  # noqa: F401, PLC0415 - only needed where a file is made

        from model.export import export_gguf, export_gguf_adapter  # noqa: PLC0415 - as above
    except ImportError as error:
        raise MissingExtraError(
            f"Making a GGUF file needs `pip install lamella[device,llamacpp]` ({error})."
        ) from error
    return export_gguf, export_gguf_adapter
