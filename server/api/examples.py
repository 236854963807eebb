"""Example values for the API's documentation, each written once."""

from typing import Any, Final

HASH: Final = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
OTHER_HASH: Final = "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752"
MODEL: Final = "smollm2-135m"
TIME: Final = "2026-03-01T12:00:00Z"
DEVICE_ID: Final = "3d0f1c6a5b8e4e0f9c1b2a3d4e5f6071"
OFFER_ID: Final = "7a1c0f4e2b9d4c3e8f5a6b7c8d9e0f10"
PACKAGE_PATH: Final = f"packages/{MODEL}/3/from-2.lmpkg"
MANIFEST_PATH: Final = f"manifests/{MODEL}/3.json"

OFFER: Final = {
    "offer_id": OFFER_ID,
    "model": MODEL,
    "version": 3,
    "tree_hash": HASH,
    "manifest_path": MANIFEST_PATH,
    "package": {"path": PACKAGE_PATH, "length": 1_482_113, "sha256": OTHER_HASH, "source_version": 2},
}
DEVICE: Final = {
    "device_id": DEVICE_ID,
    "name": "kitchen-tablet",
    "model": MODEL,
    "enrolled_at": TIME,
    "last_seen_at": TIME,
    "revoked_at": None,
    "installed_version": 2,
    "installed_hash": OTHER_HASH,
}
ENROLMENT_TOKEN: Final = {
    "token_id": 7,
    "model": MODEL,
    "created_at": TIME,
    "expires_at": "2026-03-02T12:00:00Z",
    "used_at": None,
    "device_id": None,
    "max_uses": 1,
    "uses": 0,
    "revoked_at": None,
}
PACKAGE: Final = {
    "model": MODEL,
    "version": 3,
    "source_version": 2,
    "path": PACKAGE_PATH,
    "length": 1_482_113,
    "sha256": OTHER_HASH,
    "facts": {"ratio": 0.0053, "build_seconds": 0.4},
}
VERSION: Final = {
    "model": MODEL,
    "number": 3,
    "manifest": {
        "format": 1,
        "model": MODEL,
        "version": 3,
        "kind": "adapter",
        "parent": 2,
        "base_hash": OTHER_HASH,
        "tree_hash": HASH,
        "files": [{"path": "adapter/adapter_config.json", "length": 412, "sha256": OTHER_HASH}],
        "created_at": TIME,
        "facts": {"run": "run-1", "epsilon": 4.0},
    },
    "state": "released",
    "reason": "",
    "gate": {
        "candidate_loss": 2.549,
        "parent_loss": 2.553,
        "margin": 0.02,
        "groups": [
            {"name": "recipes", "examples": 40, "people": 12, "before": 2.6, "after": 2.58, "low": -0.05, "high": 0.01}
        ],
        "worst_group_margin": 0.05,
    },
    "run_id": "run-1",
    "master_sha256": OTHER_HASH,
    "created_at": TIME,
    "released_at": TIME,
}
RUN: Final = {
    "run_id": "run-1",
    "model": MODEL,
    "recipe": {"cohort": 4, "num-server-rounds": 2},
    "base_version": 1,
    "base_hash": OTHER_HASH,
    "parent_version": 2,
    "status": "completed",
    "reason": "",
    "started_at": TIME,
    "finished_at": TIME,
}
ROUND: Final = {
    "run_id": "run-1",
    "server_round": 1,
    "status": "released",
    "replies": 4,
    "failures": {"17": "no reply within 600 s"},
    "held_out_loss": 2.561,
    "artifacts": {"adapter": HASH},
    "facts": {
        "seconds": 12.5,
        "aggregation": "median",
        "refused": {"no-reply": 1},
        "set_aside": [],
        "norms": {
            "count": 4,
            "smallest": 0.41,
            "lower_quartile": 0.47,
            "median": 0.5,
            "upper_quartile": 0.52,
            "largest": 0.55,
            "outliers": {},
        },
    },
    "recorded_at": TIME,
}
HEALTH: Final = {"refused": {"no-reply": 1}, "repeated_outliers": {}, "set_aside": {}, "masked": {}}
EVENT_ID: Final = "0f8fad5bd9cb469fa16570867728950e"
PRIVACY_EVENT: Final = {
    "event_id": EVENT_ID,
    "run_id": "run-1",
    "server_round": 1,
    "device_id": "user-17",
    "privacy_unit": "example",
    "mechanism": "poisson_subsampled_gaussian",
    "noise_multiplier": 1.1,
    "sampling_probability": 0.08,
    "steps": 20,
    "clipping_norm": 1.0,
    "target_delta": 1e-5,
    "recorded_at": TIME,
}
REPORT: Final = {
    "offer_id": OFFER_ID,
    "device_id": DEVICE_ID,
    "version": 3,
    "outcome": "confirmed",
    "reason": "",
    "bytes_downloaded": 1_482_113,
    "apply_seconds": 0.9,
    "received_at": TIME,
}
PAST_OFFER: Final = {
    "offer_id": OFFER_ID,
    "device_id": DEVICE_ID,
    "model": MODEL,
    "version": 3,
    "package_path": PACKAGE_PATH,
    "offered_at": TIME,
    "rollout_id": 7,
}

OPERATOR: Final = {
    "name": "ada",
    "role": "publisher",
    "has_password": True,
    "created_at": TIME,
    "removed_at": None,
}
AUDIT_ENTRY: Final = {
    "position": 12,
    "at": TIME,
    "actor": "ada",
    "via": "rest",
    "action": "device.revoke",
    "subject": DEVICE_ID,
    "outcome": "done",
    "previous": OTHER_HASH,
    "digest": HASH,
}


def answer(description: str, example: Any, *, media_type: str = "application/json") -> dict[str, Any]:  # noqa: ANN401
    """An OpenAPI response with its example."""
    return {"description": description, "content": {media_type: {"example": example}}}


def page(item: Any, *, cursor: str) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    """A page of one item, with more to come."""
    return {"items": [item], "next": cursor}
