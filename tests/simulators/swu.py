"""SWUpdate images as a reader takes them apart, and a certificate to check them by."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


def members(archive: bytes) -> dict[str, bytes]:
    """The files of a cpio archive with sums, in order; fails where a header or a sum is wrong."""
    found, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070702"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        length, name_length, total = fields[6], fields[11], fields[12]
        name = archive[at + 110 : at + 110 + name_length - 1].decode()
        start = _aligned(at + 110 + name_length)
        if name == "TRAILER!!!":
            return found
        found[name] = archive[start : start + length]
        assert len(found[name]) == length
        assert sum(found[name]) % 2**32 == total
        at = _aligned(start + length)


def _aligned(position: int) -> int:
    return (position + 3) // 4 * 4


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate that signs itself, as SWUpdate wants it for CMS."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "images")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )
    key_file, certificate_file = folder / "swu.key.pem", folder / "swu.cert.pem"
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    certificate_file.write_bytes(certificate.public_bytes(Encoding.PEM))
    return key_file, certificate_file
