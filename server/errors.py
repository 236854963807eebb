"""Errors of the server, one root, split by who can act.

::

    ServerError
    ├── ConfigurationError        the operator: a setting or a file in the home
    ├── StorageError              this machine's disk
    │   ├── ArtifactMissingError
    │   └── ArtifactDamagedError
    ├── RegistryError
    │   ├── DatabaseError         the operator: the database does not answer
    │   ├── NotFoundError         the caller: no such row
    │   ├── ConflictError         the caller: the row is in a state that forbids this
    │   ├── GoneError             the caller: this is over, and ended in another way
    │   └── InvalidRecordError    the caller: these values may not be recorded
    ├── SigningError              the operator: keys or metadata
    │   └── TargetConflictError   the caller: a signed path never changes its contents
    ├── PublishingError           the operator: the version cannot be released as it is
    │   └── GateRefusedError      nobody: the candidate is worse than its parent and was rejected
    ├── FederationError           the operator: a federated run cannot go on
    │   ├── RecipeError           the run config does not fit
    │   ├── NotEnoughDevicesError too few devices are connected
    │   └── EvaluationError       there is nothing to judge a release by
    └── AccessError               the caller of the API
        ├── CredentialRefusedError
        ├── EnrolmentRefusedError
        ├── ForbiddenError
        └── TooManyRequestsError  later
"""

from __future__ import annotations

__all__ = [
    "AccessError",
    "ArtifactDamagedError",
    "ArtifactMissingError",
    "ConfigurationError",
    "ConflictError",
    "CredentialRefusedError",
    "DatabaseError",
    "EnrolmentRefusedError",
    "EvaluationError",
    "FederationError",
    "ForbiddenError",
    "GateRefusedError",
    "GoneError",
    "InvalidRecordError",
    "NotEnoughDevicesError",
    "NotFoundError",
    "PublishingError",
    "RecipeError",
    "RegistryError",
    "ServerError",
    "SigningError",
    "StorageError",
    "TargetConflictError",
    "TooManyRequestsError",
]


class ServerError(Exception):
    """Root of everything the server raises on purpose; the message says what to do next."""


class ConfigurationError(ServerError):
    """A setting, or a file in the server's home, is wrong."""


class StorageError(ServerError):
    """This machine's disk refused a read or a write."""


class ArtifactMissingError(StorageError):
    """The artifact store holds nothing under this digest."""


class ArtifactDamagedError(StorageError):
    """The bytes under a digest are not those that were stored."""


class RegistryError(ServerError):
    """The registry refused; nothing was changed."""


class DatabaseError(RegistryError):
    """The database does not answer or does not fit this release."""


class NotFoundError(RegistryError):
    """There is no such run, version, device or offer."""


class ConflictError(RegistryError):
    """The state of a row forbids this change (immutable, already recorded, already used)."""


class GoneError(RegistryError):
    """What the caller speaks of is over."""


class InvalidRecordError(RegistryError):
    """The values offered may not be recorded."""


class SigningError(ServerError):
    """Keys or signed metadata are missing, damaged or do not belong together."""


class TargetConflictError(SigningError):
    """A path that is signed already would change its contents."""


class PublishingError(ServerError):
    """The version cannot be released as it is."""


class GateRefusedError(PublishingError):
    """The evaluation gate rejected the candidate; the registry keeps the reason."""


class FederationError(ServerError):
    """A federated run cannot start or go on; the registry keeps what was reached."""


class AuditingError(ServerError):
    """A run cannot be audited as asked; what was measured before is kept."""


class RecipeError(FederationError):
    """The run config is wrong, or contradicts the run that it should resume."""


class NotEnoughDevicesError(FederationError):
    """Too few devices were connected for too long."""


class EvaluationError(FederationError):
    """There is no held-out text to judge a release by."""


class AccessError(ServerError):
    """The caller of the API may not do this."""


class CredentialRefusedError(AccessError):
    """No credential, or one that nobody was given."""


class EnrolmentRefusedError(AccessError):
    """The enrolment token is unknown, used or expired."""


class ForbiddenError(AccessError):
    """The caller is known, and this is not theirs."""


class TooManyRequestsError(AccessError):
    """The caller asked too often; ``retry_after_s`` says in how many seconds to come back."""

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
