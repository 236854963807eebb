"""`lamella trust` as an operator and key holders type it."""

import json
import shutil
from pathlib import Path

import pytest
from simulators.server_home import PASSPHRASE
from typer.testing import CliRunner

from server.cli.main import app
from server.errors import ConfigurationError, SigningError

BINS = ("--bins", "2")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for a home, offline keys and a file with their passphrase."""
    passphrase = tmp_path / "passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_bytes(PASSPHRASE + b"\n")
    monkeypatch.setenv("LAMELLA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LAMELLA_OFFLINE_KEYS", str(tmp_path / "offline"))
    monkeypatch.setenv("LAMELLA_PASSPHRASE_FILE", str(passphrase))
    return tmp_path


def run(*arguments: object, typed: str | None = None) -> str:
    """What a command prints, in one line; what it raises is raised here."""
    result = CliRunner().invoke(app, ["trust", *map(str, arguments)], input=typed)
    if result.exception is not None:
        raise result.exception
    return " ".join(result.output.split())


def shown() -> dict:
    return json.loads(CliRunner().invoke(app, ["trust", "show", "--json"]).stdout)


def keys_of(role: str) -> list[str]:
    return list(next(entry for entry in shown()["roles"] if entry["role"] == role)["keys"])


def test_init_makes_encrypted_keys_and_says_what_to_do_with_them(place: Path) -> None:
    told = run("init", *BINS)
    assert "3 root keys (2 must sign)" in told
    assert "its own holder" in told
    assert {path.read_bytes().split(b"\n")[0] for path in (place / "offline").glob("*.pem")} == {
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
    }
    with pytest.raises(ConfigurationError, match="never overwritten"):
        run("init", *BINS)


def test_keys_without_a_passphrase_are_a_loud_choice(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_PASSPHRASE_FILE", "")
    # A test has no terminal to be asked at.
    with pytest.raises(ConfigurationError, match="LAMELLA_PASSPHRASE_FILE"):
        run("init", *BINS)
    assert not list((place / "offline").glob("*.pem"))
    assert "NOT encrypted" in run("init", *BINS, "--unencrypted")
    assert b"ENCRYPTED" not in next((place / "offline").glob("*.pem")).read_bytes()


def test_the_passphrase_is_asked_for_at_a_terminal(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMELLA_PASSPHRASE_FILE", "")
    asked = []

    def prompt(text: str, *, hide_input: bool, confirmation_prompt: bool) -> str:
        asked.append((text, hide_input, confirmation_prompt))
        return PASSPHRASE.decode()

    monkeypatch.setattr("server.cli.console.typer.prompt", prompt)
    monkeypatch.setattr("server.cli.console.is_at_terminal", lambda: True)
    run("init", *BINS)
    run("rotate", "timestamp")
    # A new one twice, a known one once, and each of them one time a command.
    assert asked == [("Passphrase of the offline keys", True, True), ("Passphrase of the offline keys", True, False)]


def test_a_passphrase_that_others_can_read_is_refused(place: Path) -> None:
    (place / "passphrase").chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        run("init", *BINS)


def test_show_says_roles_keys_expiry_and_what_to_do(place: Path) -> None:
    with pytest.raises(ConfigurationError, match="lamella trust init"):
        run("show")
    run("init", *BINS)
    told = run("show")
    for words in ("root", "2 of 3", "timestamp", "(online)", "here", "2 bins", "What to do next", "its own holder"):
        assert words in told
    assert [entry["role"] for entry in shown()["roles"]] == [
        *("root", "targets", "releases"),
        *("deltas", "snapshot", "timestamp"),
    ]


def test_keys_at_hand_rotate_and_renew_in_one_command(place: Path) -> None:
    run("init", *BINS)
    before = keys_of("deltas")
    told = run("rotate", "deltas", "snapshot", "timestamp")
    assert "Published: root v2, packages v2" in told
    assert keys_of("deltas") != before
    assert "Nothing has used up" in run("renew")
    assert "Published: targets v2" in run("renew", "targets")
    with pytest.raises(ConfigurationError, match="no 'timestamp' to renew"):
        run("renew", "timestamp")


def test_three_holders_replace_one_of_them_from_their_own_machines(place: Path) -> None:
    run("init", *BINS)
    holders = []
    for number, pem in enumerate(sorted((place / "offline").glob("root-*.pem"))):
        folder = place / f"holder-{number}"
        folder.mkdir(mode=0o700)
        for path in (pem, pem.with_suffix(".pub")):
            path.rename(folder / path.name)
        holders.append(folder)
    gone = next(holders[0].glob("*.pub")).stem.removeprefix("root-")
    told = run("key", "root", "--keys", place / "holder-new")
    new = next((place / "holder-new").glob("*.pub"))
    assert str(new) in told.replace(" ", "")
    told = run("rotate", "root", "--without", gone, "--with", new)
    proposal = place / "home" / "proposal"
    assert f"keys of root: without {gone}; with {new.stem.removeprefix('root-')}" in told
    assert "Missing: root needs 2 more" in told
    with pytest.raises(SigningError, match="no key that counts"):
        run("sign", proposal)
    copies = []
    for number in (1, 2):
        copies.append(place / f"copy-{number}")
        shutil.copytree(proposal, copies[-1])
        assert "Signed root" in run("sign", copies[-1], "--keys", holders[number])
    with pytest.raises(SigningError, match="Signatures are missing"):
        run("publish", copies[0])
    assert "Published: root v2" in run("publish", *copies)
    assert "published already" in run("publish", *copies)
    assert gone not in {keyid[:8] for keyid in keys_of("root")}


def test_a_proposal_can_be_written_out_unsigned(place: Path) -> None:
    run("init", *BINS)
    run("renew", "root", "--out", place / "proposal")
    assert json.loads((place / "proposal" / "2.root.json").read_text())["signatures"] == []
    assert sorted(path.name for path in (place / "proposal" / "installed").iterdir()) == [
        "1.packages.json",
        "1.releases.json",
        "1.root.json",
        "1.targets.json",
    ]
    assert (place / "home" / "metadata" / "2.root.json").exists() is False


def test_a_key_is_made_for_an_offline_role_only(place: Path) -> None:
    with pytest.raises(ConfigurationError, match="root, targets, releases"):
        run("key", "timestamp")
    assert not (place / "offline").exists()


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n"])
def test_a_file_that_is_no_public_key_is_refused(place: Path, content: bytes) -> None:
    run("init", *BINS)
    (place / "evil.pub").write_bytes(content)
    with pytest.raises(ConfigurationError, match="not a readable ed25519 public key"):
        run("rotate", "root", "--with", place / "evil.pub")
