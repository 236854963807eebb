"""Answers that stream a file from disk: whole, in part, or headers only."""

from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Final

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.ranges import ByteRange, UnsatisfiableRangeError, is_fresh, parse_range

_CHUNK_BYTES: Final = 256 * 1024


class FileAnswer(Response):
    """A file's bytes, or some of them; the file is opened before the first header is sent."""

    def __init__(
        self, path: Path, *, part: ByteRange, status_code: int, headers: Mapping[str, str], media_type: str
    ) -> None:
        self._path = path
        self._part = part
        super().__init__(None, status_code, {**headers, "content-length": str(part.length)}, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Send the answer in constant memory."""
        async with await anyio.open_file(self._path, "rb") as file:
            await file.seek(self._part.first)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            left = 0 if scope["method"] == "HEAD" else self._part.length
            while left:
                chunk = await file.read(min(_CHUNK_BYTES, left))
                if not chunk:
                    # The server then cuts the connection, so that the device knows that bytes are missing.
                    raise OSError(f"{self._path} became shorter while it was sent")
                left -= len(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def answer_with_file(
    path: Path,
    *,
    method: str,
    request_headers: Mapping[str, str],
    length: int,
    sha256: str,
    media_type: str,
    cache_control: str,
) -> Response:
    """Answer GET or HEAD for a file of known length (bytes) and hash.

    Args:
        path: The file.
        method: GET or HEAD; a range is only looked at for GET.
        request_headers: Of the request, case-insensitive.
        length: Of the file, in bytes.
        sha256: Of the file; it is the strong ETag.
        media_type: Of the file.
        cache_control: How long others may keep it.
    """
    etag = f'"{sha256}"'
    headers = {"etag": etag, "accept-ranges": "bytes", "cache-control": cache_control}
    if is_fresh(request_headers.get("if-none-match"), etag):
        return Response(None, HTTPStatus.NOT_MODIFIED, headers)
    part = None
    if method == "GET":
        try:
            part = parse_range(
                request_headers.get("range"), if_range=request_headers.get("if-range"), etag=etag, length=length
            )
        except UnsatisfiableRangeError:
            headers["content-range"] = f"bytes */{length}"
            return Response(None, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers)
    if part is None:
        whole = ByteRange(0, length - 1)
        return FileAnswer(path, part=whole, status_code=HTTPStatus.OK, headers=headers, media_type=media_type)
    headers["content-range"] = f"bytes {part.first}-{part.last}/{length}"
    return FileAnswer(path, part=part, status_code=HTTPStatus.PARTIAL_CONTENT, headers=headers, media_type=media_type)
