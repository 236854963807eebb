"""What happened to people's data: one event a noisy mechanism, for either privacy unit."""

from __future__ import annotations

from datetime import UTC, datetime
from math import isclose
from typing import Annotated, Final, Literal, Self
from uuid import uuid4

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from privacy.noise_shares import NoiseShares  # noqa: TC001 - pydantic reads it

Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$")]
EventId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Probability = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Delta = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
StepCount = Annotated[int, Field(ge=1, le=10_000_000)]

PrivacyUnit = Literal["example", "user"]
UNITS: Final[tuple[PrivacyUnit, ...]] = ("example", "user")
CohortRule = Literal["poisson", "fixed"]
Mechanism = Literal["poisson_subsampled_gaussian", "gaussian_capped", "banded_toeplitz_gaussian", "skellam_shares"]

MAX_DEVICES: Final = 100_000
_OF_USERS: Final = ("population", "cohort_rule", "devices")


def new_event_id() -> str:
    """A fresh random identifier: 32 hexadecimal digits."""
    return uuid4().hex


class PrivacyEvent(BaseModel):
    """One noisy mechanism in one round: everything the accountant needs, and nothing about the data.

    Per example (`privacy_unit` "example"): the training of `device_id`, in `steps` steps.
    `sampling_probability` is the chance with which each example entered each step, independently.

    Per user (`privacy_unit` "user"): the noisy sum over `devices`, the ones of `population` whose contribution the
    round used or may have used. With `cohort_rule` "poisson" every device of the population was drawn independently
    with `sampling_probability`. With "fixed" nothing is assumed about who was drawn: the probability is 1, and each
    device pays for its own participations. `banded_toeplitz_gaussian` is noise that is correlated over the rounds of a
    run, in `bands` bands (`privacy.banded_matrix`). `skellam_shares` is noise that the devices made together under a
    secure sum, as `shares` says; who took part is then public, and a user's contributions are neighbour to zeros in
    their place.

    `noise_multiplier` is the noise's standard deviation over `clipping_norm` (per user: of the noise in the whole sum,
    before anything is divided); 0 is honest and costs ε = infinity. The two units are never added up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    event_id: EventId = Field(default_factory=new_event_id)
    run_id: Identifier
    server_round: int = Field(ge=0)
    privacy_unit: PrivacyUnit = "example"
    device_id: Identifier | None = None
    population: Identifier | None = None
    devices: tuple[Identifier, ...] | None = Field(default=None, max_length=MAX_DEVICES)
    cohort_rule: CohortRule | None = None
    mechanism: Mechanism = "poisson_subsampled_gaussian"
    noise_multiplier: float = Field(ge=0, allow_inf_nan=False)
    sampling_probability: Probability
    steps: StepCount
    bands: int | None = Field(default=None, ge=2, le=1024)
    shares: NoiseShares | None = None
    clipping_norm: PositiveFloat
    target_delta: Delta
    recorded_at: AwareDatetime

    @field_validator("recorded_at")
    @classmethod
    def _in_utc(cls, value: datetime) -> datetime:
        return value.astimezone(UTC)

    @field_validator("devices")
    @classmethod
    def _each_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError("a device is named twice")
        return None if value is None else tuple(sorted(value))

    @model_validator(mode="after")
    def _of_one_unit(self) -> Self:
        problem = _problem_per_example(self) if self.privacy_unit == "example" else _problem_per_user(self)
        if problem is not None:
            raise ValueError(f"an event per {self.privacy_unit} {problem}")
        return self

    @property
    def contributions(self) -> int:
        """How many devices' contributions were in the sum: 1 for an event per example."""
        return 1 if self.devices is None else len(self.devices)


def _problem_per_example(event: PrivacyEvent) -> str | None:
    if event.device_id is None:
        return "names its device_id"
    if any(getattr(event, name) is not None for name in (*_OF_USERS, "bands", "shares")):
        return f"has no {', '.join(_OF_USERS)}, bands or shares"
    return None if event.mechanism == "poisson_subsampled_gaussian" else f"is never of mechanism {event.mechanism}"


def _problem_per_user(event: PrivacyEvent) -> str | None:
    if event.device_id is not None or any(getattr(event, name) is None for name in _OF_USERS):
        return f"has {', '.join(_OF_USERS)}, and no device_id"
    if event.steps != 1:
        return "is one noisy sum, steps = 1"
    if (event.mechanism == "poisson_subsampled_gaussian") != (event.cohort_rule == "poisson"):
        return f"of mechanism {event.mechanism} does not go with a {event.cohort_rule} cohort"
    if event.cohort_rule == "fixed" and event.sampling_probability < 1:
        return "with a fixed cohort gets no credit for sampling: its sampling_probability is 1"
    return _problem_with_noise(event)


def _problem_with_noise(event: PrivacyEvent) -> str | None:
    if (event.mechanism == "banded_toeplitz_gaussian") != (event.bands is not None):
        return "names bands exactly when its noise is banded"
    if (event.mechanism == "skellam_shares") != (event.shares is not None):
        return "names shares exactly when its noise was made in shares"
    return None if event.shares is None else _problem_with_shares(event, event.shares)


def _problem_with_shares(event: PrivacyEvent, shares: NoiseShares) -> str | None:
    if not isclose(event.noise_multiplier, shares.noise_multiplier, rel_tol=1e-9):
        return f"says noise {event.noise_multiplier}, and its shares make {shares.noise_multiplier}"
    # In a plan nobody, in a device's own ledger it alone. In a sum never so few that there were less noise than was
    # promised, nor more than were asked.
    if len(event.devices or ()) > 1 and not shares.fewest <= len(event.devices or ()) <= shares.cohort:
        return f"has the shares of {event.contributions} devices, not of {shares.fewest} to {shares.cohort}"
    return None
