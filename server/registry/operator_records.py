"""What the registry answers with about operators: frozen values."""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal

AuditVia = Literal["cli", "rest", "console"]


class Role(StrEnum):
    """What an operator may do; each role may do all that the ones before it may."""

    VIEWER = "viewer"
    PUBLISHER = "publisher"
    ADMIN = "admin"

    def includes(self, needed: "Role") -> bool:
        """Whether this role is enough where ``needed`` is asked for."""
        order = tuple(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, kw_only=True)
class OperatorRecord:
    """One operator's account; ``has_password`` says whether it can log in to the console."""

    name: str
    role: Role
    has_password: bool
    created_at: datetime
    removed_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class OperatorTokenRecord:
    """One API token; its secret is stored nowhere."""

    token_id: str
    operator: str
    label: str
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class AuditRecord:
    """One entry of the audit log; ``previous`` is the digest of the entry before it."""

    position: int
    at: datetime
    actor: str
    via: str
    action: str
    subject: str
    outcome: str
    previous: str
    digest: str

    def expected_digest(self) -> str:
        """What ``digest`` is when nobody changed the entry."""
        facts = [self.previous, self.position, self.at.isoformat(), self.actor, self.via, self.action]
        return hashlib.sha256(json.dumps([*facts, self.subject, self.outcome]).encode()).hexdigest()
