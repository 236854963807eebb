"""What a device tells about a new version's quality, if its owner agreed; what is personal only with noise."""

from __future__ import annotations

import math
import secrets
from typing import TYPE_CHECKING, Final

from delta_updates import Quality

if TYPE_CHECKING:
    from client_sdk.device_config import ReportPolicy
    from client_sdk.health import HealthFacts

_BOUND: Final = 256
_STEPS_PER_NAT: Final = 1024
"""A loss is told in steps of 1/1024 nat, and a change of more than a quarter nat as a quarter nat."""


def quality_of(health: HealthFacts | None, policy: ReportPolicy) -> Quality | None:
    """What the self-test measured, as far as the owner shares it; None when that is nothing.

    Args:
        health: What was measured.
        policy: What the owner agreed to.
    """
    if health is None:
        return None
    speed = health.tokens_per_second if policy.share_speed and health.tokens_per_second > 0 else None
    memory = health.peak_memory_bytes if policy.share_speed else None
    increase = None
    if policy.share_loss and health.probe_loss is not None and health.serving_probe_loss is not None:
        increase = noised_increase(health.probe_loss - health.serving_probe_loss, epsilon=policy.loss_epsilon)
    if speed is None and memory is None and increase is None:
        return None
    return Quality(loss_increase=increase, tokens_per_second=speed, memory_bytes=memory)


def noised_increase(increase: float, *, epsilon: float) -> float:
    """A change of loss, in nats, bounded and with Laplace noise: ε-differentially private for the whole probe.

    Everything is a whole number of steps until the end: noise that is added in floating point can be told from its
    last bits. Sources: C. Dwork et al., Calibrating noise to sensitivity (2006); I. Mironov, On significance of the
    least significant bits for differential privacy (2012); A. Ghosh et al., Universally utility-maximizing privacy
    mechanisms (2009) for the geometric distribution.

    Args:
        increase: New loss less the old one; not finite counts as the worst.
        epsilon: The privacy loss of telling this.
    """
    steps = round(increase * _STEPS_PER_NAT) if math.isfinite(increase) else _BOUND
    steps = max(-_BOUND, min(_BOUND, steps))
    # Another text may move the value from one bound to the other.
    scale = 2 * _BOUND / epsilon
    return (steps + _geometric(scale) - _geometric(scale)) / _STEPS_PER_NAT


def _geometric(scale: float) -> int:
    """How many failures before the first success, each having the probability exp(-1/scale); cryptographic."""
    uniform = (secrets.randbits(53) + 1) / (1 << 53)  # in (0, 1]
    return math.floor(-math.log(uniform) * scale)
