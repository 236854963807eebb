"""What `lamella superlink keys` writes: a chain that verifies, keys that Flower reads, and nothing overwritten."""

import ssl
import stat
import threading
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path
from socket import create_connection, create_server

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.verification import PolicyBuilder, Store
from typer.testing import CliRunner

from server.certificates import Authority
from server.cli.superlink import app
from server.errors import ConfigurationError


def make(out: Path, *arguments: str) -> None:
    result = CliRunner().invoke(app, ["keys", "--out", str(out), *arguments])
    if result.exception:
        raise result.exception
    assert result.exit_code == 0, result.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path / "keys", "--host", "superlink", "--host", "192.0.2.7", "--nodes", "2")
    return tmp_path / "keys"


def test_every_private_half_is_readable_by_its_owner_alone(folder: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}

    assert {name for name, mode in modes.items() if mode == 0o600} == {
        "ca.key",
        "superlink.key",
        "192.0.2.7.key",
        "node-1",
        "node-2",
    }
    assert {name for name, mode in modes.items() if mode == 0o644} == {
        "ca.crt",
        "superlink.crt",
        "192.0.2.7.crt",
        "node-1.pub",
        "node-2.pub",
        "README.md",
    }
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("certificate", "subject"),
    [
        ("superlink.crt", x509.DNSName("superlink")),
        ("superlink.crt", x509.DNSName("localhost")),
        ("192.0.2.7.crt", x509.IPAddress(IPv4Address("192.0.2.7"))),
    ],
)
def test_a_server_certificate_verifies_for_its_host_and_for_localhost(
    folder: Path, certificate: str, subject: x509.DNSName | x509.IPAddress
) -> None:
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    leaf = x509.load_pem_x509_certificate((folder / certificate).read_bytes())

    PolicyBuilder().store(Store([authority])).build_server_verifier(subject).verify(leaf, [])


def test_a_server_certificate_does_not_verify_for_another_host(folder: Path) -> None:
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    leaf = x509.load_pem_x509_certificate((folder / "superlink.crt").read_bytes())
    verifier = PolicyBuilder().store(Store([authority])).build_server_verifier(x509.DNSName("gateway"))

    with pytest.raises(x509.verification.VerificationError):
        verifier.verify(leaf, [])


def test_a_tls_connection_holds_with_the_strictest_checks(folder: Path) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "superlink.crt", folder / "superlink.key")
    client = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    # The default from Python 3.13 on.
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    with create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with server.wrap_socket(connection, server_side=True) as wrapped:
                wrapped.sendall(b"hello")

        thread = threading.Thread(target=serve)
        thread.start()
        with (
            create_connection(listener.getsockname(), timeout=10) as plain,
            client.wrap_socket(plain, server_hostname="superlink") as wrapped,
        ):
            assert wrapped.recv(5) == b"hello"
        thread.join(timeout=10)


def test_flower_reads_the_node_keys_and_they_belong_together(folder: Path) -> None:
    from flwr.cli.supernode.register import try_load_public_key

    private = load_ssh_private_key((folder / "node-1").read_bytes(), password=None)
    public = load_ssh_public_key((folder / "node-1.pub").read_bytes())

    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    assert private.public_key() == public
    assert try_load_public_key(folder / "node-1.pub") != try_load_public_key(folder / "node-2.pub")


def test_keys_in_use_are_never_overwritten(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    with pytest.raises(ConfigurationError, match="never overwritten"):
        make(folder, "--host", "elsewhere", "--nodes", "3")

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_one_more_node_key_is_added_beside_the_others(folder: Path) -> None:
    result = CliRunner().invoke(app, ["node-key", str(folder / "node-3")])

    assert result.exit_code == 0, result.output
    assert stat.S_IMODE((folder / "node-3").stat().st_mode) == 0o600
    assert (folder / "node-3.pub").read_bytes().startswith(b"ecdsa-sha2-nistp384 ")
    assert isinstance(CliRunner().invoke(app, ["node-key", str(folder / "node-3")]).exception, ConfigurationError)


@pytest.mark.parametrize("host", ["", "a b", "superlink:9100", "../up", "a/b", "-", "naïve", "a..b"])
def test_what_is_no_host_is_refused_and_nothing_is_written(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigurationError, match="no host name"):
        make(tmp_path / "keys", "--host", host)

    assert not (tmp_path / "keys").exists()


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)

    with pytest.raises(ConfigurationError, match="chmod go-w"):
        make(tmp_path, "--host", "superlink")

    assert not list(tmp_path.iterdir())


def test_lifetimes_start_before_now_and_end_as_asked() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    authority = Authority.make(now=now)
    leaf = x509.load_pem_x509_certificate(authority.server_pair("superlink", days=10, now=now).public)

    assert leaf.not_valid_before_utc < now
    assert (leaf.not_valid_after_utc - now).days == 10
    assert (authority.certificate.not_valid_after_utc - now).days == 3650


def test_the_readme_says_what_goes_where_and_names_the_hosts(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")

    assert "superlink, 192.0.2.7" in text
    assert "--ssl-ca-certfile" in text
