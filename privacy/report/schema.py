"""The report's plain values: what JSON holds and the other forms are made from."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from privacy.audits import Finding, MembershipResult  # noqa: TC001 - pydantic reads it
from privacy.audits.finding import EarlierFinding  # noqa: TC001 - the same
from privacy.errors import ReportError
from privacy.event import Identifier, Mechanism, PrivacyEvent, PrivacyUnit  # noqa: TC001 - pydantic reads it
from privacy.noise_shares import NoiseShares  # noqa: TC001 - pydantic reads it
from privacy.utility import GroupChange  # noqa: TC001 - the same

Scalar = str | int | float | bool | None


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class TensorFact(_Part):
    """One tensor of the adapter update that devices send."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int = Field(ge=0)


class UtilityFigure(_Part):
    """What the release is worth: one measure on the parent and on the release, and by group where there are any."""

    name: str
    before: float
    after: float
    measured_on: str = ""
    is_lower_better: bool = True
    groups: tuple[GroupChange, ...] = ()

    @property
    def is_worse(self) -> bool:
        """Whether the release does worse than its parent by this measure."""
        return self.after > self.before if self.is_lower_better else self.after < self.before


class RunFacts(_Part):
    """What happened, told by the operator's registry; only `events` decide about ε.

    `secure_sum`: the run's updates left their devices under masks, and the server saw their sum alone.
    """

    run_id: str
    model: str
    release: str
    parent: str | None = None
    base_hash: str
    rounds_planned: int = Field(ge=0)
    rounds_completed: int = Field(ge=0)
    void_rounds: tuple[int, ...] = ()
    devices_enrolled: int = Field(ge=0)
    secure_sum: bool = False
    settings: dict[str, Scalar] = {}
    update_tensors: tuple[TensorFact, ...] = ()
    incidents: tuple[str, ...] = ()


class DeviceCost(_Part):
    """One device's bill."""

    device_id: str
    epsilon: float
    participations: int
    steps: int
    smallest_noise_multiplier: float
    largest_sampling_probability: float
    largest_clipping_norm: float


class RoundCost(_Part):
    """One round's bill. `epsilon_so_far` is the largest device's total after it; None where a long run left it out."""

    run_id: str
    server_round: int
    participants: int
    epsilon_alone: float
    epsilon_so_far: float | None


class DeviceSeries(_Part):
    """A device's total after each of its rounds: (position of the round in the report's `rounds`, ε)."""

    device_id: str
    points: tuple[tuple[int, float], ...]


class UserCost(_Part):
    """What the users of a population were charged; pairs are the smallest and the largest value.

    `shares` are the different ways in which devices made the noise themselves; `accountant` computed `epsilon`, where
    it is not the report's.
    """

    population: str
    epsilon: float
    epsilon_if_drawing_is_known: float
    target_delta: float
    budget_epsilon: float | None
    rounds: int
    mechanisms: tuple[Mechanism, ...]
    noise_multipliers: tuple[float, float]
    clipping_norms: tuple[float, float]
    sampling_probabilities: tuple[float, float]
    contributions: tuple[int, int]
    participations: dict[int, int]
    shares: tuple[NoiseShares, ...] = ()
    accountant: str | None = None

    @property
    def trusts_server(self) -> bool:
        """Whether any sum had the server's noise alone, so that the server saw contributions."""
        return any(mechanism != "skellam_shares" for mechanism in self.mechanisms)


class SecondOpinion(_Part):
    """ε of the costliest device, or user, by the reported accountant and by two others.

    `prv` is None where that accountant could not tell, or was not installed.
    """

    privacy_unit: PrivacyUnit
    pld: float
    rdp: float
    prv: float | None


class OtherLedger(_Part):
    """The ledger of another model on the same base: how long it was, its head, and which of its runs count."""

    model: Identifier
    events: int = Field(ge=1)
    ledger_head: str
    runs: tuple[Identifier, ...]
    counts_users: bool
    ledger: tuple[PrivacyEvent, ...] = Field(default=(), exclude=True, repr=False)

    @property
    def file_name(self) -> str:
        """Where the ledger lies in a report's folder."""
        return f"ledger-of-{self.model}.jsonl"


class BaseCost(_Part):
    """What the release's devices and users paid with what other models on its base, and on that base's kin, cost them.

    `bases` are the release's base first, then those that it was made from or that were made from it. ε is at the
    budget's δ where there is a budget; None where nobody was charged.
    """

    bases: tuple[str, ...]
    others: tuple[OtherLedger, ...]
    epsilon: float | None
    user_epsilon: float | None


class AuditReport(_Part):
    """Everything the report says, in plain values; `format` counts the schema.

    `ledger_head` is the head of the ledger's chain (`privacy.chain`); None in reports of format 1, which had no chain.
    Reports before format 3 speak of their own model's ledger alone: `base` is None there. Those before format 4 do not
    say whether a run's sums were secure, and have no second opinions.
    """

    format: Literal[1, 2, 3, 4] = 4
    title: str
    created_at: AwareDatetime
    run: RunFacts
    accountant: str
    target_delta: float
    budget_epsilon: float | None
    budget_delta: float | None
    verdict: Literal["within_budget", "over_budget", "no_budget", "no_guarantee", "no_events"]
    epsilon_max: float
    worst_device: str | None
    devices: tuple[DeviceCost, ...]
    rounds: tuple[RoundCost, ...]
    series: tuple[DeviceSeries, ...]
    curve: tuple[tuple[float, float], ...]
    users: UserCost | None = None
    base: BaseCost | None = None
    opinions: tuple[SecondOpinion, ...] = ()
    membership: MembershipResult | None
    findings: tuple[Finding, ...] = ()
    earlier_findings: tuple[EarlierFinding, ...] = ()
    utility: tuple[UtilityFigure, ...]
    leaves_the_device: tuple[tuple[str, str], ...]
    provenance: dict[str, str]
    software: dict[str, str]
    event_count: int
    ledger_sha256: str
    ledger_head: str | None = None
    events: tuple[PrivacyEvent, ...] = Field(default=(), exclude=True, repr=False)

    @property
    def speaks_of_examples(self) -> bool:
        """Whether anything is said per example: not where the only noise protects whole users."""
        return bool(self.devices) or self.users is None

    @property
    def participation_counts(self) -> dict[int, int]:
        """How many devices took part how often, by the unit that the report speaks of."""
        if not self.devices and self.users is not None:
            return self.users.participations
        return dict(sorted(Counter(device.participations for device in self.devices).items()))

    @property
    def overspent_on_base(self) -> tuple[Literal["example", "user"], ...]:
        """The units whose budget does not cover what was spent on the base, all models on it together."""
        if self.base is None:
            return ()
        user_budget = None if self.users is None else self.users.budget_epsilon
        bills: tuple[tuple[Literal["example", "user"], float | None, float | None], ...] = (
            ("example", self.base.epsilon, self.budget_epsilon),
            ("user", self.base.user_epsilon, user_budget),
        )
        return tuple(unit for unit, spent, of in bills if spent is not None and of is not None and spent > of)

    def to_json(self) -> str:
        """The whole report but the events, which `ledger.jsonl` holds."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, raw: str | bytes) -> AuditReport:
        """Parse a `report.json`; its `events` are empty, read them from the ledger beside it.

        Raises:
            ReportError: it is not a report of this format.
        """
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            raise ReportError(
                f"not a privacy report of format 1 to 4: {error.errors(include_url=False)[:3]}"
            ) from error
