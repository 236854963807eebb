"""Example values of privacy statements and audits for the API's documentation."""

from typing import Any, Final

from server.api.examples import HASH, MODEL, OTHER_HASH, TIME

_KEY: Final = "2f685fa7546f1856b123223ab086b3def14c89d24eef18f49c32508c2f60e241"
_STATEMENT: Final[dict[str, Any]] = {
    "_type": "https://in-toto.io/Statement/v1",
    "subject": [{"name": f"manifests/{MODEL}/3.json", "digest": {"sha256": OTHER_HASH}}],
    "predicateType": "urn:lamella:privacy-statement:1",
    "predicate": {
        "release": {
            "model": MODEL,
            "version": 3,
            "tree_hash": HASH,
            "base_hash": OTHER_HASH,
            "run_id": "run-1",
        },
        "verdict": "within_budget",
        "claim": "No device spent more than ε = 4.0 (δ = 1e-05) on an example of its own.",
        "guarantees": [
            {
                "privacy_unit": "example",
                "epsilon": 4.0,
                "delta": 1e-5,
                "holds_against": "everybody, the server included",
                "budget_epsilon": 8.0,
            }
        ],
        "usefulness": [{"measure": "held-out loss, nats (lower is better)", "before": 2.553, "after": 2.549}],
        "audits": [{"part": "noise", "verdict": "pass"}],
        "evidence": {
            "ledger_sha256": HASH,
            "ledger_head": OTHER_HASH,
            "events": 8,
            "report_sha256": HASH,
            "accountant": "PLD (dp-accounting)",
        },
        "issued_at": TIME,
    },
}
STATEMENT_DETAIL: Final = {
    "keyid": _KEY,
    "holds": True,
    "problem": "",
    "statement": _STATEMENT,
    "files": {"statement.json": HASH, "report.json": HASH, "ledger.jsonl": HASH, "manifest.json": OTHER_HASH},
}
STATEMENT_FILE: Final = {
    "payload": "eyJfdHlwZSI6Imh0dHBz...",
    "payloadType": "application/vnd.in-toto+json",
    "signatures": [{"keyid": _KEY, "sig": "m3p1c0..."}],
}
FINDINGS: Final = {
    "run_id": "run-1",
    "verdict": "pass",
    "findings": [
        {
            "finding": {
                "part": "noise",
                "question": "Is the noise as strong as the run promised?",
                "verdict": "pass",
                "reason": "the interval holds the promised deviation",
                "measured": 1.101,
                "unit": "standard deviations",
                "interval": [1.082, 1.119],
                "claimed": 1.1,
                "sample_size": 8000,
                "sample": "directions that no example points in",
                "control": "noise scaled by 1/64",
                "is_control_caught": True,
                "power": "2% less noise is noticed in 99 of 100 audits",
                "reading": "The noise that was promised was added.",
                "facts": {},
            },
            "asked_for": "canaries",
            "detail": None,
            "recorded_at": TIME,
        }
    ],
}
