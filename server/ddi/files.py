"""The files of a version as hawkBit's clients load them: the package, and a SWUpdate image around it."""

from __future__ import annotations

import hashlib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from server.ddi.swu import MAX_BYTES, Signer, description, image, recipe_of
from server.errors import ConfigurationError, NotFoundError, StorageError
from server.files import locked, make_folder
from server.registry import FileDigests

if TYPE_CHECKING:
    from server.artifacts import ArtifactStore
    from server.config import Settings
    from server.registry import PackageRecord, Registry

_CHUNK_BYTES: Final = 1024 * 1024
_KINDS: Final = {"package": "lmpkg", "swu": "swu"}
_NAME: Final = re.compile(r"(?:full|from-(?P<source>[1-9][0-9]{0,8}))\.(?P<kind>lmpkg|swu)")
# What an archive's headers, sw-description and a signature take, and more.
_OVERHEAD_BYTES: Final = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class OfferedFile:
    """A file under the name that a client sees."""

    name: str
    digests: FileDigests


def load_signer(settings: Settings) -> Signer | None:
    """Who signs images, by the settings; None when nobody does.

    Raises:
        ConfigurationError: Key and certificate cannot be read, do not belong together, or one of them is not set.
    """
    key, certificate = settings.ddi_signing_key, settings.ddi_signing_certificate
    if key is None and certificate is None:
        return None
    if key is None or certificate is None:
        raise ConfigurationError(
            "Signing .swu images takes both LAMELLA_DDI_SIGNING_KEY and LAMELLA_DDI_SIGNING_CERTIFICATE; set the other."
        )
    return Signer.load(key, certificate)


def offered_files(
    settings: Settings, registry: Registry, artifacts: ArtifactStore, package: PackageRecord
) -> tuple[OfferedFile, ...]:
    """The files of a package that the settings offer; an image that does not exist yet is made, which takes seconds.

    Raises:
        StorageError: The disk refused.
        ConfigurationError: The key that signs images cannot be used.
    """
    kinds = ("lmpkg", "swu") if settings.ddi_files == "both" else (_KINDS[settings.ddi_files],)
    # cpio holds no more; such a package is offered as it is.
    if package.length + _OVERHEAD_BYTES > MAX_BYTES:
        kinds = ("lmpkg",)
    return tuple(_file(settings, registry, artifacts, package, kind) for kind in kinds)


def find_file(
    settings: Settings, registry: Registry, artifacts: ArtifactStore, *, model: str, version: int, name: str
) -> OfferedFile:
    """The file of a released version under a name that `offered_files` gave out.

    Raises:
        NotFoundError: There is none, or the version is not released any more.
    """
    missing = NotFoundError(f"There is no released file {name!r} of v{version}. Poll again.")
    match = _NAME.fullmatch(name.removeprefix(f"{model}-{version}-"))
    if match is None or not name.startswith(f"{model}-{version}-"):
        raise missing
    source = int(match["source"]) if match["source"] else None
    packages = [one for one in registry.packages(model, version) if one.source_version == source]
    if not packages or registry.target(packages[0].path) is None:
        raise missing
    return _file(settings, registry, artifacts, packages[0], match["kind"])


def _file(
    settings: Settings, registry: Registry, artifacts: ArtifactStore, package: PackageRecord, kind: str
) -> OfferedFile:
    source = "full" if package.source_version is None else f"from-{package.source_version}"
    stem = f"{package.model}-{package.version}-{source}"
    sha256 = package.sha256
    if kind == "swu":
        sha256 = _image(settings, registry, artifacts, package, filename=f"{stem}.lmpkg")
    return OfferedFile(name=f"{stem}.{kind}", digests=_digests(registry, artifacts, sha256))


def _image(
    settings: Settings, registry: Registry, artifacts: ArtifactStore, package: PackageRecord, *, filename: str
) -> str:
    """The digest of the image around a package, made when there is none."""
    signer = load_signer(settings)
    content = description(
        model=package.model,
        version=package.version,
        filename=filename,
        sha256=package.sha256,
        folder=settings.ddi_install_folder,
    )
    recipe = recipe_of(content, signer)
    known = registry.image(recipe)
    if known is not None and artifacts.has(known):
        return known
    make_folder(settings.work_dir)
    # One process makes it, the others wait for that: many devices ask for a new version at once.
    with locked(settings.home / ".ddi.lock"):
        known = registry.image(recipe)
        if known is not None and artifacts.has(known):
            return known
        made = _write(settings, artifacts, package, content=content, signer=signer, filename=filename)
        registry.add_image(recipe, made)
        return made


def _write(
    settings: Settings,
    artifacts: ArtifactStore,
    package: PackageRecord,
    *,
    content: bytes,
    signer: Signer | None,
    filename: str,
) -> str:
    try:
        with tempfile.TemporaryDirectory(dir=settings.work_dir, prefix="swu-") as folder:
            source, path = Path(folder) / "package", Path(folder) / "image.swu"
            artifacts.export(package.sha256, source, length=package.length)
            with path.open("wb") as file:
                file.writelines(image(content, signer=signer, filename=filename, file=source))
            return artifacts.put_file(path)
    except OSError as error:
        raise StorageError(f"Could not make an image of {package.path}: {error.strerror or error}.") from error


def _digests(registry: Registry, artifacts: ArtifactStore, sha256: str) -> FileDigests:
    """What clients want to know about a stored file, read through once."""
    known = registry.digests(sha256)
    if known is not None:
        return known
    # Weak hashes for clients that compare nothing better; the strong one stands beside them.
    sha1, md5 = hashlib.sha1(usedforsecurity=False), hashlib.md5(usedforsecurity=False)
    length = 0
    for chunk in artifacts.chunks(sha256):
        sha1.update(chunk)
        md5.update(chunk)
        length += len(chunk)
    made = FileDigests(sha256=sha256, length=length, sha1=sha1.hexdigest(), md5=md5.hexdigest())
    registry.add_digests(made)
    return made
