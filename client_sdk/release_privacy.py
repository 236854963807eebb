"""Pure decisions about a release's privacy statement: is it about this release, and does it keep to the owner's limit?

Which bytes are the statement, and by which key they are signed, the releases role says in the signed metadata: the same
role that says what the version is. Nothing of this asks the service.
"""

from client_sdk.errors import MetadataError, OfferRefusedError, ReleaseDeclinedError
from client_sdk.trust import SignedFile
from delta_updates import VersionManifest
from privacy import StatementError
from privacy.attestation import PrivacyStatement, ed25519_key, excess_over, unseal


def parse_statement(raw: bytes, signed: SignedFile) -> PrivacyStatement:
    """Check a statement's envelope against the key that the signed metadata names, then parse it.

    Args:
        raw: bytes that match their signed length and hash.
        signed: what the metadata says of them.

    Raises:
        MetadataError: another key signed it, or it is no statement.
    """
    keyid, public_key = signed.custom.get("keyid"), signed.custom.get("public_key")
    if not isinstance(keyid, str) or not isinstance(public_key, str):
        raise MetadataError(f"The metadata does not say which key signed {signed.path!r}. Nothing was installed.")
    try:
        return PrivacyStatement.from_bytes(unseal(raw, [ed25519_key(keyid, public_key)]))
    except StatementError as error:
        raise MetadataError(
            f"{signed.path!r} does not hold: {error}. Nothing was installed; tell the operator."
        ) from error


def require_private(
    manifest: VersionManifest, manifest_sha256: str, statement: PrivacyStatement | None, *, max_epsilon: float | None
) -> None:
    """Hold a release to what its statement says, and the statement to the owner's limit.

    Args:
        manifest: the release's signed manifest.
        manifest_sha256: the signed hash of its bytes.
        statement: the release's statement; None where it has none, as those from before there were any.
        max_epsilon: the most ε per example or per user that this device's owner accepts; None: any.

    Raises:
        ReleaseDeclinedError: there is a limit, and the statement is missing or exceeds it.
        OfferRefusedError: the statement is about another release.
    """
    shown = f"v{manifest.version} of {manifest.model!r}"
    if statement is None:
        if max_epsilon is not None:
            raise ReleaseDeclinedError(
                f"{shown} has no signed privacy statement, and this device takes only releases with ε of at most "
                f"{max_epsilon:g}. Release it anew with a service that writes statements."
            )
        return
    facts = statement.predicate.release
    # A statement of another release must not vouch for this one.
    for what, stated, actual in (
        ("model", facts.model, manifest.model),
        ("version", facts.version, manifest.version),
        ("tree hash", facts.tree_hash, manifest.tree_hash),
        ("base hash", facts.base_hash, manifest.base_hash),
        ("manifest", statement.manifest_sha256, manifest_sha256),
    ):
        if stated != actual:
            raise OfferRefusedError(
                f"The privacy statement of {shown} is about another release: {what} {stated!r}, expected {actual!r}."
            )
    if max_epsilon is not None and (reason := excess_over(max_epsilon, statement)):
        raise ReleaseDeclinedError(
            f"{shown} is not taken: this device accepts ε of at most {max_epsilon:g} per unit, and {reason}. The owner "
            "decides (max_epsilon); the version that is installed serves on."
        )
