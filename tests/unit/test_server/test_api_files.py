import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulators.server_home import MODEL, make_package
from simulators.update_api import Service

from server.api.ranges import ByteRange, UnsatisfiableRangeError, is_fresh, parse_range

ETAG = '"tag"'
PACKAGE = f"/v1/targets/packages/{MODEL}/3/full.lmpkg"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-9", ByteRange(0, 9)),
        ("bytes=90-", ByteRange(90, 99)),
        ("bytes=90-1000", ByteRange(90, 99)),
        ("bytes=-10", ByteRange(90, 99)),
        ("bytes=-1000", ByteRange(0, 99)),
        ("Bytes = 0-9", None),
        ("BYTES=0-9", ByteRange(0, 9)),
        ("bytes= 5 - 6 ", ByteRange(5, 6)),
        ("bytes=9-5", None),
        ("bytes=-", None),
        ("bytes=", None),
        ("bytes=a-b", None),
        ("bytes=0-1,5-6", None),
        ("items=0-9", None),
        ("bytes=0-" + "9" * 40, None),
        ("bytes=٣-٤", None),
    ],
)
def test_a_range_is_read_as_the_rfc_says(header: str | None, expected: ByteRange | None) -> None:
    assert parse_range(header, if_range=None, etag=ETAG, length=100) == expected


@pytest.mark.parametrize(
    ("header", "length"), [("bytes=100-", 100), ("bytes=-0", 100), ("bytes=0-", 0), ("bytes=-5", 0)]
)
def test_a_range_after_the_end_cannot_be_satisfied(header: str, length: int) -> None:
    with pytest.raises(UnsatisfiableRangeError):
        parse_range(header, if_range=None, etag=ETAG, length=length)


def test_the_rest_of_another_file_is_not_sent() -> None:
    for if_range in ('"other"', f"W/{ETAG}", "Sun, 01 Mar 2026 12:00:00 GMT"):
        assert parse_range("bytes=5-", if_range=if_range, etag=ETAG, length=10) is None
        assert parse_range("bytes=50-", if_range=if_range, etag=ETAG, length=10) is None
    assert parse_range("bytes=5-", if_range=ETAG, etag=ETAG, length=10) == ByteRange(5, 9)


@given(st.text(max_size=30) | st.from_regex(r"bytes=[0-9]{0,4}-[0-9]{0,4}", fullmatch=True), st.integers(0, 1000))
def test_a_range_lies_in_the_file_whatever_the_header(header: str, length: int) -> None:
    try:
        part = parse_range(header, if_range=None, etag=ETAG, length=length)
    except UnsatisfiableRangeError:
        return
    assert part is None or 0 <= part.first <= part.last < length


def test_a_known_file_is_not_sent_again() -> None:
    assert is_fresh('"a", W/"tag"', ETAG)
    assert is_fresh("*", ETAG)
    assert not is_fresh('"a"', ETAG)
    assert not is_fresh(None, ETAG)


def stored(api: Service) -> bytes:
    package = api.home.registry.packages(MODEL, 3)[0]
    return api.home.artifacts.read_bytes(package.sha256)


def test_a_package_is_streamed_whole(shared_api: Service) -> None:
    device, content = shared_api.enrol(), stored(shared_api)
    answer = shared_api.client.get(PACKAGE, headers=device)
    assert (answer.status_code, answer.content) == (200, content)
    assert answer.headers["content-length"] == str(len(content))
    assert answer.headers["etag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert "immutable" in answer.headers["cache-control"]
    head = shared_api.client.head(PACKAGE, headers={**device, "range": "bytes=0-4"})
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(content)))


def test_a_large_package_comes_in_chunks_and_unchanged(api: Service) -> None:
    content = bytes(range(256)) * 4096  # a mebibyte
    digest = api.home.artifacts.put_bytes(content)
    record = make_package(4, digest="f")
    api.home.candidate(9, parent=3)
    package = type(record)(**{**vars(record), "sha256": digest, "length": len(content)})
    api.home.registry.add_packages(MODEL, 4, [package])
    from server.registry import GateResult

    api.home.registry.record_gate(MODEL, 4, GateResult(candidate_loss=1, parent_loss=1, margin=0))
    api.home.registry.mark_released(MODEL, 4)
    device = api.enrol()
    assert api.client.get(f"/v1/targets/{package.path}", headers=device).content == content
    part = api.client.get(f"/v1/targets/{package.path}", headers={**device, "range": "bytes=300000-900000"})
    assert part.content == content[300_000:900_001]


def test_a_cut_download_is_resumed(shared_api: Service) -> None:
    device, content = shared_api.enrol(), stored(shared_api)
    etag = shared_api.client.head(PACKAGE, headers=device).headers["etag"]
    rest = shared_api.client.get(PACKAGE, headers={**device, "range": "bytes=100-", "if-range": etag})
    assert (rest.status_code, rest.content) == (206, content[100:])
    assert rest.headers["content-range"] == f"bytes 100-{len(content) - 1}/{len(content)}"
    assert rest.headers["content-length"] == str(len(content) - 100)
    assert rest.headers["etag"] == etag
    other = shared_api.client.get(PACKAGE, headers={**device, "range": "bytes=100-", "if-range": '"other"'})
    assert (other.status_code, other.content) == (200, content)
    after = shared_api.client.get(PACKAGE, headers={**device, "range": f"bytes={len(content)}-"})
    assert (after.status_code, after.content) == (416, b"")
    assert after.headers["content-range"] == f"bytes */{len(content)}"
    known = shared_api.client.get(PACKAGE, headers={**device, "if-none-match": etag})
    assert (known.status_code, known.content) == (304, b"")


@pytest.mark.parametrize(
    "path",
    [
        f"packages/{MODEL}/3/from-1.lmpkg",
        f"packages/{MODEL}/4/full.lmpkg",
        f"manifests/{MODEL}/4.json",
        f"manifests/{MODEL}/03.json",
        f"manifests/{MODEL}/99999999999999999999.json",
        f"packages/{MODEL}//3/full.lmpkg",
    ],
)
def test_what_is_not_released_is_not_there(api: Service, path: str) -> None:
    api.home.candidate(9, parent=3)
    answer = api.client.get(f"/v1/targets/{path}", headers=api.enrol())
    assert answer.status_code == 404, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "path",
    [
        "..%2f..%2foperator.token",
        "packages/..%2f..%2f..%2foperator.token",
        "%2fetc%2fpasswd",
        "packages/%00",
        "packages/" + "a" * 300,
        "operator.token",
    ],
)
def test_no_path_leads_out(shared_api: Service, path: str) -> None:
    answer = shared_api.client.get(f"/v1/targets/{path}", headers=shared_api.enrol())
    assert answer.status_code in {404, 422}, answer.text
    name = shared_api.client.get(f"/v1/metadata/{path}")
    assert name.status_code in {404, 422}


def test_another_models_files_are_not_for_this_device(api: Service) -> None:
    device = api.enrol()
    assert api.client.get(f"/v1/targets/manifests/{MODEL}/3.json", headers=device).status_code == 200
    from server.publishing import import_base, publish

    home = api.home
    version = import_base(home.registry, home.artifacts, model="other", tree=home.folder / "base-0")
    publish(
        home.registry,
        home.artifacts,
        home.metadata,
        model="other",
        version=version.number,
        gate=None,
        work=home.settings.work_dir,
    )
    assert api.client.get("/v1/targets/manifests/other/1.json", headers=device).status_code == 404


def test_a_lost_artifact_is_the_operators_trouble(api: Service) -> None:
    package = api.home.registry.packages(MODEL, 3)[0]
    api.home.artifacts.path(package.sha256).unlink()
    answer = api.client.get(PACKAGE, headers=api.enrol())
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "30"
    assert package.sha256 not in answer.text
    assert str(api.home.settings.home) not in answer.text


def test_metadata_needs_no_credential_and_is_cached_by_kind(shared_api: Service) -> None:
    for name, kept in (("timestamp.json", "no-cache"), ("1.root.json", "public, max-age=31536000, immutable")):
        answer = shared_api.client.get(f"/v1/metadata/{name}")
        assert (answer.status_code, answer.headers["cache-control"]) == (200, kept)
        head = shared_api.client.head(f"/v1/metadata/{name}")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == answer.headers["content-length"]
    assert shared_api.client.get("/v1/metadata/9.root.json").status_code == 404
