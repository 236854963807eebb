"""All pages of the console, one router a page."""

from fastapi import APIRouter

from server.console import (
    account,
    audit,
    devices,
    enrolment,
    files,
    login,
    operators,
    overview,
    publication,
    releases,
    rollouts,
    runs,
)
from server.console.responses import ConsoleRoute
from server.errors import NotFoundError

router = APIRouter(prefix="/console", include_in_schema=False)
_PAGES = (files, login, overview, releases, rollouts, devices, enrolment, runs, publication, audit, operators, account)
for page in _PAGES:
    router.include_router(page.router)

_rest = APIRouter(route_class=ConsoleRoute)


@_rest.get("/{rest:path}")
def no_such_page(rest: str) -> None:
    """Say in the console's own words that there is no such page."""
    raise NotFoundError(f"There is no page /console/{rest}.")


# Last: what comes before it answers first.
router.include_router(_rest)
