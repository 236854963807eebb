"""OpenTelemetry traces of requests and queries, where they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from server.errors import ConfigurationError

if TYPE_CHECKING:
    from fastapi import FastAPI
    from opentelemetry.trace import Tracer
    from sqlalchemy import Connection, Engine

    from server.api.services import Services

_SPAN = "lamella_span"


def trace(app: FastAPI, services: Services) -> None:
    """Send spans of every request and query to where the ``OTEL_*`` variables say.

    Raises:
        ConfigurationError: The packages for it are not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor  # noqa: PLC0415
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"LAMELLA_TRACES needs the package {error.name}. Install it with: pip install 'lamella[otel]'"
        ) from error
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "lamella"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider)
    _trace_queries(services.registry.engine, provider.get_tracer("lamella.registry"))


def _trace_queries(engine: Engine, tracer: Tracer) -> None:
    """A span for each statement, with its text and never with its values."""

    def before(_connection: Connection, _cursor: object, statement: str, *args: Any) -> None:  # noqa: ANN401
        _, context, _ = args
        span = tracer.start_span(statement.split(maxsplit=1)[0])
        span.set_attributes({"db.system.name": engine.dialect.name, "db.query.text": statement})
        setattr(context, _SPAN, span)

    def after(_connection: Connection, _cursor: object, _statement: str, *args: Any) -> None:  # noqa: ANN401
        _, context, _ = args
        getattr(context, _SPAN).end()

    event.listen(engine, "before_cursor_execute", before)
    event.listen(engine, "after_cursor_execute", after)
