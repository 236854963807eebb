"""One round in plain facts: what a device is asked to do, and all that may leave it beside the update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from privacy.errors import ContributionError, InstructionsError
from privacy.event import (
    Delta,
    EventId,
    Identifier,
    PositiveFloat,
    PrivacyEvent,
    PrivacyUnit,
    Probability,
    StepCount,
    new_event_id,
)
from privacy.user_promise import UserPromise

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

ConfigValue = int | float | str | list[str]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
TargetName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


class RoundInstructions(BaseModel):
    """What the server asks of a device in one round; parsed on the device before anything else happens."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    run_id: Identifier
    server_round: int = Field(ge=0)
    base_hash: Sha256
    privacy_unit: PrivacyUnit = Field(
        description="example: noise on the device; user: none there, the device trusts the server to add it"
    )
    clipping_norm: PositiveFloat
    target_epsilon: float = Field(gt=0, le=1000, allow_inf_nan=False)
    target_delta: Delta
    budget_rounds: int = Field(ge=1, le=1_000_000, description="participations the budget must last for")
    steps: int = Field(ge=1, le=100_000)
    batch_size: int = Field(ge=1, le=1_000_000, description="expected size of a Poisson batch")
    learning_rate: PositiveFloat
    max_length: int = Field(ge=2, le=1_000_000, description="tokens of one example")
    max_examples: int = Field(ge=1, le=10_000_000, description="examples one device may use")
    example_counts: Literal["withheld", "told"] = Field(
        default="withheld", description="whether a device tells how many examples it has, or the cap, whatever it has"
    )
    rank: int = Field(ge=1, le=4096)
    alpha: PositiveFloat
    targets: tuple[TargetName, ...] = Field(min_length=1, max_length=32, strict=False)
    gradients: Literal["direct", "hooks", "loop"] = Field(
        description="how per-example gradients are made; equal in what they are"
    )

    secure_norm: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="L2 bound of an update that is summed securely",
    )
    secure_levels: int | None = Field(default=None, ge=1, lt=1 << 31, description="that bound in whole numbers")
    user_promise: UserPromise | None = Field(
        default=None,
        description="what the round promises to whole users, where each device adds its share of the noise",
    )

    @field_validator("targets")
    @classmethod
    def _without_repeats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"a target is named twice in {value}")
        return value

    @field_validator("user_promise", mode="before")
    @classmethod
    def _from_json(cls, value: object) -> object:
        """A config is flat: the promise travels as JSON."""
        return UserPromise.model_validate_json(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _promise_fits(self) -> Self:
        promise = self.user_promise
        if self.secure_norm is not None and self.example_counts == "told":
            raise ValueError("a secure sum hides how many examples a device has")
        if promise is not None and (self.secure_norm is None or self.secure_levels != promise.shares.levels):
            raise ValueError("user_promise goes with a secure sum in its own levels")
        return self

    def sampling_probability_for(self, num_examples: int) -> float:
        """The chance with which each of `num_examples` examples enters a step: batch_size / num_examples, at most 1.

        Raises:
            InstructionsError: there is no example to draw from.
        """
        if num_examples < 1:
            raise InstructionsError(f"a device with {num_examples} examples cannot take part")
        return min(1.0, self.batch_size / num_examples)

    def told_examples(self, num_examples: int) -> int:
        """How many examples a device says it has: the cap, whatever it has, unless the round asks to be told.

        Each example is then drawn with the probability that belongs to the cap: less often than it could be.
        """
        return num_examples if self.example_counts == "told" else self.max_examples

    def to_config(self) -> dict[str, ConfigValue]:
        """A flat mapping of the kind that a Flower ConfigRecord takes."""
        return _flat(self)

    @classmethod
    def from_config(cls, mapping: Mapping[str, object]) -> Self:
        """Parse what a server sent.

        Raises:
            InstructionsError: a field is missing, unknown, of the wrong type or out of bounds.
        """
        try:
            return cls.model_validate(dict(mapping))
        except ValidationError as error:
            raise InstructionsError(f"the round's instructions are not usable: {_problems(error)}") from error


class Contribution(BaseModel):
    """The facts that leave a device beside the adapter update: what the accountant and the server need, and no more.

    No loss, no accuracy, no timing, no text: each would tell something about the data that nobody accounts for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    device_id: Identifier = Field(
        description="whose budget is charged: a pseudonym that the device made at random, once"
    )
    run_id: Identifier = Field(description="which training run the update belongs to")
    server_round: int = Field(ge=0, description="which round it answers, so that late and replayed answers are refused")
    base_hash: Sha256 = Field(description="which base it was trained on; an update for another base is worthless")
    num_examples: int = Field(
        ge=1,
        le=10_000_000,
        description="the cap on examples, whatever the device has; under `example-counts = told` its own capped "
        "number, which is then public. Fixes the sampling probability",
    )
    event_id: EventId = Field(
        default_factory=new_event_id,
        description="random name of the ledger entry, so that both ledgers can be compared",
    )
    noise_multiplier: float = Field(
        ge=0, allow_inf_nan=False, description="noise per step over the clipping norm; accounting needs it"
    )
    sampling_probability: Probability = Field(description="chance of each example to enter a step; accounting needs it")
    steps: StepCount = Field(description="noisy training steps taken; accounting needs it")
    clipping_norm: PositiveFloat = Field(description="largest influence of one example on one step")
    target_delta: Delta = Field(description="the small probability for which the device's budget is stated")

    def event(self, recorded_at: datetime) -> PrivacyEvent:
        """The ledger entry this contribution costs; the same `event_id` on the device and on the server."""
        facts = self.model_dump(exclude={"base_hash", "num_examples"})
        return PrivacyEvent(**facts, recorded_at=recorded_at)

    def to_config(self) -> dict[str, ConfigValue]:
        """A flat mapping of the kind that a Flower ConfigRecord takes."""
        return _flat(self)

    @classmethod
    def from_config(cls, mapping: Mapping[str, object]) -> Self:
        """Parse what a device sent. A device may be broken or hostile: nothing here is taken on trust but the type.

        Raises:
            ContributionError: a field is missing, unknown, of the wrong type or out of bounds.
        """
        try:
            return cls.model_validate(dict(mapping))
        except ValidationError as error:
            raise ContributionError(f"a device's contribution is not usable: {_problems(error)}") from error


# Derived from the class, so that the report's list cannot drift from what is sent.
LEAVES_THE_DEVICE: tuple[tuple[str, str], ...] = tuple(
    (name, field.description or "") for name, field in Contribution.model_fields.items()
)


def _flat(facts: BaseModel) -> dict[str, ConfigValue]:
    return {name: _plain(value) for name, value in facts if value is not None}


def _plain(value: object) -> ConfigValue:
    if isinstance(value, BaseModel):
        return value.model_dump_json()
    plain: ConfigValue = list(value) if isinstance(value, tuple) else value  # type: ignore[assignment]
    return plain


def _problems(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found[:5])
