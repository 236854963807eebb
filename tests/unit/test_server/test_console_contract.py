"""No address, query or form that anybody can send breaks a page of the console, or a call of hawkBit's protocol."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulators.console_fleet import PASSWORD, RUN, seed_console
from simulators.server_home import MODEL
from simulators.update_api import Service

from server.api import ddi
from server.console import (
    account,
    audit,
    devices,
    enrolment,
    login,
    operators,
    overview,
    publication,
    releases,
    rollouts,
    runs,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow
REQUESTS = int(os.environ.get("LAMELLA_TEST_REQUESTS", "8"))
CONSOLE = (account, audit, devices, enrolment, login, operators, overview, publication, releases, rollouts, runs)
# What the parts of an address could be, right and wrong.
PARTS = st.one_of(
    st.sampled_from([MODEL, RUN, "0", "1", "4", "halt", "0d" * 16, str(2**63), str(2**200), "-1", "٣", "1e3", "%"]),
    st.text(min_size=1, max_size=30),
)
VALUES = st.one_of(PARTS, st.text(max_size=200), st.just("x" * 3_000))
NAMES = ("q", "after", "before", "model", "state", "uses", "hours", "reason", "name", "password", "next")
NAMES += ("phases", "show", "soak", "min_reports", "role", "label", "days", "own_password", "is_program")
FIELDS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4)


@pytest.fixture(scope="module")
def wild_console(three_versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A console that an admin is logged in to, and of which nobody needs anything afterwards."""
    folder = tmp_path_factory.mktemp("wild")
    seeded = seed_console(three_versions, folder / "seeded")
    shutil.copytree(seeded, folder / "service")
    with Service(folder / "service", ddi=True) as service:
        service.client.post("/console/login", data={"name": "ada", "password": PASSWORD})
        yield service


def addresses(modules: tuple[object, ...], *, prefix: str) -> list[tuple[str, str]]:
    return [
        (method, prefix + route.path)
        for module in modules
        for route in module.router.routes
        for method in sorted(route.methods - {"HEAD"})
    ]


def filled(template: str, parts: list[str]) -> str:
    given_parts = iter(parts)
    return re.sub(r"\{[a-z_]+(:path)?\}", lambda _: quote(next(given_parts), safe=""), template)


@pytest.mark.parametrize(
    ("method", "template"),
    [*addresses(CONSOLE, prefix="/console"), *addresses((ddi,), prefix="")],
)
@settings(max_examples=REQUESTS, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    parts=st.lists(PARTS, min_size=4, max_size=4), query=FIELDS, form=FIELDS, body=st.none() | st.binary(max_size=300)
)
def test_nothing_that_can_be_sent_breaks_a_page(
    wild_console: Service,
    method: str,
    template: str,
    parts: list[str],
    query: dict[str, str],
    form: dict[str, str],
    body: bytes | None,
) -> None:
    client = wild_console.client
    where = filled(template, parts)
    sent = {"params": query} if method == "GET" else {"data": form} if body is None else {"content": body}
    if method == "POST" and body is None and where.startswith("/console") and "logout" not in where:
        # Past the first door: with the proof that the form is ours.
        page = client.get("/console/").text
        found = re.search(r'name="csrf" value="([^"]+)"', page)
        assert found, page[:500]
        sent["data"] = {**form, "csrf": found[1]}
    answer = client.request(method, where, follow_redirects=False, **sent)
    assert answer.status_code < 500, (method, where, answer.status_code)
    if "logout" in where and answer.status_code < 400:
        client.post("/console/login", data={"name": "ada", "password": PASSWORD})
