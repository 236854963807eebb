"""Events of sums whose noise the devices made in shares, of rounds that never were."""

from datetime import UTC, datetime

from privacy import PrivacyEvent
from privacy.noise_shares import ShareRule

# Of 20 shares 15 are counted on; a sum holds 16 at least.
RULE = ShareRule(cohort=20, dropouts=0.2, colluding=0.05, length=10_000)


def event_in_shares(
    server_round: int = 1,
    *,
    devices: int = 16,
    rule: ShareRule = RULE,
    noise: float = 2.0,
    run_id: str = "run-1",
    population: str = "chat",
    target_delta: float = 1e-6,
) -> PrivacyEvent:
    """One sum over devices named device-00, device-01, ..."""
    return PrivacyEvent(
        run_id=run_id,
        server_round=server_round,
        privacy_unit="user",
        population=population,
        devices=tuple(f"device-{n:02}" for n in range(devices)),
        cohort_rule="fixed",
        mechanism="skellam_shares",
        noise_multiplier=noise,
        sampling_probability=1.0,
        steps=1,
        clipping_norm=1.0,
        target_delta=target_delta,
        shares=rule.shares(noise),
        recorded_at=datetime(2026, 3, 1, tzinfo=UTC),
    )
