"""SWUpdate's images: a cpio archive (newc, with sums) of sw-description, its signature when there is a key, one file.

The same input makes the same bytes, but for a signature with an EC key. Source: SWUpdate's documentation of swu images,
and cpio(5) for the header.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.hazmat.primitives.serialization.pkcs7 import PKCS7Options, PKCS7SignatureBuilder

from server.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A header has eight hex digits for a length.
MAX_BYTES: Final = 2**32 - 1
_CHUNK_BYTES: Final = 1024 * 1024
# What cpio itself writes at a time; SWUpdate expects zeros up to there.
_BLOCK_BYTES: Final = 512
_MODE: Final = 0o100644
_DESCRIPTION: Final = "sw-description"
_TRAILER: Final = "TRAILER!!!"


@dataclass(frozen=True)
class Signer:
    """Signs sw-description as CMS."""

    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def load(cls, key: Path, certificate: Path) -> Signer:
        """Read key and certificate from PEM files.

        Raises:
            ConfigurationError: They cannot be read, or do not belong together.
        """
        try:
            loaded = load_pem_private_key(key.read_bytes(), password=None)
            signer = x509.load_pem_x509_certificate(certificate.read_bytes())
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"Cannot read {key} and {certificate}, which sign .swu images: {error}. "
                "Set LAMELLA_DDI_SIGNING_KEY and LAMELLA_DDI_SIGNING_CERTIFICATE to unencrypted PEM files."
            ) from None
        if not isinstance(loaded, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
            raise ConfigurationError(f"{key} is neither an RSA nor an EC key, which signatures of .swu images need.")
        if loaded.public_key() != signer.public_key():
            raise ConfigurationError(f"{certificate} is not the certificate of {key}.")
        return cls(loaded, signer)

    @property
    def name(self) -> str:
        """Another one for another certificate."""
        return self.certificate.fingerprint(SHA256()).hex()

    def sign(self, content: bytes) -> bytes:
        """A detached signature, DER, as ``openssl cms -verify`` reads it."""
        builder = PKCS7SignatureBuilder().set_data(content).add_signer(self.certificate, self.key, SHA256())
        options = [PKCS7Options.DetachedSignature, PKCS7Options.Binary, PKCS7Options.NoCapabilities]
        return builder.sign(Encoding.DER, options)


def description(*, model: str, version: int, filename: str, sha256: str, folder: str) -> bytes:
    """sw-description for one file, which is put into ``folder`` under the model's name, in one step."""
    return f"""\
software =
{{
\tversion = "{version}";
\tdescription = "{model} v{version}";
\thardware-compatibility: [ "#RE:^.*$" ];
\tfiles: (
\t\t{{
\t\t\tfilename = "{filename}";
\t\t\ttype = "rawfile";
\t\t\tpath = "{folder.rstrip("/")}/{model}.lmpkg";
\t\t\tsha256 = "{sha256}";
\t\t\tproperties: {{
\t\t\t\tatomic-install = "true";
\t\t\t\tcreate-destination = "true";
\t\t\t}};
\t\t}}
\t);
}};
""".encode()


def recipe_of(content: bytes, signer: Signer | None) -> str:
    """A hash of all that an image is made from: sw-description names the file by its hash."""
    return hashlib.sha256(content + b"\0" + (signer.name if signer else "").encode()).hexdigest()


def image(content: bytes, *, signer: Signer | None, filename: str, file: Path) -> Iterator[bytes]:
    """The image in pieces; ``file`` is read twice and never held in memory."""
    total = 0
    for piece in _archive(content, signer=signer, filename=filename, file=file):
        total += len(piece)
        yield piece
    yield b"\0" * (-total % _BLOCK_BYTES)


def _archive(content: bytes, *, signer: Signer | None, filename: str, file: Path) -> Iterator[bytes]:
    yield from _member(_DESCRIPTION, content, number=1)
    if signer is not None:
        yield from _member(f"{_DESCRIPTION}.sig", signer.sign(content), number=2)
    length = file.stat().st_size
    yield _header(filename, length=length, total=_sum_of(file), number=3)
    yield from _chunks(file)
    yield _padding(length)
    yield _header(_TRAILER, length=0, total=0, number=0)


def _member(name: str, content: bytes, *, number: int) -> Iterator[bytes]:
    yield _header(name, length=len(content), total=sum(content), number=number)
    yield content + _padding(len(content))


def _header(name: str, *, length: int, total: int, number: int) -> bytes:
    raw = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, length, four numbers of devices, length of the name, sum of the bytes
    values = (number, _MODE if length else 0, 0, 0, 1, 0, length, 0, 0, 0, 0, len(raw), total % 2**32)
    head = b"070702" + b"".join(b"%08X" % value for value in values) + raw
    return head + _padding(len(head))


def _padding(length: int) -> bytes:
    return b"\0" * (-length % 4)


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            yield chunk


def _sum_of(file: Path) -> int:
    return sum(int(np.frombuffer(chunk, np.uint8).sum(dtype=np.uint64)) for chunk in _chunks(file))
