"""Privacy statements of releases that were never trained: what a fake update service signs and hands out."""

import hashlib
from datetime import UTC, datetime
from typing import Any

from securesystemslib.signer import CryptoSigner, Key
from simulators.update_service import FakeUpdateService

from delta_updates import VersionManifest
from privacy.attestation import (
    Evidence,
    Guarantee,
    PrivacyStatement,
    ReleaseFacts,
    Subject,
    seal,
    statement_path,
)
from privacy.attestation.statement import Predicate


def guarantee(epsilon: float, *, unit: str = "example", delta: float = 1e-5) -> Guarantee:
    return Guarantee.model_validate(
        {"privacy_unit": unit, "epsilon": epsilon, "delta": delta, "holds_against": "everyone"}
    )


def statement_for(manifest: VersionManifest, *guarantees: Guarantee, **facts: Any) -> PrivacyStatement:
    """A statement about a manifest; `facts` replaces some of what it says of the release."""
    release = {
        "model": manifest.model,
        "version": manifest.version,
        "tree_hash": manifest.tree_hash,
        "base_hash": manifest.base_hash,
    }
    return PrivacyStatement(
        subject=(
            Subject.of(
                f"manifests/{manifest.model}/{manifest.version}.json", hashlib.sha256(manifest.to_bytes()).hexdigest()
            ),
        ),
        predicate=Predicate(
            release=ReleaseFacts.model_validate(release | facts),
            verdict="within_budget" if guarantees else "no_events",
            claim="a claim",
            guarantees=guarantees,
            evidence=Evidence(
                ledger_sha256="a" * 64,
                ledger_head="b" * 64,
                events=len(guarantees),
                report_sha256="c" * 64,
                accountant="none",
            ),
            issued_at=datetime(2026, 3, 1, tzinfo=UTC),
        ),
    )


def state(
    service: FakeUpdateService,
    statement: PrivacyStatement,
    *,
    version: int,
    signer: CryptoSigner | None = None,
    named: Key | None = None,
) -> bytes:
    """Sign a statement, with the releases key unless another is given, and hand it out for a version.

    Args:
        service: Whose releases role names the file.
        statement: What it says.
        version: For which version it is handed out.
        signer: Who signs the envelope.
        named: The key that the metadata names; the one of the releases role, unless given.
    """
    own = service.trust.signers["releases"][0]
    key = named or own.public_key
    raw = seal(statement.to_bytes(), [signer or own])
    custom = {"keyid": key.keyid, "public_key": key.keyval["public"]}
    service.add_target(statement_path(service.model, version), raw, custom)
    service.sign()
    return raw
