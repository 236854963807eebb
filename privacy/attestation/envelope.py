"""The envelope around a statement: DSSE, one ed25519 signature or more, checked before the payload is parsed.

Source: https://github.com/secure-systems-lab/dsse, protocol v1.0. securesystemslib does the cryptography, as for TUF.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error as SecureSystemsError
from securesystemslib.signer import SSlibKey

from privacy.errors import StatementError, UnreadableKeyError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from securesystemslib.signer import Key, Signer

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
MAX_ENVELOPE_BYTES: Final = 64 * 1024
_MAX_KEY_BYTES: Final = 4096


def seal(payload: bytes, signers: Sequence[Signer]) -> bytes:
    """Sign a payload with every signer; returns the envelope as JSON.

    Raises:
        StatementError: There is no signer, or the envelope is larger than what devices read.
    """
    if not signers:
        raise StatementError("a statement needs at least one key that signs it")
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    for signer in signers:
        envelope.sign(signer)
    raw = json.dumps(envelope.to_dict(), separators=(",", ":"), sort_keys=True).encode()
    if len(raw) > MAX_ENVELOPE_BYTES:
        raise StatementError(f"the statement has {len(raw)} bytes; devices read at most {MAX_ENVELOPE_BYTES}")
    return raw


def unseal(raw: bytes, keys: Sequence[Key]) -> bytes:
    """The payload of an envelope that at least one of `keys` has signed.

    Raises:
        StatementError: It is too long, no envelope, of another type, or signed by none of the keys.
    """
    if len(raw) > MAX_ENVELOPE_BYTES:
        raise StatementError(f"the statement has {len(raw)} bytes; at most {MAX_ENVELOPE_BYTES} are read")
    try:
        envelope = Envelope.from_dict(json.loads(raw))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SecureSystemsError) as error:
        raise StatementError("the statement is not a DSSE envelope: it is damaged, or another kind of file") from error
    if envelope.payload_type != PAYLOAD_TYPE:
        raise StatementError(f"the statement is of type {envelope.payload_type!r}, expected {PAYLOAD_TYPE!r}")
    try:
        envelope.verify(list(keys), 1)
    except (ValueError, SecureSystemsError) as error:
        signed_by = ", ".join(sorted(keyid[:8] for keyid in envelope.signatures)) or "nobody"
        wanted = ", ".join(sorted(key.keyid[:8] for key in keys)) or "no key"
        raise StatementError(
            f"the statement's signature does not hold: it says it is signed by {signed_by}, checked with {wanted}"
        ) from error
    return envelope.payload


def ed25519_key(keyid: str, public: str) -> Key:
    """A public key from its id and its 32 bytes in hex, as signed metadata names it."""
    return SSlibKey(keyid, "ed25519", "ed25519", {"public": public})


def read_key(path: Path) -> Key:
    """A public key from a PEM file, such as `releases-ID.pub` beside the offline keys.

    Raises:
        UnreadableKeyError: It cannot be read, or is no ed25519 public key.
    """
    try:
        with path.open("rb") as file:
            key = load_pem_public_key(file.read(_MAX_KEY_BYTES))
    except (OSError, ValueError) as error:
        raise UnreadableKeyError(f"{path} is not a readable public key in PEM: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise UnreadableKeyError(f"{path} is not an ed25519 public key; statements are signed with the releases key")
    return SSlibKey.from_crypto(key)
