from datetime import timedelta

import pytest
from simulators.server_home import MODEL, Clock, make_manifest, release

from delta_updates import Outcome, OutcomeReport
from server.errors import CredentialRefusedError, ForbiddenError, NotFoundError
from server.registry import FileDigests, Registry


@pytest.fixture
def device_id(registry: Registry) -> str:
    registry.add_candidate(make_manifest())
    release(registry, 1)
    return registry.issue_target_token(MODEL, "gate-7")[1].device.device_id


def offer(registry: Registry, device_id: str) -> str:
    path = registry.packages(MODEL, 1)[0].path
    return registry.record_offer(device_id, model=MODEL, version=1, package_path=path).offer_id


def test_tokens_need_a_model(registry: Registry) -> None:
    for issue in (
        lambda: registry.issue_target_token("none", "gate-7"),
        lambda: registry.issue_gateway_token("none", device_limit=1),
    ):
        with pytest.raises(NotFoundError, match="lamella base import"):
            issue()
    with pytest.raises(NotFoundError, match="gateway-tokens"):
        registry.revoke_gateway_token(7)


def test_a_gateways_limit_holds_for_new_controllers_only(registry: Registry, device_id: str) -> None:
    token, record = registry.issue_gateway_token(MODEL, device_limit=1)
    assert registry.target_by_gateway(MODEL, "gate-7", token).device.device_id == device_id
    first = registry.target_by_gateway(MODEL, "node-1", token)
    with pytest.raises(ForbiddenError, match="1 devices"):
        registry.target_by_gateway(MODEL, "node-2", token)
    assert registry.target_by_gateway(MODEL, "node-1", token) == first
    assert [(one.token_id, one.devices) for one in registry.gateway_tokens()] == [(record.token_id, 1)]
    assert [one.controller_id for one in registry.controllers()] == ["gate-7", "node-1"]
    with pytest.raises(CredentialRefusedError):
        registry.target_by_token(MODEL, "node-1", token)


def test_a_controller_without_a_token_of_its_own_has_none_that_fits(registry: Registry, device_id: str) -> None:
    gateway, _ = registry.issue_gateway_token(MODEL, device_limit=1)
    registry.target_by_gateway(MODEL, "node-1", gateway)
    for guess in ("", "0" * 64, "None"):
        with pytest.raises(CredentialRefusedError):
            registry.target_by_token(MODEL, "node-1", guess)
    assert device_id not in {one.device.device_id for one in registry.controllers() if one.controller_id == "node-1"}


def test_an_action_is_over_once(registry: Registry, device_id: str) -> None:
    offer_id = offer(registry, device_id)
    action = registry.open_action(device_id, offer_id)
    assert registry.open_action(device_id, offer_id) == action == registry.unfinished_action(device_id)
    registry.move_action(device_id, action.action_id, "canceled")
    registry.move_action(device_id, action.action_id, "open")
    assert registry.unfinished_action(device_id) is None
    assert offer(registry, device_id) != offer_id, "what was given up is offered anew"
    registry.move_action(device_id, action.action_id, "closed")
    registry.move_action(device_id, action.action_id, "canceled")
    assert registry.action(device_id, action.action_id).state == "closed"
    with pytest.raises(NotFoundError):
        registry.action("0" * 32, action.action_id)


def test_failures_are_told_newest_first(registry: Registry, device_id: str, clock: Clock) -> None:
    for outcome in (Outcome.FAILED, Outcome.DOWNLOADED, Outcome.FAILED):
        clock.advance(hours=1)
        report = OutcomeReport(offer_id=offer(registry, device_id), version=1, outcome=outcome)
        registry.record_outcome(device_id, report)
    attempts = registry.failed_attempts(device_id, model=MODEL, version=1)
    assert [clock.time - one.at for one in attempts] == [timedelta(0), timedelta(hours=2)]
    assert registry.failed_attempts(device_id, model=MODEL, version=2) == ()


def test_being_seen_changes_nothing_else(registry: Registry, device_id: str, clock: Clock) -> None:
    registry.record_check(device_id, installed_version=1, installed_hash="a" * 64)
    before = registry.device(device_id)
    clock.advance(minutes=1)
    registry.note_seen([device_id])
    assert registry.device(device_id) == before
    clock.advance(minutes=10)
    registry.note_seen([device_id])
    after = registry.device(device_id)
    assert after.last_seen_at == clock.time
    assert (after.installed_version, after.installed_hash) == (1, "a" * 64)


def test_digests_and_images_are_kept_once(registry: Registry) -> None:
    digests = FileDigests(sha256="a" * 64, length=3_000_000_000, sha1="b" * 40, md5="c" * 32)
    assert registry.digests("a" * 64) is None
    assert registry.image("d" * 64) is None
    for _ in range(2):
        registry.add_digests(digests)
        registry.add_image("d" * 64, "a" * 64)
    assert registry.digests("a" * 64) == digests
    assert registry.image("d" * 64) == "a" * 64
