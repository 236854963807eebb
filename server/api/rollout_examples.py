"""Example values of rollouts for the API's documentation, each written once."""

from typing import Final

from server.api.examples import DEVICE, DEVICE_ID, MODEL, TIME

PLAN: Final = {
    "channel": "stable",
    "groups": ["pilot"],
    "tags": [],
    "phases": [10.0, 50.0, 100.0],
    "success_threshold": 0.95,
    "failure_threshold": 0.1,
    "min_reports": 20,
    "soak_hours": 4.0,
    "quality": [{"metric": "loss_increase", "limit": 0.05}],
    "is_automatic": True,
    "not_before": None,
    "window": "22:00-04:00",
}
ROLLOUT: Final = {
    "rollout_id": 7,
    "model": MODEL,
    "version": 3,
    "plan": PLAN,
    "state": "running",
    "phase": 1,
    "phase_started_at": TIME,
    "phase_devices": 400,
    "reason": "phase 1 (10%): 100.0% of 97 devices succeeded",
    "revision": 2,
    "created_at": TIME,
}
PROGRESS: Final = {
    "rollout": ROLLOUT,
    "phase": {"offered": 31, "confirmed": 24, "reverted": 0, "failed": 1, "declined": 2},
    "total": {"offered": 131, "confirmed": 121, "reverted": 0, "failed": 1, "declined": 2},
    "quality": {"loss_increase": {"mean": -0.012, "devices": 64, "standard_error": 0.009}},
    "remaining": 869,
    "outlook": "phase 2 (50%) soaks until 2026-03-01 16:00 UTC",
}
FAILURE: Final = {"outcome": "failed", "reason": "the disk is full: 231 MB are needed, 90 MB are free", "reports": 1}
DECLINE: Final = {
    "outcome": "declined",
    "reason": "v3 of 'smollm2-135m' is not taken: this device accepts ε of at most 2 per unit",
    "reports": 2,
}
CHANGE: Final = {"revision": 1, "state": "running", "phase": 0, "reason": "started", "changed_at": TIME}
MOVE: Final = {
    "model": MODEL,
    "channel": "stable",
    "position": 3,
    "version": 3,
    "rollout_id": 7,
    "reason": "rollout 7 is finished",
    "moved_at": TIME,
}
POLICY: Final = {
    "device_id": DEVICE_ID,
    "channel": "stable",
    "group": "pilot",
    "tags": ["kitchen"],
    "is_opted_out": False,
    "forced_version": 4,
}
EXPLANATION: Final = {
    "device": DEVICE,
    "policy": POLICY,
    "explanation": {
        "version": 3,
        "is_move": True,
        "reasons": ["v3: rollout 7 is at 10% of its devices, and this one is among them."],
        "rollout_id": 7,
    },
    "packages": [
        "It gets the delta from v2, 0.170 MB.",
        "Not the full package: its 224.8 MB are more to fetch.",
        "It last said that 5.1 GB of its disk are free for an update.",
    ],
}
