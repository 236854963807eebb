"""A release's privacy in one signed statement: what is promised, for what bytes, and from which ledger it follows.

An in-toto Statement v1 in a DSSE envelope, as software supply chains use them. Light: devices read it before they
switch. Whether a statement follows from its ledger is in `privacy.attestation.evidence`, which needs the accountant.
"""

from privacy.attestation.envelope import MAX_ENVELOPE_BYTES, ed25519_key, read_key, seal, unseal
from privacy.attestation.limits import excess_over, overspent_on_base
from privacy.attestation.statement import (
    MAX_DELTA,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    BaseBill,
    Evidence,
    Guarantee,
    PrivacyStatement,
    ReleaseFacts,
    Subject,
    statement_path,
)

__all__ = [
    "MAX_DELTA",
    "MAX_ENVELOPE_BYTES",
    "PREDICATE_TYPE",
    "STATEMENT_TYPE",
    "BaseBill",
    "Evidence",
    "Guarantee",
    "PrivacyStatement",
    "ReleaseFacts",
    "Subject",
    "ed25519_key",
    "excess_over",
    "overspent_on_base",
    "read_key",
    "seal",
    "statement_path",
    "unseal",
]
