"""Before a release: what the page says of a run, and that its command does what its form says."""

from __future__ import annotations

import re
import shlex
import shutil
from functools import cache
from html import unescape
from typing import TYPE_CHECKING

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from simulators.console_fleet import NEXT_RUN, PASSWORD, RUN, make_finding, seed_console
from simulators.server_home import MODEL
from simulators.update_api import Service

from privacy.audits import Verdict
from server.cli.main import app
from server.cli.rollout_options import launch_of
from server.console.launch_form import LaunchForm, release_command
from server.errors import GateRefusedError, InvalidRecordError
from server.publishing import publish
from server.rollouts import AT_ONCE, Launch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import click
    from httpx2 import Response

PAGE = f"/console/runs/{NEXT_RUN}/release"


@pytest.fixture(scope="module")
def seeded(three_versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seed_console(three_versions, tmp_path_factory.mktemp("publication") / "seeded")


@pytest.fixture(scope="module")
def read(seeded: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """For tests that only look."""
    folder = tmp_path_factory.mktemp("read") / "service"
    shutil.copytree(seeded, folder)
    with Service(folder) as service:
        login(service, "paul")
        yield service


@pytest.fixture
def console(seeded: Path, tmp_path: Path) -> Iterator[Service]:
    shutil.copytree(seeded, tmp_path / "service")
    with Service(tmp_path / "service") as service:
        login(service, "paul")
        yield service


def login(console: Service, name: str) -> None:
    console.client.cookies.clear()
    console.client.post("/console/login", data={"name": name, "password": PASSWORD})


def command_on(answer: Response) -> str | None:
    found = re.search(r'aria-label="The command">([^<]+)<', answer.text)
    return unescape(found[1]) if found else None


@cache
def commands() -> dict[str, click.Command]:
    return typer.main.get_command(app).commands


def launch_by(command: str) -> tuple[str, Launch]:
    """The run and the launch that the real command line makes of a command."""
    program, name, *words = shlex.split(command)
    assert program == "lamella"
    release = commands()[name]
    given_words = release.make_context(name, words).params
    launch = launch_of(
        phases=given_words["rollout"],
        channel=given_words["channel"],
        groups=given_words["group"],
        tags=given_words["tag"],
        is_draft=given_words["is_draft"],
        soak_hours=given_words["soak"],
        success_threshold=given_words["success"],
        failure_threshold=given_words["failure"],
        min_reports=given_words["min_reports"],
    )
    return given_words["run_id"], launch


def test_a_candidate_is_shown_with_what_it_rests_on(read: Service) -> None:
    html = read.client.get(PAGE).text
    assert "v6" in html
    assert "passed" in html
    assert "1.9500" in html
    assert "ε 3.30" in html
    assert "ε 6.10" in html
    assert "clipping-example" in html
    assert "does not have that key" in html
    assert command_on(read.client.get(PAGE)) is None
    assert 'method="post" action="/console/runs' not in html
    assert f'href="{PAGE}"' in read.client.get(f"/console/releases/{MODEL}/6").text
    assert f'href="{PAGE}"' in read.client.get(f"/console/runs/{NEXT_RUN}").text


def test_the_form_becomes_the_command_and_says_in_words_what_it_does(read: Service) -> None:
    fields = {"phases": "10, 50", "success": "90", "failure": "7", "min_reports": "5", "groups": "a b", "tags": "x,y"}
    answer = read.client.get(PAGE, params={**fields, "channel": "beta", "soak": "2.5", "show": "yes"})
    assert answer.status_code == 200
    assert "3 phases: 10 %, then 50 %, then 100 %" in answer.text
    assert "5 reports of which 90 % confirm" in answer.text
    run_id, launch = launch_by(command_on(answer) or "")
    assert (run_id, launch.state) == (NEXT_RUN, "running")
    plan = launch.plan
    assert (plan.phases, plan.soak_hours, plan.min_reports) == ((10, 50, 100), 2.5, 5)
    assert (plan.success_threshold, plan.failure_threshold) == (0.9, 0.07)
    assert (plan.channel, plan.groups, plan.tags) == ("beta", ("a", "b"), ("x", "y"))


def test_without_phases_it_is_everybody_at_once(read: Service) -> None:
    answer = read.client.get(PAGE, params={"show": "yes"})
    assert command_on(answer) == f"lamella release {NEXT_RUN}"
    assert launch_by(f"lamella release {NEXT_RUN}")[1] == AT_ONCE
    draft = read.client.get(PAGE, params={"show": "yes", "draft": "yes"})
    assert launch_by(command_on(draft) or "")[1].state == "draft"


_NAMES = st.lists(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True), max_size=3).map(",".join)


@given(
    form=st.builds(
        LaunchForm,
        phases=st.lists(st.floats(0.001, 99.9), max_size=4, unique=True).map(lambda p: ",".join(map(repr, sorted(p)))),
        soak=st.floats(0, 8000).map(repr),
        success=st.floats(0, 100).map(repr),
        failure=st.floats(0.01, 100).map(repr),
        min_reports=st.integers(1, 1_000_000).map(str),
        channel=st.sampled_from(["stable", "beta"]),
        groups=_NAMES,
        tags=_NAMES,
        draft=st.sampled_from(["", "yes"]),
    )
)
def test_every_form_becomes_a_command_that_does_just_that(form: LaunchForm) -> None:
    launch = form.launch()
    assert launch_by(release_command("a-run", launch)) == ("a-run", launch)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"phases": "ten"}, "no phases"),
        ({"phases": "50,10"}, "ascending"),
        ({"phases": "10", "soak": "long"}, "hours of a phase"),
        ({"phases": "10", "soak": "nan"}, "soak_hours"),
        ({"phases": "10", "success": "101"}, "success_threshold"),
        ({"phases": "10", "failure": "0"}, "failure_threshold"),
        ({"phases": "10", "min_reports": "0"}, "min_reports"),
        ({"channel": "no spaces"}, "channel"),
        ({"groups": "; rm"}, "groups"),
    ],
)
def test_what_does_not_fit_is_told_beside_what_was_typed(read: Service, fields: dict[str, str], says: str) -> None:
    answer = read.client.get(PAGE, params={**fields, "show": "yes"})
    assert answer.status_code == 422
    assert says in answer.text
    assert command_on(answer) is None
    assert f'value="{next(iter(fields.values()))}"' in answer.text
    with pytest.raises(InvalidRecordError, match=says):
        LaunchForm(**fields).launch()


def test_a_failed_audit_stands_there_in_place_of_the_form_as_publishing_says_it(console: Service) -> None:
    registry = console.app.state.services.registry
    registry.record_findings(NEXT_RUN, "user", [make_finding("noise-user", verdict=Verdict.FAIL)])
    answer = console.client.get(PAGE, params={"show": "yes"})
    assert 'id="phases"' not in answer.text
    assert command_on(answer) is None
    home = console.home
    with pytest.raises(GateRefusedError) as refusal:
        publish(
            home.registry,
            home.artifacts,
            home.metadata,
            model=MODEL,
            version=6,
            gate=None,
            work=home.settings.work_dir,
        )
    assert str(refusal.value) in unescape(answer.text)


def test_where_audits_are_wanted_a_run_without_one_is_not_for_release(seeded: Path, tmp_path: Path) -> None:
    shutil.copytree(seeded, tmp_path / "service")
    with Service(tmp_path / "service", require_audit=True) as service:
        login(service, "paul")
        registry = service.app.state.services.registry
        assert 'id="phases"' not in service.client.get(PAGE).text
        passed = [make_finding(part) for part in ("noise-example", "clipping-example")]
        registry.record_findings(NEXT_RUN, "example", passed)
        assert 'id="phases"' in service.client.get(PAGE).text
        registry.record_findings(NEXT_RUN, "example", [])
        html = service.client.get(PAGE).text
        assert "LAMELLA_REQUIRE_AUDIT" in html
        assert 'id="phases"' not in html


def test_what_the_policy_forbids_is_told_before_anybody_tries(seeded: Path, tmp_path: Path) -> None:
    shutil.copytree(seeded, tmp_path / "service")
    with Service(tmp_path / "service", release_max_epsilon=4.0) as service:
        login(service, "paul")
        html = service.client.get(PAGE).text
        assert "ε 6.1 for each user is above 4" in html
        assert "for each example is above" not in html


def test_runs_that_are_released_or_have_nothing_say_so(read: Service) -> None:
    released = read.client.get(f"/console/runs/{RUN}/release")
    assert "released already" in released.text
    assert command_on(read.client.get(f"/console/runs/{RUN}/release", params={"show": "yes"})) is None
    assert "no round with a result" in read.client.get("/console/runs/cut-short/release").text
    assert read.client.get("/console/runs/none/release").status_code == 404


def test_a_run_without_a_version_is_measured_by_the_command(console: Service) -> None:
    registry = console.app.state.services.registry
    registry.reject(MODEL, 6, "evaluation gate refused: <worse>")
    answer = console.client.get(PAGE, params={"show": "yes"})
    assert "Not measured yet" in answer.text
    assert "the next number" in answer.text
    assert "&lt;worse&gt;" in answer.text
    assert command_on(answer) == f"lamella release {NEXT_RUN}"


def test_a_viewer_prepares_no_release(console: Service) -> None:
    login(console, "vera")
    assert console.client.get(PAGE).status_code == 403
    assert PAGE not in console.client.get(f"/console/runs/{NEXT_RUN}").text
    assert PAGE not in console.client.get(f"/console/releases/{MODEL}/6").text
