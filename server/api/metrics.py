"""Numbers for Prometheus: by route and outcome, never by device."""

from __future__ import annotations

import hmac
import os
from functools import cache
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from server.errors import CredentialRefusedError, NotFoundError

if TYPE_CHECKING:
    from server.api.services import Services

router = APIRouter()

# From an answer out of memory to a large package.
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class Metrics:
    """The service's own numbers, of this process; of all its processes where ``PROMETHEUS_MULTIPROC_DIR`` is set."""

    def __init__(self) -> None:
        self._collected = CollectorRegistry()
        self._requests = Counter(
            "lamella_http_requests",
            "Requests, by what answered them and how.",
            ("method", "route", "status"),
            registry=self._collected,
        )
        self._seconds = Histogram(
            "lamella_http_request_seconds",
            "Seconds until the last byte of an answer was sent.",
            ("route",),
            buckets=_SECONDS,
            registry=self._collected,
        )
        self._bytes = Counter(
            "lamella_http_sent_bytes", "Bytes of answers' bodies.", ("route",), registry=self._collected
        )
        self._outcomes = Counter(
            "lamella_update_outcomes", "Outcomes that devices reported.", ("outcome",), registry=self._collected
        )
        self._expiry = Gauge(
            "lamella_metadata_expiry_timestamp_seconds",
            "When devices stop to believe the signed metadata, unless it is renewed before.",
            registry=self._collected,
            multiprocess_mode="mostrecent",
        )

    def observe(self, *, method: str, route: str, status: int, seconds: float, sent_bytes: int) -> None:
        """Count one request."""
        requests, times, lengths = self._of(method, route, status)
        requests.inc()
        times.observe(seconds)
        lengths.inc(sent_bytes)

    @cache  # noqa: B019 - one object for as long as the process lives; there are few routes
    def _of(self, method: str, route: str, status: int) -> tuple[Counter, Histogram, Counter]:
        return (
            self._requests.labels(method, route, str(status)),
            self._seconds.labels(route),
            self._bytes.labels(route),
        )

    def count_outcome(self, outcome: str) -> None:
        """Count one report of a device."""
        self._outcomes.labels(outcome).inc()

    def page(self, services: Services) -> bytes:
        """All numbers in Prometheus' text format."""
        self._expiry.set(services.metadata.expires_at().timestamp())
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            everything = CollectorRegistry()
            MultiProcessCollector(everything)  # type: ignore[no-untyped-call]
            return generate_latest(everything)
        return generate_latest(self._collected)


@router.get("/metrics", include_in_schema=False)
def show_metrics(request: Request) -> Response:
    """The page that Prometheus reads; without a token set, there is none.

    Raises:
        NotFoundError: `LAMELLA_METRICS_TOKEN` is not set.
        CredentialRefusedError: It did not come with the request.
    """
    services: Services = request.app.state.services
    expected = services.settings.metrics_token
    if expected is None:
        raise NotFoundError("There are no metrics here: LAMELLA_METRICS_TOKEN is not set.")
    given = request.headers.get("authorization", "").removeprefix("Bearer ")
    if not hmac.compare_digest(given.encode(), expected.get_secret_value().encode()):
        raise CredentialRefusedError("Metrics need the token: Authorization: Bearer <LAMELLA_METRICS_TOKEN>.")
    return Response(services.metrics.page(services), media_type=CONTENT_TYPE_LATEST)
