"""Several processes on one database at the same moment: what each is told, and what is there in the end."""

import json
import multiprocessing
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from simulators.server_home import (
    MODEL,
    Home,
    init_trust,
    make_manifest,
    make_package,
    offline_keys,
    open_home,
    release,
)
from simulators.service_process import running_services

from server.config import Settings
from server.errors import ServerError
from server.registry import GateResult, Registry

PASSED = GateResult(candidate_loss=1.0, parent_loss=1.0, margin=0.0)


def in_processes(settings: Settings, *acts: Callable[[Registry], object]) -> list[str]:
    """Let each act run in a process of its own, all at once; what each returned, or the error it was told."""
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(len(acts)), context.Queue()

    def work(place: int, act: Callable[[Registry], object]) -> None:
        registry = Registry.open(settings)
        barrier.wait(60)
        try:
            answer = str(act(registry))
        except ServerError as error:
            answer = f"{type(error).__name__}: {error}"
        registry.close()
        answers.put((place, answer))

    processes = [context.Process(target=work, args=(place, act)) for place, act in enumerate(acts)]
    for process in processes:
        process.start()
    told = dict(answers.get(timeout=120) for _ in acts)
    for process in processes:
        process.join()
    return [told[place] for place in range(len(acts))]


def ready_to_release(settings: Settings, adapters: int) -> None:
    """v1 released, and so many candidates on it that only have to be marked."""
    registry = Registry.open(settings)
    registry.add_candidate(make_manifest())
    release(registry, 1)
    for number in range(2, 2 + adapters):
        registry.add_candidate(make_manifest(kind="adapter", parent=1, adapter="b"))
        registry.record_gate(MODEL, number, PASSED)
        registry.add_packages(MODEL, number, [make_package(number)])
    registry.close()


def test_of_two_releases_at_once_none_goes_below_the_other(any_settings: Settings) -> None:
    ready_to_release(any_settings, adapters=6)
    for lower in (2, 4, 6):
        told = in_processes(
            any_settings,
            lambda registry, number=lower: registry.mark_released(MODEL, number).number,
            lambda registry, number=lower + 1: registry.mark_released(MODEL, number).number,
        )
        assert told[1] == str(lower + 1)
        registry = Registry.open(any_settings)
        first, second = (registry.version(MODEL, number) for number in (lower, lower + 1))
        registry.close()
        if told[0] == str(lower):
            assert first.released_at is not None
            assert second.released_at is not None
            assert first.released_at <= second.released_at
        else:
            assert told[0].startswith(f"ConflictError: v{lower + 1} of 'tiny' is released already")
            assert first.state == "candidate"


def test_of_two_publishers_with_other_bytes_one_wins(any_settings: Settings) -> None:
    registry = Registry.open(any_settings)
    registry.add_candidate(make_manifest())
    registry.close()
    told = in_processes(
        any_settings,
        *(
            lambda registry, digest=digest: registry.add_packages(MODEL, 1, [make_package(1, digest=digest)])
            for digest in "cde"
        ),
    )
    assert told.count("None") == 1
    losers = [answer for answer in told if answer != "None"]
    assert all(
        answer.startswith("ConflictError: packages/tiny/1/full.lmpkg is recorded with other") for answer in losers
    )
    registry = Registry.open(any_settings)
    (package,) = registry.packages(MODEL, 1)
    registry.close()
    assert package.sha256[0] == "cde"[told.index("None")]


def test_of_a_release_and_a_rejection_at_once_one_wins(any_settings: Settings) -> None:
    ready_to_release(any_settings, adapters=1)
    told = in_processes(
        any_settings,
        lambda registry: registry.mark_released(MODEL, 2).state,
        lambda registry: registry.reject(MODEL, 2, "not good"),
    )
    registry = Registry.open(any_settings)
    state = registry.version(MODEL, 2).state
    registry.close()
    assert (told[0] == "released") == (state == "released")
    assert (told[1] == "None") == (state == "rejected")
    assert sum("ConflictError" in answer for answer in told) == 1


def test_two_questions_of_a_device_at_once_get_one_offer(any_settings: Settings) -> None:
    ready_to_release(any_settings, adapters=0)
    registry = Registry.open(any_settings)
    token, _ = registry.create_enrolment_token(MODEL, valid_for=timedelta(hours=1))
    device, _ = registry.enrol(token, name="kitchen")
    registry.close()
    path = make_package(1).path

    def ask(registry: Registry) -> str:
        return registry.record_offer(device.device_id, model=MODEL, version=1, package_path=path).offer_id

    told = in_processes(any_settings, *[ask] * 4)
    assert len(set(told)) == 1


def post(address: str, path: str, body: dict[str, Any], credential: str = "") -> tuple[int, dict[str, Any]]:
    headers = {"content-type": "application/json", "authorization": f"Bearer {credential}"}
    request = urllib.request.Request(address + path, json.dumps(body).encode(), headers)  # noqa: S310 - loopback
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - loopback
            return answer.status, json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def released_home(settings: Settings, folder: Path) -> Home:
    init_trust(settings, offline_keys(folder))
    home = open_home(folder, **({"database_url": settings.database_url} if settings.database_url else {}))
    home.base()
    home.publish(1, loss=None)
    return home


@pytest.mark.slow
def test_two_processes_of_the_api_are_as_good_as_one(any_settings: Settings, tmp_path: Path) -> None:
    home = released_home(any_settings, tmp_path)
    environment = {"LAMELLA_HOME": str(any_settings.home)}
    if any_settings.database_url:
        environment["LAMELLA_DATABASE_URL"] = any_settings.database_url.get_secret_value()
    token, _ = home.registry.create_enrolment_token(MODEL, valid_for=timedelta(hours=1))
    with running_services(environment, count=2) as addresses, ThreadPoolExecutor(8) as pool:
        several = addresses * 4

        def at_once(path: str, body: dict[str, Any], credential: str = "") -> list[tuple[int, dict[str, Any]]]:
            return list(pool.map(lambda address: post(address, path, body, credential), several))

        enrolled = at_once("/v1/devices", {"token": token, "name": "kitchen"})
        assert sorted(status for status, _ in enrolled) == [201, *[410] * 7]
        credential = next(body["credential"] for status, body in enrolled if status == 201)
        offers = at_once("/v1/updates/check", {"model": MODEL}, credential)
        assert {status for status, _ in offers} == {200}
        (offer_id,) = {body["offer_id"] for _, body in offers}
        outcome = {"offer_id": offer_id, "version": 1, "outcome": "confirmed", "bytes_downloaded": 7}
        assert {status for status, _ in at_once("/v1/updates/report", outcome, credential)} == {204}
        # What one process was told, the other knows.
        installed = {"model": MODEL, "installed_version": 1, "installed_hash": offers[0][1]["tree_hash"]}
        assert {status for status, _ in at_once("/v1/updates/check", installed, credential)} == {204}
    (device,) = home.registry.devices()
    assert device.installed_version == 1
    assert [report.outcome for report in home.registry.reports(device.device_id)] == ["confirmed"]
    home.registry.close()
