"""What a release promises, as an in-toto Statement v1 with a predicate of our own.

Source: https://github.com/in-toto/attestation, specification v1.0. As that asks for, unknown fields are passed over,
so that an older device can read a newer statement: a later field may add to a promise, never take from it.
"""

from __future__ import annotations

import math
from typing import Annotated, Final, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator

from privacy.errors import StatementError
from privacy.utility import MAX_GROUPS, GroupChange, Loss

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "urn:lamella:privacy-statement:1"
# A larger one says nothing: below it, publishing one in a thousand people whole would be allowed.
MAX_DELTA: Final = 1e-3

_SUFFIX: Final = ".privacy.json"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Words = Annotated[str, Field(max_length=1_000)]
# JSON has no infinity: it is written as a word, and described so.
_EPSILON_SCHEMA: Final = {"anyOf": [{"type": "number", "minimum": 0}, {"const": "Infinity"}]}
Epsilon = Annotated[float, Field(ge=0, allow_inf_nan=True), WithJsonSchema(_EPSILON_SCHEMA)]


def statement_path(model: str, version: int) -> str:
    """The signed path of a version's statement: beside its manifest, where the same role signs."""
    return f"manifests/{model}/{version}{_SUFFIX}"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, ser_json_inf_nan="strings")


class Guarantee(_Part):
    """What holds for one privacy unit. ε is infinite where nothing is promised.

    Attributes:
        privacy_unit: one example of a device, or all that one user (a device) contributes.
        epsilon, delta: of the costliest device or user, over all runs of the model so far.
        holds_against: from whom it protects, in words.
        budget_epsilon: what may be spent in all, where a budget was set.
    """

    privacy_unit: Literal["example", "user"]
    epsilon: Epsilon
    delta: Annotated[float, Field(gt=0, lt=1)]
    holds_against: Words
    budget_epsilon: Epsilon | None = None

    @model_validator(mode="after")
    def _is_number(self) -> Self:
        if math.isnan(self.epsilon):  # it would pass every comparison with a limit
            raise ValueError("epsilon is not a number")
        return self


class ReleaseFacts(_Part):
    """Which release: its tree's hash is what devices compare with what they install."""

    model: Annotated[str, Field(max_length=64)]
    version: Annotated[int, Field(ge=1, le=2**31)]
    tree_hash: Sha256
    base_hash: Sha256
    run_id: Annotated[str, Field(max_length=128)] | None = None


class Evidence(_Part):
    """What the promise follows from: the ledger up to a head, and the report that explains it (SHA-256 of the files).

    Attributes:
        events: how many lines the ledger has.
        accountant: what computed ε, in words.
    """

    ledger_sha256: Sha256
    ledger_head: Sha256
    events: Annotated[int, Field(ge=0)]
    report_sha256: Sha256
    accountant: Words


class LedgerHead(_Part):
    """The ledger of another model: how many lines it had, and its head then."""

    model: Annotated[str, Field(max_length=64)]
    events: Annotated[int, Field(ge=1)]
    ledger_head: Sha256


class BaseBill(_Part):
    """What the same people paid with what other models on the release's base cost them; the budget must cover it too.

    Attributes:
        bases: the release's base first, then those that it was made from or that were made from it.
        others: the ledgers of the other models that were trained on any of them.
        guarantees: what holds for each unit when they are counted as well, against the same as the release's own.
    """

    bases: Annotated[tuple[Sha256, ...], Field(min_length=1, max_length=64)]
    others: Annotated[tuple[LedgerHead, ...], Field(min_length=1, max_length=128)]
    guarantees: Annotated[tuple[Guarantee, ...], Field(max_length=2)]


class AuditVerdict(_Part):
    """What one audit of the run came to; its figures are in the report."""

    part: Annotated[str, Field(max_length=64)]
    verdict: Literal["pass", "fail", "inconclusive"]


class Usefulness(_Part):
    """What the release did to the held-out loss, for all and by group; nothing of it is promised.

    Attributes:
        measure: What was measured, in words.
        before, after: Of the version before and of this one.
        groups: The same for each group that the held-out text names; empty where it names none.
    """

    measure: Words
    before: Loss
    after: Loss
    groups: Annotated[tuple[GroupChange, ...], Field(max_length=MAX_GROUPS)] = ()


class Predicate(_Part):
    """The part of the statement that in-toto leaves to us."""

    release: ReleaseFacts
    verdict: Literal["within_budget", "over_budget", "no_budget", "no_guarantee", "no_events"]
    claim: Words
    guarantees: Annotated[tuple[Guarantee, ...], Field(max_length=2)]
    base: BaseBill | None = None
    audits: Annotated[tuple[AuditVerdict, ...], Field(max_length=64)] = ()
    usefulness: Annotated[tuple[Usefulness, ...], Field(max_length=8)] = ()
    evidence: Evidence
    issued_at: AwareDatetime

    @model_validator(mode="after")
    def _units_are_distinct(self) -> Self:
        units = [guarantee.privacy_unit for guarantee in self.guarantees]
        if len(set(units)) < len(units):
            raise ValueError("a privacy unit is listed twice")
        return self


class Digest(_Part):
    """A file's hash; other algorithms beside it are not looked at."""

    sha256: Sha256


class Subject(_Part):
    """A file that the statement is about: the release's manifest, by its signed path."""

    name: Annotated[str, Field(max_length=300)]
    digest: Digest

    @classmethod
    def of(cls, name: str, sha256: str) -> Self:
        """A file by its path and hash."""
        return cls(name=name, digest=Digest(sha256=sha256))


class PrivacyStatement(_Part):
    """The whole statement. `predicate` is what is promised of the one file in `subject`."""

    type_: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")] = STATEMENT_TYPE
    subject: Annotated[tuple[Subject, ...], Field(min_length=1, max_length=1)]
    predicate_type: Annotated[Literal["urn:lamella:privacy-statement:1"], Field(alias="predicateType")] = PREDICATE_TYPE
    predicate: Predicate

    @property
    def manifest_sha256(self) -> str:
        """The hash of the manifest that the statement is about."""
        return self.subject[0].digest.sha256

    def to_bytes(self) -> bytes:
        """The statement as JSON; the bytes that are signed."""
        return self.model_dump_json(by_alias=True, exclude_none=True).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Parse the payload of an envelope whose signature holds.

        Raises:
            StatementError: It is another kind of statement, or malformed.
        """
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "document"
            raise StatementError(f"not a privacy statement as this version knows it: {place}: {first['msg']}") from None
