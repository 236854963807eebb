import shutil
from pathlib import Path

import pytest
from simulators.server_home import MODEL, Home, write_adapter, write_base

from delta_updates import scan_tree, tree_hash
from server.errors import (
    ArtifactDamagedError,
    ArtifactMissingError,
    NotFoundError,
    PublishingError,
    RegistryError,
    StorageError,
)
from server.publishing import create_candidate, import_base, materialise


def test_a_base_is_imported_and_rebuilt(home: Home, tmp_path: Path) -> None:
    version = home.base()
    assert (version.number, version.state, version.manifest.kind) == (1, "candidate", "base")
    assert version.manifest.facts == {"source": "made up"}
    materialise(home.registry, home.artifacts, model=MODEL, version=1, folder=tmp_path / "again")
    assert scan_tree(tmp_path / "again") == version.manifest.files
    assert tree_hash(scan_tree(tmp_path / "base-0")) == version.manifest.tree_hash


def test_the_same_base_is_the_same_version(home: Home) -> None:
    first = home.base()
    again = import_base(home.registry, home.artifacts, model=MODEL, tree=home.folder / "base-0")
    assert again == first
    assert home.base(seed=1).number == 2


def test_an_adapter_shares_its_parents_base(home: Home, tmp_path: Path) -> None:
    base, version = home.base(), home.candidate(1, parent=1)
    assert version.manifest.base_hash == base.manifest.base_hash == base.manifest.tree_hash
    assert version.manifest.parent == 1
    assert {file.path for file in version.manifest.files} - {file.path for file in base.manifest.files} == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }
    materialise(home.registry, home.artifacts, model=MODEL, version=2, folder=tmp_path / "v2")
    weights = tmp_path / "v2" / "base" / "model.safetensors"
    assert weights.stat().st_nlink >= 2  # linked, not copied
    assert not weights.stat().st_mode & 0o222


def test_files_are_copied_where_the_disk_has_no_links(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    version = home.base()
    monkeypatch.setattr("server.artifacts.local.os.link", refuse)
    materialise(home.registry, home.artifacts, model=MODEL, version=1, folder=tmp_path / "copy")
    assert scan_tree(tmp_path / "copy") == version.manifest.files
    assert (tmp_path / "copy" / "base" / "config.json").stat().st_nlink == 1


def test_a_folder_that_is_there_already_must_be_the_version(home: Home, tmp_path: Path) -> None:
    home.base()
    folder = tmp_path / "tree"
    materialise(home.registry, home.artifacts, model=MODEL, version=1, folder=folder)
    materialise(home.registry, home.artifacts, model=MODEL, version=1, folder=folder)
    (folder / "extra").write_text("?")
    with pytest.raises(ArtifactDamagedError, match="extra"):
        materialise(home.registry, home.artifacts, model=MODEL, version=1, folder=folder)


def test_a_tree_with_a_lost_file_is_not_there_at_all(home: Home, tmp_path: Path) -> None:
    version = home.base()
    home.artifacts.path(version.manifest.files[-1].sha256).unlink()
    with pytest.raises(ArtifactMissingError, match="backup"):
        materialise(home.registry, home.artifacts, model=MODEL, version=1, folder=tmp_path / "tree")
    assert not [path for path in tmp_path.iterdir() if "tree" in path.name]


def test_a_folder_that_is_no_base_is_refused(home: Home, tmp_path: Path) -> None:
    write_base(tmp_path / "tree", seed=0)
    (tmp_path / "tree" / "base" / "tokenizer.json").unlink()
    with pytest.raises(PublishingError, match=r"lacks base/tokenizer\.json"):
        import_base(home.registry, home.artifacts, model=MODEL, tree=tmp_path / "tree")
    (tmp_path / "tree" / "base" / "tokenizer.json").write_text("{}")
    (tmp_path / "tree" / "notes.txt").write_text("mine")
    with pytest.raises(PublishingError, match=r"notes\.txt"):
        import_base(home.registry, home.artifacts, model=MODEL, tree=tmp_path / "tree")
    with pytest.raises(PublishingError, match="cannot be used"):
        import_base(home.registry, home.artifacts, model=MODEL, tree=tmp_path / "nowhere")
    (tmp_path / "tree" / "notes.txt").unlink()
    (tmp_path / "tree" / "base" / "link").symlink_to("/etc/passwd")
    with pytest.raises(PublishingError, match="link"):
        import_base(home.registry, home.artifacts, model=MODEL, tree=tmp_path / "tree")
    assert home.registry.versions(MODEL) == ()


def test_a_model_name_that_could_be_a_path_is_refused(home: Home, tmp_path: Path) -> None:
    write_base(tmp_path / "tree", seed=0)
    with pytest.raises(RegistryError, match="model"):
        import_base(home.registry, home.artifacts, model="../escape", tree=tmp_path / "tree")


def test_a_master_that_the_disk_refuses_leaves_no_candidate(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.base()
    write_adapter(home.folder / "adapter", seed=1)

    def refuse(content: bytes) -> str:
        raise StorageError(f"Could not store {len(content)} bytes: No space left on device.")

    where = {"model": MODEL, "adapter": home.folder / "adapter", "parent": 1, "master": b"master"}
    with monkeypatch.context() as patch:
        patch.setattr(home.artifacts, "put_bytes", refuse)
        with pytest.raises(StorageError, match="No space"):
            create_candidate(home.registry, home.artifacts, **where)
    assert [version.number for version in home.registry.versions(MODEL)] == [1]
    record = create_candidate(home.registry, home.artifacts, **where)
    assert record.number == 2
    assert record.master_sha256 is not None
    assert home.artifacts.read_bytes(record.master_sha256) == b"master"


def test_a_folder_that_is_no_adapter_is_refused(home: Home, tmp_path: Path) -> None:
    home.base()
    write_adapter(tmp_path / "adapter", seed=1)
    with pytest.raises(NotFoundError):
        create_candidate(home.registry, home.artifacts, model=MODEL, adapter=tmp_path / "adapter", parent=9)
    shutil.rmtree(tmp_path / "adapter")
    with pytest.raises(PublishingError):
        create_candidate(home.registry, home.artifacts, model=MODEL, adapter=tmp_path / "adapter", parent=1)
