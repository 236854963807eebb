"""Signed requests: what the service accepts, and each way to get past a signature."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from simulators.server_home import MODEL
from simulators.update_api import Service

from client_sdk.identity import KeyPair
from delta_updates.request_signature import (
    INPUT_HEADER,
    SIGNATURE_HEADER,
    SignatureInput,
    content_digest,
    from_text,
    parse_signature,
    to_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from httpx2 import Response

CHECK = "/v1/updates/check"
QUESTION = json.dumps({"model": MODEL}).encode()


@dataclass
class Signer:
    """A device that signs, over an API."""

    api: Service
    device_id: str
    pair: KeyPair

    def send(self, body: bytes = QUESTION, path: str = CHECK, method: str = "POST", **changes: str) -> int:
        """Sign and send a request; `changes` are headers that somebody replaced on the way."""
        headers = self.pair.headers(method, path, body)
        return int(_send(self.api, method, path, body, headers | _named(changes)).status_code)


def _send(
    api: Service, method: str, path: str, body: bytes, headers: dict[str, str] | list[tuple[str, str]]
) -> Response:
    sent = [*(headers.items() if isinstance(headers, dict) else headers), ("content-type", "application/json")]
    return api.client.request(method, path, content=body, headers=sent)


def _named(changes: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in changes.items()}


def bound(api: Service, *, now: Callable[[], float] = time.time) -> Signer:
    """Enrol a device and make its key known, as an agent does."""
    bearer = api.enrol()
    device_id = bearer["Authorization"].removeprefix("Bearer ").split(".")[0]
    pair = KeyPair(device_id, Ed25519PrivateKey.generate(), now=now)
    answer = api.client.put("/v1/devices/me/key", json=pair.request().model_dump(), headers=bearer)
    assert answer.status_code == 204, answer.text
    assert api.check(bearer).status_code == 401, "the credential is forgotten"
    return Signer(api, device_id, pair)


@pytest.fixture
def device(shared_api: Service) -> Signer:
    return bound(shared_api)


def test_a_signed_request_is_its_devices(device: Signer) -> None:
    assert device.send() in {200, 204}
    record = device.api.home.registry.device(device.device_id)
    assert record.has_key
    assert record.last_seen_at is not None


def test_what_was_changed_on_the_way_is_refused(device: Signer) -> None:
    headers = device.pair.headers("POST", CHECK, QUESTION)
    send = partial(_send, device.api)
    assert send("POST", CHECK, QUESTION + b" ", headers).status_code == 401
    assert send("POST", CHECK + "?x=1", QUESTION, headers).status_code == 401
    assert send("POST", "/v1/updates/report", QUESTION, headers).status_code == 401
    assert send("PUT", "/v1/devices/me/key", QUESTION, headers).status_code == 401
    other = json.dumps({"model": MODEL, "only_full": True}).encode()
    replaced = headers | {"Content-Digest": content_digest(other)}
    assert send("POST", CHECK, other, replaced).status_code == 401
    # A signature that covers no body says nothing about one.
    bare = device.pair.headers("POST", CHECK, None)
    assert send("POST", CHECK, QUESTION, bare).status_code == 401


def test_nobody_signs_for_another_device(device: Signer) -> None:
    other = bound(device.api)
    as_other = other.pair.headers("POST", CHECK, QUESTION)
    as_other[INPUT_HEADER] = as_other[INPUT_HEADER].replace(other.device_id, device.device_id)
    assert _send(device.api, "POST", CHECK, QUESTION, as_other).status_code == 401
    unknown = KeyPair("0" * 32, Ed25519PrivateKey.generate())
    answer = _send(device.api, "POST", CHECK, QUESTION, unknown.headers("POST", CHECK, QUESTION))
    assert answer.status_code == 401


def test_a_device_that_never_had_a_key_cannot_be_signed_for(shared_api: Service) -> None:
    device_id = shared_api.enrol()["Authorization"].removeprefix("Bearer ").split(".")[0]
    pair = KeyPair(device_id, Ed25519PrivateKey.generate())
    assert Signer(shared_api, device_id, pair).send() == 401


@pytest.mark.parametrize("ahead_s", [-400, 400])
def test_a_signature_of_another_time_is_refused_and_the_time_is_told(shared_api: Service, ahead_s: int) -> None:
    device = bound(shared_api, now=lambda: time.time() + ahead_s)
    headers = device.pair.headers("POST", CHECK, QUESTION)
    answer = _send(shared_api, "POST", CHECK, QUESTION, headers)
    assert answer.status_code == 401
    assert "Set the device's clock" in answer.json()["detail"]


def test_within_the_window_a_recorded_request_gets_the_same_answer(shared_api: Service) -> None:
    device = bound(shared_api)
    headers = device.pair.headers("POST", CHECK, QUESTION)
    first, again = (_send(shared_api, "POST", CHECK, QUESTION, headers) for _ in range(2))
    assert first.status_code == again.status_code == 200
    assert first.json() == again.json(), "one offer, however often it is asked for"


def test_a_revoked_device_is_told_so_only_when_it_is_itself(device: Signer) -> None:
    device.api.home.registry.revoke_device(device.device_id)
    assert device.send() == 403
    stranger = KeyPair(device.device_id, Ed25519PrivateKey.generate())
    assert Signer(device.api, device.device_id, stranger).send() == 401


def test_a_key_is_replaced_by_who_has_it(device: Signer) -> None:
    new = KeyPair(device.device_id, Ed25519PrivateKey.generate())
    body = new.request().model_dump_json().encode()
    assert device.send(body, "/v1/devices/me/key", "PUT") == 204
    assert device.send() == 401
    renewed = Signer(device.api, device.device_id, new)
    assert renewed.send() in {200, 204}
    assert renewed.send(body, "/v1/devices/me/key", "PUT") == 204, "repeating it changes nothing"


def test_a_key_of_somebody_else_is_not_taken(device: Signer) -> None:
    other = bound(device.api)
    # Without the private half there is no proof for this device's id ...
    stolen = other.pair.request().model_dump_json().encode()
    assert device.send(stolen, "/v1/devices/me/key", "PUT") == 403
    # ... and with it, two devices would be one.
    shared = KeyPair(device.device_id, other.pair._key).request().model_dump_json().encode()
    assert device.send(shared, "/v1/devices/me/key", "PUT") == 409
    assert device.send() in {200, 204}


def test_where_keys_are_required_a_credential_is_only_good_for_setting_one(tmp_path: Path) -> None:
    with Service(tmp_path, require_device_keys=True) as api:
        api.home.base()
        bearer = api.enrol()
        answer = api.check(bearer)
        assert answer.status_code == 401
        assert "signed requests only" in answer.json()["detail"]
        assert bound(api).send() == 204


def test_a_header_that_comes_twice_is_refused(device: Signer) -> None:
    headers = device.pair.headers("POST", CHECK, QUESTION)
    for name in (INPUT_HEADER, SIGNATURE_HEADER):
        twice = [*headers.items(), (name, headers[name])]
        assert _send(device.api, "POST", CHECK, QUESTION, twice).status_code == 401


def test_nothing_new_is_remembered_for_a_device_that_signs(device: Signer) -> None:
    up_to_date = {"model": MODEL, "installed_version": 3, "installed_hash": device.api.hash_of(3)}
    question = json.dumps(up_to_date).encode()
    device.api.app.state.latest_change.look()

    def ask(signer: Signer, **changes: str) -> Response:
        headers = signer.pair.headers("POST", CHECK, question) | _named(changes)
        return _send(device.api, "POST", CHECK, question, headers)

    first = ask(device)
    assert first.status_code == 204
    assert ask(device, if_none_match=first.headers["etag"]).status_code == 304
    # Another device was not told so, and its own question is asked in full.
    assert ask(bound(device.api), if_none_match=first.headers["etag"]).status_code == 204


@given(header=st.one_of(st.text(max_size=200), st.from_regex(r"lamella=\(.{0,80}\);created=.{0,20};keyid=.{0,40}")))
def test_no_header_of_any_form_breaks_the_parsers(header: str) -> None:
    claimed = SignatureInput.parse(header)
    assert claimed is None or claimed.header() == header
    assert parse_signature(header) is None


@given(raw=st.binary(min_size=1, max_size=64))
def test_keys_survive_being_text(raw: bytes) -> None:
    assert from_text(to_text(raw)) == raw


def test_the_base_is_that_of_the_standard() -> None:
    """Held against RFC 9421, section 2.5: one line a component, and the parameters last."""
    covered = SignatureInput("0a" * 16, 1_618_884_473, has_body=True)
    assert covered.base("POST", "/foo", "param=Value&Pet=dog", content_digest(b"{}")).decode().split("\n") == [
        '"@method": POST',
        '"@path": /foo',
        '"@query": ?param=Value&Pet=dog',
        '"content-digest": sha-256=:RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o=:',
        (
            '"@signature-params": ("@method" "@path" "@query" "content-digest");'
            f'created=1618884473;keyid="{"0a" * 16}";alg="ed25519"'
        ),
    ]
    assert SignatureInput.parse(covered.header()) == covered
