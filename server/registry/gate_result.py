"""What the evaluation gate measured of a candidate, and whether that is enough."""

import math
from dataclasses import dataclass

from privacy.utility import GroupChange


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """What the evaluation gate measured: mean loss per example, in nats, and by group where the text has labels.

    ``worst_group_margin`` is the most that the loss of any group may rise, beyond chance; None: groups decide nothing.
    """

    candidate_loss: float
    parent_loss: float
    margin: float
    groups: tuple[GroupChange, ...] = ()
    worst_group_margin: float | None = None

    @property
    def is_passed(self) -> bool:
        """Whether it may be released: at most ``margin`` worse for all, and no group worse than that has too."""
        return self._is_mean_passed and not self.harmed

    @property
    def harmed(self) -> tuple[GroupChange, ...]:
        """Groups whose loss rose by more than a group's may, beyond chance; the worst first."""
        if self.worst_group_margin is None:
            return ()
        over = [group for group in self.groups if group.low is not None and group.low > self.worst_group_margin]
        return tuple(sorted(over, key=lambda group: -group.change))

    @property
    def reason(self) -> str:
        """The verdict in words."""
        verdict = "passed" if self.is_passed else "refused"
        told = (
            f"evaluation gate {verdict}: held-out loss {self.candidate_loss:.4f}, parent {self.parent_loss:.4f}, "
            f"margin {self.margin:.4f}"
        )
        if not self.harmed or not self._is_mean_passed:
            return told
        groups = "; ".join(
            f"group {group.name!r} rose by {group.change:.4f} (95% interval {group.low:+.4f} to {group.high:+.4f}, "
            f"{group.examples} examples)"
            for group in self.harmed
        )
        return (
            f"{told}; {groups}, and a group's may rise by {self.worst_group_margin:g}. Train with more of such text or "
            "less noise, or release with a larger --worst-group-margin (LAMELLA_GATE_WORST_GROUP_MARGIN)"
        )

    @property
    def _is_mean_passed(self) -> bool:
        # A loss that is not finite never passes.
        return math.isfinite(self.candidate_loss) and self.candidate_loss <= self.parent_loss + self.margin
