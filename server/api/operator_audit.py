"""For the operator: who did what."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query

from server.api.examples import AUDIT_ENTRY, answer, page
from server.api.problems import declare
from server.api.services import Page, PageLimit, ServicesDep, Viewer, page_of
from server.registry import AuditRecord

router = APIRouter(tags=["operator: audit"])


@router.get(
    "/audit",
    summary="List the audit log",
    responses={
        200: answer("Who did what, the newest first.", page(AUDIT_ENTRY, cursor="12")),
        **declare(HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY),
    },
)
def list_audit_log(
    services: ServicesDep,
    _: Viewer,
    limit: PageLimit = 100,
    after: Annotated[
        int | None, Query(ge=1, le=2**31 - 1, description="`next` of the page before.", examples=[12])
    ] = None,
) -> Page[AuditRecord]:
    """List what operators did over REST, in the console and at the terminal; the log is append-only."""
    entries = services.registry.audit_log(before=after, limit=limit)
    return page_of(entries, limit=limit, cursor=str(entries[-1].position) if entries else None)
