"""Rollouts: which device gets which version, in which phases, and what stops them. Rules only: no I/O, no clock."""

from server.rollouts.decision import DeviceFacts, Explanation, Release, decide, is_meant_for
from server.rollouts.health import Counts, Decision, Health, Measured, advance, apply, required_reports
from server.rollouts.plan import AT_ONCE, STABLE, Launch, Metric, QualityLimit, RolloutPlan, parse_phases, parse_plan
from server.rollouts.rollout import Rollout, RolloutState, position_of
from server.rollouts.transitions import ACTIONS, Action, change, halted

__all__ = [
    "ACTIONS",
    "AT_ONCE",
    "STABLE",
    "Action",
    "Counts",
    "Decision",
    "DeviceFacts",
    "Explanation",
    "Health",
    "Launch",
    "Measured",
    "Metric",
    "QualityLimit",
    "Release",
    "Rollout",
    "RolloutPlan",
    "RolloutState",
    "advance",
    "apply",
    "change",
    "decide",
    "halted",
    "is_meant_for",
    "parse_phases",
    "parse_plan",
    "position_of",
    "required_reports",
]
