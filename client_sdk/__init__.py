"""The device side of Lamella: signed over-the-air updates with A/B slots, local inference, local training.

`Device` is the one door. Importing this package, updating and generating need none of the training or server extras.
"""

from client_sdk.backends import Ending, EngineFacts, EngineSettings, Piece, TokenLogprob
from client_sdk.conditions import Conditions
from client_sdk.device import Device, DeviceStatus
from client_sdk.device_config import DeviceConfig, DownloadPolicy, SelfTestLimits
from client_sdk.errors import (
    ConfigurationError,
    DeclinedError,
    DeviceDiskError,
    DeviceError,
    EnrolmentError,
    MetadataError,
    MissingExtraError,
    NothingInstalledError,
    OfferRefusedError,
    PackageError,
    RefusedError,
    ReleaseDeclinedError,
    RetryLaterError,
    SelfTestError,
    ServiceRefusedError,
    ServiceUnavailableError,
    UpdateInProgressError,
)
from client_sdk.generation import GenerationOptions
from client_sdk.health import HealthFacts
from client_sdk.pace import Limits
from client_sdk.runtime import Answer
from client_sdk.session import ChatSession
from client_sdk.slots import ActiveVersion
from client_sdk.update_result import UpdateResult

__all__ = [
    "ActiveVersion",
    "Answer",
    "ChatSession",
    "Conditions",
    "ConfigurationError",
    "DeclinedError",
    "Device",
    "DeviceConfig",
    "DeviceDiskError",
    "DeviceError",
    "DeviceStatus",
    "DownloadPolicy",
    "Ending",
    "EngineFacts",
    "EngineSettings",
    "EnrolmentError",
    "GenerationOptions",
    "HealthFacts",
    "Limits",
    "MetadataError",
    "MissingExtraError",
    "NothingInstalledError",
    "OfferRefusedError",
    "PackageError",
    "Piece",
    "RefusedError",
    "ReleaseDeclinedError",
    "RetryLaterError",
    "SelfTestError",
    "SelfTestLimits",
    "ServiceRefusedError",
    "ServiceUnavailableError",
    "TokenLogprob",
    "UpdateInProgressError",
    "UpdateResult",
]
