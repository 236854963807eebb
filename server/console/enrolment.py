"""Enrolment files: make one, see which are open, take one back."""

from http import HTTPStatus
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Response

from server.api.callers import audited, refuse_unless
from server.api.services import ServicesDep
from server.console.fields import whole_number
from server.console.responses import ConsoleRoute, redirect, render
from server.console.visits import FormFields, PostingVisit, VisitDep
from server.enrolment import MAX_USES, make_enrolment_file
from server.registry import Role

router = APIRouter(route_class=ConsoleRoute)
_PAGE: Final = 50


@router.get("/enrolment")
def enrolment(
    services: ServicesDep, visit: VisitDep, before: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None
) -> Response:
    """The tokens, the newest first, and the form that makes a file."""
    tokens = services.registry.newest_enrolment_tokens(before=before, limit=_PAGE + 1)
    shown = tokens[:_PAGE]
    return render(
        "enrolment.html",
        visit=visit,
        tokens=shown,
        models=services.registry.models(),
        max_uses=MAX_USES,
        hours=services.settings.enrolment_hours,
        url=services.settings.public_url,
        next=shown[-1].token_id if len(tokens) > _PAGE else None,
    )


@router.post("/enrolment")
def make(services: ServicesDep, visit: PostingVisit, fields: FormFields) -> Response:
    """Make an enrolment file and hand it out as a download; it is kept nowhere."""
    refuse_unless(services.registry, visit.caller, Role.PUBLISHER, action="enrolment.create")
    model = fields.get("model", "")
    uses = whole_number(
        fields.get("uses", "1"), least=1, most=MAX_USES, problem=f"An enrolment file is for 1 to {MAX_USES} devices."
    )
    with audited(services.registry, visit.caller, "enrolment.create", f"{model}, for {uses}"):
        file, _ = make_enrolment_file(services.settings, services.registry, services.metadata, model=model, uses=uses)
    return Response(
        file.model_dump_json(indent=2) + "\n",
        HTTPStatus.OK,
        {"content-disposition": 'attachment; filename="enrolment.json"'},
        "application/json",
    )


@router.post("/enrolment/{token_id}/revoke")
def revoke(services: ServicesDep, visit: PostingVisit, token_id: Annotated[int, Path(ge=1, le=2**31 - 1)]) -> Response:
    """Let the token enrol no further device."""
    refuse_unless(services.registry, visit.caller, Role.PUBLISHER, action="enrolment.revoke")
    with audited(services.registry, visit.caller, "enrolment.revoke", str(token_id)):
        services.registry.revoke_enrolment_token(token_id)
    return redirect("/console/enrolment")
