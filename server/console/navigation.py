"""What the console's menu offers, in its order."""

from dataclasses import dataclass
from typing import Final

from server.registry.operator_records import Role


@dataclass(frozen=True)
class MenuEntry:
    """One page of the menu, and who sees it there."""

    path: str
    title: str
    needs: Role = Role.VIEWER


PAGES: Final = (
    MenuEntry("/console/", "Fleet"),
    MenuEntry("/console/releases", "Releases"),
    MenuEntry("/console/rollouts", "Rollouts"),
    MenuEntry("/console/devices", "Devices"),
    MenuEntry("/console/enrolment", "Enrolment"),
    MenuEntry("/console/runs", "Training"),
    MenuEntry("/console/audit", "Audit log"),
    MenuEntry("/console/operators", "Operators", Role.ADMIN),
)
