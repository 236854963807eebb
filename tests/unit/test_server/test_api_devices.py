import hashlib
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from simulators import protocol_1
from simulators.server_home import MODEL
from simulators.tuf_client import updater_for
from simulators.update_api import Service

from delta_updates import (
    PROTOCOL,
    PROTOCOL_HEADER,
    ROOM_HEADER,
    EnrolmentFile,
    Offer,
    VersionManifest,
    apply_package,
    scan_tree,
)
from server.room import disk_bytes

if TYPE_CHECKING:
    from httpx2 import Response

JSON = {"Content-Type": "application/json"}


def problem_of(answer: object, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) == {"type", "title", "status", "detail"}
    assert body["status"] == status
    return body["detail"]


def test_a_device_enrols_once_with_a_token(shared_api: Service) -> None:
    request = {"token": shared_api.token(), "name": "kitchen"}
    reply = shared_api.client.post("/v1/devices", json=request)
    assert reply.status_code == 201
    assert set(reply.json()) == {"device_id", "credential"}
    assert reply.headers["cache-control"] == "no-store"
    assert "Ask the operator" in problem_of(shared_api.client.post("/v1/devices", json=request), 410)
    assert shared_api.client.post("/v1/devices", json={"token": "guess", "name": "x"}).status_code == 410


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer nonsense"},
        {"Authorization": "Basic dXNlcjpwYXNz"},
        {"Authorization": "Bearer " + "0" * 32 + "." + "A" * 43},
        {"Authorization": ("Bearer " + "0" * 32 + ".\x00ü").encode("latin-1")},
    ],
)
def test_without_a_credential_there_is_nothing(shared_api: Service, headers: dict[str, str]) -> None:
    for answer in (
        shared_api.check(headers),
        shared_api.client.post("/v1/updates/report", json={}, headers=headers),
        shared_api.client.get(f"/v1/targets/manifests/{MODEL}/1.json", headers=headers),
        shared_api.client.get("/v1/operator/devices", headers=headers),
    ):
        assert problem_of(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"


def test_devices_and_operators_are_not_each_other(shared_api: Service) -> None:
    device = shared_api.enrol()
    problem_of(shared_api.client.get("/v1/operator/devices", headers=device), 401)
    problem_of(shared_api.check(shared_api.operator), 401)


def test_a_revoked_device_is_out(shared_api: Service) -> None:
    device = shared_api.enrol()
    device_id = device["Authorization"].removeprefix("Bearer ").split(".")[0]
    assert shared_api.client.post(f"/v1/operator/devices/{device_id}/revoke", headers=shared_api.operator).json()[
        "revoked_at"
    ]
    assert "revoked" in problem_of(shared_api.check(device), 403)
    problem_of(shared_api.client.get(f"/v1/targets/manifests/{MODEL}/1.json", headers=device), 403)


def test_an_update_is_offered_by_what_the_device_has(shared_api: Service) -> None:
    device = shared_api.enrol()

    def path_for(**query: object) -> str:
        answer = shared_api.check(device, **query)
        assert answer.status_code == 200, answer.text
        offer = Offer.model_validate(answer.json())
        assert (offer.version, offer.tree_hash) == (3, shared_api.hash_of(3))
        return offer.package.path

    full, delta = f"packages/{MODEL}/3/full.lmpkg", f"packages/{MODEL}/3/from-2.lmpkg"
    assert path_for() == full
    assert path_for(installed_version=2, installed_hash=shared_api.hash_of(2)) == delta
    assert path_for(installed_version=2, installed_hash=shared_api.hash_of(2), only_full=True) == full
    assert path_for(installed_version=2, installed_hash="0" * 64) == full
    assert (
        path_for(installed_version=1, installed_hash=shared_api.hash_of(1)) == full
    )  # nobody had v1: no delta was built
    for version, known_hash in ((3, shared_api.hash_of(3)), (3, None), (4, None), (2**31, "0" * 64)):
        answer = shared_api.check(device, installed_version=version, installed_hash=known_hash)
        assert (answer.status_code, answer.content) == (204, b"")


def test_deltas_over_versions_between_are_offered_where_they_are_fewer_bytes(shared_api: Service) -> None:
    device = shared_api.enrol() | {PROTOCOL_HEADER: str(PROTOCOL)}
    has_v1 = {"installed_version": 1, "installed_hash": shared_api.hash_of(1)}
    answer = shared_api.check(device, **has_v1)
    offer = Offer.model_validate(answer.json())
    assert answer.headers[PROTOCOL_HEADER] == str(PROTOCOL)
    # Nobody had v1 when v3 was published, so no delta leads from it to v3; v2's and v3's own do.
    assert [(step.package.source_version, step.version) for step in offer.chain] == [(1, 2), (2, 3)]
    assert sum(step.package.length for step in offer.chain) < offer.package.length
    assert (offer.chain[-1].tree_hash, offer.chain[-1].manifest_path) == (offer.tree_hash, offer.manifest_path)
    # Not for whoever asked for the full package, is damaged, or has a direct delta.
    for query in ({**has_v1, "only_full": True}, {"installed_version": 1, "installed_hash": "0" * 64}, {}):
        assert Offer.model_validate(shared_api.check(device, **query).json()).chain == ()
    direct = shared_api.check(device, installed_version=2, installed_hash=shared_api.hash_of(2))
    assert Offer.model_validate(direct.json()).chain == ()


def test_a_package_is_offered_that_fits_on_the_device_s_disk(shared_api: Service) -> None:
    device = shared_api.enrol() | {PROTOCOL_HEADER: str(PROTOCOL)}
    has_v2 = {"installed_version": 2, "installed_hash": shared_api.hash_of(2)}
    registry = shared_api.home.registry
    packages = {package.source_version: package for package in registry.packages(MODEL, 3)}
    trees = {number: registry.version(MODEL, number).manifest for number in (1, 2, 3)}
    by_delta = disk_bytes((packages[2],), (trees[2], trees[3]))
    in_full = disk_bytes((packages[None],), (None, trees[3]))
    assert by_delta < in_full == packages[None].length + sum(file.length for file in trees[3].files)

    def ask(free_bytes: int, **query: object) -> "Response":
        return shared_api.check(device | {ROOM_HEADER: str(free_bytes)}, **query)

    assert Offer.model_validate(ask(by_delta, **has_v2).json()).package.path == packages[2].path
    refused = ask(by_delta - 1, **has_v2)
    assert (refused.status_code, "1 more bytes" in refused.json()["detail"]) == (409, True)
    # Whoever is damaged, empty, or wants it so gets the full package, which links no file.
    for query in ({}, {**has_v2, "only_full": True}, {**has_v2, "installed_hash": "0" * 64}):
        assert Offer.model_validate(ask(in_full, **query).json()).package.path == packages[None].path
        assert ask(in_full - 7, **query).json()["detail"].startswith("v3 does not fit on this device's disk: 7 more")
    # A chain may fit where the only package does not.
    has_v1 = {"installed_version": 1, "installed_hash": shared_api.hash_of(1)}
    chain = Offer.model_validate(ask(in_full, **has_v1).json()).chain
    steps = [package for package in registry.deltas(MODEL) if package.version in {2, 3}]
    by_chain = disk_bytes(steps, (trees[1], trees[2], trees[3]))
    assert len(chain) == 2
    assert by_chain < in_full
    assert len(Offer.model_validate(ask(by_chain, **has_v1).json()).chain) == 2
    assert ask(by_chain - 1, **has_v1).status_code == 409


@pytest.mark.parametrize("said", ["-1", "1.5", "much", str(2**60), "9" * 5000])
def test_nonsense_about_free_disk_is_refused(shared_api: Service, said: str) -> None:
    assert shared_api.check(shared_api.enrol() | {ROOM_HEADER: said}).status_code == 422


def test_a_device_of_the_release_before_understands_every_answer(shared_api: Service) -> None:
    reply = shared_api.client.post("/v1/devices", json={"token": shared_api.token(), "name": "old"})
    credential = protocol_1.EnrolReply.model_validate(reply.json()).credential
    device = {"Authorization": f"Bearer {credential}"}
    query = protocol_1.UpdateQuery(model=MODEL, installed_version=1, installed_hash=shared_api.hash_of(1))
    answer = shared_api.client.post("/v1/updates/check", content=query.model_dump_json(), headers=device | JSON)
    offer = protocol_1.Offer.model_validate(answer.json())
    assert answer.headers[PROTOCOL_HEADER] == "1"
    for outcome in ("downloaded", "applied", "confirmed"):
        report = protocol_1.OutcomeReport(offer_id=offer.offer_id, version=offer.version, outcome=outcome)
        sent = shared_api.client.post("/v1/updates/report", content=report.model_dump_json(), headers=device | JSON)
        assert sent.status_code == 204, sent.text
    token = shared_api.client.post("/v1/operator/enrolment-tokens", json={"model": MODEL}, headers=shared_api.operator)
    protocol_1.EnrolmentFile.model_validate(token.json()["file"])


def test_a_device_is_offered_what_its_release_reads(shared_api: Service) -> None:
    device = shared_api.enrol()

    def offered(protocol: int, installed: int) -> Offer:
        has = {"installed_version": installed, "installed_hash": shared_api.hash_of(installed)}
        return Offer.model_validate(shared_api.check(device | {PROTOCOL_HEADER: str(protocol)}, **has).json())

    # Deltas are in format 5, which devices read from protocol 6 on; full packages in format 3, which all of them read.
    assert offered(6, installed=2).package.source_version == 2
    assert offered(6, installed=1).chain
    for protocol, installed in itertools.product((1, 3, 5), (1, 2)):
        old = offered(protocol, installed)
        assert (old.package.source_version, old.chain) == (None, ())
        raw = shared_api.client.get(f"/v1/targets/{old.package.path}", headers=device).content
        assert int.from_bytes(raw[8:12], "little") == 3


def test_nothing_is_offered_before_there_is_a_release(tmp_path: Path) -> None:
    with Service(tmp_path) as api:
        api.home.base()
        assert api.check(api.enrol()).status_code == 204


def test_another_model_is_not_for_this_device(shared_api: Service) -> None:
    device = shared_api.enrol()
    assert "enrolled for 'tiny'" in problem_of(shared_api.check(device, model="other"), 403)


def test_asking_again_is_the_same_offer(shared_api: Service) -> None:
    device = shared_api.enrol()
    assert shared_api.check(device).json() == shared_api.check(device).json()
    assert shared_api.check(shared_api.enrol("other")).json()["offer_id"] != shared_api.check(device).json()["offer_id"]


def test_a_version_that_a_device_reverted_is_not_offered_to_it_again(shared_api: Service) -> None:
    bad, good = shared_api.enrol("bad"), shared_api.enrol("good")
    has = {"installed_version": 2, "installed_hash": shared_api.hash_of(2)}
    offer = shared_api.check(bad, **has).json()
    for outcome in ("failed", "applied", "tested", "reverted"):
        assert shared_api.check(bad, **has).status_code == 200  # a failed download is tried again
        report = {"offer_id": offer["offer_id"], "version": 3, "outcome": outcome}
        assert shared_api.client.post("/v1/updates/report", json=report, headers=bad).status_code == 204
        offer = offer if outcome != "failed" else shared_api.check(bad, **has).json()
    assert shared_api.check(bad, **has).status_code == 204
    assert shared_api.check(good, **has).json()["version"] == 3


def test_a_device_reports_about_its_own_offers_only(api: Service) -> None:
    mine, theirs = api.enrol("mine"), api.enrol("theirs")
    offer = api.check(theirs).json()
    report = {"offer_id": offer["offer_id"], "version": 3, "outcome": "confirmed"}
    problem_of(api.client.post("/v1/updates/report", json=report, headers=mine), 404)
    problem_of(api.client.post("/v1/updates/report", json={**report, "version": 2}, headers=theirs), 409)
    for _ in range(2):
        assert api.client.post("/v1/updates/report", json=report, headers=theirs).status_code == 204
    (device,) = [device for device in api.home.registry.devices() if device.name == "theirs"]
    assert (device.installed_version, device.installed_hash) == (3, api.hash_of(3))
    assert len(api.home.registry.reports(device.device_id)) == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/devices", {"token": "x"}),
        ("/v1/devices", {"token": "x", "name": "a\x00b"}),
        ("/v1/devices", {"token": "x", "name": "y", "extra": 1}),
        ("/v1/updates/check", {"model": "../x"}),
        ("/v1/updates/check", {"model": MODEL, "installed_version": 0}),
        ("/v1/updates/check", {"model": MODEL, "installed_version": 10**30}),
        ("/v1/updates/check", {"model": MODEL, "installed_version": "2"}),
        ("/v1/updates/check", {"model": MODEL, "installed_hash": "x"}),
        ("/v1/updates/check", []),
        ("/v1/updates/report", {"offer_id": "x", "version": 1, "outcome": "exploded"}),
        ("/v1/updates/report", {"offer_id": "x", "version": 1, "outcome": "failed", "reason": "x" * 501}),
        ("/v1/updates/report", {"offer_id": "x", "version": 1, "outcome": "failed", "apply_seconds": -1}),
    ],
)
def test_what_does_not_fit_is_refused_and_not_echoed(shared_api: Service, path: str, body: object) -> None:
    detail = problem_of(shared_api.client.post(path, json=body, headers=shared_api.enrol()), 422)
    assert detail.startswith("body")
    assert "x" * 501 not in detail


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 60_000, b'{"model": NaN}'])
def test_what_is_no_json_is_refused(shared_api: Service, content: bytes) -> None:
    headers = {**shared_api.enrol(), "content-type": "application/json"}
    assert shared_api.client.post("/v1/updates/check", content=content, headers=headers).status_code in {400, 422}


def test_bodies_are_bounded_before_they_are_read(shared_api: Service) -> None:
    device = shared_api.enrol()
    fits = b'{"model": "tiny"' + b" " * (64 * 1024 - 17) + b"}"
    assert len(fits) == 64 * 1024
    headers = {**device, "content-type": "application/json"}
    assert shared_api.client.post("/v1/updates/check", content=fits, headers=headers).status_code == 200
    problem_of(shared_api.client.post("/v1/updates/check", content=fits + b" ", headers=headers), 413)
    # Without a declared length what arrives is counted.
    chunks = (b" " * 1024 for _ in range(100))
    problem_of(shared_api.client.post("/v1/updates/check", content=chunks, headers=headers), 413)
    problem_of(shared_api.client.request("GET", "/v1/healthz", content=b" " * 70_000), 413)


def test_a_device_goes_the_whole_way_with_the_tuf_client(shared_api: Service, tmp_path: Path) -> None:
    """Enrolment file → offer → signed metadata → manifest and package → the tree of v3, by a full and a delta."""
    answer = shared_api.client.post("/v1/operator/enrolment-tokens", json={"model": MODEL}, headers=shared_api.operator)
    file = EnrolmentFile.model_validate(answer.json()["file"])
    reply = shared_api.client.post("/v1/devices", json={"token": file.token, "name": "kitchen"}).json()
    device = {"Authorization": f"Bearer {reply['credential']}"}

    def get(url: str) -> tuple[int, bytes]:
        answer = shared_api.client.get(url, headers=device)
        return answer.status_code, answer.content

    root = shared_api.client.get("/v1/metadata/1.root.json").content
    assert shared_api.client.get("/v1/metadata/1.root.json").json() == file.root
    updater = updater_for(get, tmp_path / "tuf", root=root)
    for installed, source in ((None, None), (2, tmp_path / "v2")):
        if source is not None:
            apply_package(
                None,
                shared_api.home.artifacts.path(shared_api.home.registry.packages(MODEL, 2)[0].sha256),
                source,
                expected_target_hash=shared_api.hash_of(2),
            )
        query = (
            {}
            if installed is None
            else {"installed_version": installed, "installed_hash": shared_api.hash_of(installed)}
        )
        offer = Offer.model_validate(shared_api.check(device, **query).json())
        assert offer.package.source_version == installed
        info, manifest_info = updater.get_targetinfo(offer.package.path), updater.get_targetinfo(offer.manifest_path)
        assert info is not None
        assert manifest_info is not None
        assert (info.length, info.hashes["sha256"]) == (offer.package.length, offer.package.sha256)
        manifest_path = updater.download_target(manifest_info)
        manifest = VersionManifest.from_bytes(Path(manifest_path).read_bytes())
        assert (manifest.version, manifest.tree_hash) == (3, offer.tree_hash)
        package = Path(updater.download_target(info))
        assert hashlib.sha256(package.read_bytes()).hexdigest() == offer.package.sha256
        target = tmp_path / f"from-{installed}"
        apply_package(source, package, target, expected_target_hash=offer.tree_hash)
        assert scan_tree(target) == manifest.files
