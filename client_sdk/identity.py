"""How this device shows who it is: it signs each request with its own key, or shows what it got at its enrolment."""

import time
from collections.abc import Callable
from contextlib import suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client_sdk.errors import EnrolmentError
from delta_updates import KeyRequest
from delta_updates.request_signature import (
    DIGEST_HEADER,
    INPUT_HEADER,
    SIGNATURE_HEADER,
    SignatureInput,
    content_digest,
    key_proof,
    signature_header,
    to_text,
)

AUTHORIZATION = "Authorization"
IDENTITY_HEADERS = frozenset({AUTHORIZATION, INPUT_HEADER, SIGNATURE_HEADER, DIGEST_HEADER})
"""What must go to the enrolled server only."""

_MAX_BYTES = 4096
_EXACT_ENOUGH_S = 60


class Identity(Protocol):
    """What shows a request to be this device's."""

    def headers(self, method: str, target: str, body: bytes | None) -> dict[str, str]:
        """The headers that do so; `target` is path and query."""
        ...

    def learns_time(self, date: str | None) -> bool:
        """Whether a refused request is worth another try, now that the server's `Date` is known."""
        ...


class Bearer:
    """Shows the credential that came with the enrolment."""

    def __init__(self, credential: str) -> None:
        self._credential = credential

    def headers(self, method: str, target: str, body: bytes | None) -> dict[str, str]:
        """The credential, whatever the request."""
        del method, target, body
        return {AUTHORIZATION: f"Bearer {self._credential}"}

    def learns_time(self, date: str | None) -> bool:
        """Never: a credential knows no time."""
        del date
        return False


class KeyPair:
    """Signs requests with a key that never leaves the device."""

    def __init__(self, device_id: str, key: Ed25519PrivateKey, *, now: Callable[[], float] = time.time) -> None:
        self._device_id, self._key, self._now = device_id, key, now
        # What the server's clock is ahead: a device without a battery begins in 1970.
        self._ahead_s = 0.0

    def headers(self, method: str, target: str, body: bytes | None) -> dict[str, str]:
        """Signature, what it covers, and the body's digest."""
        parts, digest = urlsplit(target), content_digest(body) if body else ""
        covered = SignatureInput(self._device_id, max(int(self._now() + self._ahead_s), 0), has_body=bool(body))
        signature = self._key.sign(covered.base(method, parts.path, parts.query, digest))
        sent = {INPUT_HEADER: covered.header(), SIGNATURE_HEADER: signature_header(signature)}
        return {**sent, DIGEST_HEADER: digest} if body else sent

    def learns_time(self, date: str | None) -> bool:
        """Take over the server's time, if it is another: only the freshness of signatures depends on it."""
        try:
            theirs = parsedate_to_datetime(date or "").timestamp()
        except ValueError:
            return False
        ahead_s = theirs - self._now()
        is_other = abs(ahead_s - self._ahead_s) > _EXACT_ENOUGH_S
        self._ahead_s = ahead_s if is_other else self._ahead_s
        return is_other

    def request(self) -> KeyRequest:
        """What makes the public half known."""
        public_key = to_text(self._key.public_key().public_bytes_raw())
        return KeyRequest(public_key=public_key, proof=to_text(self._key.sign(key_proof(self._device_id, public_key))))


def new_key() -> bytes:
    """A fresh private key as it is stored (PKCS 8, PEM)."""
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_key(path: Path, device_id: str) -> KeyPair | None:
    """The key in a file; None when there is no file.

    Raises:
        EnrolmentError: it cannot be read, or is no such key.
    """
    try:
        with path.open("rb") as file:
            key = serialization.load_pem_private_key(file.read(_MAX_BYTES), password=None)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise EnrolmentError(f"The device's key in {path} cannot be read. Enrol this device again.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise EnrolmentError(f"{path} holds a key of another kind. Enrol this device again.")
    return KeyPair(device_id, key)


def read_credential(path: Path) -> Bearer | None:
    """The credential in a file; None when there is none that can be read."""
    with suppress(OSError, UnicodeDecodeError), path.open("rb") as file:
        return Bearer(file.read(_MAX_BYTES).decode("ascii").strip())
    return None
