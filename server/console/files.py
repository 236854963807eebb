"""The stylesheet and the icon."""

from http import HTTPStatus
from typing import Literal

from fastapi import APIRouter, Response

from server.console.responses import STATIC, ConsoleRoute

router = APIRouter(route_class=ConsoleRoute)


@router.get("/static/{name}", status_code=HTTPStatus.OK)
def static(name: Literal["console.css", "icon.svg"]) -> Response:
    """One of the two files; their address changes with their contents."""
    media_type, content = STATIC[name]
    return Response(content, media_type=media_type, headers={"cache-control": "public, max-age=31536000, immutable"})
