"""The claim in a sentence, and what it means to somebody who has never heard of ε."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from privacy.audits.attack_figures import CLAIMED_AT_FPR
from privacy.promises import runs_without_noise
from privacy.report.base import told_on_base
from privacy.report.blocks import Paragraph, Section, number, probability

if TYPE_CHECKING:
    from privacy.report.blocks import Block
    from privacy.report.schema import AuditReport, UserCost

_NEARLY_SURE = 0.999
_HOW_TO_READ = (
    "How to read ε: up to 1 is a strong guarantee, up to 10 a reasonable one in practice, above 10 weak (Ponomareva et "
    "al. 2023). A measured attack shows what is possible today; the guarantee also covers attacks that nobody has "
    "thought of yet."
)
_NOT_TOWARDS_SERVER = "Nothing is claimed towards the server, which saw the updates."
_TOWARDS_HONEST_SERVER = (
    "The server saw noisy sums alone; towards one that invents devices, or that more devices work with than the report "
    "says, nothing is claimed."
)


def claim_of(report: AuditReport) -> str:
    """What is promised, in one sentence or two; and one more where other models on the base cost the same people."""
    on_base = told_on_base(report)
    return f"{_own_claim(report)} It comes to {on_base}." if on_base else _own_claim(report)


def _own_claim(report: AuditReport) -> str:
    if report.devices:
        return _per_example(report)
    if report.users is not None:
        return _per_user(report, report.users)
    if not report.events:
        return "No device trained, so nothing is claimed."
    return "No claim is made: some runs had no noise for single examples, and others none for whole users."


def _per_user(report: AuditReport, users: UserCost) -> str:
    if math.isinf(users.epsilon):
        return "No claim is made: at least one sum was released without noise, and can reveal a user's contribution."
    return (
        f"The releases are ({number(users.epsilon)}, {probability(users.target_delta)})-"
        f"differentially private for each user's whole contribution, for {_who_sees(users)}. "
        + (_NOT_TOWARDS_SERVER if users.trusts_server else _TOWARDS_HONEST_SERVER)
        + _no_more_per_example(report)
    )


def _per_example(report: AuditReport) -> str:
    if math.isinf(report.epsilon_max):
        return "No claim is made: without noise, what a device sends can reveal its examples."
    per_example = (
        f"For each of the {len(report.devices)} devices that trained, everything that left it for this release is "
        f"({number(report.epsilon_max)}, {probability(report.target_delta)})-differentially private for each single "
        "training example of that device (neighbouring: one example added or removed). It holds against everyone, the "
        "server included, and for whatever is later computed from it: the updates, the release and all that follows."
    )
    if report.users is None or math.isinf(report.users.epsilon):
        return per_example + _no_more_per_user(report)
    return (
        f"{per_example} Besides, the releases are ({number(report.users.epsilon)}, "
        f"{probability(report.users.target_delta)})-differentially private for each user's whole contribution, for "
        f"{_who_sees(report.users)}; the two are never added up."
    )


def _no_more_per_example(report: AuditReport) -> str:
    """Why nothing is promised per example, where runs before did."""
    if not any(event.privacy_unit == "example" for event in report.events):
        return ""
    runs = ", ".join(runs_without_noise(report.events, "example"))
    return f" Nothing is claimed for single examples any more: updates of {runs} left without the devices' own noise."


def _no_more_per_user(report: AuditReport) -> str:
    """Why nothing is promised to whole users, where some runs did."""
    if report.users is not None or not any(event.privacy_unit == "user" for event in report.events):
        return ""
    runs = ", ".join(runs_without_noise(report.events, "user"))
    return f" Nothing is claimed for whole users: sums of {runs} had no noise for them."


def _who_sees(users: UserCost) -> str:
    """Against whom the guarantee per user holds."""
    if users.trusts_server:
        return "everyone who sees releases and not the server's own records"
    return "everyone who sees releases, and the server as long as it keeps to the protocol"


def meaning_section(report: AuditReport) -> Section:
    """The claim, and how strong an attacker it leaves."""
    blocks: list[Block] = []
    is_odds_told = False
    if report.speaks_of_examples:
        blocks.append(Paragraph(_promise("training example on any one device", "without it")))
        if report.devices and math.isfinite(report.epsilon_max):
            blocks.append(Paragraph(_odds(report.epsilon_max, report.target_delta, of="example")))
            is_odds_told = True
    if report.users is not None:
        blocks.append(Paragraph(_promise("user, with all that one device ever contributed", "without that user")))
        if math.isfinite(report.users.epsilon):
            blocks.append(Paragraph(_odds(report.users.epsilon, report.users.target_delta, of="user")))
            is_odds_told = True
    if is_odds_told:
        blocks.append(Paragraph(_HOW_TO_READ))
    return Section("The claim, and what it means", (Paragraph(claim_of(report)), *blocks))


def _promise(one: str, without: str) -> str:
    return (
        f"Take any one {one}. Differential privacy promises that the release would have come out almost the same "
        f"{without}. ε says how far “almost” goes: smaller is better. δ is the small probability that the promise does "
        "not hold."
    )


def _odds(epsilon: float, delta: float, *, of: Literal["example", "user"]) -> str:
    """The strongest attacker's success, from ε alone (Wasserman, Zhou 2010; Kairouz, Oh, Viswanath 2015)."""
    used = "one example was used" if of == "example" else "one user's contribution was used"
    odds = math.exp(min(epsilon, 700.0))
    right = (odds + delta) / (1 + odds)
    traced = min(1.0, odds * CLAIMED_AT_FPR + delta)
    if right > _NEARLY_SURE:
        return (
            f"An attacker who knows everything but whether {used} is not stopped by this proof alone: "
            "at this ε it allows such an attacker to be right almost always. Real attackers know less; how they fare "
            "can be measured, not proved."
        )
    return (
        f"An attacker who knows everything but whether {used}, and would otherwise guess with even odds, "
        f"is right with probability {right:.1%} at most. With a false-alarm rate of {CLAIMED_AT_FPR:.1%} the proof "
        f"allows tracing at most {traced:.2%} of {of}s."
    )
