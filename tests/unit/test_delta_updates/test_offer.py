"""The words between device and service are bounded on both sides."""

import pytest
from pydantic import BaseModel, ValidationError

from delta_updates import (
    EnrolmentFile,
    EnrolReply,
    EnrolRequest,
    Offer,
    Outcome,
    OutcomeReport,
    PackageRef,
    UpdateQuery,
)

_HASH = "a" * 64
_PACKAGE = PackageRef(path="packages/smol/3/from-2.lmpkg", length=10, sha256=_HASH, source_version=2)
_GOOD: list[BaseModel] = [
    EnrolRequest(token="t0ken-_.", name="Ana's phone ∆"),
    EnrolReply(device_id="d-1", credential="c" * 43),
    EnrolmentFile(server_url="http://127.0.0.1:8000", model="smol", token="t", root={"signed": {}, "signatures": []}),
    UpdateQuery(model="smol"),
    UpdateQuery(model="smol", installed_version=2, installed_hash=_HASH, only_full=True),
    _PACKAGE,
    Offer(
        offer_id="o-1",
        model="smol",
        version=3,
        tree_hash=_HASH,
        manifest_path="manifests/smol/3.json",
        package=_PACKAGE,
    ),
    OutcomeReport(offer_id="o-1", version=3, outcome=Outcome.REVERTED, reason="r" * 500, apply_seconds=1.5),
]


@pytest.mark.parametrize("message", _GOOD, ids=lambda message: type(message).__name__)
def test_messages_travel_as_json(message: BaseModel) -> None:
    assert type(message).model_validate_json(message.model_dump_json()) == message
    with pytest.raises(ValidationError):
        type(message).model_validate({**message.model_dump(), "unknown": 1})


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (_GOOD[0], {"name": ""}),
        (_GOOD[0], {"name": "x" * 65}),
        (_GOOD[0], {"name": "two\nlines"}),
        (_GOOD[0], {"token": ""}),
        (_GOOD[0], {"token": "x" * 513}),
        (_GOOD[1], {"credential": "with space"}),
        (_GOOD[2], {"server_url": "file:///etc/passwd"}),
        (_GOOD[2], {"server_url": "http://user@host"}),
        (_GOOD[4], {"installed_version": -1}),
        (_GOOD[4], {"installed_hash": "A" * 64}),
        (_GOOD[5], {"path": "../../etc/passwd"}),
        (_GOOD[5], {"length": -1}),
        (_GOOD[5], {"length": 1e3}),
        (_GOOD[6], {"manifest_path": "/manifests/3.json"}),
        (_GOOD[6], {"version": True}),
        (_GOOD[7], {"reason": "r" * 501}),
        (_GOOD[7], {"apply_seconds": float("nan")}),
        (_GOOD[7], {"outcome": "exploded"}),
    ],
)
def test_fields_are_bounded(message: BaseModel, change: dict) -> None:
    with pytest.raises(ValidationError):
        type(message).model_validate({**message.model_dump(), **change})


def test_outcomes() -> None:
    assert [str(outcome) for outcome in Outcome] == [
        "downloaded",
        "applied",
        "tested",
        "confirmed",
        "reverted",
        "failed",
        "declined",
    ]
