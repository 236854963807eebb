"""The fleet at a glance."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from fastapi import APIRouter, Response

from server.api.services import ServicesDep
from server.console.charts import Chart, versions_chart
from server.console.responses import ConsoleRoute, render
from server.console.visits import VisitDep
from server.registry import VersionRecord
from server.registry.fleet import FleetCount

router = APIRouter(route_class=ConsoleRoute)
LATELY: Final = timedelta(hours=24)
_TROUBLES: Final = 8


@dataclass(frozen=True, kw_only=True)
class ModelOverview:
    """One model's part of the page."""

    name: str
    latest: VersionRecord | None
    counts: tuple[FleetCount, ...]
    chart: Chart | None

    @property
    def devices(self) -> int:
        """How many devices are enrolled for it."""
        return sum(count.devices for count in self.counts)

    @property
    def up_to_date(self) -> int:
        """How many of them run the latest release."""
        latest = self.latest.number if self.latest else 0
        return sum(count.devices for count in self.counts if count.version == latest)

    @property
    def seen_lately(self) -> int:
        """How many of them asked for updates in the last day."""
        return sum(count.seen_lately for count in self.counts)


@router.get("/")
def overview(services: ServicesDep, visit: VisitDep) -> Response:
    """Which versions the fleet runs, how that came about, and what went wrong last."""
    registry, now = services.registry, datetime.now(UTC)
    counts = registry.fleet_counts(lately=LATELY)
    models = [
        ModelOverview(
            name=name,
            latest=registry.latest_released(name),
            counts=tuple(count for count in counts if count.model == name),
            chart=versions_chart(services.moves.get(name, partial(registry.version_moves, name)), now=now),
        )
        for name in registry.models()
    ]
    return render(
        "overview.html",
        visit=visit,
        models=models,
        troubles=registry.troubles(limit=_TROUBLES),
        warnings=services.metadata.warnings(services.settings.trust_warning_days),
    )
