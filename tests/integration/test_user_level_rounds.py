"""Both guarantees at once, from real devices' training to the report that anyone recomputes."""

import numpy as np
import pytest
from simulators.text_fleet import device, open_text_registry, text_run, write_text_fleet

from client_sdk.flower_round import simulated_site
from privacy import JsonlLedger
from privacy.__main__ import main as privacy_main
from privacy.budget import PrivacyBudget
from privacy.report import RunFacts, build_report, write_report

DEVICES = 4
RECIPE = {
    "privacy_mode": "both",
    "max_participations": 2,
    "user_target_epsilon": 6.0,
    "user_clipping_norm": 0.5,
}


@pytest.fixture
def fleet(tmp_path):
    """A simulated fleet of four people with text of their own."""
    return write_text_fleet(tmp_path / "fleet", devices=DEVICES)


@pytest.fixture
def registry(fleet, tmp_path):
    opened = open_text_registry(fleet, tmp_path / "home")
    yield opened
    opened.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"privacy_mode": "user"},
        {
            "cohort_sampling": "poisson",
            "sampling_probability": 0.9,
            "clipping_quantile": 0.5,
            "clipping_bit_noise": 50.0,
        },
        {"noise_bands": 2, "min_separation": 2, "cohort": 2, "quorum": 1},
        {"secure_aggregation": True, "cohort": 4, "quorum": 3, "secure_dropouts": 0.0},
    ],
    ids=["both", "user", "poisson-adaptive", "banded", "shares"],
)
def test_a_run_is_charged_to_both_units_and_its_report_recomputes(fleet, registry, tmp_path, changes, capsys):
    nodes = {n: device(fleet, n) for n in range(DEVICES)}
    run = text_run(nodes, fleet, registry, tmp_path / "artifacts", **(RECIPE | changes))
    before = {name: tensor.copy() for name, tensor in run.adapter.items()}
    after = run.execute()
    assert all(np.isfinite(tensor).all() for tensor in after.values())
    assert any((after[name] != before[name]).any() for name in after)
    events = registry.privacy_events(model="chat")
    users = [event for event in events if event.privacy_unit == "user"]
    assert len(users) == 2

    own = [simulated_site(fleet, n).ledger.events() for n in range(DEVICES)]
    if run.recipe.has_example_level:
        # Each device's ledger and the server's say the same of it.
        assert {e.event_id for e in events} - {e.event_id for e in users} <= {e.event_id for of in own for e in of}
    else:
        assert {e.noise_multiplier for of in own for e in of} == {0.0}

    report = build_report(
        title="Report",
        run=RunFacts(
            run_id="run",
            model="chat",
            release="v2",
            base_hash=run.base_hash,
            rounds_planned=2,
            rounds_completed=2,
            devices_enrolled=DEVICES,
        ),
        events=events,
        target_delta=run.recipe.target_delta,
        budget=PrivacyBudget(target_epsilon=8.0, target_delta=1e-5),
        user_budget=registry.user_budget("chat"),
        provenance={},
    )
    assert report.verdict == "within_budget"
    assert report.users is not None
    assert 0 < report.users.epsilon <= 6.0
    assert report.ledger_head == registry.verify_privacy_chain("chat")[-1]
    paths = write_report(report, tmp_path / "report")
    assert "guarantee per user" in paths.markdown.read_text(encoding="utf-8")
    assert privacy_main(["recompute", str(tmp_path / "report")]) == 0
    # A cut end is a sound chain: the head in the report tells.
    lines = paths.ledger.read_bytes().splitlines(keepends=True)
    paths.ledger.write_bytes(b"".join(lines[:-1]))
    assert len(JsonlLedger(paths.ledger).events()) == len(lines) - 1
    assert privacy_main(["recompute", str(tmp_path / "report")]) == 1
    assert "ends at another head" in capsys.readouterr().out
