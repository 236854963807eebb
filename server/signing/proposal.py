"""New documents that wait for signatures of offline keys, in a folder that is carried from key holder to key holder.

::

    FOLDER/installed/   what devices trust now: root, targets, packages, releases
    FOLDER/             what shall follow, e.g. 2.root.json; each `lamella trust sign` adds signatures to it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tuf.api.metadata import Metadata, Root, Targets

from server.errors import ConfigurationError, SigningError
from server.files import make_folder, write_durably
from server.signing.documents import Chain, is_signed, parse_document, to_bytes
from server.signing.keys import require_distinct, short
from server.signing.roles import DOCUMENT_NAME, bins_of, file_name, key_role, new_targets

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from server.signing.keys import KeyFolder

KINDS: Final = {"root": Root, "targets": Targets, "packages": Targets, "releases": Targets}
_MAX_BYTES: Final = 5_000_000
_INSTALLED: Final = "installed"


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A document that too few keys of a role have signed: ``signatures`` more are needed, by any of ``keyids``."""

    document: str
    signatures: int
    keyids: tuple[str, ...]


@dataclass(frozen=True)
class Proposal:
    """What is installed, and the documents that shall follow; both by name of the document.

    A new root needs the threshold of the old root's keys and of its own. Other documents need that of whoever delegates
    to them afterwards; they are signed by the keys of before as well, where those are at hand, so that a device that
    has not seen the new root yet can verify them too.
    """

    installed: Mapping[str, Metadata[Any]]
    new: Mapping[str, Metadata[Any]]

    @classmethod
    def of(cls, chain: Chain, new: Mapping[str, Metadata[Any]]) -> Proposal:
        """A proposal to follow what a home has."""
        installed: dict[str, Metadata[Any]] = {
            "root": chain.root,
            "targets": chain.targets,
            "packages": chain.packages,
            "releases": chain.releases,
        }
        return cls(installed, new)

    @classmethod
    def read(cls, folder: Path) -> Proposal:
        """Read a proposal, and check that it is one of ours.

        Raises:
            SigningError: A file is damaged or missing, or the proposal would change what no proposal may.
        """
        return cls(_read_all(folder / _INSTALLED), _read_all(folder)).checked()

    def save(self, folder: Path) -> None:
        """Write the proposal into a folder of its own.

        Raises:
            ConfigurationError: The folder holds another one.
            StorageError: The disk refused.
        """
        if folder.exists() and any(folder.iterdir()):
            raise ConfigurationError(
                f"{folder} is not empty. Publish or remove what it holds, or choose another folder."
            )
        make_folder(folder / _INSTALLED)
        for document, metadata in self.installed.items():
            write_durably(folder / _INSTALLED / file_name(document, metadata.signed.version), metadata.to_bytes())
        self.update(folder)

    def update(self, folder: Path) -> None:
        """Write the new documents, with the signatures they have got, over those in the folder."""
        for document, metadata in self.new.items():
            write_durably(folder / file_name(document, metadata.signed.version), to_bytes(document, metadata))

    def merge(self, other: Proposal) -> None:
        """Take over the signatures of another copy of this proposal.

        Raises:
            SigningError: It proposes something else.
        """
        if {name: m.signed_bytes for name, m in self.new.items()} != {n: m.signed_bytes for n, m in other.new.items()}:
            raise SigningError("The folders hold different proposals. Give copies of one, each with other signatures.")
        for document, metadata in self.new.items():
            metadata.signatures.update(other.new[document].signatures)

    def sign(self, keys: KeyFolder) -> list[tuple[str, str]]:
        """Sign with every key of the folder that counts for a document; returns (document, key id) for each.

        Raises:
            ConfigurationError: A key cannot be opened.
        """
        done = []
        for document, metadata in self.new.items():
            wanted = {keyid for old_or_new in self._delegators(document) for keyid in _keyids(old_or_new, document)}
            for signer in keys.signers(wanted):
                metadata.sign(signer, append=True)
                done.append((document, signer.public_key.keyid))
        return done

    def missing(self) -> list[Missing]:
        """What still has to be signed before this can be published."""
        found = []
        for document, metadata in self.new.items():
            before, after = self._delegators(document)
            for delegator in (before, after) if document == "root" else (after,):
                result = delegator.get_verification_result(document, metadata.signed_bytes, metadata.signatures)
                if not result:
                    more = result.threshold - len(result.signed)
                    found.append(Missing(document=document, signatures=more, keyids=tuple(result.unsigned)))
        return found

    def keyids(self, role: str, *, installed: bool = False) -> tuple[str, ...]:
        """The key ids of a role in the proposal, or in what is installed."""
        documents = self.installed if installed else {**self.installed, **self.new}
        if role == "deltas":
            return tuple(bins_of(documents["packages"].signed).keyids)
        delegator = documents["targets" if role == "releases" else "root"].signed
        return tuple(delegator.get_delegated_role(role).keyids)

    def checked(self) -> Proposal:
        """The same proposal, after checks that hold for each.

        Raises:
            SigningError: It would change what no proposal may; never sign such a thing.
        """
        if self.installed.keys() != KINDS.keys() or not self.new:
            raise SigningError("This is not a whole proposal. Copy its folder again, with all that is in it.")
        for document, metadata in self.new.items():
            if metadata.signed.version != self.installed[document].signed.version + 1:
                raise SigningError(f"The proposed {document} does not follow the installed one. Make a new proposal.")
        root, targets, packages = (
            ({**self.installed, **self.new})[name].signed for name in ("root", "targets", "packages")
        )
        self._check_keys(root, targets)
        # Files in `targets`, or other paths of its roles, would be a way around the releases key.
        if targets.targets or _scopes(targets) != _scopes(new_targets((), ())):
            raise SigningError("The proposed targets metadata holds files or other paths than ours. Do not sign it.")
        if bins_of(packages).bit_length != bins_of(self.installed["packages"].signed).bit_length:
            raise SigningError("The proposed metadata has another number of bins, which is fixed. Do not sign it.")
        return self

    def _check_keys(self, root: Root, targets: Targets) -> None:
        for delegator, roles in (
            (root, ("root", "targets", "snapshot", "timestamp")),
            (targets, ("releases", "packages")),
        ):
            for name in roles:
                role = delegator.get_delegated_role(name)
                require_distinct([delegator.get_key(keyid) for keyid in role.keyids], role=name)
                if len(role.keyids) < role.threshold:
                    raise SigningError(
                        f"{name} would have {len(role.keyids)} keys, of which {role.threshold} must sign."
                    )

    def require_whole(self) -> None:
        """Check that every document will be one that devices accept.

        Raises:
            SigningError: Signatures are missing.
        """
        if missing := self.missing():
            raise SigningError(f"Signatures are missing: {'; '.join(told(entry) for entry in missing)}.")
        for document in ("targets", "packages", "releases"):
            metadata = self.new.get(document, self.installed[document])
            if not is_signed(metadata, document, self._delegators(document)[1]):
                raise SigningError(
                    f"The keys of {key_role(document)} change, but {document} is not signed anew. Make a new proposal."
                )

    def changes(self) -> list[str]:
        """What this would change, in words for a key holder to read before signing."""
        lines = []
        for document, metadata in self.new.items():
            before = self.installed[document].signed
            lines.append(f"{document} v{metadata.signed.version}, until {metadata.signed.expires:%Y-%m-%d}")
            lines += [f"  {line}" for line in _file_changes(before, metadata.signed)]
        for role in ("root", "targets", "releases", "deltas", "snapshot", "timestamp"):
            before_ids, after_ids = set(self.keyids(role, installed=True)), set(self.keyids(role))
            if before_ids != after_ids:
                gone, come = before_ids - after_ids, after_ids - before_ids
                lines.append(f"keys of {role}: without {_shown(gone)}; with {_shown(come)}")
        root = self.new.get("root", self.installed["root"]).signed.roles["root"].threshold
        if root != (was := self.installed["root"].signed.roles["root"].threshold):
            lines.append(f"root needs {root} signatures instead of {was}")
        return lines

    def _delegators(self, document: str) -> tuple[Root | Targets, Root | Targets]:
        """Who delegates to a document before, and after."""
        name = "root" if document in {"root", "targets"} else "targets"
        before: Root | Targets = self.installed[name].signed
        after: Root | Targets = self.new.get(name, self.installed[name]).signed
        return before, after


def told(missing: Missing) -> str:
    """A missing signature in words."""
    names = ", ".join(short(keyid) for keyid in missing.keyids)
    return f"{missing.document} needs {missing.signatures} more, by {key_role(missing.document)} keys out of {names}"


def _keyids(delegator: Root | Targets, document: str) -> list[str]:
    return delegator.get_delegated_role(document).keyids


def _scopes(targets: Targets) -> dict[str, tuple[object, ...]]:
    """What each role that `targets` delegates to may sign."""
    roles = targets.delegations.roles if targets.delegations else None
    return {name: (role.paths, role.terminating, role.path_hash_prefixes) for name, role in (roles or {}).items()}


def _file_changes(before: object, after: object) -> list[str]:
    """Files that a list of targets gains, loses or changes: a renewal does none of it."""
    if not isinstance(before, Targets) or not isinstance(after, Targets):
        return []
    old, new = before.targets, after.targets
    return [
        *(f"NEW FILE {path}" for path in sorted(new.keys() - old.keys())),
        *(f"without {path}" for path in sorted(old.keys() - new.keys())),
        *(f"OTHER CONTENTS of {path}" for path in sorted(new.keys() & old.keys()) if new[path] != old[path]),
    ]


def _shown(keyids: set[str]) -> str:
    return ", ".join(sorted(map(short, keyids))) or "none"


def _read_all(folder: Path) -> dict[str, Metadata[Any]]:
    found: dict[str, Metadata[Any]] = {}
    for path in sorted(folder.glob("*.json")):
        document = path.name.partition(".")[2].removesuffix(".json")
        if not DOCUMENT_NAME.fullmatch(path.name) or document not in KINDS or document in found:
            raise SigningError(f"{path} has no place in a proposal. Copy the folder again.")
        with path.open("rb") as file:
            metadata: Metadata[Any] = parse_document(file.read(_MAX_BYTES + 1), KINDS[document], where=str(path))
        found[document] = metadata
    return {document: found[document] for document in KINDS if document in found}
