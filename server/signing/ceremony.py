"""Changing who is trusted: replace keys, renew what expires, and install what enough key holders have signed."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tuf.api.metadata import Metadata, Root, Targets

from server.errors import ConfigurationError, SigningError
from server.files import locked, write_durably
from server.signing.documents import Chain, Documents
from server.signing.keys import KeyFolder, short
from server.signing.proposal import KINDS, Proposal
from server.signing.repository import require_initialised
from server.signing.roles import OFFLINE, ONLINE, bins_of
from server.signing.sealing import Sealer, commit

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from tuf.api.metadata import Key

    from server.signing.roles import Lifetimes

# Whose documents have to be signed anew when a role's keys change.
_SIGNED_BY = {"root": ("root",), "targets": ("targets", "packages"), "releases": ("releases",)}
# Where a role's keys are written down.
_NAMED_IN = {
    "root": "root",
    "targets": "root",
    "snapshot": "root",
    "timestamp": "root",
    "releases": "targets",
    "deltas": "packages",
}


class Ceremonies:
    """Makes and installs proposals for one server's home."""

    def __init__(
        self,
        home: Path,
        *,
        lifetimes: Lifetimes,
        now: Callable[[], datetime] | None = None,
        write: Callable[[Path, bytes], None] = write_durably,
    ) -> None:
        require_initialised(home)
        self._home = home
        self._documents = Documents(home / "metadata", write)
        self._keys = KeyFolder(home / "keys")
        self._now = now or (lambda: datetime.now(UTC))
        self._sealer = Sealer(self._keys, lifetimes, self._now)

    def rotate(
        self,
        roles: Sequence[str],
        *,
        offline: KeyFolder,
        given: Sequence[Key] = (),
        without: Collection[str] = (),
        threshold: int | None = None,
    ) -> Proposal:
        """Propose other keys for some roles.

        Keys of online roles are made in the server's home; keys of offline roles in ``offline``, unless they are given.

        Args:
            roles: Whose keys change.
            offline: The folder for new offline keys.
            given: Public keys, made elsewhere, for the one role named.
            without: Key ids (or the beginnings of them) to replace; empty: all of the roles'.
            threshold: How many root keys must sign from now on; None: as many as before.

        Raises:
            ConfigurationError: A role or key id does not exist, or what is asked for contradicts itself.
            SigningError, StorageError: The metadata is damaged; the disk refused.
        """
        if unknown := set(roles) - {*OFFLINE, *ONLINE}:
            raise ConfigurationError(f"There is no role {min(unknown)!r}. Roles: {', '.join((*OFFLINE, *ONLINE))}.")
        if given and len(roles) != 1:
            raise ConfigurationError("Keys that were made elsewhere are for one role: name one.")
        if given and roles[0] in ONLINE:
            raise ConfigurationError(
                f"The server makes the keys of {roles[0]} itself, as it must hold their private half."
            )
        if threshold is not None and "root" not in roles:
            raise ConfigurationError("A threshold is for root: name the role root.")
        chain = Chain(self._documents)
        present = Proposal.of(chain, {})
        new = _Drafts(chain)
        touched = {document for role in roles for document in (_NAMED_IN[role], *_SIGNED_BY.get(role, ()))}
        for document in KINDS:
            if document in touched:
                new.draft(document)
        _require_known(without, [keyid for role in roles for keyid in present.keyids(role, installed=True)])
        for role in roles:
            old = [keyid for keyid in present.keyids(role, installed=True) if _is_named(keyid, without)]
            folder = self._keys if role in ONLINE else offline
            _replace(new, role, old, list(given) or [folder.make(role) for _ in old])
        if threshold is not None:
            new.root.roles["root"].threshold = threshold
        return self._dated(Proposal.of(chain, new.documents))

    def renew(self, documents: Collection[str] = ()) -> Proposal | None:
        """Propose the same again with a later expiry; None when nothing is due.

        Args:
            documents: Among root, targets, packages and releases; empty: what has used up half of its lifetime.

        Raises:
            ConfigurationError: There is no such document.
            SigningError: The metadata is damaged.
        """
        if unknown := set(documents) - KINDS.keys():
            raise ConfigurationError(f"There is no {min(unknown)!r} to renew. There is: {', '.join(KINDS)}.")
        chain = Chain(self._documents)
        present = Proposal.of(chain, {}).installed
        due = [name for name in KINDS if self._sealer.is_due(name, present[name])]
        new = _Drafts(chain)
        for document in documents or due:
            new.draft(document)
        return self._dated(Proposal.of(chain, new.documents)) if new.documents else None

    def publish(self, proposal: Proposal) -> bool:
        """Install a proposal that enough keys have signed; returns False when it is installed already.

        Cut off anywhere, it can be run again.

        Raises:
            SigningError: Signatures are missing, or the metadata has changed since; nothing was changed.
            StorageError: The disk refused.
        """
        proposal.checked().require_whole()
        with locked(self._home / ".signing.lock"):
            root: Metadata[Root] | None = proposal.new.get("root")
            chain = Chain(self._documents, also=root.signed if root else None)
            if _versions(chain, proposal.new) == {name: m.signed.version for name, m in proposal.new.items()}:
                self._require_same(chain, proposal)
                return False
            self._require_follows(chain, proposal)
            changed = {name: metadata for name, metadata in proposal.new.items() if name != "root"}
            if "packages" in changed:
                packages: Targets = changed["packages"].signed
                for name in bins_of(packages).get_roles():
                    if proposal.keyids("deltas", installed=True) != proposal.keyids("deltas"):
                        changed[name] = self._bin_anew(chain, name, packages)
            commit(self._documents, chain, self._sealer, changed=changed, root=root)
            for role in ONLINE:
                self._keys.remove_others(role, keep=proposal.keyids(role))
            return True

    def _bin_anew(self, chain: Chain, name: str, packages: Targets) -> Metadata[Targets]:
        metadata = chain.bin(name)
        metadata.signed.version += 1
        self._sealer.seal(name, metadata, [packages])
        return metadata

    def _require_follows(self, chain: Chain, proposal: Proposal) -> None:
        versions = _versions(chain, proposal.new)
        for document, metadata in proposal.new.items():
            # The second: a publish that was cut off between the timestamp and the new root.
            if versions[document] not in {metadata.signed.version - 1, metadata.signed.version}:
                raise SigningError(f"{document} has changed since this was proposed. Make a new proposal.")
            if versions[document] == metadata.signed.version:
                self._require_same(chain, proposal, only=document)
            if metadata.signed.expires <= self._now():
                raise SigningError(f"The proposed {document} has expired already. Make a new proposal.")

    def _require_same(self, chain: Chain, proposal: Proposal, *, only: str | None = None) -> None:
        now = Proposal.of(chain, {}).installed
        for document, metadata in proposal.new.items():
            if only in {None, document} and now[document].signed_bytes != metadata.signed_bytes:
                raise SigningError(f"{document} has changed since this was proposed. Make a new proposal.")

    def _dated(self, proposal: Proposal) -> Proposal:
        for document, metadata in proposal.new.items():
            metadata.signed.expires = self._sealer.expiry(document)
        return proposal.checked()


class _Drafts:
    """Unsigned successors of the installed documents."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self.documents: dict[str, Metadata[Any]] = {}

    def draft(self, document: str) -> None:
        now = Proposal.of(self._chain, {}).installed[document].signed
        signed = copy.deepcopy(now)
        signed.version += 1
        self.documents[document] = Metadata(signed)

    @property
    def root(self) -> Root:
        root: Root = self.documents["root"].signed
        return root

    def delegators(self, role: str) -> list[tuple[Root | Targets, str]]:
        """Where a role's keys are written down, and under which names."""
        if role == "deltas":
            return [(self.documents["packages"].signed, "deltas-0")]
        if role == "releases":
            return [(self.documents["targets"].signed, "releases")]
        named: list[tuple[Root | Targets, str]] = [(self.root, role)]
        return [*named, (self.documents["targets"].signed, "packages")] if role == "targets" else named


def _replace(new: _Drafts, role: str, old: Sequence[str], keys: Sequence[Key]) -> None:
    if not keys:
        raise ConfigurationError(f"{role} would be left without new keys. Give at least one with --with.")
    for delegator, name in new.delegators(role):
        for key in keys:
            delegator.add_key(key, name)
        for keyid in old:
            delegator.revoke_key(keyid, name)


def _is_named(keyid: str, named: Collection[str]) -> bool:
    return not named or any(keyid.startswith(part) for part in named)


def _require_known(named: Collection[str], keyids: Sequence[str]) -> None:
    for part in named:
        found = [keyid for keyid in keyids if keyid.startswith(part)]
        if len(found) != 1:
            raise ConfigurationError(
                f"{part!r} names {len(found)} of the keys {', '.join(map(short, keyids))}. Give the beginning of one."
            )


def _versions(chain: Chain, documents: Mapping[str, object]) -> dict[str, int]:
    return {name: chain.root.signed.version if name == "root" else chain.version_of(name) for name in documents}
