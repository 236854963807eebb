"""Which back end runs: the fastest that is installed and can run the model, or the one that was asked for."""

import importlib.util
import logging

from client_sdk.backends.interface import Backend, BackendModel, BackendName, EngineSettings
from client_sdk.errors import DeviceError, MissingExtraError

_logger = logging.getLogger(__name__)


def open_backend(model: BackendModel, settings: EngineSettings) -> tuple[Backend, str]:
    """Open a back end on a base.

    `auto` tries llama.cpp, and takes torch where llama.cpp is not installed or cannot run this model.

    Returns:
        The back end, and why it was chosen, in words.

    Raises:
        MissingExtraError: what was asked for is not installed.
        DeviceError: it cannot run this model.
    """
    if settings.backend != "auto":
        return _open(settings.backend, model, settings), "asked for"
    why = _why_not_llamacpp(model, settings)
    if not why:
        try:
            return _open("llamacpp", model, settings), "the fastest that is installed"
        except MissingExtraError as error:
            why = str(error)
        except _cannot_express() as error:
            why = f"llama.cpp cannot run this model ({error})"
            _logger.info("%s; generating with torch", why)
    return _open("torch", model, settings), why


def likely_backend(settings: EngineSettings) -> BackendName:
    """What `open_backend` takes, unless it cannot run the model; opens nothing."""
    if settings.backend != "auto":
        return settings.backend
    is_able = settings.window is None and importlib.util.find_spec("xllamacpp") is not None
    return "llamacpp" if is_able else "torch"


def _open(name: BackendName, model: BackendModel, settings: EngineSettings) -> Backend:
    if name == "llamacpp":
        from client_sdk.backends.llamacpp import LlamaCppBackend  # noqa: PLC0415 - an extra

        return LlamaCppBackend(model, settings)
    from client_sdk.backends.torch_backend import TorchBackend  # noqa: PLC0415 - seconds of torch

    return TorchBackend(model, settings)


def _why_not_llamacpp(model: BackendModel, settings: EngineSettings) -> str:
    from client_sdk.backends.llamacpp import is_installed  # noqa: PLC0415 - imported where it is looked for

    if settings.window is not None:
        return "a sliding window needs torch"
    if model.derived is None:
        return "there is no folder for a GGUF file"
    return "" if is_installed() else "llama.cpp is not installed (`pip install lamella[device,llamacpp]`)"


def _cannot_express() -> tuple[type[Exception], ...]:
    from model.errors import AdapterError, ExportError  # noqa: PLC0415 - no torch in it

    return (ExportError, DeviceError, AdapterError)
