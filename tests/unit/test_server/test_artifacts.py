import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.artifacts import LocalArtifactStore
from server.errors import ArtifactDamagedError, ArtifactMissingError, StorageError


@pytest.fixture
def store(tmp_path: Path) -> LocalArtifactStore:
    return LocalArtifactStore(tmp_path / "store")


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_is_put_is_found_under_its_sha256(store: LocalArtifactStore, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)
    digest = store.put_file(tmp_path / "file")
    assert digest == hashlib.sha256(content).hexdigest() == store.put_bytes(content)
    assert store.read_bytes(digest) == content
    assert store.path(digest, length=len(content)).stat().st_mode & 0o777 == 0o444
    assert len(files_in(tmp_path / "store")) == 1


def test_what_is_not_there_is_missing(store: LocalArtifactStore) -> None:
    assert not store.has("0" * 64)
    with pytest.raises(ArtifactMissingError):
        store.path("0" * 64)


@given(st.text(max_size=80))
def test_nothing_but_a_digest_becomes_a_path(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("store")
    (folder.parent / "secret").write_text("secret")
    store = LocalArtifactStore(folder)
    with pytest.raises(ArtifactMissingError):
        store.path(name)


@pytest.mark.parametrize("name", ["../secret", "a/../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n", ""])
def test_names_that_climb_are_refused(store: LocalArtifactStore, name: str) -> None:
    with pytest.raises(ArtifactMissingError, match="not a sha256 digest"):
        store.has(name)


def test_another_length_is_damage(store: LocalArtifactStore) -> None:
    digest = store.put_bytes(b"content")
    with pytest.raises(ArtifactDamagedError, match="7 bytes instead of 8"):
        store.path(digest, length=8)


def test_other_bytes_are_damage_and_putting_again_heals_it(store: LocalArtifactStore) -> None:
    digest = store.put_bytes(b"content")
    path = store.path(digest)
    path.chmod(0o644)
    path.write_bytes(b"cOntent")
    with pytest.raises(ArtifactDamagedError, match="other bytes"):
        store.read_bytes(digest)
    store.put_bytes(b"content")
    assert store.read_bytes(digest) == b"content"


def test_reading_is_bounded(store: LocalArtifactStore) -> None:
    digest = store.put_bytes(b"content")
    with pytest.raises(ArtifactDamagedError, match="longer than the 3 bytes"):
        store.read_bytes(digest, max_bytes=3)


def test_a_put_that_fails_leaves_nothing_behind(store: LocalArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        store.put_file(tmp_path / "nowhere")
    digest = hashlib.sha256(b"content").hexdigest()
    (tmp_path / "store" / digest[:2]).write_text("a file where a folder must be")
    with pytest.raises(StorageError):
        store.put_bytes(b"content")
    assert [path.name for path in files_in(tmp_path / "store")] == [digest[:2]]
