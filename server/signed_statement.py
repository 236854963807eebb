"""The signed privacy statement of a version, read as a device reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from privacy import PrivacyError
from privacy.attestation import PrivacyStatement, unseal
from server.errors import StorageError

if TYPE_CHECKING:
    from server.artifacts import ArtifactStore
    from server.registry import Registry, StatementRecord
    from server.signing import SignedMetadata


@dataclass(frozen=True, kw_only=True)
class SignedStatement:
    """What was signed, or why it must not be believed.

    Attributes:
        record: Where it is, and who signed.
        statement: What it says; None where it does not verify.
        problem: Why it does not; empty where it does.
    """

    record: StatementRecord
    statement: PrivacyStatement | None
    problem: str


def signed_statement(
    registry: Registry, artifacts: ArtifactStore, metadata: SignedMetadata, model: str, version: int
) -> SignedStatement | None:
    """A version's statement with its signature checked; None: it was released before there were any, or is not yet."""
    record = registry.statement(model, version)
    if record is None:
        return None
    try:
        payload = unseal(artifacts.read_bytes(record.sha256), metadata.releases_keys())
        return SignedStatement(record=record, statement=PrivacyStatement.from_bytes(payload), problem="")
    except PrivacyError as error:
        return SignedStatement(record=record, statement=None, problem=f"It does not verify: {error}.")
    except StorageError:
        # Where it should lie on the server's machine concerns the doctor, not who reads this.
        return SignedStatement(
            record=record, statement=None, problem="It cannot be read. At the server's terminal: lamella doctor"
        )
