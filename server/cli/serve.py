"""`lamella serve`: the update service."""

from __future__ import annotations

from typing import Annotated

import typer

from server.cli.console import console, words_aside
from server.config import load_settings
from server.errors import ConfigurationError


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (LAMELLA_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (LAMELLA_PORT).")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write logs as JSON lines (LAMELLA_LOG_FORMAT=json), and nothing else.")
    ] = False,
) -> None:
    """Run the update service's REST API until it is stopped; its documentation is under /docs."""
    import uvicorn

    from server.api import create_app
    from server.api.logs import log_as_json

    given = {"host": host, "port": port, "log_format": "json" if as_json else None}
    settings = load_settings(**{k: v for k, v in given.items() if v is not None})
    _refuse_taken_port(settings.host, settings.port)
    if settings.log_format == "json":
        log_as_json()
    words_aside(as_json)
    console.print(
        f"Update service on http://{settings.host}:{settings.port}  ·  API docs at /docs  ·  home {settings.home}"
    )
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_level="warning",
        log_config=None if settings.log_format == "json" else uvicorn.config.LOGGING_CONFIG,
        server_header=False,
    )


def _refuse_taken_port(host: str, port: int) -> None:
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigurationError(
                f"Cannot listen on {host}:{port}: {error.strerror}. Stop what uses it, or choose another with --port."
            ) from None
