"""What an operator decides before a rollout starts: whom it is for, in which phases, and what stops it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from server.errors import InvalidRecordError

STABLE: Final = "stable"
"""The channel of every device that was put on no other; what is released on it reaches all channels."""

Metric = Literal["loss_increase", "tokens_per_second", "memory_bytes"]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Percentage = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


def _check_window(text: str) -> str:
    opens, closes = _times(text)
    if opens == closes:
        raise ValueError("the window opens when it closes; leave it away for the whole day")
    return text


def _times(window: str) -> tuple[time, time]:
    opens, _, closes = window.partition("-")
    return time.fromisoformat(opens), time.fromisoformat(closes)


Window = Annotated[
    str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$"), AfterValidator(_check_window)
]


class QualityLimit(BaseModel):
    """A bound on the mean of what devices measured: increase of loss and memory not above it, tokens/s not below."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Metric
    limit: Annotated[float, Field(ge=0, allow_inf_nan=False)]

    def is_crossed_by(self, mean: float, *, margin: float) -> bool:
        """Whether a mean is on the bad side, also when it is off by the margin."""
        return mean + margin < self.limit if self.metric == "tokens_per_second" else mean - margin > self.limit


class RolloutPlan(BaseModel):
    """A rollout's plan, fixed once it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    channel: Label = Field(default=STABLE, description="Devices of this channel; stable: of every channel.")
    groups: tuple[Label, ...] = Field(default=(), max_length=64, description="Devices in one of these; none: all.")
    tags: tuple[Label, ...] = Field(default=(), max_length=64, description="Devices that have all of these.")
    phases: tuple[Percentage, ...] = Field(
        default=(100.0,), min_length=1, max_length=32, description="Percentages of the devices, ascending to 100."
    )
    success_threshold: Share = Field(default=0.95, description="Share of reports that must confirm before it goes on.")
    failure_threshold: Annotated[Share, Field(gt=0)] = Field(
        default=0.1, description="Share of reports that failed or reverted at which it halts."
    )
    min_reports: int = Field(
        default=20, ge=1, le=1_000_000, description="Reports a phase needs; fewer where it has fewer devices."
    )
    soak_hours: float = Field(
        default=1.0, ge=0, le=24 * 366, allow_inf_nan=False, description="Hours a phase lasts at least."
    )
    quality: tuple[QualityLimit, ...] = Field(
        default=(), max_length=3, description="Bounds on what devices measured; crossing one halts."
    )
    is_automatic: bool = Field(default=True, description="Whether it goes on by itself; it always halts by itself.")
    not_before: AwareDatetime | None = Field(default=None, description="No device is moved earlier.")
    window: Window | None = Field(
        default=None, description="Daily maintenance window in UTC, as 22:00-04:00; devices are moved only in it."
    )

    @model_validator(mode="after")
    def _check_phases(self) -> Self:
        if any(earlier >= later for earlier, later in pairwise(self.phases)) or self.phases[-1] != 100:  # noqa: PLR2004
            raise ValueError("phases are ascending percentages, and the last one is 100")
        return self

    @property
    def is_for_everybody(self) -> bool:
        """Whether it is for each device of its channel."""
        return not self.groups and not self.tags

    @property
    def soak(self) -> timedelta:
        """How long a phase lasts at least."""
        return timedelta(hours=self.soak_hours)

    def is_window_open(self, now: datetime) -> bool:
        """Whether devices may be moved at this time of day."""
        if self.window is None:
            return True
        opens, closes = _times(self.window)
        at = now.astimezone(UTC).time()
        return opens <= at < closes if opens < closes else at >= opens or at < closes


_EVERYBODY: Final = RolloutPlan()


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a rollout begins: with which plan, and as a draft, running, or finished, which is everybody at once."""

    plan: RolloutPlan = _EVERYBODY
    state: Literal["draft", "running", "finished"] = "finished"


AT_ONCE: Final = Launch()
"""What a release does unless it is told otherwise: each device of the stable channel gets it at its next check."""


def parse_phases(text: str) -> tuple[float, ...]:
    """Phases as people type them, ``10%, 50``: percentages, to which 100 is added where it is not the last.

    Raises:
        InvalidRecordError: These are no numbers. Whether they are ascending percentages, the plan says.
    """
    try:
        phases = tuple(float(part.strip().removesuffix("%")) for part in text.split(","))
    except ValueError:
        raise InvalidRecordError(f"{text!r} are no phases. Write percentages, ascending: 10%,50%.") from None
    return phases if phases[-1] == 100 else (*phases, 100.0)  # noqa: PLR2004 - percent


def parse_plan(**values: object) -> RolloutPlan:
    """A plan from values that somebody typed.

    Raises:
        InvalidRecordError: They do not fit; names the first that does not.
    """
    try:
        return RolloutPlan.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = " ".join(str(part) for part in fault["loc"]) or "plan"
        raise InvalidRecordError(
            f"This is no rollout ({where}): {fault['msg'].removeprefix('Value error, ')}."
        ) from None
