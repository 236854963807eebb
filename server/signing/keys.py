"""Private keys in a folder: one ed25519 key a file, found by its key id, encrypted where they are kept offline.

A key is a pair of files, ``ROLE-ID.pem`` (PKCS #8, mode 0600) and ``ROLE-ID.pub`` (its public half). What is in a
folder can be told without a passphrase.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from server.errors import ConfigurationError, StorageError
from server.files import SECRET_MODE, make_folder, read_secret, write_durably

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from tuf.api.metadata import Key

    Passphrase = Callable[[], bytes]

MIN_PASSPHRASE_BYTES: Final = 12
_MAX_PUBLIC_BYTES: Final = 4096
_SHOWN: Final = 8


def short(keyid: str) -> str:
    """A key id as people read it, and as files are named after it."""
    return keyid[:_SHOWN]


@dataclass(frozen=True)
class KeyFolder:
    """The keys in one folder.

    Attributes:
        folder: Where they are.
        passphrase: Asked when a key turns out to be encrypted, or is to be; None for a folder of unencrypted keys.
    """

    folder: Path
    passphrase: Passphrase | None = None

    def make(self, role: str) -> SSlibKey:
        """Make a key for a role; returns its public half.

        Raises:
            ConfigurationError: The passphrase is too short.
            StorageError: The disk refused.
        """
        private = Ed25519PrivateKey.generate()
        public = SSlibKey.from_crypto(private.public_key())
        encryption = BestAvailableEncryption(self._checked_passphrase()) if self.passphrase else NoEncryption()
        make_folder(self.folder, mode=0o700)
        path = self.folder / f"{role}-{short(public.keyid)}.pem"
        write_durably(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption), mode=SECRET_MODE)
        # Last: a pair counts once its public half is there.
        write_durably(path.with_suffix(".pub"), _public_pem(private.public_key()))
        return public

    def find(self, keyids: Collection[str]) -> dict[str, Path]:
        """The files of those keys that are here, by key id.

        Raises:
            ConfigurationError: A public half in the folder is damaged.
        """
        found = {}
        for path in sorted(self.folder.glob("*.pub")):
            keyid = read_public_key(path).keyid
            if keyid in keyids and path.with_suffix(".pem").exists():
                found[keyid] = path.with_suffix(".pem")
        return found

    def signers(self, keyids: Collection[str]) -> list[CryptoSigner]:
        """Signers for those keys that are here.

        Raises:
            ConfigurationError: A key is readable by others, damaged, or does not open with the passphrase.
            StorageError: The disk refused.
        """
        return [self._open(path, keyid) for keyid, path in self.find(keyids).items()]

    def remove_others(self, role: str, *, keep: Collection[str]) -> None:
        """Remove the keys of a role that are no longer trusted.

        Raises:
            StorageError: The disk refused.
        """
        for path in self.folder.glob(f"{role}-*.pub"):
            if read_public_key(path).keyid not in keep:
                try:
                    path.with_suffix(".pem").unlink(missing_ok=True)
                    path.unlink()
                except OSError as error:
                    raise StorageError(f"Could not remove {path}: {error.strerror or error}.") from error

    def _open(self, path: Path, keyid: str) -> CryptoSigner:
        pem = read_secret(path)
        is_encrypted = b"ENCRYPTED" in pem
        if is_encrypted and self.passphrase is None:
            raise ConfigurationError(f"{path} is encrypted, but a key that is used unattended cannot be.")
        try:
            key = load_pem_private_key(pem, password=self.passphrase() if is_encrypted and self.passphrase else None)
        except ValueError:
            raise ConfigurationError(
                f"{path} does not open: the passphrase is wrong, or the file is damaged. Try again, or restore it."
            ) from None
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigurationError(f"{path} is not an ed25519 key. Restore it from a backup.")
        signer = CryptoSigner(key)
        if signer.public_key.keyid != keyid:
            raise ConfigurationError(f"{path} and {path.stem}.pub are not halves of one key. Restore both.")
        return signer

    def _checked_passphrase(self) -> bytes:
        passphrase = self.passphrase() if self.passphrase else b""
        if len(passphrase) < MIN_PASSPHRASE_BYTES:
            raise ConfigurationError(
                f"The passphrase has {len(passphrase)} bytes; it needs at least {MIN_PASSPHRASE_BYTES}. Who guesses it "
                "and has the files can ship a model to every device."
            )
        return passphrase


def read_public_key(path: Path) -> SSlibKey:
    """The public half of a key, from a PEM file.

    Raises:
        ConfigurationError: It is no ed25519 public key, or cannot be read.
    """
    key: object = None
    with contextlib.suppress(ValueError, OSError), path.open("rb") as file:
        key = load_pem_public_key(file.read(_MAX_PUBLIC_BYTES))
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigurationError(
            f"{path} is not a readable ed25519 public key in PEM. Make one with: lamella trust key"
        )
    return SSlibKey.from_crypto(key)


def require_distinct(keys: Sequence[Key], *, role: str) -> None:
    """Refuse one key under two ids: it would count twice against the threshold.

    Raises:
        ConfigurationError: Two of the keys are the same.
    """
    if len({str(key.keyval) for key in keys}) < len(keys):
        raise ConfigurationError(
            f"Two keys of {role} are the same key, so its threshold would mean less. Use distinct keys."
        )


def _public_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
