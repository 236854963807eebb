"""A certificate authority of one's own for a SuperLink, and the key pairs that SuperNodes sign in with."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.errors import ConfigurationError

AUTHORITY_DAYS = 3650
_MAX_COMMON_NAME = 64
# Clocks of small devices run late: a certificate made just now must hold for them as well.
_CLOCK_SKEW = timedelta(hours=1)


@dataclass(frozen=True)
class KeyPair:
    """A private key and what may be known of it: a PEM certificate, or an OpenSSH public key line."""

    private: bytes
    public: bytes


@dataclass(frozen=True)
class Authority:
    """A certificate authority: signs server certificates, and its certificate is what devices trust."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, *, now: datetime | None = None) -> Authority:
        """Make a new authority that may sign servers but no further authorities."""
        key = ec.generate_private_key(ec.SECP384R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Lamella SuperLink authority")])
        builder = _builder(name, name, key.public_key(), days=AUTHORITY_DAYS, now=now or datetime.now(UTC))
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .sign(key, SHA384())
        )
        return cls(key, certificate)

    def pair(self) -> KeyPair:
        """The authority's own key and certificate, PEM."""
        return KeyPair(_pem(self.key), self.certificate.public_bytes(Encoding.PEM))

    def server_pair(self, host: str, *, days: int, now: datetime | None = None) -> KeyPair:
        """A key and a certificate for one server, PEM, valid for `host` and for `localhost`.

        Args:
            host: A DNS name or an IP address, as clients will dial it.
            days: How long it holds.
            now: The clock.

        Raises:
            ConfigurationError: `host` is neither.
        """
        names = [_general_name(host), x509.DNSName("localhost"), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:_MAX_COMMON_NAME])])
        key = ec.generate_private_key(ec.SECP384R1())
        issuer, issuer_key = self.certificate.subject, self.key.public_key()
        builder = _builder(subject, issuer, key.public_key(), days=days, now=now or datetime.now(UTC))
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(list(dict.fromkeys(names))), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
            .sign(self.key, SHA384())
        )
        return KeyPair(_pem(key), certificate.public_bytes(Encoding.PEM))


def node_pair(comment: str) -> KeyPair:
    """A SuperNode's key pair as Flower 1.41 reads it: ECDSA on P-384, both halves in OpenSSH's format."""
    key = ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return KeyPair(private, public + b" " + comment.encode("ascii", "replace") + b"\n")


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, days: int, now: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - _CLOCK_SKEW).not_valid_after(now + timedelta(days=days))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.rstrip(".").split(".")
    # Also what makes a safe file name of a host.
    if not host.isascii() or not all(label and label.replace("-", "").isalnum() for label in labels):
        raise ConfigurationError(f"{host!r} is no host name and no IP address; write it as devices dial it, no port.")
    return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
