"""Versions of a model as trees of files, and small packages that turn one version into the next.

Everything here works on bytes and NumPy arrays: no torch, no network, no database.
"""

from delta_updates.apply import ApplyProgress, ApplyResult, apply_package
from delta_updates.build import BuildResult, build_package
from delta_updates.disk import Disk, LocalDisk, WritableFile
from delta_updates.errors import (
    DeltaError,
    IntegrityError,
    PackageFormatError,
    PackageLimitError,
    SourceMismatchError,
    StorageError,
    TensorFileError,
)
from delta_updates.in_place import InPlaceResult, apply_in_place, changing_folder
from delta_updates.known_hashes import KnownHashes
from delta_updates.manifest import FileEntry, VersionManifest, base_hash, scan_tree, sha256_of, tree_hash, verify_tree
from delta_updates.offer import (
    PROTOCOL,
    PROTOCOL_HEADER,
    REDIRECT_HEADER,
    ROOM_HEADER,
    ChainStep,
    EnrolmentFile,
    EnrolReply,
    EnrolRequest,
    KeyRequest,
    Offer,
    Outcome,
    OutcomeReport,
    PackageRef,
    Quality,
    UpdateQuery,
    protocol_of,
)
from delta_updates.unfinished import drop_unfinished, work_folder

__all__ = [
    "PROTOCOL",
    "PROTOCOL_HEADER",
    "REDIRECT_HEADER",
    "ROOM_HEADER",
    "ApplyProgress",
    "ApplyResult",
    "BuildResult",
    "ChainStep",
    "DeltaError",
    "Disk",
    "EnrolReply",
    "EnrolRequest",
    "EnrolmentFile",
    "FileEntry",
    "InPlaceResult",
    "IntegrityError",
    "KeyRequest",
    "KnownHashes",
    "LocalDisk",
    "Offer",
    "Outcome",
    "OutcomeReport",
    "PackageFormatError",
    "PackageLimitError",
    "PackageRef",
    "Quality",
    "SourceMismatchError",
    "StorageError",
    "TensorFileError",
    "UpdateQuery",
    "VersionManifest",
    "WritableFile",
    "apply_in_place",
    "apply_package",
    "base_hash",
    "build_package",
    "changing_folder",
    "drop_unfinished",
    "protocol_of",
    "scan_tree",
    "sha256_of",
    "tree_hash",
    "verify_tree",
    "work_folder",
]
