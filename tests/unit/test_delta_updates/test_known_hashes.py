"""A file is read once while it stays as it is, and again as soon as it does not."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from delta_updates import KnownHashes, SourceMismatchError, apply_package, build_package, scan_tree, tree_hash
from delta_updates.reading import RandomReader


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose pieces were read, one entry for each piece."""
    found: list[Path] = []
    read_at = RandomReader.read_at

    def counted(self: RandomReader, offset: int, length: int) -> bytes:
        found.append(self.path)
        return read_at(self, offset, length)

    monkeypatch.setattr(RandomReader, "read_at", counted)
    return found


def hash_of(hashes: KnownHashes, path: Path) -> str:
    with RandomReader(path) as reader:
        return hashes.of(reader)


def test_what_was_hashed_is_not_read_again_under_any_name(tmp_path: Path, reads: list[Path]) -> None:
    (tmp_path / "one").write_bytes(b"weights")
    hashes = KnownHashes()
    with hashes.hashing([tmp_path / "one"]):
        pass
    assert reads == [tmp_path / "one"]
    os.link(tmp_path / "one", tmp_path / "two")
    assert hash_of(hashes, tmp_path / "two") == hashlib.sha256(b"weights").hexdigest()
    assert reads == [tmp_path / "one"]


@pytest.mark.parametrize("new", [b"WEIGHTS", b"weights and more"])
def test_what_was_written_since_is_read_again(tmp_path: Path, new: bytes) -> None:
    path, hashes = tmp_path / "one", KnownHashes()
    path.write_bytes(b"weights")
    os.utime(path, ns=(0, time.time_ns() - 10**9))
    with hashes.hashing([path]):
        pass
    path.write_bytes(new)
    assert hash_of(hashes, path) == hashlib.sha256(new).hexdigest()


def test_a_file_that_cannot_be_read_is_left_to_whoever_needs_it(tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(b"weights")
    (tmp_path / "link").symlink_to(tmp_path / "here")
    hashes = KnownHashes()
    with hashes.hashing([tmp_path / "missing", tmp_path / "link", tmp_path, tmp_path / "here"]):
        pass
    assert hash_of(hashes, tmp_path / "here") == hashlib.sha256(b"weights").hexdigest()
    with pytest.raises(FileNotFoundError):
        hash_of(hashes, tmp_path / "missing")


def test_who_leaves_with_an_error_does_not_wait_for_the_rest(tmp_path: Path, reads: list[Path]) -> None:
    with (tmp_path / "long").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(ConnectionError), KnownHashes().hashing([tmp_path / "long"]):
        raise ConnectionError
    assert len(reads) < 1 << 20


def test_a_source_that_is_damaged_after_it_was_hashed_is_not_applied_to(tmp_path: Path) -> None:
    for name in ("v1", "v2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(bytes(100_000))
    (tmp_path / "v2" / "note").write_text("new")
    build_package(tmp_path / "v1", tmp_path / "v2", tmp_path / "package")
    os.utime(tmp_path / "v1" / "weights", ns=(0, 0))
    hashes = KnownHashes()
    with hashes.hashing([tmp_path / "v1" / "weights"]):
        pass
    (tmp_path / "v1" / "weights").write_bytes(bytes(99_999) + b"\x01")
    expected = tree_hash(scan_tree(tmp_path / "v2"))
    with pytest.raises(SourceMismatchError):
        apply_package(
            tmp_path / "v1", tmp_path / "package", tmp_path / "out", expected_target_hash=expected, hashes=hashes
        )
    assert not (tmp_path / "out").exists()
