"""The audit log."""

from typing import Annotated, Final

from fastapi import APIRouter, Query, Response

from server.api.services import ServicesDep
from server.console.responses import ConsoleRoute, render
from server.console.visits import VisitDep

router = APIRouter(route_class=ConsoleRoute)
_PAGE: Final = 100


@router.get("/audit")
def audit(
    services: ServicesDep, visit: VisitDep, before: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None
) -> Response:
    """Who did what, the newest first."""
    entries = services.registry.audit_log(before=before, limit=_PAGE + 1)
    shown = entries[:_PAGE]
    return render("audit.html", visit=visit, entries=shown, next=shown[-1].position if len(entries) > _PAGE else None)
