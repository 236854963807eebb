"""A home with something to see on every page of the console: ten days of a small fleet."""

from __future__ import annotations

import random
import shutil
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from simulators.server_home import MODEL, Clock, Home, make_event, open_home, write_adapter

from delta_updates import OutcomeReport
from privacy.audits import Finding, Verdict
from server.publishing import Gate, create_candidate
from server.registry import Registry, Role
from server.rollouts import Launch, RolloutPlan

if TYPE_CHECKING:
    from pathlib import Path

PASSWORD = "correct horse battery"
RUN = "spring-tuning"
NEXT_RUN = "summer-tuning"  # its candidate, v6, passed the gate and waits
DEVICES = 24


def seed_console(three_versions: Path, folder: Path) -> Path:
    """Copy a home with three releases to ``folder`` and let devices, runs and operators live in it."""
    shutil.copytree(three_versions, folder)
    home = open_home(folder)
    clock = Clock()
    clock.time = datetime.now(UTC) - timedelta(days=10)
    home.registry.close()
    home.registry = registry = Registry.open(home.settings, now=clock)
    for name, role in (("ada", Role.ADMIN), ("paul", Role.PUBLISHER), ("vera", Role.VIEWER)):
        registry.add_operator(name, role=role, password=PASSWORD)
    registry.add_operator("ci", role=Role.PUBLISHER)
    registry.create_operator_token("ci", label="nightly release", valid_for=timedelta(days=90))
    registry.record_audit(
        actor="grace", via="cli", action="version.release", subject=f"{MODEL}, run {RUN}", outcome="done"
    )
    _train(registry, clock)
    _release(home)
    _wait(home, clock)
    _live(registry, clock)
    registry.close()
    return folder


def _train(registry: Registry, clock: Clock) -> None:
    base = registry.version(MODEL, 1).manifest.base_hash
    recipe = {
        "model": MODEL,
        "cohort": 4,
        "target-epsilon": 8.0,
        "target-delta": 1e-5,
        "num-server-rounds": 6,
        "local-steps": 20,
    }
    registry.create_run(RUN, model=MODEL, recipe=recipe, base_version=1, base_hash=base, parent_version=2)
    for number in range(1, 7):
        clock.advance(minutes=7)
        is_void = number == 4
        registry.record_round(
            RUN,
            number,
            status="void" if is_void else "released",
            replies=1 if is_void else 4,
            failures={"7": "the update's norm is 812.0, above 100"} if is_void else {},
            held_out_loss=None if is_void else 2.62 - 0.03 * number + 0.008 * (number % 2),
            events=[make_event(RUN, number, device_id=f"user-{device}") for device in range(2)],
            artifacts={},
            facts={"seconds": 12.5},
        )
    registry.finish_run(RUN, status="completed")
    registry.create_run("cut-short", model=MODEL, recipe=recipe, base_version=1, base_hash=base, parent_version=3)
    registry.finish_run(
        "cut-short", status="failed", reason="3 rounds in a row were void (fewer than 2 usable replies)."
    )


def _release(home: Home) -> None:
    """v4 from the run, and v5 beside it, which is worse and rejected."""
    facts = {"run": RUN, "epsilon": 3.1271, "target_delta": 1e-5, "held_out_loss": 1.98, "privacy_unit": "example"}
    for seed in (3, 4):
        adapter = home.folder / f"adapter-{seed}"
        write_adapter(adapter, seed=seed)
        create_candidate(home.registry, home.artifacts, model=MODEL, adapter=adapter, parent=3, facts=facts, run_id=RUN)
    plan = RolloutPlan(phases=(25, 50, 100), soak_hours=24 * 30, min_reports=8, failure_threshold=0.5)
    home.publish(4, loss=1.98, launch=Launch(plan=plan, state="running"))
    home.registry.record_gate(MODEL, 5, Gate(margin=0.1).judge(candidate_loss=2.4, parent_loss=2.0))
    home.registry.reject(MODEL, 5, "evaluation gate refused: held-out loss 2.4000, parent 2.0000, margin 0.1000")


def make_finding(part: str, *, verdict: Verdict = Verdict.PASS, is_control_caught: bool | None = True) -> Finding:
    """What an audit could have found."""
    return Finding(
        part=part,
        question="Is there as much noise as the ledger says?",
        verdict=verdict,
        reason="the noise is that of the ledger" if verdict is Verdict.PASS else "a <tenth> of the noise is missing",
        measured=0.998,
        unit="times",
        interval=(0.97, 1.02),
        claimed=1.0,
        sample_size=400,
        sample="400 values",
        control="noise of half the size",
        is_control_caught=is_control_caught,
        power="sees a twentieth less",
        reading="1 is what was promised",
    )


def _wait(home: Home, clock: Clock) -> None:
    """A second run whose candidate passed the gate, and audits of both runs."""
    registry = home.registry
    base = registry.version(MODEL, 1).manifest.base_hash
    recipe = {"cohort": 4, "target-epsilon": 8.0, "target-delta": 1e-5, "num-server-rounds": 1}
    registry.create_run(NEXT_RUN, model=MODEL, recipe=recipe, base_version=1, base_hash=base, parent_version=4)
    clock.advance(minutes=7)
    registry.record_round(
        NEXT_RUN,
        1,
        status="released",
        replies=4,
        failures={},
        held_out_loss=1.96,
        events=[make_event(NEXT_RUN, 1)],
        artifacts={},
        facts={"seconds": 12.5},
    )
    registry.finish_run(NEXT_RUN, status="completed")
    write_adapter(home.folder / "adapter-6", seed=6)
    create_candidate(
        registry,
        home.artifacts,
        model=MODEL,
        adapter=home.folder / "adapter-6",
        parent=4,
        facts={
            "run": NEXT_RUN,
            "privacy_unit": "example",
            "epsilon": 3.3,
            "target_delta": 1e-5,
            "user_epsilon": 6.1,
            "user_target_delta": 1e-6,
        },
        run_id=NEXT_RUN,
    )
    registry.record_gate(MODEL, 6, Gate(margin=0.1).judge(candidate_loss=1.95, parent_loss=1.98))
    registry.record_findings(RUN, "example", [make_finding("noise-example")])
    registry.record_findings(
        NEXT_RUN,
        "example",
        [
            make_finding("noise-example"),
            make_finding("clipping-example", verdict=Verdict.INCONCLUSIVE, is_control_caught=False),
        ],
    )


def _live(registry: Registry, clock: Clock) -> None:
    draws = random.Random(5)
    token, _ = registry.create_enrolment_token(MODEL, valid_for=timedelta(days=30), uses=DEVICES + 6)
    devices = []
    for number in range(DEVICES):
        clock.advance(hours=draws.uniform(0, 3))
        device, _ = registry.enrol(token, name=f"tablet-{number:02d}")
        devices.append(device.device_id)
        _update(registry, clock, device.device_id, 1, "confirmed")
    for target in (2, 3, 4):
        for device_id in draws.sample(devices, DEVICES - 5 * (target - 1)):
            clock.advance(hours=draws.uniform(0, 4))
            outcome = draws.choices(("confirmed", "reverted", "failed"), (12, 1, 1))[0]
            _update(registry, clock, device_id, target, outcome)
    registry.revoke_device(devices[0])


def _update(registry: Registry, clock: Clock, device_id: str, version: int, outcome: str) -> None:
    registry.record_check(
        device_id, installed_version=registry.device(device_id).installed_version, installed_hash=None
    )
    package = registry.packages(MODEL, version)[0]
    rollout = registry.rollouts(model=MODEL, limit=1)[0]
    offer = registry.record_offer(
        device_id,
        model=MODEL,
        version=version,
        package_path=package.path,
        rollout_id=rollout.rollout_id if rollout.version == version else None,
    )
    reason = {"reverted": "self-test: logits differ by 0.31", "failed": "the disk is full", "confirmed": ""}[outcome]
    report = {"bytes_downloaded": package.length, "apply_seconds": 0.4, "reason": reason}
    for told in ("downloaded", "applied", outcome) if outcome == "confirmed" else (outcome,):
        registry.record_outcome(
            device_id,
            OutcomeReport.model_validate({"offer_id": offer.offer_id, "version": version, "outcome": told, **report}),
        )
