"""Engines that generate, behind one interface: `torch`, always there, and `llamacpp`, an extra."""

from client_sdk.backends.choice import likely_backend, open_backend
from client_sdk.backends.interface import (
    MAX_LOGPROBS,
    Backend,
    BackendModel,
    Ending,
    EngineFacts,
    EngineSettings,
    GenerationRequest,
    Piece,
    TokenLogprob,
)
from client_sdk.backends.text import TextStream
from client_sdk.backends.threads import LoadMeter, choose_threads, usable_cores

__all__ = [
    "MAX_LOGPROBS",
    "Backend",
    "BackendModel",
    "Ending",
    "EngineFacts",
    "EngineSettings",
    "GenerationRequest",
    "LoadMeter",
    "Piece",
    "TextStream",
    "TokenLogprob",
    "choose_threads",
    "likely_backend",
    "open_backend",
    "usable_cores",
]
