"""What a release did to a group of people: a plain value for gates, reports and statements. Light: devices read it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_GROUPS = 32
Loss = Annotated[float, Field(allow_inf_nan=False)]


class GroupChange(BaseModel):
    """The held-out loss of one group of text, before and after, in nats for each token of an answer.

    Attributes:
        name: The label in the data.
        examples: How many there are of it.
        people: How many people wrote them; None where that was not looked at.
        before, after: Mean losses of the version before and of this one, on the same examples.
        low, high: Between these the mean change lies with 95% confidence, as other people would show it too; None where
            there are too few to say.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: Annotated[str, Field(min_length=1, max_length=64)]
    examples: Annotated[int, Field(ge=1)]
    people: Annotated[int, Field(ge=1)] | None = None
    before: Loss
    after: Loss
    low: Loss | None = None
    high: Loss | None = None

    @property
    def change(self) -> float:
        """How much the loss rose; below 0: it fell."""
        return self.after - self.before

    @property
    def is_worse(self) -> bool:
        """Whether the loss rose beyond what chance explains."""
        return self.low is not None and self.low > 0
