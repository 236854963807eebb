"""Before a release: what it would be, what speaks against it, and the command that makes it.

There is no button: a release is signed with a key that this service does not have, so that whoever breaks into the
service cannot make one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Path, Query, Response

from server.api.services import Services, ServicesDep  # noqa: TC001 - FastAPI reads annotations
from server.console.launch_form import LaunchForm, release_command
from server.console.responses import ConsoleRoute, render
from server.console.runs import epsilon_by_round
from server.console.statement import PrivacySpent, number, privacy_statements
from server.console.visits import VisitDep  # noqa: TC001 - the same
from server.errors import ConflictError, InvalidRecordError, PublishingError
from server.registry import Role

if TYPE_CHECKING:
    from server.registry import RoundRecord, RunRecord, VersionRecord
    from server.rollouts import Launch

router = APIRouter(route_class=ConsoleRoute)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What `lamella release RUN` would take up now.

    Attributes:
        run: The run.
        rounds: Its rounds that have a result.
        candidate: The version that an earlier attempt made and that is neither rejected nor left behind.
        rejected: Versions of this run that the gate refused.
        obstacle: Why the command would refuse; empty where nothing is known that speaks against it.
    """

    run: RunRecord
    rounds: tuple[RoundRecord, ...]
    candidate: VersionRecord | None
    rejected: tuple[VersionRecord, ...]
    obstacle: str


@router.get("/runs/{run_id}/release")
def release(
    services: ServicesDep,
    visit: VisitDep,
    run_id: Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$")],
    form: Annotated[LaunchForm, Query()],
) -> Response:
    """What a release of this run would be; once the form was sent, the command for what it says."""
    visit.caller.require(Role.PUBLISHER)
    registry, proposal = services.registry, propose(services, run_id)
    launch, problem = _launch(form) if form.show else (None, "")
    return render(
        "publication.html",
        status=422 if problem else 200,
        visit=visit,
        proposal=proposal,
        statements=_statements(services, proposal),
        findings=registry.audit_findings(run_id),
        is_audit_required=services.settings.require_audit,
        margin=services.settings.gate_margin,
        worst_group_margin=services.settings.gate_worst_group_margin,
        max_epsilon=services.settings.release_max_epsilon,
        field=registry.versions_in_the_field(proposal.run.model),
        form=form,
        launch=launch,
        problem=problem,
        command=release_command(run_id, launch) if launch else "",
    )


def propose(services: Services, run_id: str) -> Proposal:
    """What there is to release of a run.

    Raises:
        NotFoundError: There is no such run.
    """
    registry = services.registry
    run = registry.run(run_id)
    rounds = tuple(one for one in registry.rounds(run_id) if one.status == "released")
    made = [version for version in registry.versions(run.model) if version.run_id == run_id]
    candidate = next((version for version in made if version.state != "rejected"), None)
    return Proposal(
        run=run,
        rounds=rounds,
        candidate=candidate,
        rejected=tuple(version for version in made if version.state == "rejected"),
        obstacle=_obstacle(services, run, rounds, candidate),
    )


def _obstacle(
    services: Services, run: RunRecord, rounds: tuple[RoundRecord, ...], candidate: VersionRecord | None
) -> str:
    # What publishing itself asks, asked here too: there are no second rules. Loading it takes a second.
    from server.publishing import require_audit, require_gate, require_releasable  # noqa: PLC0415

    is_required = services.settings.require_audit
    try:
        if candidate is not None:
            if candidate.state != "released":
                require_gate(candidate)
                require_releasable(services.registry, candidate, is_audit_required=is_required)
            return ""
        if not rounds:
            return f"Run {run.run_id} has no round with a result: there is nothing to release."
        if run.parent_version is None:
            return f"Run {run.run_id} has no parent version to be compared with."
        require_audit(services.registry, run.run_id, is_audit_required=is_required)
    except (PublishingError, ConflictError) as error:
        return str(error)
    return ""


def _statements(services: Services, proposal: Proposal) -> tuple[PrivacySpent, ...]:
    """What its manifest says; before there is one, what the ledger has of this run's own rounds."""
    if proposal.candidate is not None:
        return privacy_statements(services.registry, proposal.candidate)
    run = proposal.run
    delta, limit = number(run.recipe.get("target-delta")), number(run.recipe.get("target-epsilon"))
    curve = epsilon_by_round(services.registry.privacy_events(run_id=run.run_id), target_delta=delta) if delta else []
    if not curve:
        return ()
    return (PrivacySpent(unit="example", epsilon=curve[-1][1], target_delta=delta, limit=limit),)


def _launch(form: LaunchForm) -> tuple[Launch | None, str]:
    try:
        return form.launch(), ""
    except InvalidRecordError as error:
        return None, str(error)
