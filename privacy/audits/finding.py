"""What an audit says: a verdict with the value, interval, sample, control and power that it rests on."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, WithJsonSchema
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Iterable

CONFIDENCE = 0.95
# An audit stops a release only where chance would speak so loudly once in a thousand times.
CERTAINTY = 0.999

# JSON has no infinity: an open bound is written as a word, and described so.
Value = Annotated[float, WithJsonSchema({"anyOf": [{"type": "number"}, {"enum": ["Infinity", "-Infinity", "NaN"]}]})]
Interval = tuple[Value, Value]


class Verdict(StrEnum):
    """What a measurement says about a claim."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class Finding(BaseModel):
    """One audit's result, complete enough to be judged without its code.

    `measured` lies in `interval` with 95% confidence (one-sided bounds have an open end). `control` says what was made
    faulty on purpose and whether this audit saw it: `is_control_caught` False makes a silent audit inconclusive.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    part: str = Field(pattern=r"^[a-z][a-z0-9-]{0,40}$")
    question: str
    verdict: Verdict
    reason: str
    measured: Value
    unit: str
    interval: Interval
    claimed: Value | None = None
    sample_size: int = Field(ge=0)
    sample: str
    control: str
    is_control_caught: bool | None
    power: str
    reading: str
    facts: dict[str, Value] = {}


class EarlierFinding(BaseModel):
    """What an audit had found before it was made again: an audit that is repeated until it passes must show."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str
    verdict: Verdict
    reason: str
    recorded_at: AwareDatetime


def worst_verdict(findings: Iterable[Finding]) -> Verdict | None:
    """Fail before inconclusive before pass; None: nothing was measured."""
    found = {finding.verdict for finding in findings}
    return next((v for v in (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS) if v in found), None)


def clopper_pearson(hits: int, trials: int, *, confidence: float = CONFIDENCE) -> Interval:
    """The exact two-sided interval of a proportion: covers any truth with at least `confidence`.

    Source: Clopper, Pearson, "The Use of Confidence or Fiducial Limits", Biometrika 1934.
    """
    tail = (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, hits, trials - hits + 1)) if hits > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high


def one_sided(hits: int, trials: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Two bounds of a proportion that each hold with `confidence` (not jointly)."""
    return clopper_pearson(hits, trials, confidence=2 * confidence - 1)
