"""Packages sent by this process, by nginx in front of it, or by the bucket; and what a device makes of each."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulators.server_home import MODEL, open_home
from simulators.service_process import running_services
from simulators.update_api import Service

from client_sdk.disk import LocalDisk
from client_sdk.download import HttpFetcher
from client_sdk.identity import Bearer
from client_sdk.pace import Limits
from client_sdk.transport import Transport
from delta_updates import REDIRECT_HEADER
from server.artifacts import open_artifacts
from server.config import Settings
from server.errors import StorageError

PACKAGE = f"packages/{MODEL}/1/full.lmpkg"
URL = f"/v1/targets/{PACKAGE}"
MANIFEST = f"/v1/targets/manifests/{MODEL}/1.json"


def with_a_release(folder: Path, **settings: object) -> Service:
    service = Service(folder, **settings)
    service.home.base()
    service.home.publish(1, loss=None)
    return service


def test_nginx_is_told_where_the_file_lies(tmp_path: Path) -> None:
    with with_a_release(tmp_path, downloads="nginx", nginx_location="/kept/") as api:
        device, (package,) = api.enrol(), api.home.registry.packages(MODEL, 1)
        answer = api.client.get(URL, headers={**device, "range": "bytes=5-"})
        assert (answer.status_code, answer.content) == (200, b"")
        place = answer.headers["x-accel-redirect"]
        assert place == f"/kept/{package.sha256[:2]}/{package.sha256}"
        # What an alias of the artifacts' folder leads to is the very file.
        file = api.home.settings.artifacts_dir / place.removeprefix("/kept/")
        assert file.stat().st_size == package.length
        assert answer.headers["content-type"] == "application/octet-stream"
        assert "private" in answer.headers["cache-control"]
        etag = {"if-none-match": f'"{package.sha256}"'}
        assert api.client.get(URL, headers=device | etag).status_code == 304
        assert "x-accel-redirect" not in api.client.head(URL, headers=device).headers
        assert api.client.get(MANIFEST, headers=device).json()["version"] == 1
        assert api.client.get(URL).status_code == 401
        missing = api.client.get(URL.replace("/1/", "/2/"), headers=device)
        assert (missing.status_code, "x-accel-redirect" in missing.headers) == (404, False)


@pytest.fixture
def on_s3(s3_settings: Settings, tmp_path: Path) -> Iterator[Service]:
    facts = s3_settings.model_dump(include={"artifacts_url", "artifacts_endpoint"})
    with with_a_release(tmp_path, **facts, downloads="presigned") as api:
        yield api


@pytest.mark.slow
def test_a_bucket_serves_what_it_holds(on_s3: Service) -> None:
    device, (package,) = on_s3.enrol(), on_s3.home.registry.packages(MODEL, 1)
    content = open_artifacts(on_s3.home.settings).read_bytes(package.sha256)
    assert not on_s3.home.settings.artifacts_dir.exists()
    # A device of before follows nothing, and is sent everything.
    assert on_s3.client.get(URL, headers=device).content == content
    part = on_s3.client.get(URL, headers={**device, "range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, content[100:200])
    sent_on = on_s3.client.get(URL, headers={**device, REDIRECT_HEADER: "1"}, follow_redirects=False)
    assert (sent_on.status_code, sent_on.headers["cache-control"]) == (307, "no-store")
    assert "X-Amz-Signature" in sent_on.headers["location"]
    assert "test-secret" not in sent_on.headers["location"]
    assert on_s3.client.get(MANIFEST, headers=device | {REDIRECT_HEADER: "1"}).status_code == 200


@pytest.mark.slow
def test_a_release_on_a_bucket_is_built_from_what_the_bucket_holds(s3_settings: Settings, tmp_path: Path) -> None:
    home = open_home(tmp_path, **s3_settings.model_dump(include={"artifacts_url", "artifacts_endpoint"}))
    home.release_three()
    packages = home.registry.packages(MODEL, 3)
    assert [package.source_version for package in packages] == [None, 2]
    stored = {entry.digest: entry.length for entry in home.artifacts.everything()}
    assert all(stored[package.sha256] == package.length for package in packages)
    home.registry.close()


@pytest.mark.slow
def test_a_device_follows_the_link_and_continues_a_cut_download(s3_settings: Settings, tmp_path: Path) -> None:
    facts = s3_settings.model_dump(include={"artifacts_url", "artifacts_endpoint"})
    with with_a_release(tmp_path, **facts, downloads="presigned") as api:
        credential, (package,) = (
            api.enrol()["Authorization"].removeprefix("Bearer "),
            api.home.registry.packages(MODEL, 1),
        )
        content = open_artifacts(api.home.settings).read_bytes(package.sha256)
    environment = {f"LAMELLA_{name.upper()}": str(value) for name, value in facts.items()}
    environment |= {"LAMELLA_HOME": str(api.home.settings.home), "LAMELLA_DOWNLOADS": "presigned"}
    with running_services(environment, count=1) as (address,):
        transport = Transport(address, identity=Bearer(credential), limits=Limits(attempts=1))
        out = tmp_path / "device" / "package"
        out.parent.mkdir()
        out.with_name("package.part").write_bytes(content[:1000])
        moved = HttpFetcher(transport, LocalDisk()).fetch(
            PACKAGE, out, length=package.length, sha256=package.sha256, on_progress=lambda _done, _all: None
        )
    assert out.read_bytes() == content
    assert moved == len(content) - 1000


@pytest.mark.slow
def test_a_bucket_that_does_not_answer_makes_the_service_not_ready(
    on_s3: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert on_s3.client.get("/v1/readyz").status_code == 200
    gone = on_s3.home.settings.model_copy(update={"artifacts_url": "s3://no-such-bucket/x"})
    with pytest.raises(StorageError):
        open_artifacts(gone).ping()
    store = on_s3.app.state.services.artifacts
    monkeypatch.setattr(store, "_store", open_artifacts(gone)._store)
    with caplog.at_level(logging.ERROR, "lamella.api"):
        answer = on_s3.client.get("/v1/readyz")
    assert answer.status_code == 503
    assert "a list" in caplog.text
