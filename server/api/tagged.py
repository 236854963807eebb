"""Answers that change seldom: with an ETag, and without a body for whoever has it already."""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from typing import TYPE_CHECKING

from fastapi import Response

from server.api.ranges import is_fresh

if TYPE_CHECKING:
    from fastapi import Request
    from pydantic import BaseModel


def answer_tagged(content: BaseModel, request: Request) -> Response:
    """Answer with a model as JSON, its ETag the hash of that; 304 where the caller shows it (If-None-Match)."""
    raw = content.model_dump_json().encode()
    headers = {"etag": f'"{hashlib.sha256(raw).hexdigest()}"', "cache-control": "private, no-cache"}
    if is_fresh(request.headers.get("if-none-match"), headers["etag"]):
        return Response(None, HTTPStatus.NOT_MODIFIED, headers)
    return Response(raw, HTTPStatus.OK, headers, "application/json")
