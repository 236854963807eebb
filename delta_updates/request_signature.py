"""What a device signs of a request, in the words of HTTP message signatures; both sides make the same bytes of it.

One fixed profile, so that there is nothing to choose and little to parse: method, path and query are always covered,
the body by its digest whenever there is one, and the moment of signing and the device's id by the parameters. Host and
scheme are not: proxies change them, and a key is known to one service only. Who signs and who verifies brings the
cryptography (Ed25519) along; here are only bytes.

Sources: RFC 9421, "HTTP Message Signatures", sections 2.2 to 2.5; RFC 9530, "Digest Fields".
"""

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import Self

INPUT_HEADER = "Signature-Input"
SIGNATURE_HEADER = "Signature"
DIGEST_HEADER = "Content-Digest"
CLOCK_WINDOW_S = 300
"""By how much the two clocks may differ; for so long a recorded request can be sent once more."""

_LABEL = "lamella"
_COVERED = ("@method", "@path", "@query")
_INPUT = re.compile(
    _LABEL + r'=\("@method" "@path" "@query"(?P<digest> "content-digest")?\)'
    r';created=(?P<created>[0-9]{1,12});keyid="(?P<key_id>[0-9a-f]{32})";alg="ed25519"'
)
_SIGNATURE = re.compile(_LABEL + r"=:(?P<signature>[A-Za-z0-9+/]{86}==):")


@dataclass(frozen=True, slots=True)
class SignatureInput:
    """Who signed a request, and when.

    Attributes:
        key_id: the device's id.
        created: seconds since 1970, by the device's clock.
        has_body: whether the digest of a body is covered.
    """

    key_id: str
    created: int
    has_body: bool

    @classmethod
    def parse(cls, header: str) -> Self | None:
        """The value of `Signature-Input`; None if it is not of this profile."""
        found = _INPUT.fullmatch(header)
        if found is None:
            return None
        return cls(found["key_id"], int(found["created"]), has_body=found["digest"] is not None)

    def header(self) -> str:
        """The value of `Signature-Input`."""
        return f"{_LABEL}={self._parameters()}"

    def base(self, method: str, path: str, query: str, digest: str = "") -> bytes:
        """The bytes that are signed.

        Args:
            method: GET, POST or PUT.
            path: as it is sent, percent-encoded.
            query: without the question mark; empty if there is none.
            digest: the value of `Content-Digest`, if there is a body.
        """
        lines = [f'"@method": {method}', f'"@path": {path}', f'"@query": ?{query}']
        if self.has_body:
            lines.append(f'"content-digest": {digest}')
        return "\n".join([*lines, f'"@signature-params": {self._parameters()}']).encode()

    def _parameters(self) -> str:
        names = (*_COVERED, "content-digest") if self.has_body else _COVERED
        covered = " ".join(f'"{name}"' for name in names)
        return f'({covered});created={self.created};keyid="{self.key_id}";alg="ed25519"'


def content_digest(body: bytes) -> str:
    """The value of `Content-Digest`."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def signature_header(signature: bytes) -> str:
    """The value of `Signature`, given the 64 bytes."""
    return f"{_LABEL}=:{base64.b64encode(signature).decode()}:"


def parse_signature(header: str) -> bytes | None:
    """The 64 bytes in a value of `Signature`; None if it is not of this profile."""
    found = _SIGNATURE.fullmatch(header)
    return base64.b64decode(found["signature"]) if found else None


def key_proof(device_id: str, public_key: str) -> bytes:
    """What a device signs with a new key, to show that it has it, when it makes that key known (`KeyRequest`)."""
    return f"lamella device key\n{device_id}\n{public_key}".encode()


def to_text(raw: bytes) -> str:
    """A key or signature as text that fits into JSON and addresses."""
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def from_text(text: str) -> bytes:
    """Undo `to_text`, for what has its form already."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
