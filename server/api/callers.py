"""Which operator is calling, what their role allows, and the audit log's entry about what they did."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Final

from server.errors import CredentialRefusedError, ForbiddenError, ServerError
from server.passwords import is_secret
from server.registry import Registry, Role

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.registry.operator_records import AuditVia

# Who shows `operator.token`: no account, so that there is a way in before there are accounts.
BOOTSTRAP: Final = "operator.token"
_TOKEN: Final = re.compile(r"[0-9a-f]{16}\.[A-Za-z0-9_-]{43}")
_MAX_VERIFIED: Final = 1_000


@dataclass(frozen=True, kw_only=True)
class Caller:
    """An operator, and on which way they came."""

    name: str
    role: Role
    via: AuditVia

    def require(self, needed: Role) -> None:
        """Let only callers pass whose role is enough.

        Raises:
            ForbiddenError: It is not.
        """
        if not self.role.includes(needed):
            raise ForbiddenError(
                f"This needs the role {needed}, and {self.name} is a {self.role}. Ask an admin, who can make you an "
                "account with that role: `lamella operators add`."
            )


class TokenVerifier:
    """Finds the operator whose API token came with a request."""

    def __init__(self, registry: Registry, *, bootstrap: str) -> None:
        self._registry, self._bootstrap = registry, bootstrap
        self._key = secrets.token_bytes(32)
        self._verified: OrderedDict[bytes, None] = OrderedDict()
        self._lock = Lock()

    def caller(self, token: str) -> Caller:
        """The operator with this token.

        Raises:
            CredentialRefusedError: Nobody was given it, or it has expired or is revoked.
        """
        if hmac.compare_digest(token.encode(), self._bootstrap.encode()):
            return Caller(name=BOOTSTRAP, role=Role.ADMIN, via="rest")
        # Anything of another form is refused before the database is asked.
        found = self._registry.usable_operator_token(token[:16]) if _TOKEN.fullmatch(token) else None
        if found is None or not self._is_right(token, hashed=found[1]):
            raise CredentialRefusedError(
                "This needs an operator's token: Authorization: Bearer <token>. Make one with "
                "`lamella operators token create`, or use the text in operator.token in the server's home."
            )
        return Caller(name=found[0].name, role=found[0].role, via="rest")

    def _is_right(self, token: str, *, hashed: str) -> bool:
        """Whether the token's secret has this hash; what was found right once costs no slow hash again.

        Only that the two belong together is remembered: whether the token may still be used is asked each time.
        """
        known = hmac.digest(self._key, f"{hashed}\n{token}".encode(), hashlib.sha256)
        with self._lock:
            if known in self._verified:
                self._verified.move_to_end(known)
                return True
        if not is_secret(token[17:], hashed):
            return False
        with self._lock:
            self._verified[known] = None
            if len(self._verified) > _MAX_VERIFIED:
                self._verified.popitem(last=False)
        return True


@contextmanager
def audited(registry: Registry, caller: Caller, action: str, subject: str) -> Iterator[None]:
    """Write into the audit log what happens inside: done, or why not. No secret belongs into ``subject``.

    The entry and what it tells of are one transaction: neither is there without the other, whatever is cut off when.
    """
    try:
        with registry.together():
            yield
            _record(registry, caller, action, subject, "done")
    except BaseException as error:
        # The server's own errors are written for people to read; of any other only the kind is safe to keep.
        reason = str(error) if isinstance(error, ServerError) else type(error).__name__
        _record(registry, caller, action, subject, f"failed: {reason}")
        raise


def refuse_unless(registry: Registry, caller: Caller, needed: Role, *, action: str) -> None:
    """Let only callers with that role pass, and keep in the audit log who tried without.

    Raises:
        ForbiddenError: The role is not enough.
    """
    try:
        caller.require(needed)
    except ForbiddenError:
        _record(registry, caller, action, "", f"refused: needs {needed}")
        raise


def _record(registry: Registry, caller: Caller, action: str, subject: str, outcome: str) -> None:
    registry.record_audit(actor=caller.name, via=caller.via, action=action, subject=subject, outcome=outcome)
