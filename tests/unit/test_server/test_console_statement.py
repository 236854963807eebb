"""Which units a manifest speaks of."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from simulators.server_home import MODEL, make_manifest

from server.config import Settings
from server.console.statement import PrivacySpent, privacy_spent, privacy_statements
from server.registry import Registry, VersionRecord


def version(**facts: float | str) -> VersionRecord:
    manifest = make_manifest(kind="adapter", parent=1, adapter="b").model_copy(update={"facts": facts})
    return VersionRecord(
        model=MODEL,
        number=2,
        manifest=manifest,
        state="released",
        reason="",
        gate=None,
        run_id="a run that is gone",
        master_sha256=None,
        created_at=datetime(2026, 3, 1, tzinfo=UTC),
        released_at=None,
    )


@pytest.mark.parametrize(
    ("facts", "units"),
    [
        ({}, []),
        ({"epsilon": "a lot"}, []),
        ({"epsilon": 3.0}, [("example", 3.0)]),
        # A user-level run states its ε twice: `epsilon` is that of the user, and no claim about examples.
        ({"privacy_unit": "user", "epsilon": 2.0, "user_epsilon": 2.0}, [("user", 2.0)]),
        ({"privacy_unit": "example", "epsilon": 3.0, "user_epsilon": 2.0}, [("example", 3.0), ("user", 2.0)]),
    ],
)
def test_one_statement_for_each_unit(
    facts: dict[str, float | str], units: list[tuple[str, float]], tmp_path: Path
) -> None:
    (tmp_path / "home").mkdir()
    registry = Registry.open(Settings(home=tmp_path / "home"))
    found = privacy_statements(registry, version(**facts))
    assert [(one.unit, one.epsilon) for one in found] == units
    first = privacy_spent(registry, version(**facts))
    assert (first and (first.unit, first.epsilon)) == (units[0] if units else None)
    registry.close()


@pytest.mark.parametrize(
    ("epsilon", "limit", "share"), [(2.0, 8.0, 0.25), (9.0, 8.0, 1.0), (float("inf"), 8.0, None), (2.0, None, None)]
)
def test_a_share_needs_a_limit_and_a_finite_loss(epsilon: float, limit: float | None, share: float | None) -> None:
    assert PrivacySpent(unit="user", epsilon=epsilon, target_delta=None, limit=limit).share == share
