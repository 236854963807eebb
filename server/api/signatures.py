"""Requests that a device signed: read strictly, and held against the device's public key."""

from __future__ import annotations

import hmac
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from delta_updates.request_signature import (
    CLOCK_WINDOW_S,
    DIGEST_HEADER,
    INPUT_HEADER,
    SIGNATURE_HEADER,
    SignatureInput,
    content_digest,
    from_text,
    parse_signature,
)
from server.errors import CredentialRefusedError

if TYPE_CHECKING:
    from fastapi import Request


@dataclass(frozen=True, kw_only=True)
class SignedRequest:
    """A signature that has the right form; whether it is right, the device's key says."""

    claimed: SignatureInput
    base: bytes
    signature: bytes

    @classmethod
    def of(cls, request: Request, body: bytes) -> Self | None:
        """What came with a request; None if it is not signed.

        Raises:
            CredentialRefusedError: It is signed in another way than devices do, covers another body, or is not of now.
        """
        header = request.headers.get(INPUT_HEADER)
        if header is None:
            return None
        claimed = SignatureInput.parse(header)
        signature = parse_signature(request.headers.get(SIGNATURE_HEADER, ""))
        # Of two headers, what one program takes for the signature another may not.
        is_single = all(len(request.headers.getlist(name)) == 1 for name in (INPUT_HEADER, SIGNATURE_HEADER))
        if claimed is None or signature is None or not is_single:
            raise CredentialRefusedError(
                "The request is signed in a way that this service does not know. Update the device's agent."
            )
        digest = content_digest(body)
        # A body that the signature does not cover could be anybody's.
        is_covered = claimed.has_body == bool(body)
        if not is_covered or (body and not hmac.compare_digest(digest, request.headers.get(DIGEST_HEADER, ""))):
            raise CredentialRefusedError("The request's signature is for another body; it was changed on the way.")
        _require_now(claimed.created)
        path = request.scope["raw_path"].decode("latin-1")
        query = request.scope["query_string"].decode("latin-1")
        base = claimed.base(request.method, path, query, digest)
        return cls(claimed=claimed, base=base, signature=signature)

    def require_by(self, public_key: str | None) -> None:
        """Let only the device pass that the request says it is of.

        Raises:
            CredentialRefusedError: Another key made the signature, or the device has none.
        """
        if public_key is None or not is_signed(public_key, self.signature, self.base):
            raise CredentialRefusedError(
                "This signature is not of a device that is known here. Enrol the device again."
            )


def is_signed(public_key: str, signature: bytes, message: bytes) -> bool:
    """Whether the key, 32 bytes as text, made a signature."""
    try:
        Ed25519PublicKey.from_public_bytes(from_text(public_key)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _require_now(created: int) -> None:
    now = time.time()
    if abs(now - created) > CLOCK_WINDOW_S:
        raise CredentialRefusedError(
            f"The request was signed at {created}, and here it is {int(now)} (seconds since 1970): more than "
            f"{CLOCK_WINDOW_S} apart. Set the device's clock."
        )
