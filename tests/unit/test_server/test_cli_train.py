from collections.abc import Callable
from datetime import timedelta

import pytest
from simulators.server_home import MODEL, make_event, make_manifest, make_user_event

from server.cli.console import Service
from server.cli.train import _recipe, _spread, _tell_ended_promises, watch
from server.config import Settings
from server.errors import FederationError, RecipeError
from server.federation.flower import RunStatus
from server.federation.recipe import Recipe

RECIPE = Recipe(model=MODEL, run_name="run-1")
NOT_STARTED = RunStatus("finished:failed", "TLS/SSL connection has been closed")


class FakeRun:
    """A run as Flower tells it: what happens in it, then its status."""

    def __init__(self, status: RunStatus, happens: Callable[[], object] = lambda: None) -> None:
        self._status, self._happens = status, happens

    def wait(self, *, on_poll: Callable[[], str | None]) -> RunStatus:
        self._happens()
        on_poll()
        return self._status

    def log_tail(self) -> str:
        return "the end of the log"


@pytest.fixture
def service(home_settings: Settings) -> Service:
    service = Service(home_settings)
    service.registry.add_candidate(make_manifest())
    return service


def begin(service: Service) -> None:
    base = service.registry.version(MODEL, 1).manifest.base_hash
    service.registry.create_run(
        "run-1", model=MODEL, recipe=RECIPE.to_run_config(), base_version=1, base_hash=base, parent_version=1
    )


def complete(service: Service) -> None:
    begin(service)
    service.registry.finish_run("run-1", status="completed")


def watch_runs(service: Service, *runs: FakeRun) -> int:
    """Watch as many of the runs as are started; how many that were."""
    waiting = list(runs)
    watch(service, RECIPE, lambda: waiting.pop(0))
    return len(runs) - len(waiting)


def test_a_run_that_flower_could_not_start_is_started_once_more(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    done = FakeRun(RunStatus("finished:completed"), lambda: complete(service))
    assert watch_runs(service, FakeRun(NOT_STARTED), done) == 2
    assert "could not start the run" in capsys.readouterr().err


def test_a_second_failure_to_start_is_told_with_flowers_reason(service: Service) -> None:
    with pytest.raises(FederationError, match=r"run-1 failed .*connection has been closed\.$"):
        watch_runs(service, FakeRun(NOT_STARTED), FakeRun(NOT_STARTED))


def test_a_run_that_began_is_never_started_again(service: Service) -> None:
    def fail() -> None:
        begin(service)
        service.registry.finish_run("run-1", status="failed", reason="no devices")

    with pytest.raises(FederationError, match=r"no devices\. What was reached is kept; go on with --resume run-1"):
        watch_runs(service, FakeRun(NOT_STARTED, fail))


def test_every_round_is_shown_even_when_the_run_ends_at_once(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    def two_rounds() -> None:
        begin(service)
        for number in (1, 2):
            service.registry.record_round(
                "run-1", number, status="released", replies=2, failures={}, held_out_loss=2.5, events=(),
                artifacts={"adapter": "a" * 64}, facts={},
            )  # fmt: skip
        service.registry.finish_run("run-1", status="completed")

    watch_runs(service, FakeRun(RunStatus("finished:completed"), two_rounds))
    shown = capsys.readouterr().out
    assert "round 1: released" in shown
    assert "round 2: released" in shown


def test_the_format_of_a_release_is_an_option_and_a_key(service: Service) -> None:
    chosen = {"model": MODEL, "adapter-format": "int4"}
    assert _recipe(service, chosen, [], resume=None).adapter_format == "int4"
    assert _recipe(service, chosen, ["adapter-format=float16"], resume=None).adapter_format == "float16"
    with pytest.raises(RecipeError, match=r"adapter-format: .*'float16', 'int8' or 'int4'"):
        _recipe(service, chosen | {"adapter-format": "int3"}, [], resume=None)


def test_in_a_large_fleet_no_device_takes_part_in_two_rounds_in_a_row(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    users = {"privacy_mode": "both", "num_server_rounds": 9, "cohort": 2, "quorum": 1}
    recipe = RECIPE.model_copy(update=users)
    assert _spread(service, recipe, []) == recipe  # nobody is enrolled
    token, _ = service.registry.create_enrolment_token(MODEL, valid_for=timedelta(hours=1), uses=6)
    for number in range(6):
        service.registry.enrol(token, name=f"device-{number}")
    spread = _spread(service, recipe, [])
    assert (spread.max_participations, spread.min_separation) == (5, 2)
    assert "5 of 9 rounds at most" in " ".join(capsys.readouterr().out.split())
    for setting in ("min-separation=1", "max-participations=9", "cohort-sampling=poisson"):
        assert _spread(service, recipe, [setting]) == recipe
    for fewer in ({"cohort": 3}, {"num_server_rounds": 3}, {"privacy_mode": "example"}):
        few = recipe.model_copy(update=fewer)
        assert _spread(service, few, []) == few


def test_a_run_says_which_promise_it_ends(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    begin(service)
    service.registry.record_round(
        "run-1",
        1,
        status="void",
        replies=1,
        failures={},
        held_out_loss=None,
        artifacts={},
        facts={},
        events=[make_user_event("run-1", 1, "a"), make_event("run-1", 1)],
    )
    _tell_ended_promises(service, RECIPE.model_copy(update={"privacy_mode": "both"}))
    assert capsys.readouterr().err == ""
    _tell_ended_promises(service, RECIPE)
    assert "no noise per user" in " ".join(capsys.readouterr().err.split())
    _tell_ended_promises(service, RECIPE.model_copy(update={"privacy_mode": "user"}))
    assert "no noise per example" in " ".join(capsys.readouterr().err.split())
