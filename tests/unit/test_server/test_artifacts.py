"""What every artifact store promises, on a folder and on a real S3 server."""

import hashlib
import os
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.artifacts import ArtifactStore, LocalArtifactStore, is_whole, open_artifacts
from server.config import Settings
from server.errors import ArtifactDamagedError, ArtifactMissingError, ConfigurationError, StorageError

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
MIB = 1024 * 1024


def in_the_future() -> datetime:
    return datetime.now(UTC) + timedelta(hours=1)


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if request.param == "folder":
        return open_artifacts(Settings(home=tmp_path / "home"))
    return open_artifacts(request.getfixturevalue("s3_settings"))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_what_is_put_is_found_under_its_sha256(store: ArtifactStore, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)
    digest = store.put_file(tmp_path / "file")
    assert digest == sha256(content) == store.put_bytes(content)
    assert store.has(digest)
    assert store.read_bytes(digest) == content
    assert store.length(digest) == len(content)
    assert is_whole(store, digest)
    assert [(entry.digest, entry.length) for entry in store.everything()] == [(digest, len(content))]


def test_an_empty_artifact_is_one(store: ArtifactStore) -> None:
    digest = store.put_bytes(b"")
    assert (store.length(digest), store.read_bytes(digest), list(store.chunks(digest))) == (0, b"", [])


def test_what_is_not_there_is_missing(store: ArtifactStore, tmp_path: Path) -> None:
    assert not store.has("0" * 64)
    with pytest.raises(ArtifactMissingError):
        store.length("0" * 64)
    with pytest.raises(ArtifactMissingError):
        store.read_bytes("0" * 64)
    with pytest.raises(ArtifactMissingError):
        store.export("0" * 64, tmp_path / "out", length=1)
    assert not (tmp_path / "out").exists()
    assert list(store.everything()) == []


@pytest.mark.parametrize("name", ["../secret", "a/../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n", ""])
def test_names_that_climb_are_refused(store: ArtifactStore, name: str) -> None:
    for act in (store.has, store.length, store.read_bytes):
        with pytest.raises(ArtifactMissingError, match="not a sha256 digest"):
            act(name)


def test_reading_is_bounded(store: ArtifactStore) -> None:
    digest = store.put_bytes(b"content")
    with pytest.raises(ArtifactDamagedError, match="longer than the 3 bytes"):
        store.read_bytes(digest, max_bytes=3)


def test_a_part_is_read_without_the_rest(store: ArtifactStore) -> None:
    content = os.urandom(9 * MIB)
    digest = store.put_bytes(content)
    for first, length in ((0, 1), (5, 100), (8 * MIB - 1, 2), (9 * MIB - 1, 1), (3, 9 * MIB - 3)):
        assert b"".join(store.chunks(digest, first=first, length=length)) == content[first : first + length]


def test_large_files_stream_both_ways_in_bounded_memory(store: ArtifactStore, tmp_path: Path) -> None:
    whole, piece = hashlib.sha256(), os.urandom(MIB)
    with (tmp_path / "large").open("wb") as file:
        for number in range(96):
            part = number.to_bytes(4, "big") + piece[4:]
            whole.update(part)
            file.write(part)
    tracemalloc.start()
    digest = store.put_file(tmp_path / "large")
    back = hashlib.sha256()
    for chunk in store.chunks(digest):
        back.update(chunk)
    store.export(digest, tmp_path / "out", length=96 * MIB)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert digest == back.hexdigest() == whole.hexdigest()
    assert (tmp_path / "out").stat().st_size == 96 * MIB
    assert peak < 48 * MIB


def test_an_export_is_the_whole_artifact_or_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    digest = store.put_bytes(b"content")
    store.export(digest, tmp_path / "out", length=7)
    assert (tmp_path / "out").read_bytes() == b"content"
    assert (tmp_path / "out").stat().st_mode & 0o222 == 0
    with pytest.raises(ArtifactDamagedError, match="7 bytes instead of 8"):
        store.export(digest, tmp_path / "other", length=8)
    assert not (tmp_path / "other").exists()


def test_what_is_removed_is_gone_unless_it_was_put_again(store: ArtifactStore) -> None:
    digest = store.put_bytes(b"content")
    assert not store.remove(digest, stored_before=LONG_AGO)
    assert store.has(digest)
    assert store.remove(digest, stored_before=in_the_future())
    assert not store.has(digest)
    assert store.remove(digest, stored_before=in_the_future())


def test_a_file_that_is_not_there_is_the_callers_trouble(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        store.put_file(tmp_path / "nowhere")
    assert list(store.everything()) == []


def test_a_store_that_is_there_answers(store: ArtifactStore) -> None:
    store.ping()


@pytest.fixture
def folder(tmp_path: Path) -> LocalArtifactStore:
    return LocalArtifactStore(tmp_path / "store")


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@given(st.text(max_size=80))
def test_nothing_but_a_digest_becomes_a_path(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("store")
    (folder.parent / "secret").write_text("secret")
    store = LocalArtifactStore(folder)
    with pytest.raises(ArtifactMissingError):
        store.path(name)


def test_a_folder_keeps_one_read_only_file(folder: LocalArtifactStore, tmp_path: Path) -> None:
    digest = folder.put_bytes(b"content")
    folder.put_bytes(b"content")
    assert folder.path(digest, length=7).stat().st_mode & 0o777 == 0o444
    assert len(files_in(tmp_path / "store")) == 1
    assert folder.link(digest) is None


def test_another_length_is_damage(folder: LocalArtifactStore) -> None:
    digest = folder.put_bytes(b"content")
    with pytest.raises(ArtifactDamagedError, match="7 bytes instead of 8"):
        folder.path(digest, length=8)


def test_other_bytes_are_damage_and_putting_again_heals_it(folder: LocalArtifactStore) -> None:
    digest = folder.put_bytes(b"content")
    path = folder.path(digest)
    path.chmod(0o644)
    path.write_bytes(b"cOntent")
    assert not is_whole(folder, digest)
    with pytest.raises(ArtifactDamagedError, match="other bytes"):
        folder.read_bytes(digest)
    folder.put_bytes(b"content")
    assert folder.read_bytes(digest) == b"content"


def test_a_put_that_fails_leaves_nothing_behind(folder: LocalArtifactStore, tmp_path: Path) -> None:
    digest = sha256(b"content")
    (tmp_path / "store" / digest[:2]).write_text("a file where a folder must be")
    with pytest.raises(StorageError):
        folder.put_bytes(b"content")
    assert [path.name for path in files_in(tmp_path / "store")] == [digest[:2]]


def test_what_a_cut_off_write_left_is_found_and_removed(folder: LocalArtifactStore, tmp_path: Path) -> None:
    digest = folder.put_bytes(b"content")
    (tmp_path / "store" / ".0123456789abcdef.tmp").write_bytes(b"half")
    assert folder.abandoned(before=LONG_AGO) == ()
    assert folder.abandoned(before=in_the_future()) == (".0123456789abcdef.tmp",)
    folder.remove_abandoned(before=in_the_future())
    assert [path.name for path in files_in(tmp_path / "store")] == [digest]


def test_a_folder_that_is_gone_does_not_answer(folder: LocalArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "store").rmdir()
    with pytest.raises(StorageError, match="disk is there"):
        folder.ping()


@pytest.mark.slow
def test_a_buckets_damage_is_found_before_a_tree_is_built(s3_settings: Settings, tmp_path: Path) -> None:
    store = open_artifacts(s3_settings)
    digest = store.put_bytes(b"content")
    _overwrite(s3_settings, digest, b"cOntent")
    assert not is_whole(store, digest)
    with pytest.raises(ArtifactDamagedError, match="other bytes"):
        store.read_bytes(digest)
    with pytest.raises(ArtifactDamagedError, match="other bytes"):
        store.export(digest, tmp_path / "out", length=7)
    assert not (tmp_path / "out").exists()
    store.put_bytes(b"content")
    store.export(digest, tmp_path / "out", length=7)
    assert store.abandoned(before=in_the_future()) == (digest,)
    store.remove_abandoned(before=in_the_future())
    assert store.abandoned(before=in_the_future()) == ()
    assert (tmp_path / "out").read_bytes() == b"content"


def _overwrite(settings: Settings, digest: str, content: bytes) -> None:
    from obstore import put
    from obstore.store import S3Store

    assert settings.artifacts_url
    bucket = S3Store.from_url(
        settings.artifacts_url, endpoint=settings.artifacts_endpoint, client_options={"allow_http": True}
    )
    put(bucket, f"{digest[:2]}/{digest}", content)


@pytest.mark.slow
def test_a_bucket_that_changes_while_it_is_read_stores_nothing(s3_settings: Settings, tmp_path: Path) -> None:
    from server.artifacts import s3

    store, path = open_artifacts(s3_settings), tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(StorageError, match="changed while it was read"):
        store._put(sha256(b"other"), s3._proven(s3._chunks_of(path), sha256(b"other")))
    assert list(store.everything()) == []


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_told_without_secrets(s3_settings: Settings) -> None:
    gone = s3_settings.model_copy(update={"artifacts_url": "s3://no-such-bucket/x"})
    store = open_artifacts(gone)
    with pytest.raises(StorageError, match="s3://no-such-bucket/x") as told:
        store.put_bytes(b"content")
    assert "test-secret" not in str(told.value)


def test_downloads_are_handed_only_to_what_has_the_files(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with pytest.raises(ConfigurationError, match="needs a bucket"):
        open_artifacts(Settings(home=home, downloads="presigned"))
    with pytest.raises(ConfigurationError, match="choose presigned or stream"):
        open_artifacts(Settings(home=home, downloads="nginx", artifacts_url="s3://bucket/x"))


@pytest.mark.parametrize("url", ["http://bucket", "s3://", "s3://b", "s3://Bucket/x", "s3://bucket/x?y", "bucket"])
def test_what_is_no_bucket_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="artifacts_url"):
        Settings(home=tmp_path, artifacts_url=url)
