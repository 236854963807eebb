"""Signed metadata, and the manifests and packages that it names."""

import hashlib
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from server.api.delivery import FOREVER, hand_out
from server.api.examples import PACKAGE_PATH, TIME, answer
from server.api.problems import declare
from server.api.services import CallingDevice, ServicesDep
from server.errors import NotFoundError

router = APIRouter(tags=["files"])
_TIMESTAMP = {
    "signatures": [{"keyid": "2f685fa7546f1856b123223ab086b3def14c89d24eef18f49c32508c2f60e241", "sig": "5a0c..."}],
    "signed": {
        "_type": "timestamp",
        "expires": TIME,
        "meta": {"snapshot.json": {"version": 4}},
        "spec_version": "1.0.31",
        "version": 9,
    },
}

MetadataName = Annotated[
    str, Path(max_length=64, description="As TUF names them.", openapi_examples={"newest": {"value": "timestamp.json"}})
]
TargetPath = Annotated[
    str,
    Path(
        # Only what a signed path can look like; where it leads is the registry's to say, not the file system's.
        pattern=r"^(manifests|packages)/[A-Za-z0-9._/-]{1,200}$",
        description="A signed path, as in an offer.",
        openapi_examples={"delta": {"value": PACKAGE_PATH}},
    ),
]


@router.head("/metadata/{name}", include_in_schema=False)
@router.get(
    "/metadata/{name}",
    summary="Get signed metadata",
    response_class=Response,
    responses={
        200: answer("A document of The Update Framework.", _TIMESTAMP),
        **declare(HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY),
    },
)
def get_metadata(services: ServicesDep, request: Request, name: MetadataName) -> Response:
    """Hand out `timestamp.json`, `N.root.json`, `N.snapshot.json` or `N.targets.json`; needs no credential."""
    path = services.metadata.document(name)
    if path is None:
        raise NotFoundError(f"There is no metadata {name!r}.")
    # Read whole: the timestamp may be replaced while it is sent, and half of each would be neither.
    content = path.read_bytes()
    headers = {
        "cache-control": "no-cache" if name == "timestamp.json" else f"public, {FOREVER}",
        "etag": f'"{hashlib.sha256(content).hexdigest()}"',
    }
    answer = Response(content, media_type="application/json", headers=headers)
    if request.method == "HEAD":
        answer.body = b""
    return answer


@router.head("/targets/{path:path}", include_in_schema=False)
@router.get(
    "/targets/{path:path}",
    summary="Download a manifest or a package",
    response_class=Response,
    responses={
        200: answer("All of the file. The ETag is its sha256.", "bytes", media_type="application/octet-stream"),
        206: answer("The range that was asked for.", "bytes", media_type="application/octet-stream"),
        307: {"description": "The bucket has it: follow the link without the credential. Only who asks is sent there."},
        304: {"description": "The caller has these bytes already (If-None-Match)."},
        416: {"description": "The range begins after the end of the file; Content-Range has its length."},
        **declare(
            HTTPStatus.UNAUTHORIZED,
            HTTPStatus.FORBIDDEN,
            HTTPStatus.TOO_MANY_REQUESTS,
            HTTPStatus.NOT_FOUND,
            HTTPStatus.UNPROCESSABLE_ENTITY,
        ),
    },
)
def get_target(services: ServicesDep, device: CallingDevice, request: Request, path: TargetPath) -> Response:
    """Hand out a released file of the device's own model; one byte range may be asked for, with If-Range.

    Where the service is set to presigned links, a device that says `Lamella-Redirects: 1` is sent to the bucket.
    """
    target = services.registry.target(path)
    if target is None or path.split("/")[1] != device.model:
        raise NotFoundError(f"There is no released file {path!r} for this device.")
    return hand_out(services, target, request)
