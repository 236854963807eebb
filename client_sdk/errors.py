"""What can go wrong on a device, split by who can act.

```
DeviceError
├── RetryLaterError              nothing is wrong here: the same call may work in a while
│   ├── ServiceUnavailableError      no answer, a 5xx answer, too slow, deadline passed
│   └── UpdateInProgressError        another process of this device is updating
├── RefusedError                 never retry these bytes or this offer: the service has to change something
│   ├── OfferRefusedError            the offer would downgrade, repeat a failure, or contradicts what is signed
│   │   └── ReleaseDeclinedError         nothing is wrong with it, but this device's owner set a limit that it exceeds
│   ├── MetadataError                signatures, expiry or versions of the signed metadata do not hold
│   ├── PackageError                 the bytes are not what was signed
│   └── ServiceRefusedError          a 4xx answer: the service understood and said no
├── ConfigurationError           whoever wrote `device.toml`: it names the key
├── EnrolmentError               whoever sets the device up: enrol, or enrol again
├── DeclinedError                this device does not take part in a round, and says why; nothing was spent
├── DeviceDiskError              this device's disk: full, read-only or damaged
├── SelfTestError                a new slot loads or computes wrongly; the device keeps its old one
├── NothingInstalledError        nothing to run yet: update first
└── MissingExtraError            this install lacks an optional part
```
"""

__all__ = [
    "ConfigurationError",
    "DeclinedError",
    "DeviceDiskError",
    "DeviceError",
    "EnrolmentError",
    "MetadataError",
    "MissingExtraError",
    "NothingInstalledError",
    "OfferRefusedError",
    "PackageError",
    "RefusedError",
    "ReleaseDeclinedError",
    "RetryLaterError",
    "SelfTestError",
    "ServiceRefusedError",
    "ServiceUnavailableError",
    "UpdateInProgressError",
]


class DeviceError(Exception):
    """Root of everything `client_sdk` raises on purpose."""


class RetryLaterError(DeviceError):
    """Nothing is wrong with the device or the bytes: try the same call again later."""


class ServiceUnavailableError(RetryLaterError):
    """The update service did not answer, answered 5xx, or was too slow.

    `retry_after_s` is the wait the service asked for, if it did.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UpdateInProgressError(RetryLaterError):
    """Another process holds this device's update lock."""


class RefusedError(DeviceError):
    """Never retry these bytes or this offer: the update service has to change something first."""


class OfferRefusedError(RefusedError):
    """An offer that would downgrade the device, repeats a failed version, or contradicts what is signed."""


class ReleaseDeclinedError(OfferRefusedError):
    """A release that is what it says, and says more than the owner's limit allows (`max_epsilon`)."""


class MetadataError(RefusedError):
    """The signed metadata does not verify: wrong signature, expired, rolled back or inconsistent."""


class PackageError(RefusedError):
    """Package bytes that are not what was signed."""


class ServiceRefusedError(RefusedError):
    """The update service answered 4xx; `status` is the HTTP status code."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class ConfigurationError(DeviceError):
    """The device's own settings cannot be read, or say what cannot be."""


class EnrolmentError(DeviceError):
    """The device is not enrolled, or its enrolment is not valid (any more)."""


class DeclinedError(DeviceError):
    """This device does not take part in a training round: another base, no data, or no budget left."""


class DeviceDiskError(DeviceError):
    """This device's disk is full, read-only, or holds a damaged file."""


class SelfTestError(DeviceError):
    """A version in test does not load or computes wrongly."""


class NothingInstalledError(DeviceError):
    """No version is installed yet."""


class MissingExtraError(DeviceError):
    """An optional part of the installation is missing; the message says which extra brings it."""
