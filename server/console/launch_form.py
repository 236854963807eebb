"""The form that says how a release begins, and the command that does what it says."""

from __future__ import annotations

import shlex
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, StringConstraints

from server.errors import InvalidRecordError
from server.rollouts import STABLE, Launch, RolloutPlan, parse_phases, parse_plan

Typed = Annotated[str, StringConstraints(max_length=500, strip_whitespace=True)]
_USUAL: Final = RolloutPlan()


class LaunchForm(BaseModel):
    """What was typed; shares in percent. Nothing is checked before `launch`, so that a mistake can be shown again.

    ``show`` says that the form was sent; without, the page was only opened.
    """

    model_config = ConfigDict(frozen=True)

    phases: Typed = ""
    soak: Typed = f"{_USUAL.soak_hours:g}"
    success: Typed = f"{100 * _USUAL.success_threshold:g}"
    failure: Typed = f"{100 * _USUAL.failure_threshold:g}"
    min_reports: Typed = str(_USUAL.min_reports)
    channel: Typed = STABLE
    groups: Typed = ""
    tags: Typed = ""
    draft: Typed = ""
    show: Typed = ""

    def launch(self) -> Launch:
        """How the release begins: in phases, as a draft, or for everybody at once where no phases are given.

        Raises:
            InvalidRecordError: Something typed does not fit; says what.
        """
        audience = {"channel": self.channel, "groups": _words(self.groups), "tags": _words(self.tags)}
        if not self.phases and not self.draft:
            return Launch(plan=parse_plan(**audience))
        plan = parse_plan(
            **audience,
            phases=parse_phases(self.phases or "100"),
            soak_hours=_number(self.soak, "The hours of a phase"),
            success_threshold=_number(self.success, "The percentage that must confirm") / 100,
            failure_threshold=_number(self.failure, "The percentage that halts it") / 100,
            min_reports=self.min_reports,
        )
        return Launch(plan=plan, state="draft" if self.draft else "running")


def release_command(run_id: str, launch: Launch) -> str:
    """The command line that releases a run's adapter with this launch, every threshold said."""
    plan, words = launch.plan, ["lamella", "release", run_id]
    if launch.state != "finished":
        words += ["--rollout", ",".join(f"{_short(phase)}%" for phase in plan.phases)]
        words += ["--soak", _short(plan.soak_hours), "--success", _short(plan.success_threshold)]
        words += ["--failure", _short(plan.failure_threshold), "--min-reports", str(plan.min_reports)]
    if plan.channel != STABLE:
        words += ["--channel", plan.channel]
    for group in plan.groups:
        words += ["--group", group]
    for tag in plan.tags:
        words += ["--tag", tag]
    return shlex.join([*words, "--draft"] if launch.state == "draft" else words)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.replace(",", " ").split() if word)


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidRecordError(f"{what} must be a number, not {text!r}.") from None


def _short(value: float) -> str:
    """As people write it, where that is the same number."""
    return text if float(text := f"{value:g}") == value else repr(value)
