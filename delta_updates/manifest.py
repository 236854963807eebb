"""Versions: which files a tree holds, their hashes, and the signed statement about one version."""

import hashlib
import json
import re
import stat
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from delta_updates.errors import IntegrityError, PackageFormatError, StorageError

MAX_MANIFEST_BYTES = 1 << 20
MAX_PATH_CHARACTERS = 255
# Names in a path. A version holds a handful of files in a handful of folders.
MAX_PATH_DEPTH = 16
MAX_FILES = 10_000
MAX_FILE_BYTES = 1 << 46

_BASE_PREFIX = "base/"
_DRIVE = re.compile(r"^[A-Za-z]:")


def check_path(path: str) -> str:
    """Return `path` when it is a safe place inside a tree.

    Raises:
        ValueError: It is absolute, climbs, names a drive, or holds characters that could hide where it leads.
    """
    parts = path.split("/")
    if not 0 < len(path) <= MAX_PATH_CHARACTERS:
        raise ValueError(f"path of {len(path)} characters; 1 to {MAX_PATH_CHARACTERS} are allowed")
    # A backslash separates folders on Windows; what does not print can make two paths look the same to a person.
    if not path.isprintable() or "\\" in path or _DRIVE.match(path):
        raise ValueError(f"path {path!r} holds a backslash, a drive or a character that does not print")
    if any(part in {"", ".", ".."} for part in parts):
        raise ValueError(f"path {path!r} is absolute, climbs with '..' or is not in its shortest form")
    if len(parts) > MAX_PATH_DEPTH:
        raise ValueError(f"path {path[:40]!r}... lies {len(parts)} names deep; {MAX_PATH_DEPTH} are allowed")
    if any(len(part.encode()) > MAX_PATH_CHARACTERS for part in parts):
        raise ValueError(f"path {path!r} has a name of more than {MAX_PATH_CHARACTERS} bytes")
    return path


def _check_time(text: str) -> str:
    moment = datetime.fromisoformat(text)
    if moment.utcoffset() != timedelta(0):
        raise ValueError(f"created_at {text!r} must be ISO 8601 in UTC")
    return text


SafePath = Annotated[str, AfterValidator(check_path)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
VersionNumber = Annotated[int, Field(ge=1, le=2**31, strict=True)]
FileLength = Annotated[int, Field(ge=0, le=MAX_FILE_BYTES, strict=True)]
UtcTime = Annotated[str, Field(max_length=40), AfterValidator(_check_time)]


class FileEntry(BaseModel):
    """One file of a tree: where it lies, its length in bytes and its content's SHA-256 (hex)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: SafePath
    length: FileLength
    sha256: Sha256


class VersionManifest(BaseModel):
    """All that a device must know about one version before it trusts a tree; this is what gets signed.

    `facts` holds what people want to see beside it (run, rounds, epsilon, held-out loss). Numbers must be finite:
    JSON has no infinity, so an unbounded epsilon is written as the string "inf".
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[1] = 1
    model: ModelName
    version: VersionNumber
    kind: Literal["base", "adapter"]
    parent: VersionNumber | None = None
    base_hash: Sha256
    tree_hash: Sha256
    files: Annotated[tuple[FileEntry, ...], Field(max_length=MAX_FILES)]
    created_at: UtcTime
    facts: Annotated[dict[str, str | int | float | bool | None], Field(max_length=1_000)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        check_distinct(entry.path for entry in self.files)
        # A manifest whose hashes do not follow from its own files could be read as either of two versions.
        if self.tree_hash != tree_hash(self.files) or self.base_hash != base_hash(self.files):
            raise ValueError(f"tree_hash {self.tree_hash} or base_hash {self.base_hash} do not follow from `files`")
        if self.parent is not None and self.parent >= self.version:
            raise ValueError(f"parent {self.parent} must be lower than version {self.version}")
        return self

    def to_bytes(self) -> bytes:
        """Return canonical JSON: sorted keys, no spaces, UTF-8."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, raw: bytes, *, max_bytes: int = MAX_MANIFEST_BYTES) -> Self:
        """Parse what `to_bytes` wrote.

        Raises:
            PackageFormatError: It is too long or not a valid manifest.
        """
        if len(raw) > max_bytes:
            raise PackageFormatError(f"manifest of {len(raw)} bytes; at most {max_bytes} are read")
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            raise PackageFormatError(f"not a version manifest: {summary_of(error)}") from error


def canonical_json(value: object) -> bytes:
    """Return `value` as the one JSON text that everyone hashes: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def summary_of(error: ValidationError) -> str:
    """Return the first problem of `error` and how many there are, without echoing the input."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "document"
    return f"{place}: {first['msg']} ({error.error_count()} problem(s))"[:500]


def check_distinct(paths: Iterable[str]) -> None:
    """Raise ValueError when two paths collide, also on a disk that ignores case, or one is a folder of another."""
    seen: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        folded = path.casefold()
        if folded in seen:
            raise ValueError(f"path {path!r} is listed twice")
        seen.add(folded)
        folders.update(str(parent) for parent in PurePosixPath(folded).parents)
    if clash := seen & folders:
        raise ValueError(f"path {min(clash)!r} is both a file and a folder")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content in hex, read in constant memory."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_regular(path: Path, mode: int) -> bool:
    """Return whether `path` is a file (True) or a folder (False); anything else is refused."""
    if stat.S_ISLNK(mode) or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        # A link could lead a reader, and later a writer, outside of the tree.
        raise IntegrityError(f"{path} is a link or a special file; a version holds only files and folders")
    return stat.S_ISREG(mode)


def _files_under(folder: Path) -> list[Path]:
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise IntegrityError(f"{folder} is not a folder")
    found: list[Path] = []
    waiting = [folder]
    while waiting:
        for path in waiting.pop().iterdir():
            (found if _check_regular(path, path.lstat().st_mode) else waiting).append(path)
        if len(found) > MAX_FILES:
            raise IntegrityError(f"{folder} holds more than {MAX_FILES} files; a version holds a handful")
    return found


def scan_tree(folder: Path) -> tuple[FileEntry, ...]:
    """Return the files of a tree, sorted by path, each with its length and hash.

    Raises:
        IntegrityError: It holds a link, a special file, or a name that a version must not hold.
        StorageError: It cannot be read.
    """
    try:
        paths = {path.relative_to(folder).as_posix(): path for path in _files_under(folder)}
        check_distinct(sorted(paths))
        return tuple(
            FileEntry(path=name, length=path.stat().st_size, sha256=sha256_of(path))
            for name, path in sorted(paths.items())
        )
    except OSError as error:
        raise StorageError(f"cannot read the version in {folder}: {error}") from error
    except ValidationError as error:
        raise IntegrityError(f"{folder} is not a version: {summary_of(error)}") from error
    except ValueError as error:
        raise IntegrityError(f"{folder} is not a version: {error}") from error


def tree_hash(files: Iterable[FileEntry]) -> str:
    """Return the one hash that names a tree: SHA-256 over `path NUL length NUL sha256 LF` of each file, by path."""
    digest = hashlib.sha256()
    for entry in sorted(files, key=lambda entry: entry.path):
        digest.update(f"{entry.path}\0{entry.length}\0{entry.sha256}\n".encode())
    return digest.hexdigest()


def base_hash(files: Iterable[FileEntry]) -> str:
    """Return `tree_hash` of the files under `base/`: equal for all adapters that fit one base."""
    return tree_hash(entry for entry in files if entry.path.startswith(_BASE_PREFIX))


def verify_tree(folder: Path, files: Sequence[FileEntry]) -> None:
    """Check that `folder` holds exactly `files`.

    Raises:
        IntegrityError: A file is missing, extra or different.
        StorageError: It cannot be read.
    """
    expected = {entry.path: entry for entry in files}
    found = {entry.path: entry for entry in scan_tree(folder)}
    wrong = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
    if wrong:
        raise IntegrityError(f"{folder}: {len(wrong)} file(s) missing, extra or different, first {wrong[0]!r}")
