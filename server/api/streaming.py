"""Answers that stream stored bytes: whole, in part, or headers only."""

from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Final

from starlette.concurrency import iterate_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.ranges import ByteRange, UnsatisfiableRangeError, is_fresh, parse_range

Source = Callable[[int, int], Iterator[bytes]]
"""Opens stored bytes: from an offset on, so many of them."""

_CHUNK_BYTES: Final = 256 * 1024


class PartAnswer(Response):
    """Stored bytes, or some of them; the source is opened before the first header is sent."""

    def __init__(
        self, source: Source, *, part: ByteRange, status_code: int, headers: Mapping[str, str], media_type: str
    ) -> None:
        self._source = source
        self._part = part
        super().__init__(None, status_code, {**headers, "content-length": str(part.length)}, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Send the answer in constant memory."""
        left = 0 if scope["method"] == "HEAD" else self._part.length
        chunks = iterate_in_threadpool(self._source(self._part.first, left) if left else iter(()))
        first = await anext(chunks, b"")
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        chunk = first
        while left:
            if not chunk:
                # The server then cuts the connection, so that the device knows that bytes are missing.
                raise OSError(f"an artifact ended {left} bytes early while it was sent")
            left -= len(chunk)
            for start in range(0, len(chunk), _CHUNK_BYTES):
                await send(
                    {"type": "http.response.body", "body": chunk[start : start + _CHUNK_BYTES], "more_body": True}
                )
            chunk = await anext(chunks, b"") if left else b""
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def answer_with_bytes(
    source: Source,
    *,
    method: str,
    request_headers: Mapping[str, str],
    length: int,
    sha256: str,
    media_type: str,
    cache_control: str,
) -> Response:
    """Answer GET or HEAD for stored bytes of known length (bytes) and hash.

    Args:
        source: Where they are.
        method: GET or HEAD; a range is only looked at for GET.
        request_headers: Of the request, case-insensitive.
        length: How many bytes there are.
        sha256: Their hash; it is the strong ETag.
        media_type: What they are.
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
        return PartAnswer(source, part=whole, status_code=HTTPStatus.OK, headers=headers, media_type=media_type)
    headers["content-range"] = f"bytes {part.first}-{part.last}/{length}"
    return PartAnswer(source, part=part, status_code=HTTPStatus.PARTIAL_CONTENT, headers=headers, media_type=media_type)
