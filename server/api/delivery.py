"""Who sends a file to a device: this process, nginx in front of it, or the bucket."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from fastapi import Response

from delta_updates import REDIRECT_HEADER
from server.api.ranges import is_fresh
from server.api.streaming import answer_with_bytes
from server.artifacts import require_length

if TYPE_CHECKING:
    from fastapi import Request

    from server.api.services import Services
    from server.registry import TargetRecord

FOREVER: Final = "max-age=31536000, immutable"


def hand_out(services: Services, target: TargetRecord, request: Request) -> Response:
    """Answer GET or HEAD for a file that the caller may have.

    Raises:
        ArtifactMissingError, ArtifactDamagedError: The store does not hold it as recorded.
        StorageError: The store does not answer.
    """
    is_json = target.path.endswith(".json")
    media_type = "application/json" if is_json else "application/octet-stream"
    etag, cache_control = f'"{target.sha256}"', f"private, {FOREVER}"
    # Manifests are small, and read by programs that follow nothing.
    is_handed_on = not is_json and request.method == "GET" and not is_fresh(request.headers.get("if-none-match"), etag)
    if is_handed_on and services.settings.downloads == "nginx":
        place = f"{services.settings.nginx_location}{target.sha256[:2]}/{target.sha256}"
        headers = {"x-accel-redirect": place, "etag": etag, "cache-control": cache_control}
        return Response(None, HTTPStatus.OK, headers, media_type)
    if is_handed_on and services.settings.downloads == "presigned" and REDIRECT_HEADER in request.headers:
        link = services.artifacts.link(target.sha256)
        if link is not None:
            return Response(None, HTTPStatus.TEMPORARY_REDIRECT, {"location": link})
    require_length(services.artifacts, target.sha256, target.length)
    return answer_with_bytes(
        lambda first, length: services.artifacts.chunks(target.sha256, first=first, length=length),
        method=request.method,
        request_headers=request.headers,
        length=target.length,
        sha256=target.sha256,
        media_type=media_type,
        cache_control=cache_control,
    )
